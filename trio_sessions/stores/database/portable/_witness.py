"""The rows of workers: their histories, their beats, their stamps; and the fleet's doubt.

Each method is part of a transaction that has the rows to itself: what it has read is still true
when it writes.
"""

from dataclasses import asdict, dataclass
from typing import TypeGuard

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores._lease import DOUBT
from trio_sessions.stores.database._clock import ago, now
from trio_sessions.stores.database._questions import all_own, identity
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._fleet import vouch
from trio_sessions.stores.database.portable._grammar import Grammar
from trio_sessions.types import Begun, Presence, Stamp

__all__ = ["Seen", "Witness", "goes_on"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The workers, as a look at their rows has shown them."""

    stamp: Stamp | None
    """Of the worker that looks; None: it has no row."""
    rows: int
    """How many rows its incarnation has."""
    longest_ttl: float
    """The longest ``session_ttl`` of all workers."""
    some_are_ahead: bool
    """Moments in the future: the clock was set back."""


class Witness:
    """The rows of workers in one set of tables, read and written."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        row, worker, fleet = tables.sessions.c, tables.workers.c, tables.fleet
        mine = worker.incarnation == sa.bindparam("own_incarnation")
        is_ahead = sa.or_(worker.stamped_at > now(), worker.passed_at > now())
        self._find = sa.select(worker.history, worker.beat).where(mine)
        others = tables.workers.alias()
        once = sa.select(sa.literal_column("1").label("once")).subquery("once")
        self._look = sa.select(
            worker.history,
            worker.beat,
            sa.select(sa.func.count(row.session_id)).where(all_own(tables)).scalar_subquery(),
            sa.select(sa.func.max(others.c.session_ttl)).scalar_subquery(),
            sa.exists(
                sa.select(others.c.incarnation).where(
                    sa.or_(others.c.stamped_at > now(), others.c.passed_at > now())
                )
            ),
        ).select_from(once.outerjoin(tables.workers, mine))
        no_later = {
            moment.name: sa.case((moment > now(), now()), else_=moment)
            for moment in (worker.stamped_at, worker.passed_at)
        }
        self._set_right = sa.update(tables.workers).where(is_ahead).values(no_later)
        stamp = sa.update(tables.workers).where(mine)
        stamped = {**no_later, "beat": worker.beat + 1, "stamped_at": now()}
        self._stamp = stamp.values(stamped)
        self._stamp_and_pass = stamp.values({**stamped, "passed_at": now()})
        self._vouch = vouch(tables, grammar.insert(fleet))

        said = (
            "session_ttl",
            "cleanup_interval",
            "stamp_interval",
            "version",
            "data",
            "draining",
        )
        begun = {
            **{name: sa.bindparam(name) for name in ("worker_id", "history", *said)},
            "beat": 1,
            "stamped_at": now(),
            "passed_at": now(),
        }
        self._begin = (
            grammar.insert(tables.workers)
            .values(incarnation=sa.bindparam("own_incarnation"), **begun)
            .on_conflict_do_update(index_elements=[worker.incarnation], set_=begun)
        )
        went = tables.gone.c
        self._went = sa.select(went.incarnation).where(
            went.incarnation == sa.bindparam("own_incarnation"),
            went.history == sa.bindparam("after"),
        )
        self._longest = sa.select(sa.func.max(worker.cleanup_interval))
        until = ago(sa.select(sa.func.max(worker.cleanup_interval) * -DOUBT).scalar_subquery())
        known = fleet.c.doubtful_until
        any_session = sa.exists(sa.select(row.session_id))
        self._doubt = (
            grammar.insert(fleet)
            .values(
                id=1,
                vouched_at=now(),
                unbroken_since=sa.case((any_session, now())),
                doubtful_until=until,
            )
            .on_conflict_do_update(
                index_elements=[fleet.c.id],
                set_={
                    "doubtful_until": sa.case((known > until, known), else_=until),
                    "unbroken_since": now(),
                },
            )
        )

    def find(self, connection: sa.Connection, worker: Worker) -> Stamp | None:
        """Return a worker's stamp as it stands."""
        found = connection.execute(self._find, _incarnation(worker)).one_or_none()
        return None if found is None else Stamp(history=found[0], beat=found[1])

    def look(self, connection: sa.Connection, worker: Worker) -> Seen:
        """Look at the rows of all workers."""
        found = connection.execute(self._look, identity(worker)).one()
        history, beat, rows, longest_ttl, some_are_ahead = found
        return Seen(
            stamp=None if history is None else Stamp(history=history, beat=beat),
            rows=rows,
            longest_ttl=longest_ttl or 0.0,
            some_are_ahead=bool(some_are_ahead),
        )

    def stamp(
        self, connection: sa.Connection, worker: Worker, seen: Stamp, *, passed: bool = False
    ) -> Stamp:
        """Stamp the worker's row.

        Args:
            connection: in the transaction.
            worker: whose row.
            seen: what it says.
            passed: a pass of the worker has just ended.

        Raises:
            StoreUnavailable: the row was not changed, and the beat is not there that the worker
                would be told.
        """
        statement = self._stamp_and_pass if passed else self._stamp
        if connection.execute(statement, _incarnation(worker)).rowcount != 1:
            raise StoreUnavailable(
                "the worker's row is there and was not stamped: look for a trigger on UPDATE of "
                "the workers' table that ignores it"
            )
        return Stamp(history=seen.history, beat=seen.beat + 1)

    def vouch(self, connection: sa.Connection, seen: Seen, max_gap: float) -> None:
        """Vouch for the fleet, and take back moments in the future."""
        if seen.some_are_ahead:
            connection.execute(self._set_right)
        connection.execute(self._vouch, {"max_gap": max_gap})

    def begin(
        self,
        connection: sa.Connection,
        worker: Worker,
        history: str,
        presence: Presence,
        *,
        after: str | None,
    ) -> Begun:
        """Write the worker's row anew; see `WorkerStore.begin`."""
        mine = _incarnation(worker)
        connection.execute(
            self._begin,
            {
                **mine,
                "worker_id": worker.worker_id,
                "history": history,
                **asdict(presence),
            },
        )
        if after is None:
            return Begun(was_swept=False)
        if connection.execute(self._went, {**mine, "after": after}).first() is not None:
            return Begun(was_swept=True)
        connection.execute(self._doubt)
        return Begun(was_swept=False, doubt=DOUBT * connection.execute(self._longest).scalar_one())


def goes_on(found: Stamp | None, acknowledged: Stamp) -> TypeGuard[Stamp]:
    """Say whether a worker's row goes on from what was acknowledged to the worker."""
    return (
        found is not None
        and found.history == acknowledged.history
        and found.beat >= acknowledged.beat
    )


def _incarnation(worker: Worker) -> dict[str, str]:
    return {"own_incarnation": worker.incarnation}
