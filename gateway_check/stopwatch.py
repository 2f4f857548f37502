"""How long a call takes, without the time in which its processes wait for a core.

A call to ours is nearly all work; one to the gateway's own registry is nearly all sleep between
two looks. On a busy machine the former takes a multiple, the latter as long as ever. So what is
compared is the time for which nobody else's work is to blame: Linux counts for each thread how
long it was ready to run and had no core (the second figure of ``/proc/<pid>/task/*/schedstat``,
https://docs.kernel.org/scheduler/sched-stats.html).
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["Stopwatch", "processes_of_group"]

_PROC = Path("/proc")


def processes_of_group(group: int) -> list[int]:
    """Return the processes of a process group."""
    found = []
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(folder.name)) == group:
                found.append(int(folder.name))
    return found


def _schedule(pid: int) -> Iterator[tuple[int, int]]:
    """Yield, for each thread of a process, nanoseconds on a core and without one."""
    for file in _PROC.glob(f"{pid}/task/*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            ran, waited, _ = map(int, file.read_text().split())
            yield ran, waited


class Stopwatch:
    """Measures calls that some processes work on, this one among them.

    Args:
        pids: the others.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = [os.getpid(), *pids]
        self._ran, self._waited = self._totals()
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds since it was made: at least those of work, and none of waiting.

        Threads that wait at the same time are counted twice; the work itself is the lower bound.
        Where the system does not count, it is the time by the clock.
        """
        passed = time.perf_counter() - self._start
        ran, waited = self._totals()
        return min(passed, max(passed - (waited - self._waited), ran - self._ran))

    def _totals(self) -> tuple[float, float]:
        figures = [each for pid in self._pids for each in _schedule(pid)]
        ran, waited = (
            (sum(column) / 1e9 for column in zip(*figures, strict=True)) if figures else (0.0, 0.0)
        )
        return ran, waited
