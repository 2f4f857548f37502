"""The marks of revoked sessions in memory. Synchronous, no clock."""

from dataclasses import dataclass, replace

from trio_sessions.abc._revocation import KEPT
from trio_sessions.revocation import Mark

__all__ = ["Marks"]


@dataclass(slots=True)
class _Mark:
    at: float
    until: float


class Marks:
    """Ids that are refused for a time."""

    def __init__(self) -> None:
        self._marks: dict[str, _Mark] = {}

    def copy(self) -> "Marks":
        """Return the marks as they stand."""
        copied = Marks()
        copied._marks = {one: replace(mark) for one, mark in self._marks.items()}
        return copied

    def mark(self, session_id: str, now: float, ttl: float) -> None:
        """Refuse an id from now on, for ``ttl`` seconds at least."""
        before = self._marks.get(session_id)
        until = now + ttl if before is None else max(before.until, now + ttl)
        self._marks[session_id] = _Mark(now, until)

    def has(self, session_id: str, now: float) -> bool:
        """Say whether an id is refused."""
        mark = self._marks.get(session_id)
        return mark is not None and mark.until > now

    def fresh(self, now: float, within: float) -> list[Mark]:
        """Return the marks that were made lately."""
        return [
            Mark(session_id=session_id, age=now - mark.at, is_over=mark.until <= now)
            for session_id, mark in self._marks.items()
            if now - mark.at <= within
        ]

    def purge(self, now: float) -> None:
        """Forget the marks whose time is long over."""
        self._marks = {one: mark for one, mark in self._marks.items() if mark.until > now - KEPT}

    def restart_clock(self, now: float) -> None:
        """Begin the time of all marks anew, on another clock."""
        for mark in self._marks.values():
            mark.at, mark.until = now, now + (mark.until - mark.at)
