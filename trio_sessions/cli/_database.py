"""The demo's database: what an operator does behind the workers' backs, with SQL of its own."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import trio
from sqlalchemy.exc import SQLAlchemyError

from trio_sessions import StoreSchemaError, StoreUnavailable, open_registry
from trio_sessions.cli._proxy import Proxy
from trio_sessions.stores.database import DatabaseStore, metadata

__all__ = ["Database", "DatabaseRow", "check_database", "drop_tables", "open_database"]

T = TypeVar("T")

_LOCK_TIMEOUT = 0.5  # seconds that the workers wait for a lock: it is what the outage costs
_OPERATION_TIMEOUT = 5.0  # seconds
_PATIENCE = 5  # seconds that the operator waits for a connection, or a lock


@dataclass(frozen=True, slots=True)
class DatabaseRow:
    """A session's row, as the operator sees it."""

    worker: str
    last_accessed: datetime


class Database:
    """One database, seen by an operator.

    Args:
        url: where the operator connects.
        store_url: where the workers connect.
        table_prefix: of the demo's tables.
        outage: takes the database from the workers for the length of its block.
    """

    def __init__(
        self,
        url: sa.URL,
        *,
        store_url: sa.URL,
        table_prefix: str,
        outage: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self.outage = outage
        self._engine = _engine(url)
        self._store_url = store_url
        self._table_prefix = table_prefix
        self._sessions = metadata(table_prefix).tables[f"{table_prefix}sessions"]

    def store(self) -> DatabaseStore:
        """Return a store for one worker."""
        return _store(self._store_url, self._table_prefix)

    async def rows(self) -> Mapping[str, DatabaseRow]:
        """Return every row, by session id."""
        row = self._sessions.c
        select = sa.select(row.session_id, row.worker_id, row.last_accessed)

        def read() -> dict[str, DatabaseRow]:
            with self._engine.connect() as connection:
                return {r[0]: DatabaseRow(r[1], r[2]) for r in connection.execute(select)}

        return await _in_thread(read)

    async def delete(self, session_ids: Collection[str]) -> None:
        """Delete rows, as another worker or an operator would."""
        delete = sa.delete(self._sessions).where(self._sessions.c.session_id.in_(session_ids))

        def write() -> None:
            with self._engine.connect() as connection:
                connection.execute(delete)

        await _in_thread(write)


def check_database(url: str | sa.URL) -> sa.URL:
    """Return the URL if the demo can use it; opens nothing.

    Raises:
        ValueError: it is no URL, or one of a database that is not supported.
        MissingDependency: the driver is not installed.
        FileNotFoundError: the folder of the SQLite file does not exist.
    """
    if url == "memory:":
        raise ValueError(
            "workers share a database, not memory: give sqlite:///file.db or "
            "postgresql+psycopg://user:password@host/name"
        )
    DatabaseStore(url)
    made = sa.make_url(url)
    if made.get_backend_name() == "sqlite" and not made.query.get("uri"):
        folder = Path(made.database or "").absolute().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"the folder {folder} does not exist: create it first")
    return made


@asynccontextmanager
async def open_database(url: sa.URL, *, table_prefix: str) -> AsyncIterator[Database]:
    """Make the demo's tables, and drop them at the end unless they were there before.

    Raises:
        StoreUnavailable: the database cannot be reached.
        StoreSchemaError: tables of these names are there, and are not ours.
    """
    there_before = True
    try:
        async with open_registry(_store(url, table_prefix, create_tables=False)):
            pass
    except StoreSchemaError:  # they are missing; or not ours, which comes out of the next one
        there_before = False
        with trio.CancelScope(shield=True):  # so that what is created is sure to be dropped
            async with open_registry(_store(url, table_prefix)):
                pass
    open_it = _sqlite if url.get_backend_name() == "sqlite" else _postgresql
    try:
        async with open_it(url, table_prefix) as opened:
            yield opened
    finally:
        if not there_before:
            with trio.CancelScope(shield=True):
                await drop_tables(url, table_prefix)


