"""The states of an inbox, and which may follow which.

::

      ┌────────────── opened, or claimed, or added again ──────────┐
      v                                                            │
    BEHIND ── all that was stored is fetched ──> CAUGHT_UP ────────┤
      ^  │                                         │   ^           │
      │  │                             rows may    v   │ all is    │
      │  └── the store is silent ───────────────> MORE ┘ fetched ──┘
      │
    SEALED <── added again (from the three above) ── until the claim says whether it is the
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
    """Rows may wait in the store that are older than what is accepted: that is kept apart."""
    MORE = enum.auto()
    """Rows may wait in the store; what is accepted goes out all the same."""
    CAUGHT_UP = enum.auto()
    """No row waits, as far as is known."""
    SEALED = enum.auto()
    """Nothing goes out, before the claim is answered."""
    ENDED = enum.auto()
    """The session is not held here any more."""


NEXT = {
    State.BEHIND: {State.MORE, State.CAUGHT_UP, State.SEALED, State.ENDED},
    State.MORE: {State.BEHIND, State.CAUGHT_UP, State.SEALED, State.ENDED},
    State.CAUGHT_UP: {State.BEHIND, State.MORE, State.SEALED, State.ENDED},
    State.SEALED: {State.BEHIND, State.ENDED},
    State.ENDED: set[State](),
}
