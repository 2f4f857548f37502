"""Ctrl-C while Trio is a guest: never in the middle of a step, never lost.

On a loop of asyncio a second Ctrl-C, or the first without `asyncio.Runner`, is raised by the
signal handler wherever the interpreter happens to be. In the middle of one of Trio's steps, or
of the way across, that loses a step for ever: whoever waits for it hangs. So while a guest run
lives, the handler that was there is wrapped. If any function under way is Trio's or ours, the
press is held and handed to that handler at the next turn of the loop; else it gets it at once.

Where it gets it at once, the loop may be just between taking one of our callbacks and calling it,
which is then lost: so the steps are looked after again. A loop that does not turn any more, because
some transport keeps it, gets the third press at once.

A call of ``Runner.run`` puts a handler of its own in the place of the default one, and takes it
back. One that begins while our wrapper stands there does neither: the wrapper then speaks for it.
It finds it on the stack, and so a press goes to the main task of the run that is under way,
whichever run has opened the registry.

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
        if signal.getsignal(signal.SIGINT) != self._handle:
            return
        handler = self._meant()
        signal.signal(signal.SIGINT, handler)
        if handler is not self._wrapped and isinstance(handler, functools.partial):
            _take_back_after(handler.keywords["main_task"], handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_over or self.held >= _MOST_HELD or not _is_protected(frame):
            if not self._loop.is_closed():
                self._steps.look_again()
            self._meant()(number, frame)
            return
        self.held += 1
        if not self._loop.is_closed():  # else whoever makes the last steps looks at `held`
            self._loop.call_soon_threadsafe(self._hand_on, number)

    def _hand_on(self, number: int) -> None:
        self.held = 0
        self._meant()(number, None)

    def _meant(self) -> Any:
        """Return the handler that a press is for: the one that would stand there without ours."""
        run = _run_under_way()
        if _is_a_runners(self._wrapped):
            if run is not None and run.f_locals.get("task") is self._wrapped.keywords["main_task"]:
                return self._wrapped
        elif self._wrapped is not signal.default_int_handler:  # then a run would leave it alone
            return self._wrapped
        return signal.default_int_handler if run is None else _handler_of(run)


def _is_protected(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in _PROTECTED:
            return True
        frame = frame.f_back
    return False


def _is_a_runners(handler: Any) -> bool:
    """Say whether it is the handler of one call of ``Runner.run``."""
    if not isinstance(handler, functools.partial) or "main_task" not in handler.keywords:
        return False
    return getattr(handler.func, "__func__", None) is getattr(asyncio.Runner, "_on_sigint", None)


def _run_under_way() -> FrameType | None:
    """Return the call of ``Runner.run`` that is under way in this thread."""
    code = getattr(asyncio.Runner.run, "__code__", None)
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 -- inspect's way takes much longer
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame


def _handler_of(run: FrameType) -> Any:
    """Return the handler that a call of ``Runner.run`` sets, where it may."""
    main_task = run.f_locals.get("task")
    on_sigint = getattr(run.f_locals.get("self"), "_on_sigint", None)
    if main_task is None or on_sigint is None:  # it has only begun, or is another Python's
        return signal.default_int_handler
    return functools.partial(on_sigint, main_task=main_task)


def _take_back_after(main_task: "asyncio.Task[Any]", handler: Any) -> None:
    """Put the default handler back when a run ends: one that has set none does not do it."""

    def take_back(_: object) -> None:
        if signal.getsignal(signal.SIGINT) is handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    main_task.add_done_callback(take_back)
