"""Who may come in: decided before anything is written. Synchronous, no I/O."""

from trio_sessions._table import LocalTable
from trio_sessions.errors import RegistryDraining, TooManySessions
from trio_sessions.limits import Limits

__all__ = ["Admission"]


class Admission:
    """The door of one registry.

    Args:
        table: who is in.
        limits: how many may be.
    """

    def __init__(self, table: LocalTable, limits: Limits) -> None:
        self._table = table
        self._limits = limits
        self._is_draining = False

    @property
    def is_draining(self) -> bool:
        """Whether nobody new is let in any more."""
        return self._is_draining

    def drain(self) -> None:
        """Let nobody new in from now on."""
        self._is_draining = True

    def check(self, session_id: str) -> None:
        """Raise unless this session may come in. One that is held here already always may.

        Raises:
            RegistryDraining: this worker is being drained.
            TooManySessions: this worker holds as many as it may.
        """
        if session_id in self._table:
            return
        if self._is_draining:
            raise RegistryDraining(
                "this worker is being drained and takes no new sessions: send the client to "
                "another one"
            )
        most = self._limits.max_sessions
        if most is not None and len(self._table) >= most:
            raise TooManySessions(
                f"this worker holds {len(self._table)} sessions, and limits.max_sessions is {most}"
            )
