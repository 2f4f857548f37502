"""How a worker learns that messages wait for its sessions, where the database cannot say so."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
import trio

from trio_sessions.abc import Bell, Worker
from trio_sessions.abc._mail import MAIL

__all__ = ["BellSource", "look_at_the_file", "poll"]

T = TypeVar("T")
News = Callable[[sa.Connection, int], tuple[int, frozenset[str]]]
Backlog = Callable[[sa.Connection], Mapping[str, Any]]

_LOOK = 0.03  # seconds between two looks at a file
_SOON, _LATE = 0.1, 1.0  # seconds between two polls: while messages come, and when none do


class BellSource(Protocol):
    """The part of the store's connections that a bell needs."""

    def check_process(self) -> None:
        """Raise `StoreUnavailable` in a forked child: what was taken is its parent's."""
        ...

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
    """A look at whether the file has changed, which reads no table, and then for new messages."""

    def __init__(
        self, source: BellSource, worker: Worker, connection: sa.Connection, *news: News
    ) -> None:
        self._source = source
        self._worker = worker
        self._connection = connection
        self._news = news
        self._version = 0
        self._seen = [0] * len(news)

    async def wait(self) -> frozenset[str]:
        while True:
            rung = await self._source.run_on(self._worker, self._connection, self.look)
            if rung:
                return rung
            await trio.sleep(_LOOK)

    def look(self, connection: sa.Connection) -> frozenset[str]:
        """Return what there is news for; in a thread."""
        version: int = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
        if version == self._version:
            return frozenset()
        # The version first: what is changed in between is looked at next time.
        rung = set[str]()
        for place, news in enumerate(self._news):
            self._seen[place], told = news(connection, self._seen[place])
            rung |= told
        self._version = version
        return frozenset(rung)


@asynccontextmanager
async def look_at_the_file(source: BellSource, worker: Worker, *news: News) -> AsyncIterator[Bell]:
    """Ring whenever another connection has put messages or letters into an SQLite file.

    https://www.sqlite.org/pragma.html#pragma_data_version

    Args:
        source: the store's connections.
        worker: whose sessions are asked for.
        news: each takes the id of the newest that was seen of its kind, and returns the newest
            that there is, with what to tell of those in between.
    """
    connection = await source.take(worker, lambda _: None)
    try:
        bell = _FileBell(source, worker, connection, *news)
        await source.run_on(worker, connection, bell.look)  # what came before is not news
        yield bell
    finally:
        with trio.CancelScope(shield=True):
            await source.give_back(worker, connection)


class _Poll:
    """A poll for all sessions of the worker at once, less often while there is nothing."""

    def __init__(self, source: BellSource, worker: Worker, backlog: Backlog) -> None:
        self._source = source
        self._worker = worker
        self._backlog = backlog
        self._pause = _SOON
        self._known: Mapping[str, Any] = {}

    async def wait(self) -> frozenset[str]:
        while True:
            await trio.sleep(self._pause)
            backlog = await self._source.run(self._worker, self._backlog)
            news = {what for what, _ in backlog.items() - self._known.items()}
            news |= {MAIL} & backlog.keys()  # taken away, and there again: it looks the same
            self._known = backlog
            self._pause = _SOON if news else min(self._pause * 2, _LATE)
            if news:
                return frozenset(news)


@asynccontextmanager
async def poll(source: BellSource, worker: Worker, backlog: Backlog) -> AsyncIterator[Bell]:
    """Ring whenever a poll finds other messages: it asks once a second while none come.

    Args:
        source: the store's connections.
        worker: whose sessions are asked for.
        backlog: returns for each session that has messages something that changes with
            them: the newest one would not do, for a smaller id may be committed later. And
            `MAIL`, as long as there are letters: whoever is told takes them away.
    """
    yield _Poll(source, worker, backlog)
