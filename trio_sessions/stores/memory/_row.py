"""One row in memory, and what of it is handed out. Synchronous, no clock."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from trio_sessions.abc import Worker
from trio_sessions.types import Capabilities, Holder, StoredEntry, StoredMessage, Wanted

__all__ = ["LogLine", "Message", "Row"]


@dataclass(slots=True, kw_only=True)
class Message:
    """A message that waits for the session of a row."""

    payload: str
    stored_at: float


@dataclass(slots=True, kw_only=True)
class LogLine:
    """An entry of the log of a session of a row."""

    event: str
    stored_at: float


@dataclass(slots=True, kw_only=True)
class Row:
    """What is known of a session."""

    born: str = ""
    created_at: float
    worker_id: str = ""
    incarnation: str = ""
    generation: int = 0
    owner: str | None = None
    capabilities: Capabilities | None = None
    data: str | None = None
    messages: dict[int, Message] = field(default_factory=dict)
    log: dict[int, LogLine] = field(default_factory=dict)
    taken_at: float = float("-inf")
    last_accessed: float = float("-inf")

    def holder(self) -> Holder:
        """Return who holds it."""
        return Holder(worker_id=self.worker_id, incarnation=self.incarnation, owner=self.owner)

    def is_of(self, worker: Worker) -> bool:
        """Say whether this incarnation holds it."""
        return self.incarnation == worker.incarnation and self.worker_id == worker.worker_id

    def fetch(self, wanted: Wanted, now: float) -> Iterator[StoredMessage]:
        """Return messages that are wanted, the oldest first."""
        size = 0
        fresh = (one for one in self.messages.items() if one[0] not in wanted.held)
        for message_id, message in itertools.islice(fresh, wanted.count):
            if size >= wanted.size:
                return
            size += len(message.payload.encode())
            age = now - message.stored_at
            yield StoredMessage(id=message_id, payload=message.payload, age=age)

    def read_log(self, now: float, *, after: int, limit: int, size: int) -> Iterator[StoredEntry]:
        """Return entries of its log behind one of them, the oldest first.

        Args:
            now: the moment, on whatever clock the rows have.
            after: the id of that entry.
            limit: entries, at most.
            size: bytes, at most; a single larger one is returned all the same.
        """
        taken = 0
        later = (one for one in self.log.items() if one[0] > after)
        for entry_id, line in itertools.islice(later, limit):
            if taken >= size:
                return
            taken += len(line.event.encode())
            yield StoredEntry(id=entry_id, event=line.event, age=now - line.stored_at)
