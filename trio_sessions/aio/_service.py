"""One opening of the asyncio registry: the Trio core, its host, and the way across."""

import asyncio
import logging

import trio

from trio_sessions._open import open_with
from trio_sessions._registry import SessionRegistry as TrioRegistry
from trio_sessions._settings import Settings
from trio_sessions._table import Entry, LocalTable
from trio_sessions.abc import SessionStore
from trio_sessions.aio._calls import AsyncioCalls
from trio_sessions.aio._crossing import Crossing
from trio_sessions.aio._guest import guest_of
from trio_sessions.aio._host import Host, Nested, is_trio_asyncio
from trio_sessions.aio._waiting import through_cancellation
from trio_sessions.errors import RegistryClosed

__all__ = ["Service", "join_host"]

logger = logging.getLogger("trio_sessions.aio")


async def join_host(loop: asyncio.AbstractEventLoop) -> Host:
    """Return a host on the running loop, joined."""
    host: Host
    if is_trio_asyncio(loop):
        host = Nested(loop)
    else:
        while (host := guest_of(loop)).leaving:
            await host.wait_ended()
    await host.join()
    return host


class Service:
    """A registry on one loop, from `open` to `close` or to a crash; used once."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, store: SessionStore, settings: Settings
    ) -> None:
        self.loop = loop
        self.table = LocalTable()
        self.crossing = Crossing(loop, self.why_ended)
        self._calls = AsyncioCalls(loop)
        self.respond_tasks = self._calls.respond_tasks
        self._store = store
        self._settings = settings
        self._core: TrioRegistry | None = None
        self._crash: BaseException | None = None
        self._host: Host | None = None
        self._opening = trio.CancelScope()
        self._stop = trio.Event()
        self._opened: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self.ended = False
        """No call is taken any more."""

    @property
    def core(self) -> TrioRegistry:
        assert self._core is not None
        return self._core

    def cut_off(self) -> RegistryClosed:
        """Return the error for calls that come too late, or that the end has cut off."""
        if self._crash is None:
            return RegistryClosed(
                "the registry was shut down: await registry.initialize() to open it again"
            )
        error = RegistryClosed(
            f"the registry has crashed with {type(self._crash).__name__}, see the cause: "
            "await registry.initialize() to open it again"
        )
        error.__cause__ = self._crash
        return error

    # ---- asyncio's side ----

    def check_loop(self) -> None:
        """Raise unless the running loop is the one that it was opened on."""
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "the registry is open on another event loop: await its shutdown() there first"
            )

    async def why_ended(self) -> RegistryClosed:
        """Return `cut_off`, once it is known why."""
        assert self._host is not None
        if self._crash is None and not self._stop.is_set():
            await self._host.wait_ended()  # Trio itself is ending, and then says why
            self._crash = self._host.crash
        return self.cut_off()

    async def open(self) -> None:
        """Open the core; raises what opening it raises, and then nothing is open."""
        self._host = host = await join_host(self.loop)
        host.nursery.start_soon(self._serve, host)
        try:
            await through_cancellation(self._opened, self._opening.cancel)
        except asyncio.CancelledError:
            await self.close()
            raise
        if self._core is None:
            await self.close()
            raise self.cut_off() if self._crash is None else self._crash

    def succeed(self, entry: Entry, successor: Entry | None) -> None:
        """The same transport was added again: its tasks go on, if it has not been removed."""
        for task in self.respond_tasks.release(entry):
            if successor is None:
                self.end_task(task)
            else:
                self.respond_tasks.tie(successor, task)

    def end_task(self, task: "asyncio.Task[object]") -> None:
        """Cancel a task whose session is gone, and keep in mind whether it ends."""
        assert self.crossing.nursery is not None
        timeout = self._settings.disconnect_timeout
        self.crossing.nursery.start_soon(self.respond_tasks.cancel, [task], timeout)

    async def close(self) -> None:
        """Close the core, in bounded time; and its host, if nobody else uses it."""
        self.ended = True
        if not self._ended.done():
            self._stop.set()
        assert self._host is not None
        try:
            await through_cancellation(self._ended)
        finally:
            await self._host.wait_left()

    # ---- Trio's side ----

    async def _serve(self, host: Host) -> None:
        """Hold the core open. An error of it must not end the host, which others use too."""
        host.on_end.add(self._settle)
        try:
            async with trio.open_nursery() as self.crossing.nursery:
                try:
                    await self._hold_open()
                except trio.Cancelled:  # the host ends
                    raise
                except BaseException as exc:
                    self._crash = exc
                    if self._core is not None:
                        logger.critical("the registry has crashed", exc_info=exc)
                self.ended = True
                self.crossing.nursery.cancel_scope.cancel()
        finally:
            host.leave()
            host.on_end.discard(self._settle)
            self._settle()

    async def _hold_open(self) -> None:
        opening = open_with(self._store, self._settings, table=self.table, calls=self._calls)
        with self._opening:
            async with opening as self._core:
                self._resolve(self._opened)
                try:
                    await self._stop.wait()
                finally:
                    self.ended = True

    def _settle(self) -> None:
        """Let nobody wait any more; also called when Trio itself has crashed."""
        self.ended = True
        if self._host is not None and self._crash is None:
            self._crash = self._host.crash
        self.crossing.cut()
        self._resolve(self._opened)
        self._resolve(self._ended)

    def _resolve(self, future: "asyncio.Future[None]") -> None:
        if not future.done() and not self.loop.is_closed():
            future.set_result(None)
