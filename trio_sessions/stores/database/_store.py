"""`DatabaseStore`: threads, connections and errors around the SQL of a dialect.

Over 400 lines: a third of them are the methods of the contract, a line of work each.
"""

import contextlib
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

import outcome
import sqlalchemy as sa
import trio
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from trio_sessions._settings import seconds
from trio_sessions.abc import Bell, SessionStore, Worker
from trio_sessions.errors import RowUnavailable, StoreUnavailable
from trio_sessions.stores.database._database import find
from trio_sessions.stores.database._operation import Operation, current
from trio_sessions.stores.database._questions import Questions
from trio_sessions.stores.database._schema import check_tables, tables
from trio_sessions.stores.database._urls import check_engine, check_url, masked
from trio_sessions.types import Holder, RowAnswers, StoredMessage, Swept, Wanted
from trio_sessions.writes import Batch, Committed

__all__ = ["DatabaseStore"]

T = TypeVar("T")


class DatabaseStore(SessionStore):
    """Rows in SQLite or PostgreSQL, one operation, one thread, one transaction.

    The engine is made when the first registry opens the store, never earlier, so the
    store itself may be made before a fork. It has room for the limiter's tokens.

    Args:
        url_or_engine: a database URL, or an engine of yours: it is used with its own
            pool and connection settings, and never disposed. Only these bound how long
            it takes to connect, so give it a ``connect_timeout``. No more operations run
            at a time than its pool keeps connections; its overflow is left to you.
        table_prefix: lower-case letters, digits and underscores, at most 38 of them.
        create_tables: create missing tables when the store opens. Existing ones are
            never altered.
        connect_timeout: seconds to connect, for an engine made here; at least 2 count
            on PostgreSQL.
        operation_timeout: seconds for one operation. The server is told to stop a
            statement at four fifths of it; if it does not answer by the whole of it,
            the connection is cut off, whoever made the engine.
        lock_timeout: seconds to wait for a row or, on SQLite, the file, for an engine
            made here.
        listen: learn of messages by LISTEN on a connection of its own. PgBouncer in
            transaction mode loses it: set it to False behind one, and the worker polls
            once for all its sessions.
        server_timeouts: send the timeouts as ``options`` when connecting to PostgreSQL, and
            prepare statements. PgBouncer does not take the former, and loses the latter:
            set it to False behind one.

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
        self.listen = listen
        if lock_timeout >= operation_timeout:
            raise ValueError(
                f"lock_timeout ({lock_timeout:g} s) must be shorter than "
                f"operation_timeout ({operation_timeout:g} s)"
            )
        self._create_tables = create_tables
        self._given_engine: sa.Engine | None = None
        if isinstance(url_or_engine, sa.Engine):
            self._given_engine = url_or_engine
            self._url = check_engine(url_or_engine)
        else:
            self._url = check_url(url_or_engine)
        self._database = find(self._url.get_backend_name())
        self._tables = tables(table_prefix)
        self._operations = self._database.operations(self._tables)
        self._questions = Questions(self._tables)
        self._engine: sa.Engine | None = None
        self._open_for: set[str] = set()
        self._opening = trio.Lock()
        self._places: trio.CapacityLimiter | None = None
        """As many as an engine that was handed in has connections."""
        self._running = 0
        self._idle = trio.Event()

    def __repr__(self) -> str:
        return f"DatabaseStore({masked(self._url)!r})"

    # ---- opening and closing ----

    async def open(self, worker: Worker) -> None:
        """Connect, check the tables, create missing ones; see `SessionStore.open`."""
        async with self._opening:
            self._open_for.add(worker.incarnation)
            try:
                if self._engine is None:
                    self._engine = await trio.to_thread.run_sync(
                        self._make_engine, worker, limiter=worker.limiter
                    )
                    self._places = _places(self._given_engine)
                await self.run(worker, self._prepare_tables)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await self._close(worker)
                raise

    async def close(self, worker: Worker) -> None:
        """Dispose of the engine if it was made here and this was its last worker."""
        async with self._opening:
            await self._close(worker)

    async def _close(self, worker: Worker) -> None:
        self._open_for.discard(worker.incarnation)
        if self._open_for or self._engine is None:
            return
        engine, self._engine = self._engine, None
        while self._running:  # bounded, and each gives its connection back to this engine
            self._idle = trio.Event()
            await self._idle.wait()
        if self._given_engine is None:
            await trio.to_thread.run_sync(engine.dispose, limiter=worker.limiter)

    def _make_engine(self, worker: Worker) -> sa.Engine:
        if self._given_engine is not None:
            # The same pool, and nothing of the user's engine is changed.
            return self._given_engine.execution_options(**self._database.engine_options())
        engine = self._database.create_engine(self._url, int(worker.limiter.total_tokens), self)

        @sa.event.listens_for(engine, "do_connect")
        def connect_watched(
            dialect: sa.Dialect, record: object, args: list[Any], kwargs: dict[str, Any]
        ) -> object:
            connection = dialect.connect(*args, **kwargs)
            if current.operation is not None:
                current.operation.hold(connection)
            return connection

        return engine.execution_options(**self._database.engine_options())

    def _prepare_tables(self, connection: sa.Connection) -> None:
        check_tables(
            connection,
            self._tables,
            may_create=self._create_tables,
            has_time_zones=self._database.has_time_zones,
        )
        if self._create_tables:
            self._operations.create_tables(connection)

    # ---- one operation ----

    async def run(self, worker: Worker, work: Callable[[sa.Connection], T]) -> T:
        """Run ``work`` on a connection in a thread; not for users."""
        return await self._guarded(worker, partial(self._connected, work))

    async def take(self, worker: Worker, prepare: Callable[[sa.Connection], Any]) -> sa.Connection:
        """Connect beside the pool, for as long as the caller likes; not for users."""
        return await self._guarded(worker, partial(self._detached, prepare))

    async def run_on(
        self, worker: Worker, connection: sa.Connection, work: Callable[[sa.Connection], T]
    ) -> T:
        """Run ``work`` on a connection that was taken; not for users."""

        def watched(operation: Operation) -> T:
            operation.hold(connection.connection.dbapi_connection)
            return work(connection)

        return await self._guarded(worker, watched)

    async def give_back(self, worker: Worker, connection: sa.Connection) -> None:
        """Close a connection that was taken, however broken it is; not for users."""
        operation = Operation(self._database.cutter, self.operation_timeout)
        with contextlib.suppress(DBAPIError):  # it is gone, which is what is wanted
            await operation.run(partial(_close, connection, operation), worker.limiter)

    async def _guarded(self, worker: Worker, work: Callable[[Operation], T]) -> T:
        """Run ``work`` in a thread, watched; the errors of drivers become ours."""
        operation = Operation(self._database.cutter, self.operation_timeout)
        self._running += 1
        try:
            async with self._places or contextlib.nullcontext():
                return await operation.run(partial(work, operation), worker.limiter)
        except (DBAPIError, PoolTimeout) as exc:
            _hide_values(exc)
            raise self._translated(exc, was_cut=operation.was_cut) from exc
        except StoreUnavailable as exc:  # by the dialect
            _hide_values(exc)
            raise
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _connect(self) -> sa.Connection:
        if self._engine is None:
            raise StoreUnavailable(f"the store on {masked(self._url)} is closed")
        return self._engine.connect()

    def _detached(
        self, prepare: Callable[[sa.Connection], Any], operation: Operation
    ) -> sa.Connection:
        connection = self._connect()
        try:
            operation.hold(connection.connection.dbapi_connection)
            connection.detach()
            prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connected(self, work: Callable[[sa.Connection], T], operation: Operation) -> T:
        with self._connect() as connection:
            operation.hold(connection.connection.dbapi_connection)
            try:
                return work(connection)
            finally:
                operation.release()

    def _translated(self, exc: DBAPIError | PoolTimeout, *, was_cut: bool) -> StoreUnavailable:
        where = f"the database {masked(self._url)}"
        if was_cut:
            return StoreUnavailable(
                f"{where} did not answer within operation_timeout "
                f"({self.operation_timeout:g} s), so its connection was cut off"
            )
        if isinstance(exc, PoolTimeout):
            return StoreUnavailable(f"{where}: the engine's pool has no connection left: {exc}")
        reason = f"{type(exc.orig).__name__}: {_first_line(exc.orig)}"
        if self._database.is_row_error(exc):
            return RowUnavailable(f"{where} refused a row: {reason}")
        return StoreUnavailable(f"{where} failed: {reason}")

    # ---- operations ----

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        """Carry out writes in one transaction; see `Store.commit`."""
        asked = time.monotonic()
        return await self.run(
            worker,
            lambda connection: self._operations.commit(
                connection, worker, batch, lambda: time.monotonic() - asked
            ),
        )

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows; see `SessionStore.refresh`."""
        return await self.run(
            worker, lambda connection: self._operations.refresh(connection, worker, session_ids)
        )

    async def delete_all(self, worker: Worker, *, limit: int) -> int:
        """Delete all rows of this incarnation; see `SessionStore.delete_all`."""
        return await self.run(
            worker, lambda connection: self._operations.delete_all(connection, worker, limit)
        )

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Say who holds a session; see `SessionStore.locate`.

        Cancellation: the caller does not wait for the thread, which only reads.
        """
        return await _abandonable(
            partial(
                self.run, worker, lambda connection: self._questions.locate(connection, session_id)
            )
        )

    # ---- owners and capabilities ----

    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's capabilities; see `SessionStore.get_capabilities`."""
        return await self.run(
            worker, lambda connection: self._questions.get_capabilities(connection, session_id)
        )

    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """Return the ids of sessions that can be asked; see `SessionStore`."""
        return await self.run(worker, self._questions.elicitation_capable)

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

    async def acknowledge(self, worker: Worker, message_ids: Sequence[int]) -> None:
        """Delete messages; see `Doomed.acknowledge`."""
        await self.run(
            worker,
            lambda connection: self._questions.acknowledge(connection, worker, message_ids),
        )

    def open_bell(self, worker: Worker) -> AbstractAsyncContextManager[Bell]:
        """Return what tells of messages; see `SessionStore.open_bell`."""
        return self._operations.open_bell(self, worker, may_listen=self.listen)

    # ---- the sweep ----

    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
    ) -> Swept:
        """Vouch, then delete what has expired; see `SessionStore.sweep`."""
        durations = {"session_ttl": session_ttl, "message_ttl": message_ttl, "max_gap": max_gap}
        return await self.run(
            worker, lambda connection: self._operations.sweep(connection, worker, durations, limit)
        )


