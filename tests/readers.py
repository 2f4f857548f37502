"""Reads the messages of a session, and waits for what goes on by itself, for tests."""

from typing import Any

import trio
from conftest import Shared

from trio_sessions import SessionRegistry


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
