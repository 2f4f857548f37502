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
See docs/decisions/0009-one-writer.md.
"""

import enum

__all__ = ["Progress", "State"]


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


_NEXT = {
    State.BEHIND: {State.MORE, State.CAUGHT_UP, State.SEALED, State.ENDED},
    State.MORE: {State.BEHIND, State.CAUGHT_UP, State.SEALED, State.ENDED},
    State.CAUGHT_UP: {State.BEHIND, State.MORE, State.SEALED, State.ENDED},
    State.SEALED: {State.BEHIND, State.ENDED},
    State.ENDED: set[State](),
}


class Progress:
    """The state of one inbox."""

    __slots__ = ("_state",)

    def __init__(self) -> None:
        self._state = State.BEHIND

    @property
    def state(self) -> State:
        """The state."""
        return self._state

    @property
    def is_open(self) -> bool:
        """Whether messages may be fetched, and go out."""
        return self._state is not State.SEALED and self._state is not State.ENDED

    @property
    def is_caught_up(self) -> bool:
        """Whether what is accepted may go out at once."""
        return self._state is State.CAUGHT_UP or self._state is State.MORE

    def go(self, state: State) -> None:
        """Go to another state, or stay in this one."""
        if state is not self._state:
            if state not in _NEXT[self._state]:
                raise RuntimeError(f"an inbox cannot go from {self._state.name} to {state.name}")
            self._state = state

    def fall_behind(self) -> None:
        """Go from CAUGHT_UP or MORE to BEHIND, for older rows may wait; stay in any other state."""
        if self.is_caught_up:
            self.go(State.BEHIND)

    def expect_more(self) -> None:
        """Go from CAUGHT_UP to MORE, for rows may wait; stay in any other state."""
        if self._state is State.CAUGHT_UP:
            self.go(State.MORE)
