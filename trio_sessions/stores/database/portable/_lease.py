"""Refreshing, leaving and sweeping."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.errors import RowUnavailable
from trio_sessions.stores.database._clock import now
from trio_sessions.stores.database._questions import identity, own
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._fleet import (
    expired,
    old_enough,
    stale_messages,
    vouch,
)
from trio_sessions.stores.database.portable._grammar import Grammar
from trio_sessions.types import RowAnswers, Swept

__all__ = ["Lease"]


class Lease:
    """Refreshes, deletes and sweeps the rows of one set of tables."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        self._grammar = grammar
        row, message, fleet = tables.sessions.c, tables.messages.c, tables.fleet.c
        mine = sa.and_(grammar.among(row.session_id), own(tables))
        self._update = sa.update(tables.sessions).where(mine).values(last_accessed=now())
        self._there = sa.select(row.session_id, own(tables)).where(grammar.among(row.session_id))
        self._some = (
            sa.select(row.session_id)
            .where(own(tables))
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )
        self._delete_messages = sa.delete(tables.messages).where(grammar.among(message.session_id))
        self._delete = sa.delete(tables.sessions).where(grammar.among(row.session_id))
        self._vouch = vouch(tables, grammar.insert(tables.fleet))
        self._may_sweep = sa.select(fleet.id).where(old_enough(fleet.unbroken_since))
        self._expired = expired(tables)
        self._delete_stale = sa.delete(tables.messages).where(
            message.id.in_(stale_messages(tables))
        )

    def refresh(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> RowAnswers:
        """Refresh rows."""
        asked = frozenset(session_ids)
        with self._grammar.transaction(connection):
            updated = self._update_rows(connection, worker, session_ids)
            if updated == len(asked):
                return RowAnswers(held=asked)
            # What is there is read: an UPDATE may touch nothing where a trigger is in its way.
            parameters = {**identity(worker), "session_ids": self._grammar.encode_ids(session_ids)}
            rows = connection.execute(self._there, parameters).all()
            there: dict[str, bool] = {row.session_id: row[1] for row in rows}
            own = sorted(session_id for session_id, is_own in there.items() if is_own)
            kept_from_it = set(self._find_not_updated(connection, worker, own, updated))
            return RowAnswers(
                held=frozenset(own) - kept_from_it,
                taken_over=frozenset(there).difference(own),
                unknown=dict.fromkeys(kept_from_it, _not_updated()),
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
            updated: how many of them it has touched.
        """
        if updated == len(own):
            return ()
        if not updated:
            return own
        middle = len(own) // 2
        halves = own[:middle], own[middle:]
        left = self._update_rows(connection, worker, halves[0])
        return [
            *self._find_not_updated(connection, worker, halves[0], left),
            *self._find_not_updated(connection, worker, halves[1], updated - left),
        ]

    def delete_all(self, connection: sa.Connection, worker: Worker, limit: int) -> int:
        """Delete some rows of this incarnation."""
        with self._grammar.transaction(connection):
            some = connection.execute(self._some, {**identity(worker), "limit": limit})
            found = list(some.scalars())
            self._delete_sessions(connection, found)
            return len(found)

    def sweep(
        self, connection: sa.Connection, worker: Worker, durations: Mapping[str, float], limit: int
    ) -> Swept:
        """Vouch and sweep."""
        parameters = {**identity(worker), **durations, "limit": limit}
        with self._grammar.transaction(connection):
            connection.execute(self._vouch, parameters)
            gone: list[str] = []
            if connection.execute(self._may_sweep, parameters).first() is not None:
                gone = list(connection.execute(self._expired, parameters).scalars())
            dropped = self._delete_sessions(connection, gone)
            stale = connection.execute(self._delete_stale, parameters)
            return Swept(sessions=len(gone), messages=dropped + stale.rowcount)

    def _delete_sessions(self, connection: sa.Connection, session_ids: Sequence[str]) -> int:
        """Delete sessions that this transaction has seen; return the number of their messages."""
        if not session_ids:
            return 0
        parameters = {"session_ids": self._grammar.encode_ids(session_ids)}
        messages = connection.execute(self._delete_messages, parameters).rowcount
        connection.execute(self._delete, parameters)
        return messages


def _not_updated() -> RowUnavailable:
    """Return the answer for a row that is there and was not refreshed."""
    return RowUnavailable(
        "the row is there and was not updated: look for a trigger on UPDATE of the sessions' "
        "table that ignores it"
    )
