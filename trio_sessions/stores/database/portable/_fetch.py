"""Fetching session by session: for a database without a network in between."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.stores.database._clock import age_of
from trio_sessions.stores.database._questions import identity, own
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._grammar import Grammar
from trio_sessions.types import StoredMessage, Wanted

__all__ = ["Fetch"]


class Fetch:
    """The operation that fetches messages of one set of tables."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        self._encode_ids = grammar.encode_ids
        row, message = tables.sessions.c, tables.messages.c
        self._own = sa.select(row.session_id).where(grammar.among(row.session_id), own(tables))
        self._oldest = (
            sa.select(message.id, message.payload, age_of(message.created_at))
            .where(message.session_id == sa.bindparam("of_session"))
            .order_by(message.id)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )

    def __call__(
        self, connection: sa.Connection, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Return stored messages of own sessions."""
        asked = self._encode_ids([one.session_id for one in wanted])
        held = connection.execute(self._own, {**identity(worker), "session_ids": asked})
        mine = frozenset(held.scalars())
        return {
            one.session_id: list(self._fetch(connection, one))
            for one in wanted
            if one.session_id in mine
        }

    def _fetch(self, connection: sa.Connection, wanted: Wanted) -> Iterator[StoredMessage]:
        limit = wanted.count + len(wanted.held)
        rows = connection.execute(self._oldest, {"of_session": wanted.session_id, "limit": limit})
        fresh = (row for row in rows if row[0] not in wanted.held)
        size = 0
        for message_id, payload, age in itertools.islice(fresh, wanted.count):
            if size >= wanted.size:
                return
            size += len(payload.encode())
            yield StoredMessage(id=message_id, payload=payload, age=age)
