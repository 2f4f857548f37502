"""An estimate of the database's clock, and the last moment at which a batch may begin.

A statement that comes late does harm: it was held up on its way, its caller has been told that it
failed, or somebody has come since and is newer. So each batch says when it may begin at the latest,
on the clock of the database itself: the last reading of that clock, what has passed since, and a
margin. **An estimate may refuse, never convict**: a batch that is refused did nothing, was told
what the clock says, and goes again with that (hosts sleep, clocks are set).

Who is newer is told by "now - age", so a claim may be held up by no more than the margin, which is
short: two of the last round trips, and no less than `_LEAST`. It grows with each refusal, so that
a slow network is no reason to go round for ever. Everything else may be held up until its caller is
told that it failed.

Synchronous. See docs/decisions/0010-evidence.md.
"""

import time
from collections.abc import Iterable

import trio

from trio_sessions.writes import Claim, Write

__all__ = ["ClockEstimate"]

_LEAST = 0.05  # seconds
_GROWTH = 2.0


class ClockEstimate:
    """An estimate of the database's clock, and of how late a batch may begin.

    Args:
        patience: seconds after which a caller is told that a write has failed.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._reading: float | None = None
        self._read_at = (0.0, 0.0)
        self._round_trip = 0.0
        self._growth = 1.0

    def read(self, clock: float | None, asked_at: float) -> None:
        """Note a reading of the database's clock that was asked for at ``asked_at``, on Trio's."""
        if clock is not None:
            self._reading = clock
            self._read_at = trio.current_time(), time.monotonic()
            self._round_trip = self._read_at[0] - asked_at

    def note_verdict(self, *, late: bool) -> None:
        """Note whether a batch was refused as late: the margin grows with each that is."""
        self._growth = self._growth * _GROWTH if late else 1.0

    def not_after(self, writes: Iterable[Write[object]]) -> float | None:
        """Return when these may begin at the latest, on the database's clock; None: any time."""
        if self._reading is None:
            return None
        margin = self._patience
        if any(isinstance(write, Claim) for write in writes):
            margin = min(margin, max(_LEAST, 2 * self._round_trip) * self._growth)
        # Trio's clock may be a test's, which stands still, or jumps.
        passed = max(trio.current_time() - self._read_at[0], time.monotonic() - self._read_at[1])
        return self._reading + passed + margin
