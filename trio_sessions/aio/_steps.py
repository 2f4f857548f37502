"""The steps of a guest run, made by its host's loop without a thread in between.

By itself a guest run hands each wait for I/O to a thread, which has to be woken before the
host can make Trio do anything: on a small machine several hundred microseconds a call. But
the host can watch what Trio waits for. So our clock tells Trio never to wait; a step that
has nothing to do is parked, and made when Trio's epoll has something to read, when a
deadline has come, or when asyncio's side has given a Trio task something to do.

For that it looks at two things that Trio does not promise: the epoll, and the events that
the next step will hand on. Where they are not to be found, the thread does the waiting. It
is as correct, and slower.
"""

import asyncio
import contextvars
import math
import os
import queue
import time
from collections.abc import Callable
from typing import Any

import trio

from trio_sessions._logging import get_logger
from trio_sessions.aio._threads import this_thread

__all__ = ["Steps"]

logger = get_logger("trio_sessions.aio")

_SLICE = 0.001  # seconds of Trio's steps at once before asyncio gets its turn
_PATIENCE = 60.0  # seconds without a sign from Trio's threads, after the loop has closed
_LOOK = 0.1  # seconds between two looks, then, whether it is enough

Step = Callable[[], object]


class _Clock(trio.abc.Clock):
    """A clock of real time that leaves Trio no time to wait, while the host does the waiting."""

    def __init__(self) -> None:
        self.host_waits = False
        self.idle_until: float | None = None
        """When Trio has asked how long it may wait: its next deadline."""

    def start_clock(self) -> None:
        pass

    current_time = staticmethod(time.perf_counter)  # asked seven times a call: no frame

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if self.host_waits:
            self.idle_until = deadline
            return 0.0
        return deadline - time.perf_counter()


class _Scheduled(trio.abc.Instrument):
    """An instrument that notices that a Trio task has something to do."""

    def __init__(self, notice: Callable[[], None]) -> None:
        self._notice = notice

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        self._notice()


