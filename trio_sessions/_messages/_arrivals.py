"""Waiting for something to change in an inbox."""

import trio

__all__ = ["Arrivals"]


class Arrivals:
    """A signal for those who wait for a change: they wake, and look again."""

    __slots__ = ("_arrived",)

    def __init__(self) -> None:
        self._arrived: trio.Event | None = None

    def arrival(self) -> trio.Event:
        """Return an event that is set when something may have changed."""
        if self._arrived is None:
            self._arrived = trio.Event()
        return self._arrived

    def wake(self) -> None:
        """Wake whoever waits, to look again."""
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None