async def drop_tables(url: sa.URL, table_prefix: str) -> None:
    """Drop tables that a command has made for itself.

    Raises:
        StoreUnavailable: they may still be there.
    """
    await _in_thread(partial(metadata(table_prefix).drop_all, _engine(url)))


@asynccontextmanager
async def _sqlite(url: sa.URL, table_prefix: str) -> AsyncIterator[Database]:
    """Take the database away by locking its file from another connection."""

    @asynccontextmanager
    async def lock() -> AsyncIterator[None]:
        connection = await _in_thread(_engine(url).connect)
        try:
            await _in_thread(partial(connection.exec_driver_sql, "BEGIN EXCLUSIVE"))
            yield
        finally:
            with trio.CancelScope(shield=True):
                await _in_thread(connection.close)

    yield Database(url, store_url=url, table_prefix=table_prefix, outage=lock)


@asynccontextmanager
async def _postgresql(url: sa.URL, table_prefix: str) -> AsyncIterator[Database]:
    """Take the database away by cutting the workers' connections, in a proxy before the server."""
    connect, through = await _in_thread(partial(_route, url))
    proxy = Proxy(connect)

    @asynccontextmanager
    async def cut() -> AsyncIterator[None]:
        proxy.go_away()
        try:
            yield
        finally:
            proxy.come_back()

    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(proxy.serve)
            yield Database(
                url, store_url=through(proxy.port), table_prefix=table_prefix, outage=cut
            )
        finally:
            proxy.stop()


def _route(
    url: sa.URL,
) -> tuple[Callable[[], Awaitable[trio.SocketStream]], Callable[[int], sa.URL]]:
    """Ask the driver where the server really is: the URL may leave that to the environment.

    Returns:
        What connects to the server, and what makes the URL that leads to a port of ours.
    """
    with _engine(url).connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        info = driver.info
        host, address, port = info.host, info.hostaddr, info.port
        user, password, name = info.user, info.password, info.dbname
    query = {k: v for k, v in url.query.items() if k not in {"host", "hostaddr", "port"}}
    query["gssencmode"] = "disable"  # its tickets are for the server's own name
    connect: Callable[[], Awaitable[trio.SocketStream]]
    if host.startswith("/"):
        connect = partial(trio.open_unix_socket, f"{host}/.s.PGSQL.{port}")
        host, query["sslmode"] = "127.0.0.1", "disable"
    else:
        connect = partial(trio.open_tcp_stream, address or host, port)
        query["hostaddr"] = "127.0.0.1"  # and host stays, for the server's certificate

    def through(own_port: int) -> sa.URL:
        return url.set(
            username=user,
            password=password or None,
            host=host,
            port=own_port,
            database=name,
            query=query,
        )

    return connect, through


def _store(url: sa.URL, table_prefix: str, *, create_tables: bool = True) -> DatabaseStore:
    return DatabaseStore(
        url,
        table_prefix=table_prefix,
        create_tables=create_tables,
        lock_timeout=_LOCK_TIMEOUT,
        operation_timeout=_OPERATION_TIMEOUT,
    )


def _engine(url: sa.URL) -> sa.Engine:
    sqlite = url.get_backend_name() == "sqlite"
    return sa.create_engine(
        url,
        poolclass=sa.NullPool,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        connect_args={"timeout" if sqlite else "connect_timeout": _PATIENCE},
    )


async def _in_thread(work: Callable[[], T]) -> T:
    """Run blocking SQL in a thread; the library's errors become `StoreUnavailable`."""
    try:
        return await trio.to_thread.run_sync(work)
    except SQLAlchemyError as exc:
        reason = next(iter(str(getattr(exc, "orig", exc)).splitlines()), type(exc).__name__)
        raise StoreUnavailable(f"the demo's own SQL failed: {reason}") from exc
