"""Messages: stored, rung for, and acknowledged."""

from typing import Any

from trio_sessions.abc import Worker
from trio_sessions.stores.database.postgresql._doubt import DOUBT
from trio_sessions.stores.database.postgresql._kinds import Kind, Names, asked, born, own
from trio_sessions.types import Holder, Sent
from trio_sessions.writes import Acknowledge, Send

__all__ = ["ACKNOWLEDGEMENTS", "BELLS", "SENDS"]

MOST_TOLD = 7900
"""Bytes in a notification; PostgreSQL takes less than 8000."""


_SEND = "payload text, age float8, ended bigint, born text, elsewhere boolean"


def _sends(names: Names) -> str:
    """Return the CTEs that store messages; the id of each is known by its place.

    Ids and places ascend in one order. Each session's row is locked as the foreign key does it.
    That lock and the one that a claim takes exclude each other, so the holder is the one that the
    message has when it commits.
    """
    return f"""{asked(names, "sends", _SEND)}, send_locks AS MATERIALIZED (
            SELECT s.session_id, s.worker_id, s.incarnation, s.owner, s.generation,
                {own("s")} AS mine, {born("s")} AS born
            FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT DISTINCT id FROM sends WHERE there))
            ORDER BY s.session_id FOR KEY SHARE SKIP LOCKED
        ), send_found AS MATERIALIZED (
            SELECT x.n, x.id, x.payload, x.age, row_number() OVER (ORDER BY x.n) AS place
            FROM sends AS x JOIN send_locks AS l ON l.session_id = x.id
            WHERE NOT (l.mine AND (x.elsewhere OR l.generation <= x.ended))
                AND (x.born IS NULL OR x.born = l.born)
        ), stored AS (
            INSERT INTO {names.messages} AS m (session_id, payload, created_at)
            SELECT f.id, f.payload, now() - make_interval(secs => f.age)
            FROM send_found AS f ORDER BY f.n
            RETURNING m.id
        ), stored_ids AS MATERIALIZED (
            SELECT array_agg(m.id ORDER BY m.id) AS ids FROM stored AS m
        )"""


def _send_answers(names: Names) -> str:
    return f"""
        SELECT 'sends', x.n,
            CASE WHEN f.n IS NOT NULL THEN 'done'
                WHEN x.there AND l.session_id IS NULL THEN 'locked'
                WHEN NOT x.there AND {DOUBT} THEN 'doubtful'
                ELSE 'none' END,
            l.worker_id, l.incarnation, l.owner, NULL, false, NULL,
            (SELECT ids FROM stored_ids)[f.place]
        FROM sends AS x
        LEFT JOIN send_locks AS l ON l.session_id = x.id
        LEFT JOIN send_found AS f ON f.n = x.n"""


def _decode_send(worker: Worker, row: Any) -> Sent | None:
    if row.state == "none":
        return None
    holder = Holder(worker_id=row.worker_id, incarnation=row.incarnation, owner=row.owner)
    return Sent(id=row.number, holder=holder)


SENDS = Kind(
    name="sends",
    writes=(Send,),
    ctes=_sends,
    writing=("stored",),
    answers=_send_answers,
    encode=lambda write: {
        "id": write.session_id,
        "payload": write.payload,
        "age": write.age,
        "ended": write.ended,
        "born": write.born,
        "elsewhere": write.elsewhere,
    },
    decode=_decode_send,
)


def _ring(names: Names) -> str:
    """Return the CTE that notifies each holder once: of one session by its id, of several as JSON.

    A notification is empty if they are too many for it: there is something.
    """
    return f"""rung AS MATERIALIZED (
            SELECT CAST(pg_notify(
                '{names.channels}' || told.incarnation,
                CASE WHEN told.number = 1 THEN told.one
                    WHEN octet_length(told.ids) <= {MOST_TOLD} THEN told.ids ELSE '' END
            ) AS text) AS done
            FROM (
                SELECT l.incarnation, count(DISTINCT f.id) AS number, min(f.id) AS one,
                    CAST(json_agg(DISTINCT f.id) AS text) AS ids
                FROM send_found AS f JOIN send_locks AS l ON l.session_id = f.id
                GROUP BY l.incarnation
            ) AS told
        )"""


def _ring_answers(names: Names) -> str:
    return """
        SELECT 'bells', 0, 'done', NULL, NULL, NULL, NULL, false, NULL, count(done) FROM rung"""


BELLS = _ring, _ring_answers
"""What comes with sends, unless nobody is to be rung for."""


def _acknowledgements(names: Names) -> str:
    """Return the CTEs that acknowledge messages.

    They lock a session's row as a send does, so that nobody takes it over meanwhile.
    """
    return f"""{asked(names, "acknowledgements", "messages bigint[]", there="t.mine")},
        acknowledgement_locks AS MATERIALIZED (
            SELECT s.session_id FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT id FROM acknowledgements WHERE there))
                AND {own("s")}
            ORDER BY s.session_id FOR KEY SHARE SKIP LOCKED
        ), acknowledged AS (
            DELETE FROM {names.messages} AS m USING acknowledgement_locks AS l
            WHERE m.session_id = l.session_id
                AND m.id = ANY (ARRAY(SELECT unnest(a.messages) FROM acknowledgements AS a))
            RETURNING m.id
        )"""


def _acknowledgement_answers(names: Names) -> str:
    return """
        SELECT 'acknowledgements', a.n,
            CASE WHEN l.session_id IS NOT NULL THEN 'done'
                WHEN a.there THEN 'locked' ELSE 'none' END,
            NULL, NULL, NULL, NULL, false, NULL, 0
        FROM acknowledgements AS a
        LEFT JOIN acknowledgement_locks AS l ON l.session_id = a.id"""


ACKNOWLEDGEMENTS = Kind(
    name="acknowledgements",
    writes=(Acknowledge,),
    ctes=_acknowledgements,
    writing=("acknowledged",),
    answers=_acknowledgement_answers,
    encode=lambda write: {"id": write.session_id, "messages": list(write.message_ids)},
    decode=lambda _, row: bool(row.state == "done"),
)
