"""Where Trio runs when the program is asyncio's: one thread, two loops, one of them the host.

Both loops live in one thread, so either may call the other's synchronous functions: a Trio
nursery starts a task for asyncio, an asyncio future is resolved by Trio. What differs is who
is below: see `Nested` here and `trio_sessions.aio._guest.Guest`.
"""

import asyncio
import sys
from collections.abc import Callable

import trio

from trio_sessions.aio._life import Life, State
from trio_sessions.aio._threads import this_thread
from trio_sessions.errors import RegistryClosed

__all__ = ["Host", "Nested", "is_trio_asyncio"]


class Host:
    """A nursery of a Trio run in this thread, for as long as somebody uses it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.life = Life(loop)
        self.users = 0
        self.on_end: set[Callable[[], None]] = set()
        """Called when the Trio run has ended, whatever ended it."""
        self._nursery: trio.Nursery | None = None
        self._thread = this_thread()

    @property
    def nursery(self) -> trio.Nursery:
        """Where to start what must not fail: an error here ends the run for everybody."""
        assert self._nursery is not None
        return self._nursery

    async def join(self) -> None:
        """Use the host, and wait until it is ready. Every `join` needs a `leave`.

        Raises:
            RegistryClosed: Trio has crashed meanwhile.
        """
        self.users += 1
        try:
            await self.life.wait_opened()
            if self.life.has_ended:
                raise RegistryClosed("Trio has crashed on this event loop") from self.life.crash
        except (RegistryClosed, asyncio.CancelledError):
            self.leave()
            await self.wait_left()
            raise

    def leave(self) -> None:
        """Use it no more; when the last one has left, the Trio run ends."""
        self.users -= 1
        if not self.users:
            self.life.go(State.CLOSING)

    async def wait_ended(self) -> None:
        """Wait until the Trio run has ended."""
        await self.life.wait_closed()

    async def wait_left(self) -> None:
        """Wait until the Trio run has ended, if the last user has left it."""
        if self.life.has_ended:
            await self.wait_ended()

    def check_thread(self) -> None:
        """Raise `RuntimeError` if the loop goes on in another thread: Trio cannot follow."""
        if self._thread is not this_thread():
            raise RuntimeError(
                "the event loop goes on in another thread than the one in which the registry was "
                "opened, and Trio does not: await registry.shutdown() here, and initialize() again"
            )

    def follow_loop(self) -> None:
        """Go on in this thread, if the loop does, so that the Trio run can end."""

    async def _main(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self.life.go(State.OPEN)
            await self.life.asked_to_end.wait()
            self._nursery.cancel_scope.cancel()

    def _end(self, crash: BaseException | None) -> None:
        self.life.blame(crash)
        for notice in list(self.on_end):
            notice()
        self.life.go(State.CLOSED)


class Nested(Host):
    """A host for a loop of trio-asyncio: Trio runs already, and the loop in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        task = loop.trio_as_future(self._main)  # type: ignore[attr-defined]  # trio-asyncio's
        task.add_done_callback(self._notice_end)

    def _notice_end(self, task: "asyncio.Future[None]") -> None:
        self._end(None if task.cancelled() else task.exception())


def is_trio_asyncio(loop: asyncio.AbstractEventLoop) -> bool:
    """Say whether this loop is one of trio-asyncio, without importing what nobody uses."""
    trio_asyncio = sys.modules.get("trio_asyncio")
    return trio_asyncio is not None and isinstance(loop, trio_asyncio.BaseTrioEventLoop)
