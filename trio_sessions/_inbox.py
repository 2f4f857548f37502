"""The messages of one session that is held here: in memory within bounds, in order.

Synchronous, no I/O. What does not fit waits in the store, and then so does everything that
comes after it, until all of that has been fetched: so messages stay in order.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from trio_sessions.types import StoredMessage, Wanted

__all__ = ["Inbox", "Message"]

MOST = 100  # messages in memory for one session


@dataclass(frozen=True, slots=True)
class Message:
    """A message in memory."""

    payload: str
    expires_at: float
    """On Trio's clock."""
    row: int | None = None
    """Its id in the store, if it is there too."""


class Inbox:
    """See above. It stays the same when its session is added again; removal ends it.

    Args:
        session_id: whose inbox it is.
        size: bytes of messages in memory, at most; a single larger one fits all the same.
        message_ttl: seconds for which a message may wait.
    """

    __slots__ = (
        "_arrived",
        "_before",
        "_first",
        "_ready",
        "_size",
        "_stored",
        "_under_way",
        "held",
        "is_closed",
        "limit",
        "looked",
        "message_ttl",
        "more_in_store",
        "reader",
        "session_id",
    )

    def __init__(self, session_id: str, *, size: int, message_ttl: float) -> None:
        self.session_id = session_id
        self.limit = size
        self.message_ttl = message_ttl
        self.held: set[int] = set()
        """Rows that must not be fetched: in memory, or handed out and not yet acknowledged."""
        self.reader: object = None
        """Who reads it."""
        self.is_closed = False
        """Its session is not held here any more."""
        self.looked = False
        """What was in the store when it was opened has been fetched, or could not be."""
        self.more_in_store = False
        """Messages may be in the store that came after those in memory."""
        self._under_way = 0
        """Messages that are just being stored: until then it is not known where they are."""
        self._stored = 0
        """Counts those that were stored because they had to wait there."""
        self._first: int | None = None
        """The first of those: older ones were there before anything in memory."""
        self._before: deque[Message] = deque()
        self._ready: deque[Message] = deque()
        self._size = 0
        self._arrived: trio.Event | None = None

    def __len__(self) -> int:
        return len(self._before) + len(self._ready)

    # ---- what comes in ----

    def accept(self, payload: str, now: float) -> bool:
        """Take a message of this worker, unless it has to wait in the store."""
        if self.more_in_store or not self._has_room():
            return False
        self._size += len(payload)
        self._ready.append(Message(payload, now + self.message_ttl))
        self.wake()
        return True

    def begin_to_store(self) -> None:
        """A message goes to the store."""
        self._under_way += 1

    def stored(self, message_id: int | None) -> None:
        """The store has given it this id; None: it has not, or cannot say so."""
        self._under_way -= 1
        if message_id is not None:
            self.more_in_store = True
            self._stored += 1
            self._first = message_id if self._first is None else min(self._first, message_id)

    def wanted(self, most: int) -> tuple[Wanted, int] | None:
        """Return what there is room for, and a mark for `add`; None: nothing now.

        It is at most ``most`` bytes, or one message. Before it has looked, it wants one in
        any case.
        """
        if self.looked and not self._has_room():
            self.more_in_store = True  # as far as is known
            return None
        wanted = Wanted(
            session_id=self.session_id,
            held=frozenset(self.held),
            count=max(1, MOST - len(self)),
            size=max(1, min(self.limit - self._size, most)),
        )
        return wanted, self._stored

    def add(self, found: Sequence[StoredMessage], wanted: Wanted, mark: int, now: float) -> None:
        """Take what was fetched for ``wanted``."""
        if self.is_closed:
            return
        if not self.looked and self._under_way:
            return  # it cannot be told what came before those in memory: it is asked again
        for one in found:
            if one.id not in self.held:
                self.held.add(one.id)
                self._size += len(one.payload)
                message = Message(one.payload, now - one.age + self.message_ttl, one.id)
                # They come in order: after one that had to wait there is none from before.
                self.looked |= self._first is not None and one.id >= self._first
                (self._ready if self.looked else self._before).append(message)
        size = sum(len(one.payload.encode()) for one in found)
        if len(found) < wanted.count and size < wanted.size:  # that was all
            self.looked = True
            if self._stored == mark:
                self.more_in_store, self._first = False, None
        else:
            self.more_in_store = True
        self.wake()

    def look_failed(self) -> None:
        """The store is away, or silent: what is in memory need not wait for it."""
        self.looked = True
        self.wake()

    def put_back(self, message: Message) -> None:
        """A message was read and not finished: it is the next one again."""
        self._size += len(message.payload)
        self._before.appendleft(message)

    def _has_room(self) -> bool:
        return len(self) < MOST and self._size < self.limit

    # ---- what goes out ----

    def open(self, reader: object) -> None:
        """Begin to be read: look for what was stored before.

        That is older than what is only in memory, unless an earlier reader has looked, and
        has left messages that it found.
        """
        self.reader = reader
        self.looked = any(message.row is not None for message in self._ready)

    def take(self) -> Message | None:
        """Hand out the next message; it is acknowledged, or put back, by the caller."""
        if self._before:
            message = self._before.popleft()
        elif self._ready and self.looked:
            message = self._ready.popleft()
        else:
            return None
        self._size -= len(message.payload)
        return message

    def can_take(self) -> bool:
        return bool(self._before) or (self.looked and bool(self._ready))

    def should_fetch(self) -> bool:
        """Say whether it is time to fetch what waits in the store."""
        return self.more_in_store and len(self) <= MOST // 2

    def expired(self, now: float) -> list[Message]:
        """Take out what has waited for too long."""
        gone: list[Message] = []
        for waiting in (self._before, self._ready):
            gone += [message for message in waiting if message.expires_at < now]
            if gone:
                kept = [message for message in waiting if message.expires_at >= now]
                waiting.clear()
                waiting.extend(kept)
        self._size -= sum(len(message.payload) for message in gone)
        return gone

    def close(self) -> None:
        """Its session is not held here any more: its consumer need not wait."""
        self.is_closed, self.reader = True, None
        self.wake()

    def clear(self) -> list[Message]:
        """Take out everything."""
        gone = [*self._before, *self._ready]
        self._before.clear()
        self._ready.clear()
        self._size = 0
        return gone

    # ---- waiting ----

    def arrival(self) -> trio.Event:
        """Return an event that is set when there may be something new to take."""
        if self._arrived is None:
            self._arrived = trio.Event()
        return self._arrived

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None
