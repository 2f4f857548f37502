"""Messages and logs of sessions that go, piece by piece: their rows go with the last of these."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores._pieces import ENTRIES
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._grammar import Grammar

__all__ = ["Clear", "Cleared"]


@dataclass(frozen=True, slots=True)
class Cleared:
    """The result of one such deletion."""

    dropped: Counter[str]
    """How many messages, of each session that had any."""
    left: frozenset[str]
    """The sessions that still have some, or entries of their logs."""
    entries: int = 0
    """How many entries of logs."""
    is_full: bool = False
    """As many messages went as may, or entries."""


class Clear:
    """The deletion of messages and entries of logs in one set of tables."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        self._encode_ids = grammar.encode_ids
        message, entry = tables.messages.c, tables.logs.c
        self._delete = _delete_oldest(tables.messages, grammar).returning(message.session_id)
        self._delete_entries = _delete_oldest(tables.logs, grammar)
        each = grammar.each_id()
        self._left = sa.select(each.c.value).where(
            sa.or_(
                sa.exists(sa.select(message.id).where(message.session_id == each.c.value)),
                sa.exists(sa.select(entry.id).where(entry.session_id == each.c.value)),
            )
        )

    def __call__(
        self, connection: sa.Connection, session_ids: Collection[str], limit: int
    ) -> Cleared:
        """Delete at most ``limit`` messages of sessions, and some times as many entries."""
        if not session_ids:
            return Cleared(Counter(), frozenset())
        among: dict[str, Any] = {"session_ids": self._encode_ids(sorted(session_ids))}
        deleted = connection.execute(self._delete, {**among, "limit": limit})
        dropped = Counter(deleted.scalars())
        most = limit * ENTRIES
        entries = connection.execute(self._delete_entries, {**among, "limit": most}).rowcount
        if dropped.total() < limit and entries < most:
            return Cleared(dropped, frozenset(), entries)
        left = frozenset(connection.execute(self._left, among).scalars())
        return Cleared(dropped, left, entries, is_full=True)


def _delete_oldest(table: sa.Table, grammar: Grammar) -> sa.Delete:
    oldest = (
        sa.select(table.c.id)
        .where(grammar.among(table.c.session_id))
        .order_by(table.c.session_id, table.c.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )
    return sa.delete(table).where(table.c.id.in_(oldest))
