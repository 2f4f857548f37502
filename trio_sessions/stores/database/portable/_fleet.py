"""The fleet's row, and what has expired: the parts of a sweep that are alike everywhere."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores.database._clock import age_of, ago, now
from trio_sessions.stores.database._questions import own
from trio_sessions.stores.database._schema import Tables

__all__ = ["has_expired", "old_enough", "refreshed", "stale_messages", "swept", "vouch"]


def vouch(tables: Tables, insert: Any) -> Any:
    """Return the statement that stamps the fleet's row, and notices a gap before it.

    Args:
        tables: the tables.
        insert: an INSERT into the fleet's that knows ``on_conflict_do_update``.
    """
    fleet = tables.fleet
    any_session = sa.exists(sa.select(tables.sessions.c.session_id))
    silence = sa.func.abs(age_of(fleet.c.vouched_at))
    # The clock may have been set back: then the last vouching is in the future.
    begins_anew = sa.or_(
        silence > sa.bindparam("max_gap", type_=sa.Float), fleet.c.unbroken_since > now()
    )
    return insert.values(
        id=1, vouched_at=now(), unbroken_since=sa.case((any_session, now()))
    ).on_conflict_do_update(
        index_elements=[fleet.c.id],
        set_={
            "vouched_at": now(),
            "unbroken_since": sa.case((begins_anew, now()), else_=fleet.c.unbroken_since),
        },
    )


def old_enough(unbroken_since: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Return "the unbroken series began a session_ttl ago, or has no beginning"."""
    ttl_ago = ago(sa.bindparam("session_ttl", type_=sa.Float))
    return sa.or_(unbroken_since.is_(None), unbroken_since <= ttl_ago)


def has_expired(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the row is of another incarnation, and was not refreshed"."""
    ttl_ago = ago(sa.bindparam("session_ttl", type_=sa.Float))
    return sa.and_(tables.sessions.c.last_accessed < ttl_ago, sa.not_(own(tables)))


def refreshed(tables: Tables) -> Sequence[tuple[sa.Column[Any], Any]]:
    """Return what a refresh sets; a moment of taking in the future becomes now."""
    row = tables.sessions.c
    taken_at = sa.case((row.taken_at > now(), now()), else_=row.taken_at)
    return (row.last_accessed, now()), (row.taken_at, taken_at)


def is_ahead(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the row was refreshed in the future": the clock was set back."""
    return tables.sessions.c.last_accessed > now()


def swept(tables: Tables, may_expire: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Return the select of some rows of other incarnations that a sweep is about.

    Their ids, and whether they are ahead; else they have expired.

    Args:
        tables: the tables.
        may_expire: `old_enough`, of the fleet's row.
    """
    row = tables.sessions.c
    ahead = is_ahead(tables)
    return (
        sa.select(row.session_id, ahead.label("ahead"))
        .where(sa.or_(ahead, sa.and_(may_expire, has_expired(tables))), sa.not_(own(tables)))
        .order_by(row.session_id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )


def stale_messages(tables: Tables) -> sa.Select[Any]:
    """Return the select of the ids of messages that nobody took in time; limit it."""
    message = tables.messages.c
    ttl_ago = ago(sa.bindparam("message_ttl", type_=sa.Float))
    # By the index: all that are stale go, so it does not matter which of them goes first.
    return sa.select(message.id).where(message.created_at < ttl_ago).order_by(message.created_at)
