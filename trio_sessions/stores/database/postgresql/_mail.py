"""Mail between workers: collected, listened for, expired; one statement each.

Nothing waits for a lock: what somebody else is about to delete is passed over. Letters of one
worker are asked for by ``= ANY (ARRAY(…))`` and in the order of their index, so that it is used
whatever the planner believes: with ``=`` it knows that their ids alone are their order, and may
read the letters of all.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.abc._mail import MAIL
from trio_sessions.inspection import MISSED
from trio_sessions.stores.database._questions import identity
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.postgresql._clearing import LIMIT
from trio_sessions.stores.database.postgresql._connections import USE_INDEXES, USES_INDEXES
from trio_sessions.stores.database.postgresql._kinds import OWN, Names, own
from trio_sessions.stores.database.postgresql._pipeline import in_one_round_trip
from trio_sessions.stores.database.postgresql._words import encode_ids

__all__ = ["Mail", "forgetting"]

_TOPICS = "json_array_elements_text(CAST(%(topics)s AS json))"


def _oldest(names: Names, incarnations: str, limit: str) -> str:
    """Return the select of the oldest letters to these incarnations that nobody has locked."""
    return f"""SELECT m.id, octet_length(m.payload) AS size FROM {names.mail} AS m
            WHERE m.incarnation = ANY (ARRAY({incarnations}))
            ORDER BY m.incarnation, m.id LIMIT (SELECT {limit}) FOR UPDATE SKIP LOCKED"""


def forgetting(names: Names, incarnations: str) -> str:
    """Return the CTEs that delete letters and topics of workers whose rows go.

    As many as the bind parameter limit; the others go by their age, and as those of workers that
    have no row.

    Args:
        names: the names of our tables.
        incarnations: the select of whose they are.
    """
    return f"""letters_left AS MATERIALIZED (
            {_oldest(names, incarnations, LIMIT)}
        ), letters_gone AS (
            DELETE FROM {names.mail} AS m
            WHERE m.id = ANY (ARRAY(SELECT l.id FROM letters_left AS l))
        ), topics_left AS MATERIALIZED (
            SELECT t.ctid AS place FROM {names.topics} AS t
            WHERE t.incarnation = ANY (ARRAY({incarnations}))
            ORDER BY t.incarnation, t.topic LIMIT (SELECT {LIMIT}) FOR UPDATE SKIP LOCKED
        ), topics_gone AS (
            DELETE FROM {names.topics} AS t
            WHERE t.ctid = ANY (ARRAY(SELECT l.place FROM topics_left AS l))
        )"""


@lru_cache
def _collect(names: Names) -> str:
    return f"""WITH oldest AS MATERIALIZED (
            {_oldest(names, f"SELECT {OWN['incarnation']}", LIMIT)}
        ), few AS MATERIALIZED (
            SELECT o.id, sum(o.size) OVER (ORDER BY o.id) - o.size AS before FROM oldest AS o
        ), taken AS (
            DELETE FROM {names.mail} AS m WHERE m.id = ANY (ARRAY(
                SELECT f.id FROM few AS f WHERE f.before < CAST(%(size)s AS bigint)
            ))
            RETURNING m.id, m.payload
        )
        SELECT t.payload FROM taken AS t ORDER BY t.id"""


@lru_cache
def _listen(names: Names) -> str:
    return f"""WITH listens AS (
            INSERT INTO {names.topics} AS t (topic, incarnation)
            SELECT DISTINCT each.topic, {OWN["incarnation"]} FROM {_TOPICS} AS each(topic)
            ORDER BY 1 ON CONFLICT DO NOTHING RETURNING t.topic
        )
        SELECT count(*) AS number FROM listens"""


@lru_cache
def _unlisten(names: Names) -> str:
    return f"""WITH gone AS (
            DELETE FROM {names.topics} AS t
            WHERE t.incarnation = {OWN["incarnation"]}
                AND t.topic = ANY (ARRAY(SELECT each.topic FROM {_TOPICS} AS each(topic)))
            RETURNING t.topic
        )
        SELECT count(*) AS number FROM gone"""


@lru_cache
def _living(names: Names) -> str:
    return f"""SELECT w.incarnation, w.worker_id FROM {names.workers} AS w
        WHERE w.stamped_at >= now() - make_interval(secs => {MISSED} * w.stamp_interval)"""


@lru_cache
def _expire(names: Names) -> str:
    return f"""WITH old AS MATERIALIZED (
            SELECT m.id FROM {names.mail} AS m
            WHERE m.created_at < now() - make_interval(secs => CAST(%(older_than)s AS float8))
            ORDER BY m.created_at LIMIT (SELECT {LIMIT}) FOR UPDATE SKIP LOCKED
        ), expired AS (
            DELETE FROM {names.mail} AS m WHERE m.id = ANY (ARRAY(SELECT o.id FROM old AS o))
            RETURNING m.id
        ), strays AS MATERIALIZED (
            SELECT t.ctid AS place FROM {names.topics} AS t
            WHERE t.incarnation NOT IN (SELECT w.incarnation FROM {names.workers} AS w)
            LIMIT (SELECT {LIMIT}) FOR UPDATE OF t SKIP LOCKED
        ), forgotten AS (
            DELETE FROM {names.topics} AS t
            WHERE t.ctid = ANY (ARRAY(SELECT s.place FROM strays AS s))
        )
        SELECT count(*) AS number FROM expired"""


@lru_cache
def _backlog(names: Names) -> str:
    """Return the select of what waits: messages by session, and whether there are letters.

    From the messages, which are few, and not from the sessions.
    """
    return f"""SELECT m.session_id AS what, max(m.id) AS newest, count(*) AS number
        FROM {names.messages} AS m JOIN {names.sessions} AS s
            ON s.session_id = m.session_id AND {own("s")}
        GROUP BY m.session_id
        UNION ALL
        SELECT '{MAIL}', 0, 0 WHERE (
            SELECT m.id FROM {names.mail} AS m
            WHERE m.incarnation = ANY (ARRAY(SELECT {OWN["incarnation"]}))
            ORDER BY m.incarnation, m.id LIMIT 1
        ) IS NOT NULL"""


class Mail:
    """Letters and topics in one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self._names = Names.of(tables)

    def collect(
        self, connection: sa.Connection, worker: Worker, limit: int, size: int
    ) -> list[str]:
        """Take letters away, the oldest first, until they are as many or as large as this."""
        parameters = {**identity(worker), "limit": limit, "size": size}
        rows = _ask(connection, _collect(self._names), parameters)
        return [row.payload for row in rows]

    def listen(self, connection: sa.Connection, worker: Worker, topics: Sequence[str]) -> None:
        """Add topics that a worker listens to."""
        if topics:
            parameters = {**identity(worker), "topics": encode_ids(topics)}
            in_one_round_trip(connection, [_listen(self._names)], parameters)

    def unlisten(self, connection: sa.Connection, worker: Worker, topics: Sequence[str]) -> None:
        """Remove topics that a worker listens to."""
        if topics:
            parameters = {**identity(worker), "topics": encode_ids(topics)}
            _ask(connection, _unlisten(self._names), parameters)

    def living(self, connection: sa.Connection) -> frozenset[str]:
        """Return the incarnations, and the ids, of workers that are not late."""
        rows = in_one_round_trip(connection, [_living(self._names)], {})
        return frozenset(name for row in rows for name in (row.incarnation, row.worker_id))

    def expire(self, connection: sa.Connection, older_than: float, limit: int) -> int:
        """Delete old letters, and topics of incarnations without a row; return how many letters."""
        parameters = {"older_than": float(older_than), "limit": limit}
        [row] = _ask(connection, _expire(self._names), parameters)
        return int(row.number)

    def backlog(self, connection: sa.Connection, worker: Worker) -> Mapping[str, Any]:
        """Return what waits for a worker, each with something that changes when more comes.

        Of a session the newest message and their number; and `MAIL`, if there is any.
        """
        rows = _ask(connection, _backlog(self._names), identity(worker))
        return {row.what: (row.newest, row.number) for row in rows}


def _ask(connection: sa.Connection, statement: str, parameters: Mapping[str, Any]) -> Sequence[Any]:
    """Execute a statement by the indexes, in one round trip."""
    statements = [statement]
    if not connection.get_execution_options().get(USES_INDEXES):
        statements.insert(0, USE_INDEXES)
    return in_one_round_trip(connection, statements, parameters)
