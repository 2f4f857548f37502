"""Refreshing, leaving and sweeping.

Presence is what a SELECT shows, not what the UPDATE has touched; a stamp is committed before its
sweep begins; a row goes with its last message. See docs/decisions/0010-evidence.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.errors import RowUnavailable
from trio_sessions.stores.database._clock import age_of, now
from trio_sessions.stores.database._questions import all_own, identity, own
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._clear import Clear, Cleared
from trio_sessions.stores.database.portable._expiry import (
    expired,
    forgettable,
    found_by_sweep,
    lapsed,
)
from trio_sessions.stores.database.portable._fleet import refreshed, stale_messages
from trio_sessions.stores.database.portable._grammar import Grammar
from trio_sessions.stores.database.portable._mail import Mail
from trio_sessions.stores.database.portable._witness import Witness, goes_on
from trio_sessions.types import Begun, Presence, RowAnswers, Stamp, Stamped, Swept

__all__ = ["Lease"]


class Lease:
    """The operations that refresh, delete and sweep the rows of one set of tables."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        self._grammar = grammar
        row, message = tables.sessions.c, tables.messages.c
        mine = sa.and_(grammar.among(row.session_id), own(tables))
        self._update = sa.update(tables.sessions).where(mine).ordered_values(*refreshed(tables))
        self._there = sa.select(
            row.session_id, own(tables).label("is_own"), age_of(row.taken_at).label("taken_ago")
        ).where(grammar.among(row.session_id))
        self._some = (
            sa.select(row.session_id)
            .where(all_own(tables))
            .order_by(row.session_id)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )
        self._clear = Clear(tables, grammar)
        among = grammar.among(row.session_id)
        self._delete_own = sa.delete(tables.sessions).where(among, own(tables))
        self._delete_expired = sa.delete(tables.sessions).where(among, expired(tables))
        self._set_right = sa.update(tables.sessions).where(among).values(last_accessed=now())
        self._found = found_by_sweep(tables)
        stale = stale_messages(tables).limit(sa.bindparam("limit", type_=sa.Integer))
        self._delete_stale = sa.delete(tables.messages).where(message.id.in_(stale))
        self._witness = Witness(tables, grammar)
        self._mail = Mail(tables, grammar)
        self._leave = sa.delete(tables.workers).where(
            tables.workers.c.incarnation == sa.bindparam("own_incarnation")
        )
        self._lapsed = lapsed(tables)
        gone = tables.gone.c
        self._remove_lapsed = sa.delete(tables.workers).where(
            grammar.among(tables.workers.c.incarnation)
        )
        self._remember = (
            grammar.insert(tables.gone)
            .values(incarnation=sa.bindparam("went"), history=sa.bindparam("its"), gone_at=now())
            .on_conflict_do_update(
                index_elements=[gone.incarnation],
                set_={"history": sa.bindparam("its"), "gone_at": now()},
            )
        )
        self._forget = sa.delete(tables.gone).where(forgettable(tables))

    def refresh(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> RowAnswers:
        """Refresh rows."""
        asked = frozenset(session_ids)
        with self._grammar.transaction(connection):
            updated = self._update_rows(connection, worker, session_ids)
            stamp = self._witness.find(connection, worker)
            if updated == len(asked):
                return RowAnswers(held=asked, stamp=stamp)
            # What is there is read: an UPDATE may touch nothing where a trigger is in its way.
            parameters = {**identity(worker), "session_ids": self._grammar.encode_ids(session_ids)}
            rows = connection.execute(self._there, parameters).all()
            own = sorted(row.session_id for row in rows if row.is_own)
            others: dict[str, float] = {
                row.session_id: row.taken_ago for row in rows if not row.is_own
            }
            kept_from_it = set(self._find_not_updated(connection, worker, own, updated))
            return RowAnswers(
                held=frozenset(own) - kept_from_it,
                taken_over=frozenset(others),
                taken_ago=others,
                unknown=dict.fromkeys(kept_from_it, _not_updated()),
                stamp=stamp,
            )

    def _update_rows(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> int:
        parameters = {**identity(worker), "session_ids": self._grammar.encode_ids(session_ids)}
        return connection.execute(self._update, parameters).rowcount

    def _find_not_updated(
        self, connection: sa.Connection, worker: Worker, own: Sequence[str], updated: int
    ) -> Sequence[str]:
        """Return those of the rows held that an UPDATE does not touch, found by halving.

        Args:
            connection: in the transaction in which they were seen.
            worker: who holds them.
            own: the rows.
            updated: how many of them it has touched. Where a trigger looks at what was there
                before, a second UPDATE may touch others: then too many are found.
        """
        if updated >= len(own):
            return ()
        if updated <= 0:
            return own
        middle = len(own) // 2
        halves = own[:middle], own[middle:]
        left = self._update_rows(connection, worker, halves[0])
        return [
            *self._find_not_updated(connection, worker, halves[0], left),
            *self._find_not_updated(connection, worker, halves[1], updated - left),
        ]

    def delete_all(self, connection: sa.Connection, worker: Worker, limit: int) -> Swept:
        """Delete a piece of the rows of this incarnation; with the last one, that of the worker."""
        parameters = {**identity(worker), "limit": limit}
        with self._grammar.transaction(connection):
            found = list(connection.execute(self._some, parameters).scalars())
            cleared = self._clear(connection, found, limit)
            sessions = self._delete(connection, self._delete_own, found, cleared, parameters)
            messages = cleared.dropped.total()
            is_full = len(found) >= limit or cleared.is_full
            more = is_full and sessions + messages + cleared.entries > 0
            if not more:
                connection.execute(self._leave, parameters)
                self._mail.forget(connection, [worker.incarnation], limit)
        return Swept(sessions=sessions, messages=messages, more=more)

    # ---- workers ----

    def begin(
        self,
        connection: sa.Connection,
        worker: Worker,
        history: str,
        presence: Presence,
        *,
        after: str | None,
    ) -> Begun:
        """Write the worker's row anew."""
        with self._grammar.transaction(connection):
            clock = self._grammar.clock()
            begun = self._witness.begin(connection, worker, history, presence, after=after)
        return replace(begun, clock=clock)

    def stamp(
        self, connection: sa.Connection, worker: Worker, stamp: Stamp, *, passed: bool
    ) -> Stamped:
        """Stamp the worker's row, and vouch."""
        stamped, _ = self._vouch(connection, worker, stamp, passed=passed, gap=MAX_GAP)
        return stamped

    def _vouch(
        self,
        connection: sa.Connection,
        worker: Worker,
        stamp: Stamp | None,
        *,
        passed: bool,
        gap: float,
        session_ttl: float = 0.0,
    ) -> tuple[Stamped, float]:
        """Stamp the worker's row, if a stamp is given; vouch, unless it is not there.

        Args:
            connection: outside of any transaction.
            worker: whose row.
            stamp: the highest that was acknowledged.
            passed: a pass has just ended.
            gap: a gap in the vouchings is more than this share of the longest session_ttl.
            session_ttl: seconds, if somebody has one who may have no row.

        Returns:
            What has become of the stamp, and what is a gap, in seconds.
        """
        with self._grammar.transaction(connection):
            clock = self._grammar.clock()
            seen = self._witness.look(connection, worker)
            max_gap = gap * max(seen.longest_ttl, session_ttl)
            new: Stamp | None = None
            if stamp is not None:
                if not goes_on(seen.stamp, stamp):
                    return Stamped(stamp=None, rows=seen.rows, clock=clock), max_gap
                new = self._witness.stamp(connection, worker, seen.stamp, passed=passed)
            self._witness.vouch(connection, seen, max_gap)
        return Stamped(stamp=new, rows=seen.rows, clock=clock), max_gap

    # ---- the sweep ----

    def sweep(
        self,
        connection: sa.Connection,
        worker: Worker,
        durations: Mapping[str, float],
        limit: int,
        stamp: Stamp | None,
    ) -> Swept:
        """Stamp and vouch; then, in a transaction of its own, delete what has expired."""
        session_ttl = durations["session_ttl"]
        gap = durations["max_gap"] / session_ttl
        stamped, max_gap = self._vouch(
            connection, worker, stamp, passed=True, gap=gap, session_ttl=session_ttl
        )
        told = None if stamp is None else stamped
        if not limit or (stamp is not None and stamped.stamp is None):
            return Swept(sessions=0, messages=0, more=False, stamped=told)
        parameters = {**identity(worker), **durations, "max_gap": max_gap, "limit": limit}
        with self._grammar.transaction(connection):
            found = connection.execute(self._found, parameters).all()
            ahead = [row.session_id for row in found if row.ahead]
            if ahead:
                connection.execute(self._set_right, self._among(ahead))
            expired = [row.session_id for row in found if not row.ahead]
            cleared = self._clear(connection, expired, limit)
            sessions = self._delete(connection, self._delete_expired, expired, cleared, parameters)
            messages = cleared.dropped.total()
            if messages < limit:
                rest = {**parameters, "limit": limit - messages}
                messages += connection.execute(self._delete_stale, rest).rowcount
            self._remove_workers(connection, parameters)
        more = len(found) >= limit or messages >= limit or cleared.is_full
        advances = sessions + messages + cleared.entries + len(ahead) > 0
        return Swept(sessions=sessions, messages=messages, more=more and advances, stamped=told)

    def _remove_workers(self, connection: sa.Connection, parameters: Mapping[str, Any]) -> None:
        """Remove the rows of workers whose lease has run out, and remember that they are gone."""
        lapsed = [(row[0], row[1]) for row in connection.execute(self._lapsed, parameters)]
        if lapsed:
            gone = [one for one, _ in lapsed]
            connection.execute(self._remove_lapsed, self._among(gone))
            self._mail.forget(connection, gone, parameters["limit"])
            connection.execute(self._forget)
            connection.execute(
                self._remember, [{"went": one, "its": history} for one, history in lapsed]
            )

    def _delete(
        self,
        connection: sa.Connection,
        statement: sa.Delete,
        session_ids: Sequence[str],
        cleared: Cleared,
        parameters: Mapping[str, Any],
    ) -> int:
        """Delete the sessions that have no messages left; return how many."""
        empty = [one for one in session_ids if one not in cleared.left]
        if not empty:
            return 0
        return connection.execute(statement, {**parameters, **self._among(empty)}).rowcount

    def _among(self, session_ids: Sequence[str]) -> dict[str, Any]:
        return {"session_ids": self._grammar.encode_ids(session_ids)}


def _not_updated() -> RowUnavailable:
    """Return the answer for a row that is there and was not refreshed."""
    return RowUnavailable(
        "the row is there and was not updated: look for a trigger on UPDATE of the sessions' "
        "table that ignores it"
    )
