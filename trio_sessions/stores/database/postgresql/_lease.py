"""Refreshing, leaving and sweeping: one statement each."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from trio_sessions.abc import Worker
from trio_sessions.errors import RowUnavailable, StoreUnavailable
from trio_sessions.stores.database._clock import now
from trio_sessions.stores.database._questions import identity, own
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._fleet import (
    has_expired,
    old_enough,
    refreshed,
    stale_messages,
    swept,
    vouch,
)
from trio_sessions.stores.database.postgresql._clearing import clearing
from trio_sessions.stores.database.postgresql._errors import (
    LOCK_NOT_AVAILABLE,
    locks_are_of_the_table,
    sqlstate,
)
from trio_sessions.stores.database.postgresql._kinds import locked
from trio_sessions.stores.database.postgresql._words import among, each_id, encode_ids, one_of
from trio_sessions.types import RowAnswers, Swept

__all__ = ["Lease"]

_ASKED = sa.select(each_id().label("session_id")).cte("asked")


class Lease:
    """Refreshes, deletes and sweeps the rows of one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        row = tables.sessions.c
        self._own = own(tables)
        mine = sa.and_(among(row.session_id), self._own)
        self._refresh = self._refresh_and_name_the_others(mine)
        self._refresh_free = self._refresh_what_is_not_locked(mine)
        self._delete_all = self._delete_own()
        self._sweep = self._vouch_and_sweep()
        self._hides_rows = (
            f"row level security of the table {tables.sessions.name} applies to the role of the "
            "connection, and a row that it hides cannot be told from one that is gone: connect as "
            "the table's owner or a role with BYPASSRLS, or ALTER TABLE "
            f"{tables.sessions.name} DISABLE ROW LEVEL SECURITY"
        )

    # ---- operations ----

    def refresh(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> RowAnswers:
        """Refresh rows."""
        parameters = {**identity(worker), "session_ids": encode_ids(session_ids)}
        try:
            others = connection.execute(self._refresh, parameters).all()
        except DBAPIError as exc:
            if sqlstate(exc) != LOCK_NOT_AVAILABLE:
                raise
            # Somebody holds a row: refresh the others, and say which it is.
            with locks_are_of_the_table():
                others = connection.execute(self._refresh_free, parameters).all()
        return self._judge(session_ids, others)

    def _judge(self, session_ids: Sequence[str], others: Sequence[Any]) -> RowAnswers:
        """Return what the rows say of which the statement has told that they were not updated."""
        taken_over, unknown = set[str](), dict[str, Exception]()
        for session_id, is_own, is_locked, is_hidden in others:
            if is_own is None and is_hidden:
                raise StoreUnavailable(self._hides_rows)
            if is_own:
                unknown[session_id] = locked() if is_locked else _not_updated()
            elif is_own is not None:
                taken_over.add(session_id)
        return RowAnswers(
            held=frozenset(session_ids).difference(other.session_id for other in others),
            taken_over=frozenset(taken_over),
            unknown=unknown,
        )

    def delete_all(self, connection: sa.Connection, worker: Worker, limit: int) -> Swept:
        """Delete a piece of the rows of this incarnation."""
        parameters = {**identity(worker), "limit": limit}
        sessions, messages, full = connection.execute(self._delete_all, parameters).one()
        return Swept(sessions=sessions, messages=messages, more=full and sessions + messages > 0)

    def sweep(
        self, connection: sa.Connection, worker: Worker, durations: Mapping[str, float], limit: int
    ) -> Swept:
        """Vouch and sweep."""
        parameters = {**identity(worker), **durations, "limit": limit}
        sessions, messages, righted, full = connection.execute(self._sweep, parameters).one()
        advances = sessions + messages + righted > 0
        return Swept(sessions=sessions, messages=messages, more=full and advances)

    # ---- statements ----

    def _refresh_and_name_the_others(self, mine: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return what was not updated: as a rule nothing, so that there is nothing to fetch."""
        return self._name_those_not_in(self._update(mine), is_locked=sa.false())

    def _refresh_what_is_not_locked(self, mine: sa.ColumnElement[bool]) -> sa.Select[Any]:
        row = self._tables.sessions.c
        free = (
            sa.select(row.session_id)
            .where(mine)
            .with_for_update(key_share=True, skip_locked=True)
            .cte("free")
        )
        done = self._update(row.session_id == free.c.session_id)
        is_free = sa.exists().where(free.c.session_id == _ASKED.c.session_id)
        return self._name_those_not_in(done, is_locked=~is_free)

    def _update(self, which: sa.ColumnElement[bool]) -> sa.CTE:
        return (
            sa.update(self._tables.sessions)
            .where(which)
            .ordered_values(*refreshed(self._tables))
            .returning(self._tables.sessions.c.session_id)
            .cte("done")
        )

    def _name_those_not_in(
        self, done: sa.CTE, *, is_locked: sa.ColumnElement[bool]
    ) -> sa.Select[Any]:
        """Return what was not updated, with what the statement's snapshot says of it.

        The snapshot is that of the whole statement, so a row is there, or is not, as it was
        before the UPDATE: one that was changed under it, or that a trigger has spared, is there.
        No row is looked up that was updated.
        """
        sessions = self._tables.sessions
        is_own = (
            sa.select(self._own)
            .where(sessions.c.session_id == _ASKED.c.session_id)
            .scalar_subquery()
        )
        return (
            sa.select(
                _ASKED.c.session_id,
                is_own.label("is_own"),
                is_locked.label("is_locked"),
                sa.func.row_security_active(sa.literal(sessions.name, sa.Text)).label("is_hidden"),
            )
            .select_from(_ASKED.outerjoin(done, _ASKED.c.session_id == done.c.session_id))
            .where(done.c.session_id.is_(None))
        )

    def _delete_own(self) -> sa.Select[int, int, bool]:
        """Lock some rows, in the order that all have, and let them go piece by piece.

        Twice "own": a row that is taken over meanwhile is looked at again in its new form.
        """
        row = self._tables.sessions.c
        some = (
            sa.select(row.session_id)
            .where(self._own)
            .order_by(row.session_id)
            .limit(_limit())
            .with_for_update()
            .cte("some_own")
        )
        cleared = clearing(self._tables, some, guard=self._own)
        is_full = sa.or_(_count(some) >= _limit(), _count(cleared.dropped) >= _limit())
        return sa.select(_count(cleared.gone), _count(cleared.dropped), is_full)

    def _vouch_and_sweep(self) -> sa.Select[int, int, int, bool]:
        row, fleet = self._tables.sessions.c, self._tables.fleet
        vouched = (
            vouch(self._tables, postgresql.insert(fleet))
            .returning(fleet.c.unbroken_since)
            .cte("vouched")
        )
        may_expire = sa.exists(sa.select(vouched).where(old_enough(vouched.c.unbroken_since)))
        found = swept(self._tables, may_expire).with_for_update(skip_locked=True).cte("found")
        righted = (
            sa.update(self._tables.sessions)
            .where(one_of(row.session_id, sa.select(found.c.session_id).where(found.c.ahead)))
            .values(last_accessed=now())
            .returning(row.session_id)
            .cte("righted")
        )
        expired = sa.select(found.c.session_id).where(sa.not_(found.c.ahead)).cte("expired")
        cleared = clearing(
            self._tables,
            expired,
            guard=has_expired(self._tables),
            stale=stale_messages(self._tables),
        )
        is_full = sa.or_(_count(found) >= _limit(), _count(cleared.dropped) >= _limit())
        return sa.select(_count(cleared.gone), _count(cleared.dropped), _count(righted), is_full)


def _limit() -> sa.BindParameter[int]:
    return sa.bindparam("limit", type_=sa.Integer)


def _count(cte: sa.CTE) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.count()).select_from(cte).scalar_subquery()


def _not_updated() -> RowUnavailable:
    """Return the answer for a row that is there and was not refreshed."""
    return RowUnavailable(
        "the row is there and was not updated: another transaction has changed it at the same "
        "moment, or a trigger on UPDATE of the sessions' table returns NULL"
    )
