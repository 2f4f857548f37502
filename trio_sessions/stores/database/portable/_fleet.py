"""The fleet's row, and what has expired: the parts of a sweep that are alike everywhere."""

from typing import Any

import sqlalchemy as sa

from trio_sessions.stores.database._clock import ago, now
from trio_sessions.stores.database._questions import own
from trio_sessions.stores.database._schema import Tables

__all__ = ["expired", "old_enough", "stale_messages", "vouch"]


def vouch(tables: Tables, insert: Any) -> Any:
    """Return the statement that stamps the fleet's row, and notices a gap before it.

    Args:
        tables: the tables.
        insert: an INSERT into the fleet's that knows ``on_conflict_do_update``.
    """
    fleet = tables.fleet
    any_session = sa.exists(sa.select(tables.sessions.c.session_id))
    return insert.values(
        id=1, vouched_at=now(), unbroken_since=sa.case((any_session, now()))
    ).on_conflict_do_update(
        index_elements=[fleet.c.id],
        set_={
            "vouched_at": now(),
            "unbroken_since": sa.case(
                (fleet.c.vouched_at < ago(sa.bindparam("max_gap", type_=sa.Float)), now()),
                else_=fleet.c.unbroken_since,
            ),
        },
    )


def old_enough(unbroken_since: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return "the unbroken series began a session_ttl ago, or has no beginning"."""
    ttl_ago = ago(sa.bindparam("session_ttl", type_=sa.Float))
    return sa.or_(unbroken_since.is_(None), unbroken_since <= ttl_ago)


def expired(tables: Tables) -> sa.Select[Any]:
    """Return the select of some ids of other incarnations that were not refreshed."""
    row = tables.sessions.c
    ttl_ago = ago(sa.bindparam("session_ttl", type_=sa.Float))
    return (
        sa.select(row.session_id)
        .where(row.last_accessed < ttl_ago, sa.not_(own(tables)))
        .order_by(row.session_id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )


def stale_messages(tables: Tables) -> sa.Select[Any]:
    """Return the select of some ids of messages that nobody took in time."""
    message = tables.messages.c
    ttl_ago = ago(sa.bindparam("message_ttl", type_=sa.Float))
    return (
        sa.select(message.id)
        .where(message.created_at < ttl_ago)
        .order_by(message.id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )
