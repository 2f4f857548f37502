"""What only reads, in SQL that any database understands."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.stores.database._schema import Tables
from trio_sessions.types import Holder

__all__ = ["Questions", "identity", "own"]


def own(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "this incarnation holds the row"; `identity` has the parameters."""
    row = tables.sessions.c
    return sa.and_(
        row.worker_id == sa.bindparam("own_worker_id"),
        row.incarnation == sa.bindparam("own_incarnation"),
    )


def identity(worker: Worker) -> Mapping[str, Any]:
    """Return the parameters of `own`."""
    return {"own_worker_id": worker.worker_id, "own_incarnation": worker.incarnation}


class Questions:
    """Questions to one set of tables."""

    def __init__(self, tables: Tables) -> None:
        row, message = tables.sessions.c, tables.messages.c
        asked = row.session_id == sa.bindparam("asked_id")
        self._holder = sa.select(row.worker_id, row.incarnation, row.owner).where(asked)
        self._capabilities = sa.select(row.capabilities).where(asked)
        self._elicitation = (
            sa.select(row.session_id).where(row.elicitation).order_by(row.session_id)
        )
        # From the messages, which are few, and not from the sessions.
        own_message = sa.and_(row.session_id == message.session_id, own(tables))
        self._backlog = (
            sa.select(message.session_id, sa.func.max(message.id), sa.func.count())
            .where(own_message)
            .group_by(message.session_id)
        )
        self._waiting = sa.select(message.session_id).distinct().where(own_message)
        self._newest = sa.select(sa.func.coalesce(sa.func.max(message.id), 0))
        self._waiting_since = self._waiting.where(message.id > sa.bindparam("seen"))

    def locate(self, connection: sa.Connection, session_id: str) -> Holder | None:
        """Return who holds a session."""
        row = connection.execute(self._holder, {"asked_id": session_id}).one_or_none()
        return None if row is None else Holder(worker_id=row[0], incarnation=row[1], owner=row[2])

    def get_capabilities(self, connection: sa.Connection, session_id: str) -> str | None:
        """Return a session's capabilities, encoded."""
        encoded: str | None = connection.execute(
            self._capabilities, {"asked_id": session_id}
        ).scalar()
        return encoded

    def elicitation_capable(self, connection: sa.Connection) -> list[str]:
        """Return the ids of sessions that can be asked."""
        return list(connection.execute(self._elicitation).scalars())

    def waiting(self, connection: sa.Connection, worker: Worker) -> list[str]:
        """Return the ids of own sessions with messages."""
        return list(connection.execute(self._waiting, identity(worker)).scalars())

    def backlog(self, connection: sa.Connection, worker: Worker) -> Mapping[str, Any]:
        """Return the newest message and the number of messages of each session that has any."""
        rows = connection.execute(self._backlog, identity(worker))
        return {row[0]: (row[1], row[2]) for row in rows}

    def news(
        self, connection: sa.Connection, worker: Worker, seen: int
    ) -> tuple[int, frozenset[str]]:
        """Return the newest message, and the own sessions that have any after ``seen``.

        For a database where ids are committed in their order.
        """
        newest: int = connection.execute(self._newest).scalar_one()
        if newest <= seen:
            return seen, frozenset()
        found = connection.execute(self._waiting_since, {**identity(worker), "seen": seen})
        return newest, frozenset(found.scalars())
