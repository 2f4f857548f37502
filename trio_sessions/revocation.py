"""What is asked of a store to end sessions for good, wherever they are held.

Nothing here does I/O; durations are seconds. See docs/decisions/0012-operate.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trio_sessions.inspection import Selection

__all__ = ["Mark", "Revocation", "Revoked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Which sessions are to be revoked."""

    session_ids: Sequence[str] | None = None
    """These, whether there are rows of them or not; None: whichever the selection means."""
    selection: Selection | None = None
    """Those of which all of this is true; it is given instead of ids."""
    ttl: float
    """For so long a claim of these ids is refused."""
    reason: str = ""
    """For whoever reads the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What has become of a revocation."""

    sessions: int
    """Rows that there were, and that are gone now with all that belonged to them."""
    more: bool = False
    """There may be more that the selection means: ask again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An id that was revoked."""

    session_id: str
    age: float
    """Seconds since it was marked."""
    is_over: bool
    """It may be claimed again: somebody may hold another session of this id by now."""
