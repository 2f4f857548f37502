"""Handlers of asyncio, for a core that calls Trio's: each runs in one task of the loop.

A stream's handler is driven by one task from its beginning to its end, as code of asyncio expects:
it goes on when the Trio side asks for the next item.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import outcome
import trio

from trio_sessions._handlers import Handler, Last, is_stream
from trio_sessions._logging import get_logger
from trio_sessions.aio._tasks import new_task

__all__ = ["on_loop"]

logger = get_logger("trio_sessions.mail")


def on_loop(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[str, Handler] | None, *, patience: float
) -> Mapping[str, Handler] | None:
    """Return handlers of Trio that run these on a loop.

    Args:
        loop: the loop.
        handlers: of asyncio.
        patience: seconds for which one that was cancelled is waited for.
    """
    if handlers is None:
        return None
    return {
        name: (_stream if is_stream(handler) else _call)(loop, handler, patience)
        for name, handler in handlers.items()
    }


class _Work:
    """A task of the loop, seen from Trio's side."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[], Awaitable[Any]],
        patience: float,
    ) -> None:
        self._loop = loop
        self._patience = patience
        self._ended = trio.Event()
        self.result: outcome.Outcome[Any] | None = None
        self._task = new_task(loop, self._run(work), name="trio_sessions: a handler")
        self._task.add_done_callback(self._end)

    async def _run(self, work: Callable[[], Awaitable[Any]]) -> None:
        # What is raised is kept here, so that asyncio neither logs it nor ends its loop for it.
        try:
            self.result = outcome.Value(await work())
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # noqa: BLE001 -- handed on to the caller, whatever it is
            self.result = outcome.Error(exc)

    def _end(self, task: "asyncio.Task[None]") -> None:
        if self.result is None:
            # By its own code, or by a loop that tidies up; Ctrl-C is the loop's, not Trio's.
            error: BaseException | None = None if task.cancelled() else task.exception()
            how = "was cancelled" if error is None else f"ended with {type(error).__name__}"
            self.result = outcome.Error(RuntimeError(f"the handler {how}"))
        self._ended.set()

    async def finish(self) -> Any:
        """Wait until it ends; return or raise what it did.

        Cancellation: as `cancel`.
        """
        try:
            await self._ended.wait()
        except trio.Cancelled:
            await self.cancel()
            raise
        assert self.result is not None
        return self.result.unwrap()

    async def cancel(self) -> None:
        """Cancel it, and wait until it has ended, as `end`."""
        if not self._task.done() and not self._loop.is_closed():
            self._task.cancel()
            await self.end()

    async def end(self) -> None:
        """Wait until it has ended by itself; one that does not is left behind, and logged."""
        if self._task.done() or self._loop.is_closed():
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._patience):
            await self._ended.wait()
        if not self._ended.is_set():
            logger.error("a handler ignores its cancellation and goes on")


def _call(loop: asyncio.AbstractEventLoop, handler: Handler, patience: float) -> Handler:
    @functools.wraps(handler)
    async def call(payload: Any) -> Any:
        def begin() -> Awaitable[Any]:
            return cast("Awaitable[Any]", handler(payload))

        return await _Work(loop, begin, patience).finish()

    return call


def _stream(loop: asyncio.AbstractEventLoop, handler: Handler, patience: float) -> Handler:
    @functools.wraps(handler)
    async def stream(payload: Any) -> AsyncIterator[Any]:
        pump = _Pump(loop, handler, payload, patience)
        try:
            while True:
                found, item = await pump.next()
                if not found:
                    return
                yield item
        finally:
            await pump.close()

    return stream


class _Pump:
    """One async generator of asyncio, asked for its items from Trio's side."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, handler: Handler, payload: Any, patience: float
    ) -> None:
        self._handler = handler
        self._payload = payload
        self._asked = asyncio.Event()
        self._answered = trio.Event()
        self._item: tuple[bool, Any] = False, None
        self._work = _Work(loop, self._run, patience)

    async def _run(self) -> None:
        items = cast("Any", self._handler(self._payload))
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return
                self._item = True, item
                self._answered.set()
                if isinstance(item, Last):
                    return
        finally:
            await items.aclose()
            self._answered.set()

    async def next(self) -> tuple[bool, Any]:
        """Return True and the next item, or False; raise what the generator has raised.

        Cancellation: the generator goes on; `close` must follow.
        """
        self._item, self._answered = (False, None), trio.Event()
        self._asked.set()
        await self._answered.wait()
        if not self._item[0]:
            await self._work.finish()
        return self._item

    async def close(self) -> None:
        """End the generator, and wait for it; behind its last item it ends by itself."""
        if isinstance(self._item[1], Last):
            await self._work.end()
        else:
            await self._work.cancel()
