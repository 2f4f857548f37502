"""Entries of logs: numbered in the order in which they are committed."""

from trio_sessions.stores.database.postgresql._doubt import DOUBT
from trio_sessions.stores.database.postgresql._kinds import Kind, Names, asked, born, own
from trio_sessions.writes import Append

__all__ = ["APPENDS"]


_APPEND = "event text, ended bigint, born text, keep bigint"


def _appends(names: Names) -> str:
    """Return the CTEs that append: they lock each session's row until the commit, then draw ids.

    So nobody commits an entry of a session behind one with a greater id: who reads "after this
    one" misses nothing. The lock goes well with a `Send`, which locks the key alone. Which id an
    entry has got is known by its place; both ascend in the order of the batch.

    The oldest are found in the statement's snapshot, which has none of the new ones. They are
    passed over where somebody else is deleting them.
    """
    return f"""{asked(names, "appends", _APPEND)}, append_locks AS MATERIALIZED (
            SELECT s.session_id, s.generation, {own("s")} AS mine, {born("s")} AS born
            FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT DISTINCT id FROM appends WHERE there))
            ORDER BY s.session_id FOR NO KEY UPDATE SKIP LOCKED
        ), append_found AS MATERIALIZED (
            SELECT x.n, x.id, x.event, x.keep, row_number() OVER (ORDER BY x.n) AS place
            FROM appends AS x JOIN append_locks AS l ON l.session_id = x.id
            WHERE NOT (l.mine AND l.generation <= x.ended)
                AND (x.born IS NULL OR x.born = l.born)
        ), appended AS (
            INSERT INTO {names.logs} AS e (session_id, event, created_at)
            SELECT f.id, f.event, clock_timestamp() FROM append_found AS f ORDER BY f.n
            RETURNING e.id
        ), append_ids AS MATERIALIZED (
            SELECT array_agg(e.id ORDER BY e.id) AS ids FROM appended AS e
        ), append_rooms AS MATERIALIZED (
            SELECT f.id, greatest(min(f.keep) - count(*), 0) AS room
            FROM append_found AS f GROUP BY f.id HAVING min(f.keep) IS NOT NULL
        ), append_trimmed AS (
            DELETE FROM {names.logs} AS e WHERE e.id = ANY (ARRAY(
                SELECT old.id FROM append_rooms AS r CROSS JOIN LATERAL (
                    SELECT o.id FROM {names.logs} AS o WHERE o.session_id = r.id
                    ORDER BY o.id DESC OFFSET r.room FOR UPDATE SKIP LOCKED
                ) AS old
            ))
            RETURNING e.id
        )"""


def _append_answers(names: Names) -> str:
    return f"""
        SELECT 'appends', x.n,
            CASE WHEN f.n IS NOT NULL THEN 'done'
                WHEN x.there AND l.session_id IS NULL THEN 'locked'
                WHEN NOT x.there AND {DOUBT} THEN 'doubtful'
                ELSE 'none' END,
            NULL, NULL, NULL, NULL, false, NULL, (SELECT ids FROM append_ids)[f.place]
        FROM appends AS x
        LEFT JOIN append_locks AS l ON l.session_id = x.id
        LEFT JOIN append_found AS f ON f.n = x.n"""


APPENDS = Kind(
    name="appends",
    writes=(Append,),
    ctes=_appends,
    writing=("appended", "append_trimmed"),
    answers=_append_answers,
    encode=lambda write: {
        "id": write.session_id,
        "event": write.event,
        "ended": write.ended,
        "born": write.born,
        "keep": write.keep,
    },
    decode=lambda _, row: None if row.state == "none" else int(row.number),
)
