"""The life of one registry: in which phase it is, and what may follow.

::

    OPEN ── the block has ended ──> CLOSING ── all is seen off ──> FINISHING ──┐
      │                                │                                       v
      └── its store does not open ─────┴── it is a forked child's ──────────> CLOSED

The one owner of that fact: the house goes on from phase to phase, and the edge to the last one.
Whoever has to do with it asks here, so nobody can hear of it late.
See docs/decisions/0009-one-writer.md.
"""

import enum

from trio_sessions.errors import RegistryClosed

__all__ = ["Life", "Phase"]


class Phase(enum.Enum):
    """The phases of a registry."""

    OPEN = enum.auto()
    """It is being opened, or is in use."""
    CLOSING = enum.auto()
    """Nothing is let in; what is held leaves, and its rows go as they always do."""
    FINISHING = enum.auto()
    """What waits is written for the last time: nothing is asked again."""
    CLOSED = enum.auto()
    """The store is closed, or about to be: it is asked nothing more."""


_NEXT = {
    Phase.OPEN: {Phase.CLOSING, Phase.CLOSED},
    Phase.CLOSING: {Phase.FINISHING, Phase.CLOSED},
    Phase.FINISHING: {Phase.CLOSED},
    Phase.CLOSED: set[Phase](),
}


class Life:
    """The phase of one registry."""

    __slots__ = ("_phase",)

    def __init__(self) -> None:
        self._phase = Phase.OPEN

    @property
    def phase(self) -> Phase:
        """The present one."""
        return self._phase

    def go(self, to: Phase) -> None:
        """Go on to another phase."""
        if to not in _NEXT[self._phase]:
            raise RuntimeError(f"a registry cannot go from {self._phase.name} to {to.name}")
        self._phase = to

    @property
    def is_open(self) -> bool:
        """Whether it may be used."""
        return self._phase is Phase.OPEN

    @property
    def is_finishing(self) -> bool:
        """Whether nothing is asked again any more."""
        return self._phase is Phase.FINISHING or self._phase is Phase.CLOSED

    @property
    def is_closed(self) -> bool:
        """Whether the store is asked nothing more."""
        return self._phase is Phase.CLOSED

    def check_open(self) -> None:
        """Raise `RegistryClosed` unless it may be used."""
        if self._phase is not Phase.OPEN:
            raise self.error()

    @staticmethod
    def error() -> RegistryClosed:
        """Return what is raised once it may not be used."""
        return RegistryClosed(
            "the registry is closed: use it inside the `async with open_registry(...)` block"
        )
