"""Reads the messages of a session, for tests."""

from typing import Any

import trio

from trio_sessions import SessionRegistry


async def read(registry: SessionRegistry, session_id: str, count: int) -> list[Any]:
    """Read so many messages, and acknowledge all of them."""
    received: list[Any] = []
    with trio.fail_after(20):
        async with registry.open_inbox(session_id) as inbox:
            while len(received) < count:
                received.append(await anext(inbox))
    return received
