"""What is asked of a store to end sessions for good, wherever they are held.

Nothing here does I/O; durations are seconds. See docs/decisions/0012-operate.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from trio_sessions.inspection import Selection

__all__ = ["Mark", "Revocation", "Revoked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Which sessions are to be revoked.

    Attributes:
        session_ids: these, whether there are rows of them or not; None: whichever the selection
            means.
        selection: those of which all of this is true; it is given instead of ids.
        ttl: for so long a claim of these ids is refused.
        reason: for whoever reads the table.
    """

    session_ids: Sequence[str] | None = None
    selection: Selection | None = None
    ttl: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What has become of a revocation.

    Attributes:
        sessions: rows that there were, and that are gone now with all that belonged to them.
        more: there may be more that the selection means: ask again.
    """

    sessions: int
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """An id that was revoked.

    Attributes:
        session_id: the id.
        age: seconds since it was marked.
        is_over: it may be claimed again: somebody may hold another session of this id by now.
    """

    session_id: str
    age: float
    is_over: bool
