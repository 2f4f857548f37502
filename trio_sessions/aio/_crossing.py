"""Calls from asyncio into Trio: results and errors come through as they are."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, TypeVarTuple

import outcome
import trio

__all__ = ["Crossing"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Call:
    """One Trio function that an asyncio task waits for."""

    def __init__(self, crossing: "Crossing") -> None:
        self.scope = trio.CancelScope()
        self.result: outcome.Outcome[Any] | None = None
        self._is_settled = False
        self._waiter: asyncio.Future[None] | None = None
        self._crossing = crossing

    async def wait(self) -> None:
        """Wait until it is settled; a cancellation is passed on, and raised afterwards."""
        cancelled: asyncio.CancelledError | None = None
        while not self._is_settled:
            self._waiter = self._crossing.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError as exc:
                cancelled = exc
                self.scope.cancel()
        if cancelled is not None:
            raise cancelled

    async def run(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        result: outcome.Outcome[Any] | None = None
        try:
            with self.scope:
                result = outcome.Value(await function(*args))
        except trio.Cancelled:  # not by its caller: the service ends
            raise
        except BaseException as exc:  # noqa: BLE001 -- handed on to the caller, whatever it is
            result = outcome.Error(exc)
        finally:
            self.settle(result)

    def settle(self, result: outcome.Outcome[Any] | None) -> None:
        """Give the caller its answer; None: the call was cut off."""
        self._crossing.calls.discard(self)
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
        self.calls: set[_Call] = set()
        self.nursery: trio.Nursery | None = None
        """Where the calls run; whoever owns it sets it."""
        self._why_ended = why_ended

    async def call(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await a Trio function; on asyncio's side.

        Cancellation: cancels the Trio function, waits until it has ended, and is then raised.
        """
        assert self.nursery is not None
        call = _Call(self)
        self.calls.add(call)
        self.nursery.start_soon(call.run, function, *args)  # in a copy of this task's context
        await call.wait()
        if call.result is None:
            raise await self._why_ended()
        result: T = call.result.unwrap()
        return result

    def cut(self) -> None:
        """Answer everybody who still waits, when Trio will not."""
        for call in list(self.calls):
            call.settle(None)
