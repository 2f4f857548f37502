"""`DatabaseStore`: thirty operations, hence over 400 lines, each a line or two around the SQL."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
import trio

from trio_sessions._checks import seconds
from trio_sessions.abc import (
    Bell,
    DataStore,
    InspectionStore,
    LimitStore,
    LogStore,
    MailStore,
    Pool,
    RevocationStore,
    SessionStore,
    Worker,
)
from trio_sessions.errors import StoreSchemaError
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.stores._doubt import Acknowledged
from trio_sessions.stores._one_run import OneRun
from trio_sessions.stores.database._connections import Connections
from trio_sessions.stores.database._database import find
from trio_sessions.stores.database._given import Rank, note_process
from trio_sessions.stores.database._inspection import questions
from trio_sessions.stores.database._preparing import (
    CONTRADICTION,
    Allowed,
    Preparation,
    what_is_allowed,
)
from trio_sessions.stores.database._questions import Asker
from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.database._upgrade import Changes
from trio_sessions.stores.database._urls import check_engine, check_url, masked
from trio_sessions.types import (
    Begun,
    Holder,
    Presence,
    RowAnswers,
    Stamp,
    Stamped,
    StoredEntry,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import Batch, Committed

__all__ = ["DatabaseStore"]

T = TypeVar("T")


class DatabaseStore(
    SessionStore, InspectionStore, RevocationStore, DataStore, LimitStore, MailStore, LogStore
):
    """Rows in SQLite or PostgreSQL, one operation, one thread, one transaction.

    The engine is made when the first registry opens the store, never earlier, so the
    store itself may be made before a fork. It has room for the limiter's tokens.

    The store is open in one Trio run at a time, for as many registries as you like; another
    run (another thread, or event loop) gets `StoreInUse`: make a store for each. A forked
    process that opens what its parent has open gets connections of its own; an SQLite file it
    must not open, as long as its parent had it open at the fork, and gets `StoreInUse` too.

    Args:
        url_or_engine: a database URL, or an engine of yours: it is used with its own
            pool and connection settings, and never disposed; only in a forked process its
            pool is replaced. On PostgreSQL its connections must be READ COMMITTED by default,
            and get ``SET client_encoding TO 'UTF8'`` where that is another one; nothing else is
            set on them. Only these settings bound how long a thread may wait for a
            connection, so give it a ``connect_timeout``, and to its pings
            (``pool_pre_ping``) a ``tcp_user_timeout``. No more operations run at a time
            than its pool keeps connections; its overflow is left to you. One of them is kept for
            the stamp, one for the refresh, and one for the writer, so give it four or more.
        table_prefix: lower-case letters, digits and underscores, at most 38 of them.
        create_tables: create missing tables when the store opens; none that exists is altered.
        migrate: bring an older schema up to this version when the store opens, under a lock:
            add the tables, columns and indexes that it lacks. Workers of the version before may
            go on beside. Without it an older schema is refused. The same is said for one
            registry by `open_registry(migrate=True) <trio_sessions.open_registry>`.
        connect_timeout: seconds to connect, for an engine made here; on PostgreSQL 2 at least.
        operation_timeout: seconds for one operation. The server is told to stop a
            statement at four fifths of it; if it does not answer by the whole of it,
            the connection is cut off, whoever made the engine. An operation that the pool of
            an engine of yours gives no connection for so long is given up before anything was
            sent; its thread, and its token of the limiter, stay until the pool has answered.
        lock_timeout: seconds to wait for a row (SQLite: the file), for an engine made here.
        listen: learn of messages by LISTEN on a connection of its own. PgBouncer in
            transaction mode loses it: set it to False behind one, and the worker polls
            once for all its sessions, and never sends a NOTIFY. The same for all workers: one
            that listens is told nothing by one that does not. It looks once a minute and at
            its passes only, and every 5 s for what workers tell each other.
        server_timeouts: send the timeouts as ``options`` when connecting to PostgreSQL, and
            prepare statements. PgBouncer does not take the former, and loses the latter:
            set it to False behind one. With the timeouts go ``row_security`` and the
            isolation; without them opening looks whether they are what they must be.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        MissingDependency: the driver is not installed.
    """

    def __init__(
        self,
        url_or_engine: sa.Engine | sa.URL | str,
        *,
        table_prefix: str = "trio_",
        create_tables: bool = True,
        migrate: bool = False,
        connect_timeout: float = 5.0,
        operation_timeout: float = 10.0,
        lock_timeout: float = 3.0,
        server_timeouts: bool = True,
        listen: bool = True,
    ) -> None:
        self.connect_timeout = seconds("connect_timeout", connect_timeout)
        self.operation_timeout = seconds("operation_timeout", operation_timeout)
        self.lock_timeout = seconds("lock_timeout", lock_timeout)
        self.server_timeouts = server_timeouts
        if lock_timeout >= operation_timeout:
            raise ValueError(
                f"lock_timeout ({lock_timeout:g} s) must be shorter than "
                f"operation_timeout ({operation_timeout:g} s)"
            )
        self._allowed = what_is_allowed(create_tables=create_tables, migrate=migrate)
        self._given_engine: sa.Engine | None = None
        if isinstance(url_or_engine, sa.Engine):
            self._given_engine = url_or_engine
            self._url = check_engine(url_or_engine)
            note_process(url_or_engine)
        else:
            self._url = check_url(url_or_engine)
        self._database = find(self._url.get_backend_name())
        self._tables = tables(table_prefix)
        self._operations = self._database.operations(self._tables, listens=listen)
        self._questions, self._inspection = questions(self._database.name, self._tables)
        self._preparation = Preparation(self._database, self._operations, self._tables, self._url)
        self._acknowledged = Acknowledged()
        self._asker = partial(Asker, self._acknowledged)
        self.changes = Changes()
        """What the last opening has done to the schema; not for users."""
        self._opened = OneRun(self._connections, f"the store on {masked(self._url)}")

    def __repr__(self) -> str:
        return f"DatabaseStore({masked(self._url)!r})"

    @property
    def gives_up_after(self) -> float:
        """Seconds that an operation with a connection may take: ``operation_timeout``."""
        return self.operation_timeout

    def connections(self) -> Pool | None:
        """Return how the engine's pool is, if it is one that counts."""
        return self._opened.state.pool() if self._opened.is_open else None

    # ---- opening and closing ----

    async def open(self, worker: Worker) -> None:
        """Connect, check the tables, create or upgrade what is missing; see `SessionStore.open`.

        Raises:
            StoreSchemaError: the tables, the role's rights or its settings are not what they
                must be; or the schema is older than this version and ``migrate`` was not said, or
                was said though ``create_tables`` is False.
            StoreInUse: another Trio run has it open.
        """
        if worker.migrate and self._allowed is Allowed.NOTHING:
            raise StoreSchemaError(CONTRADICTION)
        allowed = Allowed.UPGRADE if worker.migrate else self._allowed
        connections = self._opened.join(worker)
        try:
            await connections.open(worker, partial(self._prepare, allowed))
        except BaseException:  # what was opened is closed; raised again
            with trio.CancelScope(shield=True):
                await self.close(worker)
            raise

    async def close(self, worker: Worker) -> None:
        """Dispose of the engine if it was made here and this was its last worker."""
        await trio.lowlevel.checkpoint()
        self._acknowledged.forget(worker)
        connections = self._opened.leave(worker)
        if connections is not None:
            await connections.close(worker)

    def _connections(self, ended: Connections | None) -> Connections:
        return Connections(self._database, self._url, self._given_engine, self, ended)

    def _prepare(self, allowed: Allowed, connection: sa.Connection) -> None:
        self.changes = self._preparation.prepare(connection, allowed)

    async def run(self, worker: Worker, work: Callable[[sa.Connection], T], **how: Any) -> T:
        """Run ``work`` on a connection in a thread, as `Connections.run`; not for users."""
        return await self._opened.state.run(worker, work, **how)

    # ---- operations ----

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        """Carry out writes in one transaction; see `Store.commit`."""
        asked = time.monotonic()
        committed = await self.run(
            worker,
            lambda connection: self._operations.commit(
                connection, worker, batch, lambda: time.monotonic() - asked
            ),
            rank=Rank.WRITER,
            is_one=True,
        )
        self._acknowledged.note(worker, committed.stamp)
        return committed

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows; see `SessionStore.refresh`."""
        return await self.run(
            worker,
            lambda connection: self._operations.refresh(connection, worker, session_ids),
            rank=Rank.PASS,
        )

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        """Delete rows of this incarnation; see `SessionStore.delete_all`."""
        self._acknowledged.forget(worker)
        return await self.run(
            worker,
            lambda connection: self._operations.delete_all(connection, worker, limit),
            rank=Rank.PASS,
        )

    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        """Return rows of this incarnation; see `RowStore.own_rows`."""
        return await self.run(
            worker, lambda connection: self._questions.own_rows(connection, worker, after, limit)
        )

    # ---- workers ----

    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        """Write the worker's row anew; see `WorkerStore.begin`."""
        begun = await self.run(
            worker,
            lambda connection: self._operations.begin(
                connection, worker, history, presence, after=after
            ),
            rank=Rank.LEASE,
        )
        self._acknowledged.begin(worker, history)
        return begun

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        """Stamp the worker's row, and vouch; see `WorkerStore.stamp`."""
        stamped = await self.run(
            worker,
            lambda connection: self._operations.stamp(connection, worker, stamp, passed=passed),
            rank=Rank.LEASE,
            is_one=True,
        )
        self._acknowledged.note(worker, stamped.stamp)
        return stamped

    # ---- questions ----

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Say who holds a session; see `SessionStore.locate`."""
        return await self.run(
            worker,
            lambda connection: self._questions.locate(connection, self._asker(worker), session_id),
        )

    # ---- owners and capabilities ----

    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's capabilities; see `SessionStore.get_capabilities`."""
        return await self.run(
            worker,
            lambda connection: self._questions.get_capabilities(
                connection, self._asker(worker), session_id
            ),
        )

    async def get_data(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's data; see `DataStore.get_data`."""
        return await self.run(
            worker,
            lambda connection: self._questions.get_data(
                connection, self._asker(worker), session_id
            ),
        )

    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """Return the ids of sessions that can be asked; see `SessionStore`."""
        return await self.run(
            worker,
            lambda connection: self._questions.elicitation_capable(connection, self._asker(worker)),
        )

    # ---- for operators ----

    async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        """Replace what the worker says of itself; see `InspectionStore.announce`."""
        return await self.run(
            worker,
            lambda connection: self._inspection.announce(
                connection, worker, data=data, draining=draining
            ),
        )

    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        """Return the workers; see `InspectionStore.list_workers`."""
        return await self.run(worker, self._inspection.list_workers)

    async def list_sessions(
        self, worker: Worker, selection: Selection, *, after: str, limit: int
    ) -> list[SessionInfo]:
        """Return sessions by id; see `InspectionStore.list_sessions`."""
        return await self.run(
            worker,
            lambda connection: self._inspection.list_sessions(connection, selection, after, limit),
        )

    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        """Return what is known of a session; see `InspectionStore.describe`."""
        return await self.run(
            worker,
            lambda connection: self._inspection.describe(
                connection, self._asker(worker), session_id
            ),
        )

    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        """Mark ids, and delete their rows; see `RevocationStore.revoke`."""
        return await self.run(
            worker, lambda connection: self._operations.revoke(connection, revocation, limit)
        )

    async def revocations(self, worker: Worker, *, within: float) -> list[Mark]:
        """Return ids that were marked lately; see `RevocationStore.revocations`."""
        return await self.run(
            worker, lambda connection: self._operations.revocations(connection, within)
        )

    # ---- logs ----

    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        """Return entries of a session's log; see `LogStore.read_log`."""
        return await self.run(
            worker,
            lambda connection: self._operations.read_log(
                connection, self._asker(worker), session_id, after=after, limit=limit, size=size
            ),
        )

    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Delete old entries of logs; see `LogStore.expire_logs`."""
        return await self.run(
            worker,
            lambda connection: self._operations.expire_logs(
                connection, older_than=older_than, limit=limit
            ),
        )

    # ---- messages ----

    async def waiting(self, worker: Worker) -> list[str]:
        """Return the ids of sessions with messages; see `SessionStore.waiting`."""
        return await self.run(
            worker, lambda connection: self._questions.waiting(connection, worker)
        )

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Return stored messages; see `SessionStore.fetch`."""
        return await self.run(
            worker, lambda connection: self._operations.fetch(connection, worker, wanted)
        )

    def open_bell(self, worker: Worker) -> AbstractAsyncContextManager[Bell]:
        """Return what tells of messages; see `SessionStore.open_bell`."""
        return self._operations.open_bell(self._opened.state, worker)

    # ---- mail ----

    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        """Take letters away; see `MailStore.collect`."""
        mail = self._operations.mail
        return await self.run(
            worker, lambda connection: mail.collect(connection, worker, limit, size)
        )

    async def listen(self, worker: Worker, topics: Sequence[str]) -> None:
        """Add topics; see `MailStore.listen`."""
        mail = self._operations.mail
        await self.run(worker, lambda connection: mail.listen(connection, worker, topics))

    async def unlisten(self, worker: Worker, topics: Sequence[str]) -> None:
        """Remove topics; see `MailStore.unlisten`."""
        mail = self._operations.mail
        await self.run(worker, lambda connection: mail.unlisten(connection, worker, topics))

    async def living(self, worker: Worker) -> frozenset[str]:
        """Say who can get letters; see `MailStore.living`."""
        return await self.run(worker, self._operations.mail.living)

    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Delete old letters; see `MailStore.expire_mail`."""
        mail = self._operations.mail
        return await self.run(worker, lambda connection: mail.expire(connection, older_than, limit))

    # ---- the sweep ----

    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
        stamp: Stamp | None = None,
    ) -> Swept:
        """Stamp, vouch, then delete what has expired; see `SessionStore.sweep`."""
        durations = {"session_ttl": session_ttl, "message_ttl": message_ttl, "max_gap": max_gap}
        swept = await self.run(
            worker,
            lambda connection: self._operations.sweep(connection, worker, durations, limit, stamp),
            rank=Rank.PASS,
        )
        self._acknowledged.note(worker, None if swept.stamped is None else swept.stamped.stamp)
        return swept
