"""Reads the messages of a session, and waits for what goes on by itself, for tests."""

from typing import Any

import trio

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