def _close(connection: sa.Connection, operation: Operation) -> None:
    if connection.invalidated:
        connection.close()
        return
    driver = connection.connection.dbapi_connection
    assert driver is not None
    try:
        operation.hold(driver)
        connection.close()
    finally:
        operation.release()
        driver.close()  # SQLAlchemy leaves it open if it was detached and has broken


def _first_line(error: BaseException | None) -> str:
    return next(iter(str(error).splitlines()), "")


def _hide_values(error: BaseException) -> None:
    """Take session ids, owners, messages and passwords out of what an error shows.

    They are among the parameters, and in what PostgreSQL says beside its first line (DETAIL
    and CONTEXT). An error that is not of the server's making has none, and keeps all lines.
    The frames hold them too, and a crash reporter would send them away; and they hold a
    connection that did not come about, which would stay open as long as the error is kept.
    """
    related: list[BaseException | None] = [error]
    while related:
        each = related.pop()
        if each is None:
            continue
        traceback.clear_frames(each.__traceback__)
        if isinstance(each, DBAPIError):
            each.params = None
            if _is_of_the_server(each.orig):
                kind = type(each.orig)
                each.args = (f"({kind.__module__}.{kind.__name__}) {_first_line(each.orig)}",)
        elif _is_of_the_server(each):
            each.args = (_first_line(each),)
        related += [each.__cause__, each.__context__]


def _is_of_the_server(error: BaseException | None) -> bool:
    return getattr(error, "sqlstate", None) is not None


async def _abandonable(question: Callable[[], Awaitable[T]]) -> T:
    """Await a question in a system task; a caller that is cancelled leaves it alone there."""
    answer: outcome.Outcome[T] | None = None
    answered = trio.Event()

    async def ask() -> None:
        nonlocal answer
        answer = await outcome.acapture(question)
        answered.set()

    trio.lowlevel.spawn_system_task(ask)
    await answered.wait()
    assert answer is not None
    return answer.unwrap()


def _places(engine: sa.Engine | None) -> trio.CapacityLimiter | None:
    """Return as many places as a given engine has connections, if it has a number of them."""
    if engine is None or not isinstance(engine.pool, sa.QueuePool):
        return None
    return trio.CapacityLimiter(max(1, engine.pool.size()))
