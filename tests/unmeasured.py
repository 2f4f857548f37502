"""What runs without coverage, under which all Python is several times as slow, libraries too.

Programs that fork: coverage saves what it has measured when a process ends, in an SQLite file. In a
forked child that can wait for ever: SQLite's own locks are copied as they were, and whichever
thread of the parent held one is not there to give it back. Benchmarks and random trials, which
only take time. And tests that carry `unmeasured`: they run what others have measured, many times.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

import pytest

__all__ = ["not_measuring", "unmeasured", "unmeasured_environment"]

unmeasured = pytest.mark.unmeasured
"""Leaves what a test does in its own thread out of the coverage."""


@contextlib.contextmanager
def not_measuring() -> Iterator[None]:
    """Let coverage rest in this thread, if it is at work, for the length of the block."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


def unmeasured_environment() -> dict[str, str]:
    """Return this process's environment without coverage's variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}
