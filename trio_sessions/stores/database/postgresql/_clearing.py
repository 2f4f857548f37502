"""Sessions that go, so many messages at a time: their rows go with the last of these.

The foreign key would delete the messages with the row, all at once, however many they are. So
they go first, and the key has only what was sent between a statement's snapshot and its lock.
"""

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.postgresql._words import one_of

__all__ = ["Clearing", "clearing"]


@dataclass(frozen=True, slots=True)
class Clearing:
    """What goes, as CTEs."""

    dropped: sa.CTE
    """All messages that were deleted."""
    gone: sa.CTE
    """The sessions that were deleted."""


def clearing(
    tables: Tables,
    sessions: sa.CTE,
    *,
    guard: sa.ColumnElement[bool],
    stale: sa.Select[Any] | None = None,
) -> Clearing:
    """Delete messages of sessions, and the sessions that have none left.

    What is locked is passed over, and its session stays: two that sweep at once would else wait
    for each other's messages.

    Args:
        tables: the tables.
        sessions: those that are to go, locked by this statement; the column is ``session_id``.
        guard: what must be true of a row that is deleted.
        stale: the ids of other messages that go, as many as there is room for.
    """
    message, row = tables.messages.c, tables.sessions.c
    limit: sa.BindParameter[int] = sa.bindparam("limit", type_=sa.Integer)
    some = (
        sa.select(message.id)
        .where(message.session_id == sessions.c.session_id)
        .order_by(message.id)
        .limit(sa.select(limit).scalar_subquery())  # not known to the planner; see `limited_to`
        .with_for_update(skip_locked=True)
        .lateral("some")
    )
    doomed = (
        sa.select(some.c.id)
        .select_from(sessions.join(some, sa.true()))
        .limit(limit)
        .cte("doomed")
        .prefix_with("MATERIALIZED")
    )
    going: sa.SelectBase = sa.select(doomed.c.id)
    if stale is not None:
        number = sa.select(sa.func.count()).select_from(doomed).scalar_subquery()
        others = (
            stale.where(message.id.not_in(going))
            .limit(limit - number)
            .with_for_update(skip_locked=True)
            .cte("stale")
        )
        going = sa.union_all(going, sa.select(others.c.id))
    gone_first = going.cte("going")
    dropped = (
        sa.delete(tables.messages)
        .where(one_of(message.id, sa.select(gone_first.c.id)))
        .returning(message.id)
        .cte("dropped")
    )
    # A scalar subquery, for the planner makes a join with all messages of an EXISTS.
    left = (
        sa.select(message.id)
        .where(
            message.session_id == sessions.c.session_id,
            message.id.not_in(sa.select(gone_first.c.id)),
        )
        .order_by(message.id)
        .limit(1)
        .scalar_subquery()
    )
    cleared = sa.select(sessions.c.session_id).where(left.is_(None)).cte("cleared")
    gone = (
        sa.delete(tables.sessions)
        .where(one_of(row.session_id, sa.select(cleared.c.session_id)), guard)
        .returning(row.session_id)
        .cte("gone")
    )
    return Clearing(dropped, gone)
