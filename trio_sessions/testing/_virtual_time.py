"""Virtual time for stores whose work is done in threads.

A `trio.testing.MockClock` with an ``autojump_threshold`` jumps to the next deadline as soon as
every task waits. It knows nothing of threads: a task whose thread is at work waits like any other,
so the clock jumps over every timeout of the operation while the thread has hardly begun. The cure
is to keep count of the threads: as long as one is at work, the clock stands still.

::

    task ── starts a thread ──> threshold: inf ── answer ──> its own threshold ── idle ──> jump
            (after its step)                   (after the next step)

An instrument sees each step of each task, so the threshold is set before Trio waits for events.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio.testing

__all__ = ["virtual_time"]


class _HoldsTheClock(trio.abc.Instrument):
    """Lets a clock jump only while no thread is at work."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self._threshold = clock.autojump_threshold

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        busy = trio.testing.active_thread_count() > 0
        threshold = math.inf if busy else self._threshold
        if self._clock.autojump_threshold != threshold:
            self._clock.autojump_threshold = threshold

    def release(self) -> None:
        self._clock.autojump_threshold = self._threshold


@contextmanager
def virtual_time() -> Iterator[trio.testing.MockClock]:
    """Let the clock of this run jump only while no thread is at work, within the block.

    So a registry on a database runs with pytest-trio's ``autojump_clock``, or with
    ``trio.run(..., clock=MockClock(autojump_threshold=0))``::

        async def test_a_pass_comes_every_five_minutes(autojump_clock):
            with virtual_time():
                async with open_registry("sqlite:///sessions.db") as registry:
                    await trio.sleep(3600)
                    assert registry.statistics().passes >= 12

    **The time of a database stays its own.** Passes, timeouts and pauses of the registry
    follow the virtual clock; a row expires by the clock of the database that it is in, in real
    time. Where the leases are what is tested, use `trio_sessions.stores.memory.MemoryStore`, whose
    clock is Trio's. While a thread is at work the virtual clock stands still, so an operation that
    hangs runs into the bounds of the database, and into no timeout of Trio's. Data on its way
    through a socket is no thread: give the clock a threshold that is longer than that takes.

    Yields:
        The clock of this run.

    Raises:
        RuntimeError: not within a Trio run, or its clock does not jump by itself; the message says
            which clock is needed.
    """
    clock = trio.lowlevel.current_clock()
    if not isinstance(clock, trio.testing.MockClock) or clock.autojump_threshold == math.inf:
        raise RuntimeError(
            "virtual_time() needs a run whose clock jumps by itself: ask for the fixture "
            "autojump_clock of pytest-trio, or use trio.run(..., "
            f"clock=trio.testing.MockClock(autojump_threshold=0)); this one has {clock!r}"
        )
    holds = _HoldsTheClock(clock)
    trio.lowlevel.add_instrument(holds)
    try:
        yield clock
    finally:
        trio.lowlevel.remove_instrument(holds)
        holds.release()
