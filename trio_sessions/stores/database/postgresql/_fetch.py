"""Fetching for many sessions at once."""

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.stores.database._questions import identity
from trio_sessions.stores.database._schema import Tables
from trio_sessions.types import StoredMessage, Wanted

__all__ = ["Fetch"]


def _fetch_of_each(tables: Tables) -> sa.TextClause:
    """Return of each session the oldest messages, as many as there is room for.

    As text: two laterals in one another read better so.
    """
    return sa.text(f"""
        SELECT wanted.session_id, few.id, few.payload,
            CAST(extract(epoch FROM clock_timestamp() - few.created_at) AS double precision)
        FROM unnest(CAST(:session_ids AS text[]), CAST(:counts AS integer[]),
                    CAST(:sizes AS bigint[])) AS wanted(session_id, room, size)
        JOIN {tables.sessions.name} AS own ON own.session_id = wanted.session_id
            AND own.worker_id = :own_worker_id AND own.incarnation = :own_incarnation
        CROSS JOIN LATERAL (
            SELECT oldest.*, sum(octet_length(oldest.payload)) OVER (ORDER BY oldest.id)
                             - octet_length(oldest.payload) AS before
            FROM (
                SELECT id, payload, created_at FROM {tables.messages.name} AS message
                WHERE message.session_id = wanted.session_id
                    AND message.id <> ALL (CAST(:held AS bigint[]))
                ORDER BY message.id LIMIT wanted.room
            ) AS oldest
        ) AS few
        WHERE few.before < wanted.size
        ORDER BY wanted.session_id, few.id
    """)


class Fetch:
    """The operation that fetches messages of one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self._fetch = _fetch_of_each(tables)

    def __call__(
        self, connection: sa.Connection, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Return stored messages of own sessions."""
        found: dict[str, list[StoredMessage]] = {}
        rows = connection.execute(
            self._fetch,
            {
                **identity(worker),
                "session_ids": [one.session_id for one in wanted],
                "counts": [one.count for one in wanted],
                "sizes": [one.size for one in wanted],
                "held": list(frozenset[int]().union(*(one.held for one in wanted))),
            },
        )
        for session_id, message_id, payload, age in rows:
            message = StoredMessage(id=message_id, payload=payload, age=age)
            found.setdefault(session_id, []).append(message)
        return found
