"""Where transports of asyncio are awaited: tasks of the loop that opened the registry.

A pass runs in Trio and its transports in asyncio, in the same thread. A round of calls is led
by an asyncio task just as it is by a Trio task elsewhere: it crosses once, and what it answers
at once costs no task and no crossing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from types import TracebackType
from typing import Any

import trio

from trio_sessions._calls import PARTING
from trio_sessions._running import Scope
from trio_sessions.aio._tasks import new_task

__all__ = ["AsyncioHost"]


class _TaskScope:
    """A scope that cancels an asyncio task, once, as a `trio.CancelScope` does in a Trio task."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.cancel_called = False
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def __enter__(self) -> Scope:
        self._task = asyncio.current_task()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def cancel(self) -> None:
        if not self.cancel_called and self._task is not None:
            self.cancel_called = True
            self._task.cancel()

    def expire_in(self, seconds: float) -> None:
        self._deadline = self._loop.call_later(seconds, self.cancel)


class AsyncioHost:
    """A host for calls on one loop of asyncio; see `trio_sessions._rounds.CallHost`."""

    cancelled: tuple[type[BaseException], ...] = (asyncio.CancelledError, GeneratorExit)
    ends_loop: tuple[type[BaseException], ...] = (SystemExit, KeyboardInterrupt)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._loop.is_closed():
            raise RuntimeError("its event loop is closed")
        began = False

        async def begin() -> None:
            nonlocal began
            began = True
            await task()

        def forget(started: "asyncio.Task[None]") -> None:
            self._tasks.discard(started)
            # A loop that tidies up cancels every task, also one that has not begun, whose
            # coroutine then never runs. Somebody waits for what it leads.
            if not began and not self._loop.is_closed():
                self.start(task)

        started = new_task(self._loop, begin(), name="trio_sessions: calls into transports")
        self._tasks.add(started)
        started.add_done_callback(forget)

    def scope(self) -> AbstractContextManager[Scope]:
        return _TaskScope(self._loop)

    def limit(self, scope: Scope, seconds: float) -> None:
        assert isinstance(scope, _TaskScope)
        scope.expire_in(seconds)

    def cancellation(self, *, thorough: bool) -> Callable[[], object]:
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling

    async def checkpoint(self) -> None:
        # Nobody cancels a task that leads a round, but a loop that cancels all its tasks to
        # tidy up. The round is bounded, and somebody waits for its answers.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)

    def check(self, request: object) -> None:
        if request is not None and getattr(request, "_asyncio_future_blocking", None) is None:
            kind = request if isinstance(request, type) else type(request)
            raise TypeError(
                "a transport given to trio_sessions.aio must be asyncio's; this one awaits "
                f"{kind.__module__}.{kind.__name__}, which asyncio does not know"
            )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._wait_for_tasks()

    async def _wait_for_tasks(self) -> None:
        """Wait a bounded time, for tasks that have been cancelled."""
        if self._loop.is_closed() or not self._tasks:
            return
        ended, waiting = trio.Event(), set(self._tasks)

        def notice(task: "asyncio.Task[None]") -> None:
            waiting.discard(task)
            if not waiting:
                ended.set()

        for task in self._tasks:
            task.add_done_callback(notice)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PARTING):
            await ended.wait()
