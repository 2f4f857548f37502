"""The life of what is opened and closed on asyncio's side: one state, and who may go where.

::

                    ┌─────────── shutdown ──────────┐
    OPENING ──> OPEN ── shutdown ──> CLOSING ────────┴──> CLOSED
       │          │                                         ^
       └──────────┴── it fails by itself ──> FAILING ───────┘

Whoever opens waits until OPENING is over, whoever closes until CLOSED. CLOSING and FAILING
differ in what is known: a caller who is cut off by CLOSING has been told why; while it is
FAILING the reason may still be on its way, and is there when it is CLOSED. What Trio itself
drags along, when it crashes, goes to CLOSED from anywhere.
"""

import asyncio
import enum
from collections.abc import Callable

import trio

from trio_sessions.aio._waiting import wait_out

__all__ = ["Life", "State"]


class State(enum.Enum):
    """The states of an opening."""

    OPENING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    """It was asked to end."""
    FAILING = enum.auto()
    """It ends by itself."""
    CLOSED = enum.auto()


_NEXT = {
    State.OPENING: {State.OPEN, State.CLOSING, State.FAILING, State.CLOSED},
    State.OPEN: {State.CLOSING, State.FAILING, State.CLOSED},
    State.CLOSING: {State.CLOSED},
    State.FAILING: {State.CLOSED},
    State.CLOSED: set[State](),
}


class Life:
    """The state of one opening, and those who wait for the next.

    Args:
        loop: whose tasks wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.state = State.OPENING
        self.crash: BaseException | None = None
        """What ended it, if it was not asked to end."""
        self.asked_to_end = trio.Event()
        """For Trio's side: CLOSING has begun."""
        self._loop = loop
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether it takes no more work."""
        # By identity: this is asked for each message, and to hash a member is slow before 3.12.
        return not (self.state is State.OPEN or self.state is State.OPENING)

    @property
    def was_shut_down(self) -> bool:
        """Whether it was asked to end, and nothing else has ended it."""
        is_ending = self.state is State.CLOSING or self.state is State.CLOSED
        return is_ending and self.crash is None

    def go(self, to: State) -> bool:
        """Go on to another state; where that is not allowed, stay and return False."""
        if to not in _NEXT[self.state]:
            return False
        self.state = to
        if to is State.CLOSING:
            self.asked_to_end.set()
        if not self._loop.is_closed():  # else nobody can wait any more
            self._opened.set()
            if to is State.CLOSED:
                self._closed.set()
        return True

    def blame(self, crash: BaseException | None) -> None:
        """Note what has ended it; the first reason stays."""
        if self.crash is None:
            self.crash = crash

    async def wait_opened(self, on_cancel: Callable[[], object] = lambda: None) -> None:
        """Wait, on asyncio's side, until OPENING is over; see `wait_out`."""
        await wait_out(self._opened.wait, on_cancel)

    async def wait_closed(self, on_cancel: Callable[[], object] = lambda: None) -> None:
        """Wait, on asyncio's side, until it is CLOSED; see `wait_out`."""
        await wait_out(self._closed.wait, on_cancel)
