"""A kind of write, as a part of the one statement that a batch is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trio_sessions.abc import Worker
from trio_sessions.errors import RowLocked
from trio_sessions.stores.database._schema import Tables
from trio_sessions.writes import Answer, Write

__all__ = [
    "BUSY",
    "COLUMNS",
    "DOUBTFUL",
    "HOLDS",
    "LOCKED",
    "OWN",
    "UNFINISHED",
    "Kind",
    "Names",
    "all_own",
    "asked",
    "born",
    "busy",
    "limited_to",
    "locked",
    "own",
    "without_data",
]

_TOLD = "kind, n, state, worker_id, incarnation, owner, capabilities, elicitation, born, number"
COLUMNS = f"{_TOLD}, data"
"""What each part of the statement answers for each of its writes; ``n`` is its place."""

LOCKED = "locked"
"""The state of a write that was not done because of somebody else's lock."""

BUSY = "busy"
"""The state of a claim that was not done because somebody else counts its owner's sessions."""

DOUBTFUL = "doubtful"
"""The state of a write that was not done because the database may have forgotten something."""

UNFINISHED = "unfinished"
"""The state of a write that was done in part, for the session has too many messages."""

HOLDS = "(SELECT x.holds FROM witness AS x)"
"""The batch may be carried out."""

OWN = {
    "worker_id": "CAST(%(own_worker_id)s AS text)",
    "incarnation": "CAST(%(own_incarnation)s AS text)",
}


@dataclass(frozen=True, slots=True)
class Names:
    """The names of our own tables, made of a prefix that was checked."""

    sessions: str
    messages: str
    fleet: str
    workers: str
    gone: str
    revoked: str
    logs: str
    mail: str
    topics: str
    channels: str
    """What the names of the channels begin with; an incarnation follows."""

    @classmethod
    def of(cls, tables: Tables) -> "Names":
        """Return the names of these tables."""
        sessions = tables.sessions.name
        return cls(
            sessions,
            tables.messages.name,
            tables.fleet.name,
            tables.workers.name,
            tables.gone.name,
            tables.revoked.name,
            tables.logs.name,
            tables.mail.name,
            tables.topics.name,
            sessions.removesuffix("sessions"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of write."""

    name: str
    """Names the parameter, too, which is the JSON of its writes."""
    writes: tuple[type[Write[Any]], ...]
    ctes: Callable[[Names], str]
    """What is done: one CTE after the other. Each is there only once in a statement."""
    writing: tuple[str, ...]
    """Those of the CTEs that write, and so wait for all others that lock."""
    answers: Callable[[Names], str]
    """The select of what `COLUMNS` says; without ``data`` unless it `tells_data`."""
    tells_data: bool = False
    encode: Callable[[Any], Mapping[str, Any]]
    """One write, for the parameter."""
    decode: Callable[[Worker, Any], Answer]
    """One row of the answer, unless its state is `LOCKED`."""


def asked(names: Names, name: str, columns: str, *, there: str = "t.session_id IS NOT NULL") -> str:
    """Return the CTEs that read the writes of a kind, and whether their rows are there.

    There is nothing to be done unless `_witness` says so. They are looked up by ``= ANY (array)``,
    for which the index is used whatever the planner believes of the number of ids.

    Args:
        names: the names of our tables.
        name: the kind.
        columns: what a write has besides ``n`` and ``id``.
        there: "its row is there", of the row ``t`` (with ``mine`` and ``generation``) and the
            write ``a``.
    """
    return f"""
        {name}_asked AS MATERIALIZED (
            SELECT * FROM json_to_recordset(CAST(%({name})s AS json)) AS a(
                n integer, id text, {columns}
            ) WHERE {HOLDS}
        ), {name}_there AS MATERIALIZED (
            SELECT s.session_id, s.generation, {own("s")} AS mine, s.xmax AS locker
            FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT id FROM {name}_asked))
        ), {name} AS MATERIALIZED (
            SELECT a.*, coalesce({there}, false) AS there
            FROM {name}_asked AS a LEFT JOIN {name}_there AS t ON t.session_id = a.id
        )"""


def without_data(answers: str) -> str:
    """Return the select of `COLUMNS` of a part that tells no data."""
    return f"""
        SELECT part.*, NULL FROM ({answers}) AS part({_TOLD})"""


def own(alias: str) -> str:
    """Return "this incarnation holds the row", as `_questions.own` does: never by the index."""
    return (
        f"{alias}.worker_id = {OWN['worker_id']} AND {alias}.incarnation || '' = "
        f"{OWN['incarnation']}"
    )


def all_own(alias: str) -> str:
    """Return the same, by the index on the incarnation, where the rows are not named."""
    return " AND ".join(f"{alias}.{column} = {value}" for column, value in OWN.items())


def born(alias: str) -> str:
    """Return the birth of the session of a row."""
    return f"CAST(CAST(extract(epoch FROM {alias}.created_at) * 1000000 AS bigint) AS text)"


def limited_to(number: int) -> str:
    """Return a LIMIT that the planner does not know.

    Else, where it believes that there are fewer rows, it sorts them all instead of going by the
    index; and a session that has grown since the last ANALYZE may have a million.
    """
    return f"LIMIT (SELECT {number})"


def locked() -> RowLocked:
    """Return the answer to a write whose row somebody else has locked."""
    return RowLocked("the row is locked by another transaction")


def busy() -> RowLocked:
    """Return the answer to a claim whose owner's sessions somebody else counts."""
    return RowLocked("the sessions of its owner are being counted by another transaction")
