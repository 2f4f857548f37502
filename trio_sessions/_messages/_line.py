"""The messages of one session in memory, in the order in which they go out. Synchronous.

::

    out <── returned <── ready: r3 r4 m1 ... <── rows < boundary
                                  ^
                                  early: m2 m3 ... <── rows >= boundary

*Returned* is what was handed out and not finished. *Early* is what this worker has accepted while
rows that were stored before may still wait in the store; the *boundary* is the first row that it
has stored since. A row of somebody else's that is younger for sure than what is early goes after
it, too: so it waits for what was there before, however much comes later.

See docs/decisions/0009-one-writer.md.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from trio_sessions._json import size_of

__all__ = ["Line", "Message", "Waiting", "has_expired"]


def has_expired(expires_at: float, now: float) -> bool:
    """Say whether a message is too old. At the very moment it is not (invariant 6)."""
    return expires_at < now


@dataclass(slots=True, eq=False)
class Message:
    """A message in memory."""

    payload: str
    expires_at: float
    """On Trio's clock."""
    row: int | None = None
    """Its id in the store, if it is there too."""
    life: int = 0
    """Counts how often the session was added again before it came."""
    size: int = field(init=False)
    """Its bytes, encoded."""

    def __post_init__(self) -> None:
        """Count the bytes, once."""
        self.size = size_of(self.payload)


class Waiting:
    """A count of the messages in all lines that share it."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def change(self, by: int) -> None:
        """Add to the number of messages in the lines; a negative number takes away."""
        self.number += by


class Line:
    """The messages of one session in memory; see the head of this file.

    Args:
        waiting: is told how many messages come and go.
    """

    __slots__ = ("_boundary", "_early", "_ready", "_returned", "_waiting", "count", "size")

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._returned: deque[Message] = deque()
        self._ready: deque[Message] = deque()
        self._early: deque[Message] = deque()
        self._boundary: int | None = None
        self.count = 0
        """Messages in it; kept, for whoever sends asks for it each time."""
        self.size = 0
        """Bytes in it, likewise."""

    def __iter__(self) -> Iterator[Message]:
        return chain(self._returned, self._ready, self._early)

    @property
    def due(self) -> list[Message]:
        """The returned and the ready messages, which go out before the early ones."""
        return [*self._returned, *self._ready]

    @property
    def count_due(self) -> int:
        """The number of messages in `due`."""
        return self.count - len(self._early)

    @property
    def has_early(self) -> bool:
        """Whether messages are kept apart as early."""
        return bool(self._early)

    @property
    def is_unbounded(self) -> bool:
        """Whether messages are early without a boundary: no row is known that came after them."""
        return bool(self._early) and self._boundary is None

    @property
    def first(self) -> Message | None:
        """The next message, if it is not early; None: there is none."""
        line = self._returned or self._ready
        return line[0] if line else None

    def append(self, message: Message) -> None:
        """Append a message to the ready ones."""
        self._ready.append(message)
        self._count(1, message.size)

    def _count(self, number: int, size: int) -> None:
        self.count += number
        self.size += size
        self._waiting.change(number)

    def append_early(self, message: Message) -> None:
        """Append a message to the early ones, behind rows that may have been stored before it."""
        self._early.append(message)
        self._count(1, message.size)

    def append_row(self, row: int, message: Message, *, after: float) -> None:
        """Append a fetched row to the ready ones, before or behind the early ones.

        Args:
            row: its id.
            message: what it says.
            after: it was stored after what expires before this moment was accepted.
        """
        if self._boundary is not None and row >= self._boundary:
            self.join_early()
        while self._early and has_expired(self._early[0].expires_at, after):
            self._ready.append(self._early.popleft())
        if not self._early:
            self._boundary = None
        self._ready.append(message)
        self._count(1, message.size)

    def put_back(self, message: Message) -> None:
        """Put a message that was not finished at the head of the line."""
        self._returned.appendleft(message)
        self._count(1, message.size)

    def note_stored(self, row: int) -> None:
        """Note that this worker has stored a row after all that is here."""
        if self._early:
            self._boundary = row if self._boundary is None else min(self._boundary, row)

    def join_early(self) -> None:
        """Append early messages to the ready ones."""
        self._ready.extend(self._early)
        self._early.clear()
        self._boundary = None

    def pop(self) -> Message:
        """Take out the next message."""
        message = (self._returned or self._ready).popleft()
        self._count(-1, -message.size)
        return message

    def drop(self, is_to_go: Callable[[Message], bool]) -> list[Message]:
        """Take out the messages for which it is true; return them in their order."""
        gone = [message for message in self if is_to_go(message)]
        if gone:
            self._count(-len(gone), -sum(message.size for message in gone))
            for line in (self._returned, self._ready, self._early):
                kept = [message for message in line if not is_to_go(message)]
                line.clear()
                line.extend(kept)
        if not self._early:
            self._boundary = None
        return gone
