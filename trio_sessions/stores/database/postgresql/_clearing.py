"""Sessions that go, so many messages and entries at a time: their rows go with the last of these.

The foreign keys would delete messages and log with the row, all at once, however many they are. So
they go first, and the keys have only what came between a statement's snapshot and its lock.
"""

from trio_sessions.stores._pieces import ENTRIES
from trio_sessions.stores.database.postgresql._kinds import Names

__all__ = ["LIMIT", "clearing"]

LIMIT = "CAST(%(limit)s AS integer)"
_LINES = f"{LIMIT} * {ENTRIES}"


def clearing(names: Names, sessions: str, *, guard: str, stale: str | None = None) -> str:
    """Return CTEs that delete messages and logs of sessions, and those that have nothing left.

    What is locked is passed over, and its session stays: two that sweep at once would else wait
    for each other's messages. ``dropped`` are the messages that went, ``gone`` the sessions;
    ``logs_gone`` says whether entries went, and whether as many as may.

    Args:
        names: the names of our tables.
        sessions: the CTE of those that are to go, locked; the column is ``session_id``.
        guard: what must be true of a row ``s`` that is deleted.
        stale: what is true of other messages ``m`` that go, as many as there is room for.
    """
    others = ""
    going = "SELECT d.id FROM doomed AS d"
    if stale is not None:
        others = f"""stale AS MATERIALIZED (
            SELECT m.id FROM {names.messages} AS m
            WHERE {stale} AND m.id NOT IN (SELECT d.id FROM doomed AS d)
            ORDER BY m.created_at LIMIT {LIMIT} - (SELECT count(*) FROM doomed)
            FOR UPDATE SKIP LOCKED
        ), """
        going += " UNION ALL SELECT o.id FROM stale AS o"
    # A LIMIT that is not known to the planner; see `limited_to`. And a scalar subquery, for it
    # makes a join with all messages of an EXISTS.
    return f"""doomed AS MATERIALIZED (
            SELECT few.id FROM {sessions} AS e CROSS JOIN LATERAL (
                SELECT m.id FROM {names.messages} AS m WHERE m.session_id = e.session_id
                ORDER BY m.id LIMIT (SELECT {LIMIT}) FOR UPDATE SKIP LOCKED
            ) AS few LIMIT {LIMIT}
        ), {others}going AS MATERIALIZED (
            {going}
        ), dropped AS (
            DELETE FROM {names.messages} AS m
            WHERE m.id = ANY (ARRAY(SELECT g.id FROM going AS g))
            RETURNING m.id
        ), lines AS MATERIALIZED (
            SELECT few.id FROM {sessions} AS e CROSS JOIN LATERAL (
                SELECT m.id FROM {names.logs} AS m WHERE m.session_id = e.session_id
                ORDER BY m.id LIMIT (SELECT {_LINES}) FOR UPDATE SKIP LOCKED
            ) AS few LIMIT {_LINES}
        ), unlogged AS (
            DELETE FROM {names.logs} AS m
            WHERE m.id = ANY (ARRAY(SELECT l.id FROM lines AS l))
            RETURNING m.id
        ), logs_gone AS MATERIALIZED (
            SELECT count(*) > 0 AS has_some, count(*) >= {_LINES} AS is_full FROM unlogged
        ), cleared AS MATERIALIZED (
            SELECT e.session_id FROM {sessions} AS e WHERE (
                SELECT m.id FROM {names.messages} AS m
                WHERE m.session_id = e.session_id AND m.id NOT IN (SELECT g.id FROM going AS g)
                ORDER BY m.id LIMIT 1
            ) IS NULL AND (
                SELECT m.id FROM {names.logs} AS m
                WHERE m.session_id = e.session_id AND m.id NOT IN (SELECT l.id FROM lines AS l)
                ORDER BY m.id LIMIT 1
            ) IS NULL
        ), gone AS (
            DELETE FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT c.session_id FROM cleared AS c)) AND {guard}
            RETURNING s.session_id
        )"""
