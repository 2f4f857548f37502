"""An environment without coverage: for programs that fork, and for those that only take time.

Coverage saves what it has measured when a process ends, in an SQLite file. In a forked child
that can wait for ever: SQLite's own locks are copied as they were, and whichever thread of the
parent held one is not there to give it back. So what forks is not measured. Nor are benchmarks
and random trials, which run what other tests have measured, a thousand times.
"""

import os

__all__ = ["unmeasured_environment"]


def unmeasured_environment() -> dict[str, str]:
    """Return this process's environment without coverage's variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COV")}
