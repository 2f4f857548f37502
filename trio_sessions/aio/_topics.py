"""Topics, on asyncio's side."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

from trio_sessions._mail import Reader
from trio_sessions._registry import SessionRegistry as TrioRegistry
from trio_sessions.aio._reading import AsyncioReader

__all__ = ["Topics"]


class Topics:
    """What is said to whoever listens, as `trio_sessions.aio.SessionRegistry.topics`."""

    def __init__(
        self,
        call: Callable[[Callable[[TrioRegistry], Awaitable[Any]]], Awaitable[Any]],
        read: Callable[[Callable[[TrioRegistry], Reader]], AsyncioReader],
    ) -> None:
        """Not for users."""
        self._call = call
        self._read = read

    async def publish(self, topic: str, message: Any) -> None:
        """Say something to every subscriber of a topic; as the same method of Trio's."""
        await self._call(lambda core: core.topics.publish(topic, message))

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Hear what is published on a topic; as the same method of Trio's.

        To be used by ``async with`` and ``async for`` of asyncio.
        """
        return self._read(lambda core: cast("Reader", core.topics.subscribe(topic)))
