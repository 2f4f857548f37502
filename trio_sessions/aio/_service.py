"""One opening of the asyncio registry: the Trio core, its host, and the way across."""

import asyncio
from dataclasses import replace

import trio

from trio_sessions._calls import TransportCalls
from trio_sessions._library import no_loop_here, wrong_library
from trio_sessions._logging import get_logger
from trio_sessions._open import open_with
from trio_sessions._process import this_process
from trio_sessions._registry import SessionRegistry as TrioRegistry
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable
from trio_sessions.abc import SessionStore
from trio_sessions.aio._calls import AsyncioHost
from trio_sessions.aio._crossing import Crossing
from trio_sessions.aio._guest import guest_of
from trio_sessions.aio._handlers import on_loop
from trio_sessions.aio._host import Host, Nested, is_trio_asyncio
from trio_sessions.aio._life import Life, State
from trio_sessions.aio._respond import RespondTasks
from trio_sessions.errors import RegistryClosed

__all__ = ["Service", "join_host", "running_loop"]

logger = get_logger("trio_sessions.aio")


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that runs; raise `RuntimeError` where none of asyncio does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise wrong_library() from None


async def join_host(loop: asyncio.AbstractEventLoop) -> Host:
    """Return a host on the running loop, joined."""
    host: Host
    if is_trio_asyncio(loop):
        host = Nested(loop)
    else:
        while (host := guest_of(loop)).life.has_ended:
            await host.wait_ended()
    await host.join()
    return host


class Service:
    """A registry on one loop, from `open` to `close` or to a crash; used once."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, store: SessionStore, settings: Settings
    ) -> None:
        self.loop = loop
        self.life = Life(loop)
        self.table = LocalTable()
        self.crossing = Crossing(loop, self.why_ended)
        self.respond_tasks = RespondTasks()
        self._store = store
        handlers = on_loop(loop, settings.handlers, patience=settings.disconnect_timeout)
        self._settings = replace(settings, handlers=handlers)
        self._core: TrioRegistry | None = None
        self._host: Host | None = None
        self._opening = trio.CancelScope()
        self._process = this_process()

    @property
    def is_inherited(self) -> bool:
        """Whether it belongs to the process that this one was forked from."""
        return self._process is not this_process()

    @property
    def is_open(self) -> bool:
        """Whether it takes calls."""
        return self.life.state is State.OPEN and self._process is this_process()

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left here to be closed."""
        return self.is_inherited or self.life.state is State.CLOSED

    @property
    def core(self) -> TrioRegistry:
        """The registry that does the work; raises `RegistryClosed` if it never opened."""
        if self._core is None:
            raise self.cut_off()
        return self._core

    def cut_off(self) -> RegistryClosed:
        """Return the error for calls that come too late, or that the end has cut off."""
        crash = self.life.crash
        if crash is None and self.life.state is not State.FAILING:
            return RegistryClosed(
                "the registry was shut down: await registry.initialize() to open it again"
            )
        error = RegistryClosed(
            f"the registry has crashed{_with(crash)}: await registry.initialize() to open it again"
        )
        error.__cause__ = crash
        return error

    # ---- asyncio's side ----

    def is_on_running_loop(self) -> bool:
        """Say whether the running loop is the one that it was opened on."""
        return self.loop is asyncio.get_running_loop()

    def check_on_loop(self) -> None:
        """Raise `RuntimeError` unless it was opened on the running loop."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            raise no_loop_here() from None
        if self.loop is not running:
            raise RuntimeError(
                "the registry is open on another event loop: await its shutdown() there first, "
                "or make another registry for this loop"
            )

    def check_loop(self) -> None:
        """Raise `RuntimeError` unless it was opened on the running loop, and in this thread."""
        self.check_on_loop()
        if self._host is not None and not self.life.has_ended:
            self._host.check_thread()

    async def why_ended(self) -> RegistryClosed:
        """Return `cut_off`, once it is known why."""
        if self.life.state is State.FAILING:
            await self.life.wait_closed()
        return self.cut_off()

    async def open(self) -> None:
        """Open the core; raises what opening it raises, and then nothing is open."""
        try:
            self._host = await join_host(self.loop)
        except BaseException:  # nothing is open; raised again
            self.life.go(State.CLOSED)
            raise
        self._host.nursery.start_soon(self._serve, self._host)
        try:
            await self.life.wait_opened(self._opening.cancel)
        except asyncio.CancelledError:
            await self.close()
            raise
        if self.life.has_ended:
            await self.close()
            raise self.cut_off() if self.life.crash is None else self.life.crash

    def end_task(self, task: "asyncio.Task[object]") -> None:
        """Cancel a task whose session is gone, and keep in mind whether it ends."""
        timeout = self._settings.disconnect_timeout
        self.crossing.start(self.respond_tasks.cancel, [task], timeout)

    async def close(self) -> None:
        """Close the core, in bounded time; and its host, if nobody else uses it."""
        if self._host is None:
            await self.life.wait_closed()
            return
        self._host.follow_loop()
        self.life.go(State.CLOSING)
        try:
            await self.life.wait_closed()
        finally:
            await self._host.wait_left()

    # ---- Trio's side ----

    async def _serve(self, host: Host) -> None:
        """Hold the core open. An error of it must not end the host, which others use too."""
        host.on_end.add(self._settle)
        async with self.crossing.open():
            try:
                await self._hold_open()
            except trio.Cancelled:
                raise  # the host ends, and then says why: it calls `_settle`
            except BaseException as exc:  # kept, logged, and raised to whoever asks
                self.life.blame(exc)
                if self._core is not None:
                    logger.critical("the registry has crashed", exc_info=exc)
            self.life.go(State.FAILING)
        host.on_end.discard(self._settle)
        host.leave()
        self._settle()

    async def _hold_open(self) -> None:
        calls = TransportCalls(AsyncioHost(self.loop), self.respond_tasks)
        opening = open_with(self._store, self._settings, table=self.table, calls=calls)
        with self._opening:
            async with opening as self._core:
                self.life.go(State.OPEN)
                try:
                    await self.life.asked_to_end.wait()
                finally:
                    self.life.go(State.FAILING)  # unless it was asked to end

    def _settle(self) -> None:
        """Answer everybody who still waits, and go to CLOSED; also when Trio itself has crashed."""
        if self._host is not None:
            self.life.blame(self._host.life.crash)
        self.crossing.cut()
        self.life.go(State.CLOSED)


def _with(crash: BaseException | None) -> str:
    return "" if crash is None else f" with {type(crash).__name__}, see the cause"
