"""Calls from asyncio into Trio: results and errors come through as they are."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple

import outcome
import trio

from trio_sessions.aio._waiting import wait_out

__all__ = ["Crossing"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Call:
    """One Trio function that an asyncio task waits for."""

    def __init__(self, crossing: "Crossing") -> None:
        self.result: outcome.Outcome[Any] | None = None
        self._scope = trio.CancelScope()
        self._is_settled = False
        self._waiter: asyncio.Future[None] | None = None
        self._crossing = crossing

    async def wait(self) -> None:
        """Wait until it is settled; a cancellation is passed on, and raised afterwards."""
        await wait_out(self._settled, self._scope.cancel)

    async def _settled(self) -> None:
        if not self._is_settled:  # a future costs less than an Event, and there is one waiter
            self._waiter = self._crossing.loop.create_future()
            await self._waiter

    async def run(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        result: outcome.Outcome[Any] | None = None
        try:
            with self._scope:
                result = outcome.Value(await function(*args))
        except trio.Cancelled:  # not by its caller: the service ends
            raise
        except BaseException as exc:  # noqa: BLE001 -- handed on to the caller, whatever it is
            result = outcome.Error(exc)
        finally:
            self.settle(result)

    def settle(self, result: outcome.Outcome[Any] | None) -> None:
        """Give the caller its answer; None: the call was cut off."""
        self._crossing.forget(self)
        self.result = result
        self._is_settled = True
        waiter = self._waiter
        if waiter is not None and not waiter.done() and not self._crossing.loop.is_closed():
            waiter.set_result(None)


class Crossing:
    """The calls that one service has under way.

    Args:
        loop: asyncio's.
        why_ended: makes the error for callers whose call the end of the service cut off.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        why_ended: Callable[[], Awaitable[BaseException]],
    ) -> None:
        self.loop = loop
        self._calls: set[_Call] = set()
        self._nursery: trio.Nursery | None = None
        self._why_ended = why_ended

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take calls for the block; on Trio's side. Then cut off those under way."""
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    async def call(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await a Trio function; on asyncio's side.

        Cancellation: cancels the Trio function, waits until it has ended, and is then raised.
        """
        call = _Call(self)
        self._calls.add(call)
        self.start(call.run, function, *args)
        await call.wait()
        if call.result is None:
            raise await self._why_ended()
        result: T = call.result.unwrap()
        return result

    def start(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Start a Trio function that nobody waits for, in a copy of the caller's context."""
        assert self._nursery is not None
        self._nursery.start_soon(function, *args)

    def forget(self, call: _Call) -> None:
        """Note that a call is over."""
        self._calls.discard(call)

    def cut(self) -> None:
        """Answer everybody who still waits, when Trio will not."""
        for call in list(self._calls):
            call.settle(None)
