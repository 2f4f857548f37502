"""What a sweep would delete now, by the lease's own rule; nothing is deleted by asking."""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.stores.database._questions import identity
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._expiry import expired
from trio_sessions.stores.database.portable._fleet import stale_messages

__all__ = ["Holding", "Overdue", "overdue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What has expired of one incarnation."""

    worker_id: str
    incarnation: str
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """What has expired."""

    holders: Sequence[Holding]
    messages: int
    """Of these sessions, or older than ``message_ttl``."""

    @property
    def sessions(self) -> int:
        """Of all holders."""
        return sum(one.sessions for one in self.holders)


def overdue(
    connection: sa.Connection,
    worker: Worker,
    tables: Tables,
    *,
    session_ttl: float,
    message_ttl: float,
) -> Overdue:
    """Count what has expired.

    Args:
        connection: to the database.
        worker: who asks; its own rows do not expire.
        tables: the tables.
        session_ttl: seconds, for rows of workers that have no row themselves.
        message_ttl: seconds.
    """
    parameters = {
        **identity(worker),
        "session_ttl": session_ttl,
        "message_ttl": message_ttl,
        "max_gap": session_ttl * MAX_GAP,
    }
    row, message = tables.sessions.c, tables.messages.c
    holders = (
        sa.select(row.worker_id, row.incarnation, sa.func.count().label("sessions"))
        .where(expired(tables))
        .group_by(row.worker_id, row.incarnation)
        .order_by(row.worker_id, row.incarnation)
    )
    theirs = sa.select(row.session_id).where(expired(tables))
    stale = stale_messages(tables).order_by(None)
    messages = (
        sa.select(sa.func.count())
        .select_from(tables.messages)
        .where(sa.or_(message.session_id.in_(theirs), message.id.in_(stale)))
    )
    return Overdue(
        holders=[
            Holding(worker_id=one.worker_id, incarnation=one.incarnation, sessions=one.sessions)
            for one in connection.execute(holders, parameters)
        ],
        messages=connection.execute(messages, parameters).scalar_one(),
    )
