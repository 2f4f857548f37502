"""Ctrl-C while Trio is a guest: never in the middle of a step, never lost.

On a loop of asyncio a second Ctrl-C, or the first without `asyncio.Runner`, is raised by the
signal handler wherever the interpreter happens to be. In the middle of one of Trio's steps, or
of the way across, that loses a step for ever: whoever waits for it hangs. So while a guest run
lives, the handler that was there is wrapped. If any function under way is Trio's or ours, the
press is held and handed to that handler at the next turn of the loop; else it gets it at once.

Where it gets it at once, the loop may be just between taking one of our callbacks and calling it,
which is then lost: so the steps are looked after again. A loop that does not turn any more, because
some transport keeps it, gets the third press at once.

Looking at the stack when a signal comes costs nothing otherwise. Trio itself decides in this
way which tasks Ctrl-C may hit (`trio.lowlevel.enable_ki_protection`).
"""

import asyncio
import functools
import signal
import sys
import threading
from types import FrameType
from typing import Any

from trio_sessions.aio._steps import Steps

__all__ = ["Sigint"]

_PROTECTED = frozenset({"trio", "trio_sessions"})
_MOST_HELD = 2


class Sigint:
    """The wrapped handler of one guest run. Without effect where SIGINT is not Python's.

    Args:
        loop: hands on what was held.
        steps: of the guest run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, steps: Steps) -> None:
        self.held = 0
        """Presses that were not handed on yet."""
        self._loop = loop
        self._steps = steps
        self._wrapped: Any = None
        self._is_over = False

    def wrap(self) -> None:
        """Wrap the handler that is there, if it is a function. Then Trio leaves it alone, too."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._wrapped = signal.getsignal(signal.SIGINT)
        if callable(self._wrapped):
            signal.signal(signal.SIGINT, self._handle)

    def unwrap(self) -> None:
        """Put back what was there, unless somebody else has replaced it meanwhile.

        In another thread than Python's main one that is not allowed: then the wrapper does
        nothing any more, until the main thread comes by.
        """
        self._is_over = True
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) == self._handle:
            left = _is_left_by_a_runner(self._wrapped)
            signal.signal(signal.SIGINT, signal.default_int_handler if left else self._wrapped)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_over or self.held >= _MOST_HELD or not _is_protected(frame):
            if not self._loop.is_closed():
                self._steps.look_again()
            self._wrapped(number, frame)
            return
        self.held += 1
        if not self._loop.is_closed():  # else whoever makes the last steps looks at `held`
            self._loop.call_soon_threadsafe(self._hand_on, number)

    def _hand_on(self, number: int) -> None:
        self.held = 0
        self._wrapped(number, None)


def _is_protected(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _PROTECTED:
            return True
        frame = frame.f_back
    return False


def _is_left_by_a_runner(handler: Any) -> bool:
    """Say whether it is what `asyncio.Runner` would have taken back, had it not found ours.

    It is the handler of one call of ``Runner.run``, and that call is not under way any more.
    """
    run = getattr(asyncio.Runner.run, "__code__", None)
    if not isinstance(handler, functools.partial) or "main_task" not in handler.keywords:
        return False
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 -- inspect's way takes much longer
    while frame is not None:
        if frame.f_code is run and frame.f_locals.get("task") is handler.keywords["main_task"]:
            return False
        frame = frame.f_back
    return getattr(handler.func, "__func__", None) is getattr(asyncio.Runner, "_on_sigint", None)
