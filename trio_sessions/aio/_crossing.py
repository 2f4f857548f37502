"""Calls from asyncio into Trio: results and errors come through as they are.

Calls about one session begin in the order in which they were made. See
docs/decisions/0006-trio-as-a-guest-of-asyncio.md.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, TypeVarTuple

import outcome
import trio

from trio_sessions._mail import Reader
from trio_sessions.aio._waiting import wait_out

__all__ = ["Crossing"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Wait:
    """What an asyncio task waits for."""

    def __init__(self, crossing: "Crossing") -> None:
        self.result: outcome.Outcome[Any] | None = None
        self._is_settled = False
        self._waiter: asyncio.Future[None] | None = None
        self._crossing = crossing

    async def settled(self) -> None:
        """Wait until it is settled."""
        if not self._is_settled:  # a future costs less than an Event, and there is one waiter
            self._waiter = self._crossing.loop.create_future()
            await self._waiter

    def settle(self, result: outcome.Outcome[Any] | None) -> None:
        """Give the task its answer, unless it has one; None: it was cut off."""
        self._crossing.forget(self)
        if self._is_settled:
            return
        self.result = result
        self._is_settled = True
        waiter = self._waiter
        if waiter is not None and not waiter.done() and not self._crossing.loop.is_closed():
            waiter.set_result(None)


class _Call(_Wait):
    """One Trio function that an asyncio task waits for."""

    def __init__(self, crossing: "Crossing", about: str | None, earlier: "_Call | None") -> None:
        super().__init__(crossing)
        self.about = about
        self._earlier = earlier
        self._has_begun = False
        self._begun: trio.Event | None = None
        self._scope = trio.CancelScope()

    async def wait(self) -> None:
        """Wait until it is settled; a cancellation is passed on, and raised afterwards."""
        await wait_out(self.settled, self._scope.cancel)

    async def run(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        result: outcome.Outcome[Any] | None = None
        try:
            if self._earlier is not None:  # Trio starts tasks in any order
                with trio.CancelScope(shield=True):
                    await self._earlier.begun()
                self._earlier = None
            self._begin()
            with self._scope:
                result = outcome.Value(await function(*args))
        except trio.Cancelled:  # not by its caller: the service ends
            raise
        except BaseException as exc:  # noqa: BLE001 -- handed on to the caller, whatever it is
            result = outcome.Error(exc)
        finally:
            self.settle(result)

    async def begun(self) -> None:
        """Wait until its first step is next: nothing comes between, up to its first checkpoint."""
        if not self._has_begun:
            if self._begun is None:
                self._begun = trio.Event()
            await self._begun.wait()

    def _begin(self) -> None:
        self._crossing.note_begun(self)
        self._has_begun = True
        if self._begun is not None:
            self._begun.set()


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
        self._waits: set[_Wait] = set()
        self._next: dict[str, _Call] = {}
        """The last call about each session that has not begun."""
        self._nursery: trio.Nursery | None = None
        self._why_ended = why_ended

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take calls for the block; on Trio's side. Then cut off those under way."""
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    async def call(
        self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts, about: str | None = None
    ) -> T:
        """Await a Trio function; on asyncio's side.

        Args:
            function: the function.
            args: its arguments.
            about: a session; calls about one begin in the order in which they were made.

        Cancellation: cancels the Trio function, waits until it has ended, and is then raised.
        """
        call = _Call(self, about, None if about is None else self._next.get(about))
        self._waits.add(call)
        if about is not None:
            self._next[about] = call
        self.start(call.run, function, *args)
        await call.wait()
        if call.result is None:
            raise await self._why_ended()
        result: T = call.result.unwrap()
        return result

    async def listen(self, reader: Reader) -> bool:
        """Wait for what a reader tells of; on asyncio's side, and without a task on Trio's.

        Returns:
            False: it has told of nothing, and is to be waited for by a call.

        Cancellation: at any moment.
        """
        one = _Wait(self)

        def tell() -> None:
            one.settle(outcome.Value(True))  # noqa: FBT003 -- what is returned

        patience = reader.listen(tell)
        if patience is None:
            return False
        self._waits.add(one)
        silence = outcome.Value(False)  # noqa: FBT003 -- likewise
        timer = self.loop.call_later(max(0.0, patience), one.settle, silence)
        try:
            await one.settled()
        finally:
            timer.cancel()
            reader.unlisten(tell)
            self.forget(one)
        if one.result is None:
            raise await self._why_ended()
        return bool(one.result.unwrap())

    def start(self, function: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Start a Trio function that nobody waits for, in a copy of the caller's context."""
        assert self._nursery is not None
        self._nursery.start_soon(function, *args)

    def is_next(self, about: str) -> bool:
        """Say whether a call about this session was made that has not begun."""
        return about in self._next

    def note_begun(self, call: _Call) -> None:
        """Note that a call begins."""
        if call.about is not None and self._next.get(call.about) is call:
            del self._next[call.about]

    def forget(self, one: _Wait) -> None:
        """Note that nobody waits for it any more."""
        self._waits.discard(one)

    def cut(self) -> None:
        """Answer everybody who still waits, when Trio will not."""
        for one in list(self._waits):
            one.settle(None)
