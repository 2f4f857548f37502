"""The states of an inbox, and which may follow which.

::

    BEHIND ── all that was stored is fetched, or the store is silent ──> CAUGHT_UP
      ^ ^────────────── opened anew ─────────────────────────────────────────┘
      │
    SEALED <── added again (from BEHIND and CAUGHT_UP) ── until the claim says whether it is the
               same session; any state ──> ENDED

While it is SEALED nothing goes out: it may be another session of the same id (invariant 14).
"""

import enum

__all__ = ["NEXT", "State"]


class State(enum.Enum):
    """How far an inbox is; see the drawing above.

    Compare by identity: to hash a member is slow before Python 3.12.
    """

    BEHIND = enum.auto()
    CAUGHT_UP = enum.auto()
    SEALED = enum.auto()
    ENDED = enum.auto()


NEXT = {
    State.BEHIND: {State.CAUGHT_UP, State.SEALED, State.ENDED},
    State.CAUGHT_UP: {State.BEHIND, State.SEALED, State.ENDED},
    State.SEALED: {State.BEHIND, State.ENDED},
    State.ENDED: set[State](),
}
