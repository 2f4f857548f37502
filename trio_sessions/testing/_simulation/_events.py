"""What has happened in a run: lines for whoever reads it, and counts for the report."""

import hashlib
from collections import Counter, deque
from dataclasses import dataclass

import trio

__all__ = ["DATABASE", "Event", "Log", "Violation"]

DATABASE = -1
_KEPT = 400  # events that can be drawn


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    at: float
    """On Trio's clock, seconds."""
    place: int
    """The number of a worker, or `DATABASE`."""
    text: str


class Log:
    """The events of one run, their digest, and the first violation."""

    def __init__(self) -> None:
        self.recent: deque[Event] = deque(maxlen=_KEPT)
        self.rules: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.right: Counter[str] = Counter()
        """Removals of sessions, by their reason."""
        self.judged: Counter[str] = Counter()
        """Answers of registries that were held against what is true, by their kind."""
        self.wrong: list[str] = []
        self.is_over = False
        """What happens now is only the end of the simulation."""
        self._digest = hashlib.blake2s()

    def note(self, place: int, text: str) -> None:
        """Take note of an event."""
        if self.is_over:
            return
        event = Event(trio.current_time(), place, text)
        self.recent.append(event)
        self._digest.update(f"{event.at:.6f} {place} {text}\n".encode())

    def remove(self, why: str) -> None:
        """Count a removal that had a reason; at the end of the run everybody goes."""
        if not self.is_over:
            self.right[why] += 1

    def violate(self, text: str) -> None:
        """Take note that an invariant does not hold; the run ends with the step."""
        if not self.is_over:
            self.note(DATABASE, f"VIOLATION: {text}")
            self.wrong.append(text)

    @property
    def digest(self) -> str:
        """A word for the whole trace: the same one for the same run."""
        return self._digest.hexdigest()
