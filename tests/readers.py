"""Reads the messages of a session, and waits for what goes on by itself, for tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from conftest import Shared

from trio_sessions import SessionRegistry
from trio_sessions.testing import FakeTransport


async def read(registry: SessionRegistry, session_id: str, count: int) -> list[Any]:
    """Read so many messages, and acknowledge all of them."""
    received: list[Any] = []
    with trio.fail_after(40):
        async with registry.open_inbox(session_id) as inbox:
            while len(received) < count:
                received.append(await anext(inbox))
    return received


async def finish_writing(registry: SessionRegistry) -> None:
    """Wait for removals and claims whose callers have left."""
    house = registry._house
    with trio.fail_after(40):
        await house.background.finish_jobs()
        for entry in house.table.snapshot():
            await entry.answered()


async def no_row_is_left(shared: Shared) -> None:
    """Acknowledging goes on in the background."""
    with trio.fail_after(40):
        while shared.backdoor.messages():
            await trio.sleep(0.01)


class Consumer:
    """Reads a session's messages, as long as there are any."""

    def __init__(self, registry: SessionRegistry, session_id: str) -> None:
        self.received: list[Any] = []
        self._registry = registry
        self._session_id = session_id
        self.may_go_on = trio.Event()
        self.may_go_on.set()

    async def run(self) -> None:
        async with self._registry.open_inbox(self._session_id) as inbox:
            async for message in inbox:
                self.received.append(message)
                await self.may_go_on.wait()

    async def until(self, count: int) -> list[Any]:
        with trio.fail_after(40):
            while len(self.received) < count:
                await trio.sleep(0.005)
        return self.received


class Reader:
    """Reads the inboxes of some sessions, and keeps what it got."""

    def __init__(self, registry: SessionRegistry) -> None:
        self.received: dict[str, list[Any]] = {}
        self._registry = registry
        self._changed = trio.Event()

    async def read(self, session_id: str, *, task_status: trio.TaskStatus[None]) -> None:
        received = self.received.setdefault(session_id, [])
        async with self._registry.open_inbox(session_id) as inbox:
            task_status.started()
            async for message in inbox:
                received.append(message)
                self._changed.set()

    async def until(self, count: int, seconds: float = 30.0) -> None:
        """Wait until so many messages have been received in all."""
        with trio.fail_after(seconds):
            while sum(map(len, self.received.values())) < count:
                self._changed = trio.Event()
                await self._changed.wait()


@asynccontextmanager
async def reading(registry: SessionRegistry, *session_ids: str) -> AsyncIterator[Reader]:
    """Hold sessions here and read their inboxes."""
    reader = Reader(registry)
    async with trio.open_nursery() as nursery:
        for session_id in session_ids:
            await registry.add_session(session_id, FakeTransport())
            await nursery.start(reader.read, session_id)
        yield reader
        nursery.cancel_scope.cancel()
