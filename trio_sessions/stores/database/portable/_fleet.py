"""The fleet's row, and moments: the parts of a refresh and a sweep that are alike everywhere.

See docs/decisions/0003-a-row-for-the-fleet.md.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores._lease import DOUBT
from trio_sessions.stores.database._clock import age_of, ago, now
from trio_sessions.stores.database._schema import Tables

__all__ = ["is_ahead", "refreshed", "stale_messages", "vouch"]


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
    longest = sa.func.max(tables.workers.c.cleanup_interval)
    at_most = ago(sa.select(longest * -DOUBT).scalar_subquery())
    doubtful_until = fleet.c.doubtful_until
    return insert.values(
        id=1, vouched_at=now(), unbroken_since=sa.case((any_session, now()))
    ).on_conflict_do_update(
        index_elements=[fleet.c.id],
        set_={
            "vouched_at": now(),
            "unbroken_since": sa.case((begins_anew, now()), else_=fleet.c.unbroken_since),
            "doubtful_until": sa.case((doubtful_until > at_most, at_most), else_=doubtful_until),
        },
    )


def refreshed(tables: Tables) -> Sequence[tuple[sa.Column[Any], Any]]:
    """Return what a refresh sets; a moment of taking in the future becomes now."""
    row = tables.sessions.c
    taken_at = sa.case((row.taken_at > now(), now()), else_=row.taken_at)
    return (row.last_accessed, now()), (row.taken_at, taken_at)


def is_ahead(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the row was refreshed in the future": the clock was set back."""
    return tables.sessions.c.last_accessed > now()


def stale_messages(tables: Tables) -> sa.Select[Any]:
    """Return the select of the ids of messages that nobody took in time; limit it."""
    message = tables.messages.c
    ttl_ago = ago(sa.bindparam("message_ttl", type_=sa.Float))
    # By the index: all that are stale go, so it does not matter which of them goes first.
    return sa.select(message.id).where(message.created_at < ttl_ago).order_by(message.created_at)
