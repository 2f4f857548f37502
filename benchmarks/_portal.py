"""The other way to put Trio under asyncio: a thread of its own, and a portal. For comparison."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import outcome
import trio

from trio_sessions import SessionRegistry, open_registry

__all__ = ["Portal", "open_portal"]


class Portal:
    """Calls a registry that lives in another thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.registry: SessionRegistry | None = None
        self.token: trio.lowlevel.TrioToken | None = None
        self.nursery: trio.Nursery | None = None
        self._loop = loop

    async def call(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        answered = self._loop.create_future()

        async def run() -> None:
            answer = await outcome.acapture(function, *args)
            self._loop.call_soon_threadsafe(answered.set_result, answer)

        assert self.token is not None
        assert self.nursery is not None
        self.token.run_sync_soon(self.nursery.start_soon, run)
        return (await answered).unwrap()


@asynccontextmanager
async def open_portal() -> AsyncIterator[Portal]:
    loop = asyncio.get_running_loop()
    portal, ready = Portal(loop), asyncio.Event()

    async def main() -> None:
        async with open_registry() as portal.registry, trio.open_nursery() as portal.nursery:
            portal.token = trio.lowlevel.current_trio_token()
            loop.call_soon_threadsafe(ready.set)
            await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    await ready.wait()
    try:
        yield portal
    finally:
        assert portal.token is not None
        assert portal.nursery is not None
        portal.token.run_sync_soon(portal.nursery.cancel_scope.cancel)
        await asyncio.to_thread(thread.join)
