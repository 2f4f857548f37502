"""What runs without coverage, which makes Python three to five times as slow, all libraries too.

Programs that fork: coverage saves what it has measured when a process ends, in an SQLite file. In a
forked child that can wait for ever: SQLite's own locks are copied as they were, and whichever
thread of the parent held one is not there to give it back.

And tests that run what others have measured carry `unmeasured`. They are tests as all others
are; only nobody counts the lines.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import pytest
from trio._core._thread_cache import THREAD_CACHE
from trio.lowlevel import start_thread_soon

__all__ = ["not_measuring", "unmeasured", "unmeasured_environment"]

unmeasured = pytest.mark.unmeasured
"""Leaves a test, or some of its arguments, and the programs that it starts, out of the coverage."""


def unmeasured_environment() -> dict[str, str]:
    """Return this process's environment without coverage's variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}


@contextlib.contextmanager
def not_measuring() -> Iterator[None]:
    """Let coverage rest for the length of the block, if it is at work."""
    coverage = sys.modules.get("coverage")
    measuring = coverage and coverage.Coverage.current()
    if coverage is None or measuring is None:
        yield
        return
    # A worker of pytest-xdist has a first one, of its start as a program, under that of pytest-cov.
    while (running := coverage.Coverage.current()) is not None:
        running.stop()
    for name in set(os.environ) - set(unmeasured_environment()):
        del os.environ[name]
    try:
        yield
    finally:
        measuring.start()  # sets the variables, too
        _measure_idle_threads()


def _measure_idle_threads() -> None:
    """Tell Trio's threads, which outlive a test, of the coverage that only new ones hear of."""
    idle = len(THREAD_CACHE._idle_workers)
    all_there = threading.Barrier(idle + 1)  # each takes one job

    def join() -> None:
        sys.settrace(threading.gettrace())
        all_there.wait(10.0)

    for _ in range(idle):
        start_thread_soon(join, lambda outcome: outcome.unwrap())
    all_there.wait(10.0)
