"""An engine, and what runs on it, for as long as one Trio run has the store open.

The one owner of connections: which there are, and whether they lead to the database that the URL
names now (`Database.leads_elsewhere` knows that). What thread is at work on one, and who may leave
it or cut it, stands in `_operation`.

Everything here belongs to that run or to this process: `DatabaseStore` makes it anew for
each run, and after a fork (see `trio_sessions.stores._one_run`). Just over 400 lines, for what
gives connections out is what must have them all back.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from trio_sessions._logging import get_logger
from trio_sessions._process import keep_for_ever, this_process
from trio_sessions.abc import Pool, Worker
from trio_sessions.errors import OperationTooLong, StoreSchemaError, StoreUnavailable
from trio_sessions.stores.database._database import Database, Timeouts
from trio_sessions.stores.database._errors import first_line, hide_values
from trio_sessions.stores.database._given import Rank, places, renew_pool
from trio_sessions.stores.database._operation import Operation, State, Withdrawn, current
from trio_sessions.stores.database._urls import masked

__all__ = ["Connections"]

logger = get_logger("trio_sessions.rows")

T = TypeVar("T")

_PATH = "trio_sessions_path"  # of a connection: the last one that was looked at


class Connections:
    """The connections of one Trio run to one database.

    Args:
        database: what it is.
        url: where it is.
        given: the engine that was handed in, if one was.
        timeouts: how long the database may take.
        ended: those of a run that has ended without closing them.
    """

    def __init__(
        self,
        database: Database,
        url: sa.URL,
        given: sa.Engine | None,
        timeouts: Timeouts,
        ended: "Connections | None",
    ) -> None:
        self._database = database
        self._url = url
        self._given = given
        self._timeouts = timeouts
        self._ended = ended
        self._process = this_process()
        self._engine: sa.Engine | None = None
        self._opening = trio.Lock()
        self._prepare: Callable[[sa.Connection], None] | None = None
        self._taken: dict[sa.Connection, Any] = {}
        """Those beside the pool, with the driver's own."""
        self._path: object = None
        self._schema: object = None
        """Where the opening has found the tables, and by which path."""
        self._running = 0
        self._idle = trio.Event()
        if given is not None:
            renew_pool(given)

    def __repr__(self) -> str:
        return f"Connections({masked(self._url)!r})"

    # ---- opening and closing ----

    async def open(self, worker: Worker, prepare: Callable[[sa.Connection], None]) -> None:
        """Make the engine, if nobody has, and ``prepare`` the database."""
        async with self._opening:
            self._prepare = prepare
            if self._engine is None:
                # Nothing is connected yet, so whoever is cancelled may leave it alone.
                self._engine = await trio.to_thread.run_sync(
                    self._make_engine, worker, abandon_on_cancel=True, limiter=worker.limiter
                )
            await self.run(worker, prepare)

    async def close(self, worker: Worker) -> None:
        """Wait for what runs, in bounded time, and dispose of the engine if it was made here."""
        engine, self._engine = self._engine, None
        while self._running:  # each gives its connection back to this engine
            self._idle = trio.Event()
            await self._idle.wait()
        if engine is not None and self._given is None:
            with contextlib.suppress(Withdrawn):  # in a forked child
                await self._operation().run(partial(self._dispose, engine), worker.limiter)

    def _make_engine(self, worker: Worker) -> sa.Engine:
        if self._ended is not None:
            self._ended.dispose()
            self._ended = None
        # What an engine that was handed in keeps open nobody knows.
        self._database.opens(self if self._given is None else self._given, self._url)
        options = self._database.engine_options(self._url, self._timeouts)
        if self._given is not None:
            # The same pool, and nothing of the user's engine is changed.
            return self._given.execution_options(**options)
        size = int(worker.limiter.total_tokens) + 1  # for the stamp, which has a limiter of its own
        engine = self._database.create_engine(self._url, size, self._timeouts)

        @sa.event.listens_for(engine, "do_connect")
        def connect_watched(
            dialect: sa.Dialect, record: object, args: list[Any], kwargs: dict[str, Any]
        ) -> object:
            connection = dialect.connect(*args, **kwargs)
            if current.operation is not None:
                try:
                    current.operation.hold(connection)
                except Withdrawn:
                    connection.close()
                    raise
            return connection

        return engine.execution_options(**options)

    def _dispose(self, engine: sa.Engine) -> None:
        engine.dispose()
        self._database.has_closed(self)

    def dispose(self) -> None:
        """Close what lies idle, after a run that has not; in a thread."""
        if self._engine is not None and self._given is None:
            self._engine.dispose()  # there may be more: a thread may still be at work

    def pool(self) -> Pool | None:
        """Return how many connections are lent, and how many are not; None: nobody can say."""
        pool = None if self._engine is None else self._engine.pool
        if not isinstance(pool, sa.QueuePool):
            return None
        return Pool(in_use=pool.checkedout(), idle=pool.checkedin())

    def check_process(self) -> None:
        """Raise unless this process has opened the connections."""
        if self._process is not this_process():
            raise StoreUnavailable(
                f"the connections to {masked(self._url)} are those of the process that was forked"
            )

    # ---- one operation ----

    async def run(
        self,
        worker: Worker,
        work: Callable[[sa.Connection], T],
        *,
        rank: Rank = Rank.OTHERS,
        is_one: bool = False,
    ) -> T:
        """Run ``work`` on a connection in a thread.

        Args:
            worker: who asks.
            work: what is done.
            rank: for whom, where an engine that was handed in has few connections.
            is_one: it is one transaction: of several the last may be refused alone.
        """
        async with self._place(rank):
            return await self._guarded(worker, partial(self._connected, work), is_one=is_one)

    def _place(self, rank: Rank) -> AbstractAsyncContextManager[None]:
        found = places(self._given)  # looked up each time: the engine may have got another pool
        return contextlib.nullcontext() if found is None else found.place(rank)

    async def take(self, worker: Worker, prepare: Callable[[sa.Connection], Any]) -> sa.Connection:
        """Connect beside the pool; whoever takes the connection gives it to `give_back`."""
        async with self._place(Rank.OTHERS):
            connection = await self._guarded(worker, partial(self._detached, prepare))
        self._taken[connection] = connection.connection.dbapi_connection
        return connection

    async def run_on(
        self, worker: Worker, connection: sa.Connection, work: Callable[[sa.Connection], T]
    ) -> T:
        """Run ``work`` in a thread, on a connection that was taken."""

        def watched(operation: Operation) -> T:
            operation.hold(connection.connection.dbapi_connection)
            if self._database.leads_elsewhere(connection):
                raise self._replaced()
            return work(connection)

        return await self._guarded(worker, watched)

    async def give_back(self, worker: Worker, connection: sa.Connection) -> None:
        """Close a connection that was taken, however broken it is."""
        driver = self._taken.pop(connection)
        operation = self._operation()
        with contextlib.suppress(DBAPIError, Withdrawn):  # it is gone, which is what is wanted
            await operation.run(partial(_close, connection, driver, operation), worker.limiter)
        if self._process is not this_process():
            keep_for_ever((connection, driver))

    async def _guarded(
        self, worker: Worker, work: Callable[[Operation], T], *, is_one: bool = False
    ) -> T:
        """Run ``work`` in a thread, watched; the errors of drivers become ours."""
        self.check_process()
        operation = self._operation()
        self._running += 1
        try:
            return await operation.run(partial(work, operation), worker.limiter)
        except Withdrawn:
            self.check_process()
            raise StoreUnavailable(
                f"the database {masked(self._url)}: the engine's pool gave no connection within "
                f"{self._patience():g} s, and nothing has been sent",
                did_nothing=True,
            ) from None
        except (DBAPIError, PoolTimeout) as exc:
            if isinstance(exc, DBAPIError) and self._database.leads_astray(exc):
                self._cut_what_was_taken()
            hide_values(exc)
            error = self._translated(exc, was_cut=operation.state is State.CUT)
            error.did_nothing = not operation.has_held or (is_one and self._has_refused(exc))
            raise error from exc
        except StoreUnavailable as exc:  # by the dialect
            exc.did_nothing &= is_one
            hide_values(exc)
            raise
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    def _operation(self) -> Operation:
        return Operation(
            self._database.cutter,
            timeout=self._timeouts.operation_timeout,
            patience=self._patience(),
            process=self._process,
        )

    def _patience(self) -> float:
        """Return the seconds that an operation waits for its connection.

        An engine that was made here only connects, which its driver bounds.
        """
        timeouts = self._timeouts
        own = 0.0 if self._given is not None else max(2.0, timeouts.connect_timeout)
        return own + timeouts.operation_timeout

    def _connect(self, operation: Operation) -> sa.Connection:
        """Return a connection to the database that is there now, and watch it.

        Raises:
            StoreUnavailable: the one that was there before is not any more. What is asked of
                the new one next says nothing of that: it may be empty.
        """
        connection = self._checked_out(operation)
        if self._database.leads_elsewhere(connection):
            self._turn_to_the_new_one(connection, operation)
            raise self._replaced()
        return connection

    def _checked_out(self, operation: Operation) -> sa.Connection:
        if self._engine is None:
            raise StoreUnavailable(f"the store on {masked(self._url)} is closed")
        try:
            connection = self._engine.connect()
        except TypeError as exc:  # SQLAlchemy could not read what its first connection says
            remedy = self._database.unreadable(self._engine, exc)
            if not remedy:
                raise
            raise StoreSchemaError(f"the database {masked(self._url)} {remedy}") from exc
        try:
            operation.hold(connection.connection.dbapi_connection)
        except BaseException:  # the connection goes back; raised again
            connection.close()
            raise
        return connection

    def _turn_to_the_new_one(self, connection: sa.Connection, operation: Operation) -> None:
        """Throw away the connections that lie idle, and prepare the database that is there now."""
        logger.error("%s: connecting anew", self._replaced())
        while True:
            connection.invalidate()
            connection.close()
            connection = self._checked_out(operation)
            if not self._database.leads_elsewhere(connection):
                break
        with connection:
            assert self._prepare is not None
            try:
                self._prepare(connection)
            except StoreSchemaError as exc:
                raise self._replaced() from exc
            finally:
                operation.release()

    def _replaced(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"the database {masked(self._url)} was deleted or replaced while it was open, and what "
            "was asked of it is unknown"
        )

    def _detached(
        self, prepare: Callable[[sa.Connection], Any], operation: Operation
    ) -> sa.Connection:
        connection = self._connect(operation)
        try:
            with self._told(connection):
                connection.detach()
                prepare(connection)
        except BaseException:  # the connection goes back; raised again
            connection.close()
            raise
        return connection

    def _connected(self, work: Callable[[sa.Connection], T], operation: Operation) -> T:
        with self._connect(operation) as connection:
            try:
                with self._told(connection):
                    return work(connection)
            finally:
                operation.release()

    @contextlib.contextmanager
    def _told(self, connection: sa.Connection) -> Iterator[None]:
        """Apply settings if the engine was given; invalidate the pool of a useless connection.

        Useless is one that was lost, or leads to the wrong server.
        """
        try:
            if self._given is not None:
                self._database.settle(connection)
                self._check_path(connection)
            yield
        except DBAPIError as exc:
            # What SQLAlchemy has found lost itself, it has seen to.
            is_useless = exc.connection_invalidated or self._database.leads_astray(exc)
            if is_useless and not connection.invalidated:
                _invalidate_pool(connection)
            raise

    def _check_path(self, connection: sa.Connection) -> None:
        """Raise if somebody's code has left the connection with another path to tables.

        They would be those of another program, and look like a database that has gone back.
        """
        path = self._database.path(connection)
        if path is None or path in (self._path, connection.info.get(_PATH)):
            return
        schema = self._database.schema(connection)
        if self._path is None:  # the opening
            self._path, self._schema = path, schema
        if schema != self._schema:
            connection.invalidate()
            raise StoreUnavailable(
                f"the database {masked(self._url)}: other code has left a search_path on a "
                f"connection of your engine that leads to schema {schema!r}, not {self._schema!r}: "
                "the connection was thrown away; use SET LOCAL, or an engine of its own"
            )
        connection.info[_PATH] = path

    def _cut_what_was_taken(self) -> None:
        """Cut the connections beside the pool, so that their users connect anew."""
        for driver in self._taken.values():
            with contextlib.suppress(OSError):  # no descriptor is left: it finds out by itself
                cutter = self._database.cutter(driver)
                cutter.cut()
                cutter.close()

    def _has_refused(self, exc: DBAPIError | PoolTimeout) -> bool:
        return isinstance(exc, DBAPIError) and self._database.has_refused(exc)

    def _translated(self, exc: DBAPIError | PoolTimeout, *, was_cut: bool) -> StoreUnavailable:
        where = f"the database {masked(self._url)}"
        is_too_long = isinstance(exc, DBAPIError) and self._database.is_too_long(exc)
        if was_cut:
            return (OperationTooLong if is_too_long else StoreUnavailable)(
                f"{where} did not answer within operation_timeout "
                f"({self._timeouts.operation_timeout:g} s), so its connection was cut off"
            )
        if isinstance(exc, PoolTimeout):
            return StoreUnavailable(f"{where}: the engine's pool has no connection left: {exc}")
        reason = f"{type(exc.orig).__name__}: {first_line(exc.orig)}"
        row_error = self._database.row_error(exc)
        if row_error is not None:
            return row_error(f"{where} refused a row: {reason}")
        if is_too_long:
            return OperationTooLong(f"{where} ended an operation that took too long: {reason}")
        advice = self._database.advice(exc)
        return StoreUnavailable(f"{where} failed: {reason}" + (f" ({advice})" if advice else ""))


def _close(connection: sa.Connection, driver: Any, operation: Operation) -> None:
    try:
        operation.hold(driver)
        connection.close()
    finally:
        operation.release()
        driver.close()  # SQLAlchemy leaves it open if it was detached and has broken


def _invalidate_pool(connection: sa.Connection) -> None:
    """Invalidate all connections of a pool: each is replaced before its next use.

    That is what SQLAlchemy does when it finds ``connection`` closed; nothing is sent.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    driver.close()
    with contextlib.suppress(DBAPIError):
        connection.exec_driver_sql("SELECT 1")
