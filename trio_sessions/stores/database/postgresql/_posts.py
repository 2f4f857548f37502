"""Letters that a batch leaves.

No row of a worker is locked for them, nor is any in the way of another letter: whoever leaves
one waits for nobody. So letters of one worker have ascending ids in the order of its batches,
which are one after the other.
"""

import json
from typing import Any

from trio_sessions.abc import Worker
from trio_sessions.abc._mail import MAIL
from trio_sessions.inspection import MISSED
from trio_sessions.stores.database.postgresql._kinds import HOLDS, Kind, Names
from trio_sessions.writes import Post

__all__ = ["MAIL_BELLS", "MAIL_TOLD", "POSTS"]

MAIL_TOLD = json.dumps([MAIL])
"""What a notification of mail says: as several sessions, one of which is `MAIL`. A worker of an
earlier version takes it for sessions that it does not hold."""


def _posts(names: Names) -> str:
    """Return the CTEs that leave letters, for workers and for whoever listens to a topic.

    Who listens is found in the order of the primary key, so that it is used: else a planner that
    believes that there are few topics may read all.
    """
    return f"""
        posts AS MATERIALIZED (
            SELECT * FROM json_to_recordset(CAST(%(posts)s AS json)) AS a(
                n integer, payload text, addressee text, topic text
            ) WHERE {HOLDS}
        ), post_living AS MATERIALIZED (
            SELECT w.incarnation, w.worker_id, w.started_at FROM {names.workers} AS w
            WHERE w.stamped_at >= now() - make_interval(secs => {MISSED} * w.stamp_interval)
                AND EXISTS (SELECT FROM posts)
        ), post_found AS MATERIALIZED (
            SELECT a.addressee, w.incarnation
            FROM (SELECT DISTINCT p.addressee FROM posts AS p) AS a CROSS JOIN LATERAL (
                SELECT l.incarnation FROM post_living AS l
                WHERE l.incarnation = a.addressee OR l.worker_id = a.addressee
                ORDER BY l.incarnation <> a.addressee, l.started_at DESC, l.incarnation DESC
                LIMIT 1
            ) AS w
        ), post_heard AS MATERIALIZED (
            SELECT t.topic, t.incarnation FROM {names.topics} AS t
            WHERE t.topic = ANY (ARRAY(SELECT DISTINCT p.topic FROM posts AS p))
                AND t.incarnation IN (SELECT l.incarnation FROM post_living AS l)
            ORDER BY t.topic, t.incarnation
        ), recipients AS MATERIALIZED (
            SELECT p.n, p.payload, f.incarnation
            FROM posts AS p JOIN post_found AS f ON f.addressee = p.addressee
            UNION ALL
            SELECT p.n, p.payload, h.incarnation
            FROM posts AS p JOIN post_heard AS h ON h.topic = p.topic
            WHERE p.addressee IS NULL
        ), posted AS (
            INSERT INTO {names.mail} AS m (incarnation, payload, created_at)
            SELECT r.incarnation, r.payload, now() FROM recipients AS r ORDER BY r.n
            RETURNING m.id
        )"""


def _post_answers(names: Names) -> str:
    return """
        SELECT 'posts', p.n, 'done', NULL, NULL, NULL, NULL, false, NULL, coalesce(r.number, 0)
        FROM posts AS p LEFT JOIN (
            SELECT n, count(*) AS number FROM recipients GROUP BY n
        ) AS r ON r.n = p.n"""


def _decode(worker: Worker, row: Any) -> int:
    return int(row.number)


POSTS = Kind(
    name="posts",
    writes=(Post,),
    ctes=_posts,
    writing=("posted",),
    answers=_post_answers,
    encode=lambda write: {
        "payload": write.payload,
        "addressee": write.to,
        "topic": write.topic,
    },
    decode=_decode,
)


def _ring(names: Names) -> str:
    """Return the CTE that notifies each recipient once."""
    return f"""mail_rung AS MATERIALIZED (
            SELECT CAST(pg_notify('{names.channels}' || told.incarnation, '{MAIL_TOLD}') AS text)
                AS done
            FROM (SELECT DISTINCT r.incarnation FROM recipients AS r) AS told
        )"""


def _ring_answers(names: Names) -> str:
    return """
        SELECT 'bells', 0, 'done', NULL, NULL, NULL, NULL, false, NULL, count(done)
        FROM mail_rung"""


MAIL_BELLS = _ring, _ring_answers
"""What comes with posts, unless nobody is to be rung for."""
