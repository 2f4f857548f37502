"""A batch: one statement as a rule, one transaction and one round trip always.

Each kind of write in it is a chain of CTEs. They share one snapshot and do not see what the
others do, which is why a batch has one kind of write for each session. The chains look alike:
what is asked, as one JSON text; the rows of its sessions, locked where nobody else has a
lock (``SKIP LOCKED``), so that nothing waits; what is to be done; what was done. What is
there and was not done is answered as locked. Only an INSERT may wait, for somebody who is
inserting the same id; all do so in the order of ids. And the stamp, the last of all, for another
stamp of the same worker; see `_witness`.

It is built of text, for it is all PostgreSQL's own. See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from trio_sessions.abc import Worker
from trio_sessions.errors import RowUnavailable, StoreUnavailable
from trio_sessions.stores._adoption import adopts
from trio_sessions.stores._crowds import is_limited
from trio_sessions.stores._doubt import doubtful
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.postgresql._adoptions import ADOPTIONS
from trio_sessions.stores.database.postgresql._appends import APPENDS
from trio_sessions.stores.database.postgresql._claims import CLAIMS, DELETIONS, LIMITED_CLAIMS
from trio_sessions.stores.database.postgresql._connections import USE_INDEXES, USES_INDEXES
from trio_sessions.stores.database.postgresql._crowds import lock_owners
from trio_sessions.stores.database.postgresql._doubt import doubt_cte
from trio_sessions.stores.database.postgresql._errors import (
    LOCK_NOT_AVAILABLE,
    PROGRAM_LIMIT_EXCEEDED,
    locks_are_of_the_table,
    sqlstate,
)
from trio_sessions.stores.database.postgresql._kinds import (
    BUSY,
    COLUMNS,
    DOUBTFUL,
    LOCKED,
    Kind,
    Names,
    busy,
    locked,
    own,
    without_data,
)
from trio_sessions.stores.database.postgresql._pipeline import in_one_round_trip
from trio_sessions.stores.database.postgresql._posts import MAIL_BELLS, POSTS
from trio_sessions.stores.database.postgresql._sayings import SAYINGS
from trio_sessions.stores.database.postgresql._sends import ACKNOWLEDGEMENTS, BELLS, SENDS
from trio_sessions.stores.database.postgresql._witness import (
    WITNESS,
    check_workers_row,
    has_lost_its_row,
    judged,
    stamp_cte,
    told,
    witness_answers,
    witness_cte,
)
from trio_sessions.writes import Answer, Batch, Claim, Committed, Post, Send

__all__ = ["Commit"]

_KINDS = (CLAIMS, ADOPTIONS, DELETIONS, SAYINGS, SENDS, ACKNOWLEDGEMENTS, APPENDS, POSTS)
_IN_DOUBT = (ADOPTIONS, SAYINGS, SENDS, APPENDS)
"""Those whose answers ask whether the database is in doubt."""
_BELLS = ((SENDS, BELLS), (POSTS, MAIL_BELLS))
_BY_NAME = {kind.name: kind for kind in _KINDS}
_BY_WRITE = {write: kind for kind in _KINDS for write in kind.writes}
_REFUSED: Mapping[str, Callable[[], RowUnavailable]] = {
    LOCKED: locked,
    BUSY: busy,
    DOUBTFUL: doubtful,
}


@lru_cache
def _statement(names: Names, kinds: tuple[Kind, ...], *, rings: bool, stamps: bool) -> str:
    ctes = [witness_cte(names)]
    if any(kind in kinds for kind in _IN_DOUBT):
        ctes.append(doubt_cte(names))
    ctes += [kind.ctes(names) for kind in kinds]
    answers = [without_data(witness_answers(stamps=stamps))]
    for kind in kinds:
        part = kind.answers(names)
        answers.append(part if kind.tells_data else without_data(part))
    for kind, (ring, ring_answers) in _BELLS:
        if rings and kind in kinds:
            ctes.append(ring(names))
            answers.append(without_data(ring_answers(names)))
    if stamps:
        ctes.append(stamp_cte(names, [name for kind in kinds for name in kind.writing]))
    union = "\n        UNION ALL".join(answers)
    return f"WITH {', '.join(ctes)} SELECT {COLUMNS} FROM ({union}) AS answers({COLUMNS})"


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
    """The operation that carries out batches on one set of tables.

    Args:
        tables: the tables.
        rings: whoever holds a session is told of its messages, and of mail.
    """

    def __init__(self, tables: Tables, *, rings: bool) -> None:
        self._names = Names.of(tables)
        self._rings = rings

    def __call__(
        self, connection: sa.Connection, worker: Worker, batch: Batch, waited: Callable[[], float]
    ) -> Committed:
        """Carry out a batch; ``waited`` returns the seconds since its ages were told."""
        writes = batch.writes
        if not writes and batch.stamp is None and batch.not_after is None:
            return Committed(answers=())
        parameters = _parameters(worker, batch, waited())
        rows = self._rows(connection, worker, batch, parameters)
        answers: list[Answer] = [None] * len(writes)
        own = None
        for row in rows:
            kind = _BY_NAME.get(row.kind)
            if row.kind == WITNESS:
                own = row
            elif kind is not None:
                answers[row.n] = (
                    _REFUSED[row.state]() if row.state in _REFUSED else kind.decode(worker, row)
                )
        return judged(batch, own, answers)

    def _rows(
        self,
        connection: sa.Connection,
        worker: Worker,
        batch: Batch,
        parameters: Mapping[str, Any],
    ) -> Sequence[Any]:
        """Execute the statement, again where an error says that it may be another one then."""
        rings, may_have_changed = self._rings, batch.stamp is not None
        while True:
            try:
                return self._execute(connection, batch, parameters, rings=rings)
            except DBAPIError as exc:
                if rings and sqlstate(exc) == PROGRAM_LIMIT_EXCEEDED:
                    rings = False  # the queue of notifications is full
                elif may_have_changed and has_lost_its_row(exc):
                    may_have_changed = False  # the next snapshot shows it
                else:
                    self._explain(connection, worker, batch, exc)
                    raise

    def _execute(
        self,
        connection: sa.Connection,
        batch: Batch,
        parameters: Mapping[str, Any],
        *,
        rings: bool,
    ) -> Sequence[Any]:
        limited = any(is_limited(claim) for _, claim in batch.of(Claim))
        kinds = tuple(
            LIMITED_CLAIMS if limited and kind is CLAIMS else kind
            for kind in _KINDS
            if kind.name in parameters
        )
        stamps = batch.stamp is not None
        statements = [_statement(self._names, kinds, rings=rings, stamps=stamps)]
        if any(claim.ended and not adopts(claim) for _, claim in batch.of(Claim)):
            statements.insert(0, _lock_what_has_ended(self._names))
        if limited:
            statements.insert(0, lock_owners(self._names))
        if not connection.get_execution_options().get(USES_INDEXES):
            statements.insert(0, USE_INDEXES)
        return in_one_round_trip(connection, statements, parameters)

    def _explain(
        self, connection: sa.Connection, worker: Worker, batch: Batch, error: DBAPIError
    ) -> None:
        """Raise if an error that looks like one of a write's row is none."""
        if has_lost_its_row(error):
            raise StoreUnavailable(
                "PostgreSQL: this worker's row is there and was not stamped: look for a trigger on "
                f"UPDATE of {self._names.workers} that returns NULL"
            ) from error
        if sqlstate(error) != LOCK_NOT_AVAILABLE:
            return
        check_workers_row(connection, self._names, worker, error)
        with locks_are_of_the_table():
            names = self._names
            has_posts = any(batch.of(Post))
            for table in (
                names.sessions,
                names.messages,
                names.logs,
                names.workers,
                *((names.mail, names.topics) if has_posts else ()),
            ):
                connection.exec_driver_sql(f"DELETE FROM {table} WHERE false")


def _parameters(worker: Worker, batch: Batch, waited: float) -> dict[str, str | None]:
    """Return the writes of each kind as one JSON text: quicker than arrays of psycopg's."""
    encoded: dict[str, list[Mapping[str, Any]]] = {}
    for place, write in enumerate(batch.writes):
        kind = ADOPTIONS if adopts(write) else _BY_WRITE[type(write)]
        values = {"n": place, **kind.encode(write)}
        if isinstance(write, Claim | Send):
            values["age"] += waited
        encoded.setdefault(kind.name, []).append(values)
    return {
        "own_worker_id": worker.worker_id,
        "own_incarnation": worker.incarnation,
        "not_after": None if batch.not_after is None else repr(batch.not_after),
        **told(batch.stamp),
        **{name: orjson.dumps(values).decode() for name, values in encoded.items()},
    }
