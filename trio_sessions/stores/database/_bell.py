"""How a worker learns that messages wait for its sessions, where the database cannot say so."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
import trio

from trio_sessions.abc import Bell, Worker

__all__ = ["BellSource", "look_at_the_file", "poll"]

T = TypeVar("T")

_LOOK = 0.03  # seconds between two looks at a file
_SOON, _LATE = 0.1, 1.0  # seconds between two polls: while messages come, and when none do


class BellSource(Protocol):
    """What a bell needs of the store."""

    async def run(self, worker: Worker, work: Callable[[sa.Connection], T]) -> T:
        """Run one operation in a thread."""
        ...

    async def run_on(
        self, worker: Worker, connection: sa.Connection, work: Callable[[sa.Connection], T]
    ) -> T:
        """Run one operation in a thread, on a connection that was taken."""
        ...

    async def take(self, worker: Worker, prepare: Callable[[sa.Connection], Any]) -> sa.Connection:
        """Connect beside the pool; whoever takes the connection gives it to `give_back`."""
        ...

    async def give_back(self, worker: Worker, connection: sa.Connection) -> None: ...


class _FileBell:
    """Looks whether the file has changed, which reads no table."""

    def __init__(self, source: BellSource, worker: Worker, connection: sa.Connection) -> None:
        self._source = source
        self._worker = worker
        self._connection = connection
        self._version = 0

    async def wait(self) -> None:
        while True:
            version = await self._source.run_on(self._worker, self._connection, _look)
            if version != self._version:
                self._version = version
                return
            await trio.sleep(_LOOK)


def _look(connection: sa.Connection) -> int:
    version: int = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    return version


@asynccontextmanager
async def look_at_the_file(source: BellSource, worker: Worker) -> AsyncIterator[Bell]:
    """Ring whenever another connection has changed an SQLite file.

    https://www.sqlite.org/pragma.html#pragma_data_version
    """
    connection = await source.take(worker, lambda _: None)
    try:
        yield _FileBell(source, worker, connection)
    finally:
        with trio.CancelScope(shield=True):
            await source.give_back(worker, connection)


class _Poll:
    """Asks for all sessions of the worker at once, less often while there is nothing."""

    def __init__(
        self, source: BellSource, worker: Worker, newest: Callable[[sa.Connection], dict[str, int]]
    ) -> None:
        self._source = source
        self._worker = worker
        self._newest = newest
        self._pause = _SOON
        self._known: dict[str, int] = {}

    async def wait(self) -> frozenset[str]:
        while True:
            await trio.sleep(self._pause)
            newest = await self._source.run(self._worker, self._newest)
            news = newest.items() - self._known.items()
            self._known = newest
            self._pause = _SOON if news else min(self._pause * 2, _LATE)
            if newest:  # told again as long as they wait, for a message that came late
                return frozenset(newest)


@asynccontextmanager
async def poll(
    source: BellSource, worker: Worker, newest: Callable[[sa.Connection], dict[str, int]]
) -> AsyncIterator[Bell]:
    """Ring whenever a poll finds messages: at most once a second while none come.

    Args:
        source: the store.
        worker: whose sessions are asked for.
        newest: returns the newest message of each session for which there is one.
    """
    yield _Poll(source, worker, newest)
