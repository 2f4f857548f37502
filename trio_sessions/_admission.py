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
        self._expected = 0

    @property
    def is_draining(self) -> bool:
        """Whether nobody new is let in any more."""
        return self._is_draining

    def drain(self) -> None:
        """Refuse all new sessions from now on."""
        self._is_draining = True

    def expect(self) -> None:
        """Keep a place for a session that is being adopted; `expect_no_more` must follow."""
        self._expected += 1

    def expect_no_more(self) -> None:
        """Give back the place of an adoption that has ended, either way."""
        self._expected -= 1

    def check(self, session_id: str) -> None:
        """Raise unless this session may come in. One that is held here already always may.

        Raises:
            RegistryDraining: this worker is being drained.
            TooManySessions: this worker holds as many as it may.
        """
        if session_id in self._table:
            return
        self.check_draining()
        most = self._limits.max_sessions
        if most is not None and len(self._table) + self._expected >= most:
            raise TooManySessions(
                f"this worker holds {len(self._table)} sessions, and limits.max_sessions is {most}"
            )

    def check_draining(self) -> None:
        """Raise `RegistryDraining` if this worker is being drained."""
        if self._is_draining:
            raise RegistryDraining(
                "this worker is being drained and takes no new sessions: send the client to "
                "another one"
            )
