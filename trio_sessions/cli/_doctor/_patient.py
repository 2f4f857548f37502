"""Connections that only read, each operation bounded by the store's own watchdog."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import sqlalchemy as sa
import trio

from trio_sessions.abc import Worker
from trio_sessions.cli._read_only import read_only
from trio_sessions.stores.database._connections import Connections
from trio_sessions.stores.database._database import find
from trio_sessions.stores.database._given import note_process

__all__ = ["Patient", "open_patient"]

T = TypeVar("T")

_CONNECT = 5  # seconds
_WAIT = 1.0  # seconds for a lock
_STATEMENT = 4  # seconds; below the bound of an operation, so that the server's own word comes


@dataclass(slots=True)
class _Bounds:
    connect_timeout: float = float(_CONNECT)
    operation_timeout: float = 8.0
    lock_timeout: float = _WAIT
    server_timeouts: bool = False


class Patient:
    """A database that is looked at."""

    def __init__(self, connections: Connections, worker: Worker) -> None:
        self.connections = connections
        self.worker = worker

    async def ask(self, look: Callable[[sa.Connection], T]) -> T:
        """Look, in a transaction that only reads.

        Raises:
            StoreUnavailable: the database does not answer, or not in time.
        """
        return await self.connections.run(self.worker, partial(_reading, look))


@asynccontextmanager
async def open_patient(url: sa.URL) -> AsyncIterator[Patient]:
    """Connect.

    Raises:
        StoreUnavailable: it cannot be reached.
    """
    engine = _engine(url)
    note_process(engine)
    connections = Connections(find(url.get_backend_name()), url, engine, _Bounds(), None)
    worker = Worker(
        worker_id="trio-sessions",
        incarnation=secrets.token_hex(8),
        limiter=trio.CapacityLimiter(2),
    )
    try:
        await connections.open(worker, lambda _: None)
        yield Patient(connections, worker)
    finally:
        with trio.CancelScope(shield=True):
            await connections.close(worker)
            engine.dispose()  # at most one connection, which is idle


def _engine(url: sa.URL) -> sa.Engine:
    """Make an engine whose connections are told nothing that PgBouncer would not take."""
    if url.get_backend_name() == "sqlite":
        return sa.create_engine(
            read_only(url),
            poolclass=sa.NullPool,
            hide_parameters=True,
            connect_args={"timeout": _WAIT},
        )
    timeout = {} if "connect_timeout" in url.query else {"connect_timeout": _CONNECT}
    return sa.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=1,
        max_overflow=1,  # for who listens
        pool_reset_on_return=None,
        hide_parameters=True,
        connect_args={**timeout, "prepare_threshold": None},
    )


def _reading(look: Callable[[sa.Connection], T], connection: sa.Connection) -> T:
    with _read_only_transaction(connection):
        return look(connection)


@contextlib.contextmanager
def _read_only_transaction(connection: sa.Connection) -> Iterator[None]:
    """Settings hold for this transaction alone: behind PgBouncer others would inherit them."""
    if connection.dialect.name == "sqlite":
        yield
        return
    connection.exec_driver_sql("BEGIN READ ONLY")
    try:
        for setting in (
            f"statement_timeout = {_STATEMENT * 1000}",
            f"lock_timeout = {int(_WAIT * 1000)}",
            "row_security = off",  # rather an error than rows that are hidden
        ):
            connection.exec_driver_sql(f"SET LOCAL {setting}")
        yield
    finally:
        if not connection.invalidated:
            connection.exec_driver_sql("ROLLBACK")
