"""A batch: one statement as a rule, one transaction and one round trip always.

Each kind of write in it is a chain of CTEs. They share one snapshot and do not see what the
others do, which is why a batch has one kind of write for each session. The chains look alike:
what is asked, as one JSON text; the rows of its sessions, locked where nobody else has a
lock (``SKIP LOCKED``), so that nothing waits; what is to be done; what was done. What is
there and was not done is answered as locked. Only an INSERT may wait, for somebody who is
inserting the same id; all do so in the order of ids.

It is built of text, for it is all PostgreSQL's own. See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from trio_sessions.abc import Worker
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.postgresql._claims import CLAIMS, DELETIONS
from trio_sessions.stores.database.postgresql._connections import USES_INDEXES
from trio_sessions.stores.database.postgresql._errors import (
    LOCK_NOT_AVAILABLE,
    PROGRAM_LIMIT_EXCEEDED,
    locks_are_of_the_table,
    sqlstate,
)
from trio_sessions.stores.database.postgresql._kinds import (
    COLUMNS,
    LOCKED,
    Kind,
    Names,
    locked,
    own,
)
from trio_sessions.stores.database.postgresql._pipeline import in_one_round_trip
from trio_sessions.stores.database.postgresql._sayings import SAYINGS
from trio_sessions.stores.database.postgresql._sends import ACKNOWLEDGEMENTS, BELLS, SENDS
from trio_sessions.writes import Answer, Batch, Claim, Committed, Write

__all__ = ["Commit"]

# Else a plan is made, and kept, while the tables are almost empty, that reads them whole for each
# id; until the next ANALYZE, whatever they have grown to. Our own connections are told when they
# connect, others for each transaction.
_USE_INDEXES = "SELECT set_config('enable_seqscan', 'off', true)"

_KINDS = (CLAIMS, DELETIONS, SAYINGS, SENDS, ACKNOWLEDGEMENTS)
_BY_NAME = {kind.name: kind for kind in _KINDS}
_BY_WRITE = {write: kind for kind in _KINDS for write in kind.writes}


@lru_cache
def _statement(names: Names, kinds: tuple[Kind, ...], *, rings: bool) -> str:
    ctes = ",".join(kind.ctes(names) for kind in kinds)
    answers = [kind.answers(names) for kind in kinds]
    if rings and SENDS in kinds:
        ring, ring_answers = BELLS
        ctes += ring(names)
        answers.append(ring_answers(names))
    union = "\n        UNION ALL".join(answers)
    return f"WITH {ctes} SELECT {COLUMNS} FROM ({union}) AS answers({COLUMNS})"


@lru_cache
def _lock_what_has_ended(names: Names) -> str:
    """Return the statement that comes first where a claim replaces an ended session.

    A message may have been stored for that after the snapshot of a statement and before its
    lock. Who looks again once the lock is there sees them all, and none can come any more.
    """
    return f"""
        SELECT FROM {names.sessions} AS s
        WHERE s.session_id = ANY (ARRAY(
            SELECT a.id FROM json_to_recordset(CAST(%(claims)s AS json)) AS a(id text, ended bigint)
            WHERE a.ended > 0
        )) AND {own("s")}
        ORDER BY s.session_id FOR UPDATE SKIP LOCKED"""


class Commit:
    """Carries out batches on one set of tables.

    Args:
        tables: the tables.
        rings: whoever holds a session is told of its messages.
    """

    def __init__(self, tables: Tables, *, rings: bool) -> None:
        self._names = Names.of(tables)
        self._rings = rings

    def __call__(
        self, connection: sa.Connection, worker: Worker, batch: Batch, waited: Callable[[], float]
    ) -> Committed:
        """Carry out a batch; ``waited`` returns the seconds since its ages were told."""
        writes = batch.writes
        if not writes:
            return Committed(answers=())
        kinds = tuple(kind for kind in _KINDS if any(isinstance(w, kind.writes) for w in writes))
        replaces = any(claim.ended for _, claim in batch.of(Claim))
        parameters = _parameters(worker, writes, waited())
        try:
            rows = self._execute(
                connection, kinds, parameters, replaces=replaces, rings=self._rings
            )
        except DBAPIError as exc:
            if sqlstate(exc) == PROGRAM_LIMIT_EXCEEDED:  # the queue of notifications is full
                rows = self._execute(connection, kinds, parameters, replaces=replaces, rings=False)
            elif sqlstate(exc) == LOCK_NOT_AVAILABLE:
                self._say_whose_lock_it_is(connection)
                raise
            else:
                raise
        answers: list[Answer] = [None] * len(writes)
        for row in rows:
            kind = _BY_NAME.get(row.kind)
            if kind is not None:
                answers[row.n] = locked() if row.state == LOCKED else kind.decode(worker, row)
        return Committed(answers=answers)

    def _execute(
        self,
        connection: sa.Connection,
        kinds: tuple[Kind, ...],
        parameters: Mapping[str, Any],
        *,
        replaces: bool,
        rings: bool,
    ) -> Sequence[Any]:
        statements = [_statement(self._names, kinds, rings=rings)]
        if replaces:
            statements.insert(0, _lock_what_has_ended(self._names))
        if not connection.get_execution_options().get(USES_INDEXES):
            statements.insert(0, _USE_INDEXES)
        return in_one_round_trip(connection, statements, parameters)

    def _say_whose_lock_it_is(self, connection: sa.Connection) -> None:
        """Raise unless the tables can be written: then the lock was that of a row."""
        with locks_are_of_the_table():
            for table in (self._names.sessions, self._names.messages):
                connection.exec_driver_sql(f"DELETE FROM {table} WHERE false")


def _parameters(worker: Worker, writes: Sequence[Write[Any]], waited: float) -> dict[str, str]:
    """Return the writes of each kind as one JSON text: quicker than arrays of psycopg's."""
    encoded: dict[str, list[Mapping[str, Any]]] = {}
    for place, write in enumerate(writes):
        kind = _BY_WRITE[type(write)]
        values = {"n": place, **kind.encode(write)}
        if isinstance(write, Claim):
            values["age"] += waited
        encoded.setdefault(kind.name, []).append(values)
    own = {"own_worker_id": worker.worker_id, "own_incarnation": worker.incarnation}
    return own | {name: orjson.dumps(values).decode() for name, values in encoded.items()}
