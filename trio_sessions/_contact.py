"""Whether the store answers, as its edge has heard it; nothing here asks."""

import math
from types import TracebackType
from typing import Self

import trio

from trio_sessions.errors import OperationTooLong, RowUnavailable, StoreUnavailable

__all__ = ["Contact"]


class Contact:
    """A note of whether the store answers one worker's operations.

    A context manager around each operation: how that ends, is noted.
    """

    def __init__(self) -> None:
        self.bell_alive: bool | None = None
        """The bell is open; None: nobody has wanted it yet."""
        self._away_since = math.inf
        """When, on Trio's clock, the first operation ended that the store did not answer."""

    @property
    def answers(self) -> bool:
        """Whether the last operation that has ended was answered."""
        return self._away_since == math.inf

    def away(self, now: float) -> float:
        """Return for how many seconds the store has answered nothing; 0.0 if it answers."""
        return max(0.0, now - self._away_since)

    def note_bell(self, *, alive: bool) -> None:
        """Note whether the bell is open."""
        self.bell_alive = alive

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, RowUnavailable | OperationTooLong):
            self._away_since = math.inf  # it has answered, if only to say that it cannot
        elif isinstance(error, StoreUnavailable) and self.answers:
            self._away_since = trio.current_time()
