"""What a pass has done so far, and its report of it at the end."""

from collections import defaultdict
from dataclasses import dataclass, field

from trio_sessions.types import CleanupReport, RemovalReason

__all__ = ["Tally"]


@dataclass(slots=True)
class Tally:
    """The results of a pass so far, each explained at its field of `CleanupReport`."""

    checked: int = 0
    refreshed: int = 0
    ended: dict[RemovalReason, list[str]] = field(default_factory=lambda: defaultdict(list))
    restored: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    check_failures: dict[str, Exception] = field(default_factory=dict)
    refresh_failures: dict[str, Exception] = field(default_factory=dict)
    expired: int = 0
    checking: float = 0.0
    refreshing: float = 0.0
    sweeping: float = 0.0

    def report(self, duration: float) -> CleanupReport:
        """Return the report of the pass as it stands, after so many seconds."""
        return CleanupReport(
            checked=self.checked,
            refreshed=self.refreshed,
            disconnected=tuple(self.ended[RemovalReason.DISCONNECTED]),
            missing=(*self.ended[RemovalReason.MISSING], *self.ended[RemovalReason.TAKEN_OVER]),
            restored=tuple(self.restored),
            taken_over=tuple(self.ended[RemovalReason.TAKEN_OVER]),
            held=tuple(self.held),
            check_failures=dict(self.check_failures),
            refresh_failures=dict(self.refresh_failures),
            revoked=tuple(self.ended[RemovalReason.REVOKED]),
            idle=tuple(self.ended[RemovalReason.IDLE]),
            aged=tuple(self.ended[RemovalReason.AGED]),
            expired=self.expired,
            duration=duration,
            checking=self.checking,
            refreshing=self.refreshing,
            sweeping=self.sweeping,
        )
