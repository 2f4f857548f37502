"""The messages of one session that is held here: in memory within bounds, in order.

Synchronous, no I/O. A message is in memory only, or it is a row of the store, of which
memory may have a copy. Rows are in the order of their ids. A row goes before what is only
in memory, unless it is known to have been stored later: so what this worker sends is handed
out in the order in which it was sent, and other senders' rows need not wait.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from trio_sessions.types import StoredMessage, Wanted

__all__ = ["Inbox", "Message"]

MOST = 100  # messages in memory for one session; while it looks for older ones, so many rows more


@dataclass(slots=True)
class Message:
    """A message in memory."""

    payload: str
    expires_at: float
    """On Trio's clock."""
    row: int | None = None
    """Its id in the store, if it is there too."""
    number: int = 0
    """Counts what was accepted in memory only."""
    later_row: int | None = None
    """If it is in memory only: the first row that is known to have been stored after it."""

    @property
    def size(self) -> int:
        return _bytes(self.payload)


def _bytes(payload: str) -> int:
    return len(payload) if payload.isascii() else len(payload.encode())


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was fetched, for which it is not known yet where it belongs."""

    found: Sequence[StoredMessage]
    wanted: Wanted
    mark: tuple[int, int]
    moment: float
    waits_for: frozenset[int]


class Inbox:
    """See above. It stays the same when its session is added again; removal ends it.

    Args:
        session_id: whose inbox it is.
        size: bytes of messages in memory, at most; a single larger one fits all the same.
        message_ttl: seconds for which a message may wait.
    """

    __slots__ = (
        "_accepted",
        "_arrived",
        "_newest",
        "_passed_on",
        "_returned",
        "_sends",
        "_stored",
        "_undecided",
        "_under_way",
        "_waiting",
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
        self._accepted = 0
        self._sends = 0
        self._under_way: dict[int, int] = {}
        """Messages that are just being stored, with what had been accepted before each."""
        self._stored = 0
        self._passed_on = 0
        self._newest = 0
        """The newest row that was fetched: the older ones were, too."""
        self._undecided: _Answer | None = None
        self._returned: deque[Message] = deque()
        """What was handed out and not finished: it comes first."""
        self._waiting: list[Message] = []
        self._arrived: trio.Event | None = None

    def __len__(self) -> int:
        return len(self._returned) + len(self._waiting)

    # ---- what comes in ----

    def accept(self, payload: str, now: float) -> bool:
        """Take a message of this worker, unless it has to wait in the store."""
        if self.more_in_store or not self._has_room(self._waiting):
            return False
        self._accepted += 1
        message = Message(payload, now + self.message_ttl, number=self._accepted)
        if self.looked and not self._under_way:  # what was stored before is known: it is no more
            message.later_row = self._newest + 1
        self._waiting.append(message)
        if self.looked:
            self.wake()
        return True

    def begin_to_store(self) -> int:
        """A message goes to the store; return a number for `stored`."""
        self._sends += 1
        self._under_way[self._sends] = self._accepted
        return self._sends

    def stored(self, send: int, row: int | None) -> None:
        """The store has given it this id; None: it has not, or cannot say so."""
        accepted_before = self._under_way.pop(send)
        if row is not None:
            self.more_in_store = True
            self._stored += 1
            for message in self._waiting:
                if message.row is None and message.number <= accepted_before:
                    message.later_row = min(row, message.later_row or row)
        undecided = self._undecided
        if undecided is not None and not undecided.waits_for & self._under_way.keys():
            self._undecided = None
            self._take_in(undecided)

    def wanted(self, most: int) -> tuple[Wanted, tuple[int, int]] | None:
        """Return what there is room for, and a mark for `add`; None: nothing now.

        It is at most ``most`` bytes, or one message. Before it has looked, there is room
        also beside what is only in memory, which must wait for it.
        """
        if self._undecided is not None:
            return None
        inside = self._waiting if self.looked else self._rows()
        if not self._has_room(inside):
            self.more_in_store |= self.looked  # as far as is known
            return None
        wanted = Wanted(
            session_id=self.session_id,
            held=frozenset(self.held),
            count=MOST - len(inside),
            size=max(1, min(self.limit - _size(inside), most)),
        )
        return wanted, (self._passed_on, self._stored)

    def add(
        self, found: Sequence[StoredMessage], wanted: Wanted, mark: tuple[int, int], now: float
    ) -> None:
        """Take what was fetched for ``wanted``; it may come too late."""
        if self.is_closed or mark[0] != self._passed_on:
            return
        first = min((one.number for one in self._waiting if one.row is None), default=None)
        waits_for = frozenset(
            send
            for send, accepted_before in self._under_way.items()
            if found and first is not None and first <= accepted_before
        )
        answer = _Answer(found, wanted, mark, now, waits_for)
        if waits_for:  # what is being stored may be among it, and belongs elsewhere
            self._undecided = answer
        else:
            self._take_in(answer)

    def _take_in(self, answer: _Answer) -> None:
        for one in answer.found:
            if one.id not in self.held:
                self.held.add(one.id)
                self._newest = max(self._newest, one.id)
                expires_at = answer.moment - one.age + self.message_ttl
                self._insert(one.id, Message(one.payload, expires_at, one.id))
        size = sum(_bytes(one.payload) for one in answer.found)
        if len(answer.found) < answer.wanted.count and size < answer.wanted.size:  # that was all
            self.looked = True
            if self._stored == answer.mark[1]:
                self.more_in_store = False
        else:
            self.more_in_store = True
        self.wake()

    def _insert(self, row: int, message: Message) -> None:
        place = 0
        for other in self._waiting:
            later = other.later_row if other.row is None else other.row
            if later is None or later > row:
                break
            place += 1
        self._waiting.insert(place, message)

    def look_failed(self) -> None:
        """The store is away, or silent: what is in memory need not wait for it."""
        self.looked = True
        self.wake()

    def put_back(self, message: Message) -> None:
        """A message was read and not finished: it is the next one again."""
        self._returned.appendleft(message)
        self.wake()

    def _rows(self) -> list[Message]:
        return [message for message in self._waiting if message.row is not None]

    def _has_room(self, inside: Sequence[Message]) -> bool:
        return len(inside) < MOST and _size(inside) < self.limit

    # ---- what goes out ----

    def open(self, reader: object) -> None:
        """Begin to be read: look first for what was stored before."""
        self.reader, self.looked = reader, False

    def take(self) -> Message | None:
        """Hand out the next message; it is acknowledged, or put back, by the caller."""
        if self._returned:
            return self._returned.popleft()
        return self._waiting.pop(0) if self.can_take() else None

    def can_take(self) -> bool:
        """Say whether there is a next message: a row, or one that no row goes before."""
        if self._returned or not self._waiting:
            return bool(self._returned)
        first = self._waiting[0]
        if self.looked or first.row is not None:
            return True
        return first.later_row is not None and first.later_row <= self._newest

    def should_fetch(self) -> bool:
        """Say whether it is time to fetch what waits in the store."""
        if self._undecided is not None:
            return False
        if not self.looked:
            return len(self._rows()) <= MOST // 2
        return self.more_in_store and len(self) <= MOST // 2

    def expired(self, now: float) -> list[Message]:
        """Take out what has waited for too long."""
        gone = [one for one in (*self._returned, *self._waiting) if one.expires_at < now]
        if gone:
            self._returned = deque(one for one in self._returned if one.expires_at >= now)
            self._waiting = [one for one in self._waiting if one.expires_at >= now]
        return gone

    def handed_out(self) -> set[int]:
        """Return the rows that somebody has in hand, or has finished lately."""
        inside = {one.row for one in (*self._returned, *self._waiting)}
        return {row for row in self.held if row not in inside}

    def pass_on(self) -> None:
        """Its reader has lost it to the next one, for another transport.

        Another worker may have held the session meanwhile, so the copies of rows may be
        stale: they are fetched again.
        """
        self.reader = self._undecided = None
        self.looked = False
        self._passed_on += 1
        self._newest = 0
        for message in (*self._returned, *self._rows()):
            if message.row is not None:
                self.held.discard(message.row)
        self._returned = deque(one for one in self._returned if one.row is None)
        self._waiting = [one for one in self._waiting if one.row is None]
        self.wake()

    def close(self) -> None:
        """Its session is not held here any more: its consumer need not wait."""
        self.is_closed, self.reader, self._undecided = True, None, None
        self.wake()

    def clear(self) -> list[Message]:
        """Take out everything."""
        gone = [*self._returned, *self._waiting]
        self._returned.clear()
        self._waiting.clear()
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


def _size(messages: Sequence[Message]) -> int:
    return sum(message.size for message in messages)