class Steps:
    """The steps of a guest run that are due or parked, made in the host's loop or without it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.runner: Any = None
        """Trio's, if it can be found."""
        self._thread = this_thread()
        """In which steps are made: Trio runs in one thread."""
        self._is_stranded = False
        self._context = contextvars.Context()
        """Empty, so that no timer keeps the context of whoever happened to set it."""
        self.clock = _Clock()
        self.instrument = _Scheduled(self._wake)
        self._loop = loop
        self._due: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self._seen = False
        self._under_way = False
        self._parked: Step | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        """When that is to come, on Trio's clock."""
        self._epoll: int | None = None

    # ---- what the guest run calls ----

    def soon(self, step: Step) -> None:
        """Make a step at the next turn of the loop, or park it; called in this thread."""
        if not self._seen:
            self._seen = True
            self._watch(step)
        idle_until, self.clock.idle_until = self.clock.idle_until, None
        if idle_until is not None and not _has_events(step):
            self._park(step, idle_until)
        else:
            self._due.put(step)
            if not self._under_way:
                self._loop.call_soon(self._make, context=self._context)

    def soon_threadsafe(self, step: Step) -> None:
        """Take a step from any thread, to be made as by `soon`."""
        self._due.put(step)
        try:
            self._loop.call_soon_threadsafe(self._make, context=self._context)
        except RuntimeError:  # it is closed, and `make_all` waits for this step
            assert self._loop.is_closed()

    # ---- making steps ----

    def stop(self) -> None:
        """Make no more steps: forget those that are due."""
        self._due = queue.SimpleQueue()
        self._parked = None

    def _make(self) -> None:
        """Make steps while there are any, for a bounded time."""
        if self._is_elsewhere():
            return
        self._under_way = True
        end = time.perf_counter() + _SLICE
        try:
            while not self._due.empty():
                self._due.get_nowait()()
                if time.perf_counter() > end:
                    self._loop.call_soon(self._make, context=self._context)
                    break
        finally:
            self._under_way = False

    def look_again(self) -> None:
        """Make what is due at the next turn of the loop, which may have lost a callback."""
        self._loop.call_soon_threadsafe(self._on_deadline, context=self._context)

    def go_on_here(self) -> None:
        """Make the steps in this thread from now on: the loop has moved here."""
        self._thread = this_thread()
        if self._is_stranded and self._epoll is not None:
            self._loop.add_reader(self._epoll, self._on_event)
        self._is_stranded = False
        self._unpark()
        self._loop.call_soon(self._make, context=self._context)

    def make_all(self, enough: Callable[[], bool]) -> bool:
        """Make steps in this thread, without the loop, until it is enough.

        Returns:
            False: Trio's threads give no sign any more, and it is not enough.
        """
        self.clock.host_waits = False
        self._under_way = True  # there is no loop to call
        self._unpark()
        last_sign = time.monotonic()
        while not enough():
            try:
                step = self._due.get(timeout=_LOOK)
            except queue.Empty:
                if time.monotonic() - last_sign > _PATIENCE:
                    return False
            else:
                step()
                last_sign = time.monotonic()
        return True

    # ---- waiting ----

    def _watch(self, guest_tick: Step) -> None:
        """Do the waiting from now on, if what Trio waits for can be found."""
        try:
            runner = guest_tick.__self__.runner  # type: ignore[attr-defined]
            epoll = runner.io_manager._epoll.fileno()  # noqa: SLF001 -- see above
            _has_events(guest_tick)
        except AttributeError:
            return
        self.runner = runner
        self._epoll = os.dup(epoll)  # ours, so that it can be unregistered after Trio's is closed
        self._loop.add_reader(self._epoll, self._on_event)
        self.clock.host_waits = True

    def unwatch(self) -> None:
        """Stop waiting, and give back what that took."""
        if self._deadline is not None:
            self._deadline.cancel()
        if self._epoll is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._epoll)
            os.close(self._epoll)
            self._epoll = None

    def _park(self, step: Step, idle_until: float) -> None:
        """Keep a step that has nothing to do before ``idle_until``.

        A timer that comes earlier is left as it is: then the step is parked again, at the cost of
        one step, where each call would cost a timer. One that is due by now is not relied on:
        Ctrl-C may have swallowed it.
        """
        self._parked = step
        now = time.perf_counter()
        if idle_until == math.inf or now < self._wakes_at <= idle_until:
            return
        delay = max(0.0, idle_until - now)
        timer = self._loop.call_later(delay, self._on_deadline, context=self._context)
        # Ctrl-C may come between any two of these: what is relied on is there before and after.
        earlier, self._deadline = self._deadline, timer
        self._wakes_at = idle_until
        if earlier is not None:
            earlier.cancel()

    def _unpark(self) -> None:
        if self._parked is not None:
            self._due.put(self._parked)
            self._parked = None

    def _wake(self) -> None:
        """Make the parked step soon, for a task has something to do.

        Trio itself would not tell: it thinks that a step is due.
        """
        if self._parked is not None:
            self._unpark()
            if not self._loop.is_closed():  # else `make_all` finds the step
                self._loop.call_soon(self._make, context=self._context)

    def _on_deadline(self) -> None:
        self._wakes_at = math.inf  # it may have come early: a loop counts in its own ticks
        self._on_event()

    def _on_event(self) -> None:
        if not self._is_elsewhere():
            self._unpark()
            self._make()

    def _is_elsewhere(self) -> bool:
        """Say whether the loop goes on in another thread: the steps wait for `go_on_here`."""
        if self._thread is this_thread():
            return False
        if not self._is_stranded:
            self._is_stranded = True
            logger.error(
                "the event loop goes on in another thread than the one in which the registry was "
                "opened: no pass runs any more, await registry.shutdown() and initialize() again"
            )
            if self._epoll is not None:
                self._loop.remove_reader(self._epoll)
        return True


def _has_events(guest_tick: Any) -> bool:
    """Say whether the step is to hand on events, or an error of waiting for them."""
    return bool(getattr(guest_tick.__self__.unrolled_run_next_send, "value", True))
