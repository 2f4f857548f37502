"""How late the event loop is: a task that wants to run once a second, and when it does."""

from collections import deque

import trio

__all__ = ["LoopLag"]

PERIOD = 1.0  # seconds between two measurements
_REMEMBERED = 10  # measurements


class LoopLag:
    """The last delays of the event loop."""

    def __init__(self) -> None:
        self._late = deque[float](maxlen=_REMEMBERED)
        self._due: float | None = None
        """When the task wants to run next, on Trio's clock."""

    async def measure(self) -> None:
        """Measure, until cancelled."""
        while True:
            self._due = trio.current_time() + PERIOD
            await trio.sleep_until(self._due)
            self._late.append(trio.current_time() - self._due)

    def seconds(self, now: float) -> float | None:
        """Return the longest delay of the last ten seconds; None: nothing was measured yet.

        One that goes on, for the loop has not come to the task since, counts as far as it has come.
        """
        going_on = [] if self._due is None or now <= self._due else [now - self._due]
        return max((*self._late, *going_on), default=None)
