"""Messages of sessions that go, so many at a time: their rows go with the last of these."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._grammar import Grammar

__all__ = ["Clear", "Cleared"]


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was deleted."""

    dropped: Counter[str]
    """How many messages, of each session that had any."""
    left: frozenset[str]
    """The sessions that still have some."""


class Clear:
    """Deletes messages in one set of tables."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        self._encode_ids = grammar.encode_ids
        message = tables.messages.c
        oldest = (
            sa.select(message.id)
            .where(grammar.among(message.session_id))
            .order_by(message.session_id, message.id)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )
        self._delete = (
            sa.delete(tables.messages).where(message.id.in_(oldest)).returning(message.session_id)
        )
        each = grammar.each_id()
        self._left = sa.select(each.c.value).where(
            sa.exists(sa.select(message.id).where(message.session_id == each.c.value))
        )

    def __call__(
        self, connection: sa.Connection, session_ids: Collection[str], limit: int
    ) -> Cleared:
        """Delete at most ``limit`` messages of sessions."""
        if not session_ids:
            return Cleared(Counter(), frozenset())
        among: dict[str, Any] = {"session_ids": self._encode_ids(sorted(session_ids))}
        deleted = connection.execute(self._delete, {**among, "limit": limit})
        dropped = Counter(deleted.scalars())
        if dropped.total() < limit:
            return Cleared(dropped, frozenset())
        return Cleared(dropped, frozenset(connection.execute(self._left, among).scalars()))
