"""The messages of one session that is held here: in memory within bounds, in order.

No I/O. A message is in memory only, or a row of the store, of which memory may have a copy. What
goes out is one line, first in, first out; rows join it as they are fetched. A sender's rows become
visible in order, which keeps its order, but for what *this* worker sends: that may go to memory or
to the store. Three rules keep it in order too:

1. While rows of this worker wait in the store, or are on their way to it, nothing is accepted
   into memory: it follows them through the writer.
2. While rows may wait that were stored before (BEHIND), what is accepted is kept apart, as *early*,
   with one boundary: the first row that this worker has stored since. Rows that are older than
   the boundary go before what is early, others after, and so do those that were stored later
   for sure; see `trio_sessions._messages._line`.
3. While something is early and there is no boundary, a fetch and the storing of a message exclude
   each other: its row might be found before its id is known. Neither waits for ever: a fetch ends
   within its timeout, what is stored gives a boundary, else `PATIENCE` ends (`take`).

The states stand in `_state`. Over 400 lines, a third of them prose: the rules and what keeps them
belong together. See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Iterable, Mapping, Sequence

import trio

from trio_sessions._json import size_of
from trio_sessions._messages._arrivals import Arrivals
from trio_sessions._messages._asked import Asked
from trio_sessions._messages._hand import Hand
from trio_sessions._messages._line import Line, Message, Waiting
from trio_sessions._messages._state import NEXT, State
from trio_sessions.types import StoredMessage, Wanted

__all__ = ["MOST", "Asked", "Inbox", "Message", "State"]

MOST = 100  # messages in memory for one session; while some are early, so many rows more
_SURELY = 0.1  # seconds by which a row is younger that counts as younger; clocks are rounded
_UNACKNOWLEDGED = 2000  # rows in memory, or handled and not acknowledged; then none is fetched
PATIENCE = 1.0  # seconds for which what is in memory waits for older rows in a silent store


class Inbox(Arrivals):
    """See the head of this file. It stays when its session is added again; removal ends it.

    Args:
        session_id: whose inbox it is.
        size: bytes of messages in memory, at most; a single larger one fits all the same.
        message_ttl: seconds for which a message may wait.
        storing: how many messages of this worker are on their way to the store, by session.
        waiting: is told how many messages wait here.
    """

    __slots__ = (
        "_asked",
        "_door",
        "_floor",
        "_hand",
        "_has_more",
        "_held",
        "_life",
        "_limit",
        "_line",
        "_newest_own",
        "_news",
        "_own_waits",
        "_quiet_until",
        "_reader",
        "_stale",
        "_state",
        "_stored",
        "_storing",
        "_streams",
        "_ttl",
        "session_id",
    )

    def __init__(
        self,
        session_id: str,
        *,
        size: int,
        message_ttl: float,
        storing: Mapping[str, int],
        waiting: Waiting | None = None,
    ) -> None:
        super().__init__()
        self.session_id = session_id
        self._door = trio.StrictFIFOLock()
        self._limit = size
        self._ttl = message_ttl
        self._state = State.BEHIND
        self._reader: object = None
        self._streams = False
        self._line = Line(waiting or Waiting())
        self._hand = Hand()
        self._held: set[int] = set()
        """Rows that must not be fetched: in memory, or handed out and not yet acknowledged."""
        self._stale: set[int] = set()
        """Those of them that another worker may have handled: to be fetched once more."""
        self._life = 0
        self._floor = 0
        """Messages accepted before this life belong to another session, and are dropped."""
        self._asked: Asked | None = None
        self._has_more = False
        """Rows may be in the store that came after those in memory."""
        self._own_waits = False
        """Rows of this worker are in the store that have not been fetched."""
        self._newest_own = 0
        self._news = 0
        self._stored = 0
        self._storing = storing
        self._quiet_until = float("-inf")

    def __len__(self) -> int:
        return self._line.count

    @property
    def state(self) -> State:
        """The state of the inbox."""
        return self._state

    @property
    def held(self) -> frozenset[int]:
        """Rows that are in memory, or handed out and not yet acknowledged."""
        return frozenset(self._held)

    def _go(self, state: State) -> None:
        if state is not self._state:
            if state not in NEXT[self._state]:
                raise RuntimeError(f"an inbox cannot go from {self._state.name} to {state.name}")
            self._state = state

    # ---- what this worker sends ----

    def accept(self, payload: str, now: float) -> bool:
        """Take a message of this worker, unless it has to wait in the store."""
        if self._state is State.ENDED or self._own_waits or self._is_storing:
            return False
        line = self._line
        if line.count >= MOST or line.size >= self._limit:
            return False
        message = Message(payload, now + self._ttl, life=self._life)
        if self._state is State.CAUGHT_UP:
            line.append(message)
            self.wake()
        else:
            line.append_early(message)
        return True

    async def wait_until_may_store(self) -> None:
        """Wait until a message may go to the store, in the order of the calls; see rule 3.

        No checkpoint if it may, and nobody waits for it.
        """
        if self._may_store and not self._door.locked():
            return
        async with self._door:
            while not self._may_store:
                await self.arrival().wait()

    @property
    def _may_store(self) -> bool:
        return not (self._asked is not None and self._line.is_unbounded)

    @property
    def _is_storing(self) -> bool:
        """A message of this worker is on its way to the store."""
        return self.session_id in self._storing

    def note_row(self, row: int) -> None:
        """Note that this worker has stored a message."""
        self._stored += 1
        if row in self._held or self._state is State.ENDED:
            return  # it has been fetched already
        self._own_waits = True
        self.expect_more()
        self._newest_own = max(self._newest_own, row)
        self._line.note_stored(row)

    # ---- what is fetched ----

    def expect_more(self) -> None:
        """Note that rows may be in the store that have not been fetched."""
        self._has_more = True
        self._news += 1

    @property
    def should_fetch(self) -> bool:
        """Whether to fetch: it is read, and there is reason and room for stored messages."""
        if self._reader is None or self._asked is not None:
            return False
        if self._state is State.BEHIND:
            is_wanted = bool(self._stale) or len(self._line.due) <= MOST // 2
        else:
            is_wanted = self._has_more and self._line.count <= MOST // 2
        return is_wanted and self._may_fetch

    @property
    def _may_fetch(self) -> bool:
        if self._state is State.SEALED or self._state is State.ENDED:
            return False
        if len(self._held) >= _UNACKNOWLEDGED:
            return False
        return not (self._is_storing and self._line.is_unbounded)

    def ask(self, most: int, now: float) -> Asked | None:
        """Begin to fetch what there is room for, ``most`` bytes at most; None: nothing now.

        `answer` or `give_up_fetch` must follow. What is early has no part in the room, and what
        is stale is asked for once more, however full it is: nothing goes out before.
        """
        if self._asked is not None or not self._may_fetch:
            return None
        inside = [one for one in self._line.due if one.row is None or one.row not in self._stale]
        size = sum(one.size for one in inside)
        count, room = MOST - len(inside), min(self._limit - size, most)
        if self._stale:
            count = max(count, len(self._stale) + 1)
            room = max(room, min(self._limit, most))
        elif count <= 0 or room <= 0:
            self._has_more = True  # as far as is known
            return None
        wanted = Wanted(
            session_id=self.session_id,
            held=frozenset(self._held - self._stale),
            count=count,
            size=room,
        )
        self._asked = Asked(wanted, now, self._stored, self._news)
        return self._asked

    def give_up_fetch(self, asked: Asked) -> None:
        """Note that a fetch has failed."""
        if self._asked is asked:
            self._asked = None
            self._quiet_until = float("-inf")  # what is in memory need not wait any longer
            self.wake()

    def answer(self, asked: Asked, found: Sequence[StoredMessage], now: float) -> None:
        """Take what was fetched; it may come too late."""
        if self._asked is not asked:  # the session was added again, or removed
            return
        self._asked = None
        self._quiet_until = now + PATIENCE
        for one in found:
            self._take_in(one, asked.at, now)
        size = sum(size_of(one.payload) for one in found)
        if len(found) < asked.wanted.count and size < asked.wanted.size:  # that was all
            self._drop_stale()
            self._catch_up()
            self._own_waits &= self._stored != asked.stored
            self._has_more = self._own_waits or self._news != asked.news
        else:
            self._has_more = True
        self.wake()

    def _take_in(self, one: StoredMessage, asked_at: float, now: float) -> None:
        self._stale.discard(one.id)
        if one.id == self._newest_own:  # its sender's rows become visible in order
            self._own_waits = False
        if one.id in self._held:
            return
        self._held.add(one.id)
        message = Message(one.payload, now - one.age + self._ttl, one.id, self._life)
        after = asked_at - one.age + self._ttl - _SURELY  # it was stored no earlier
        self._line.append_row(one.id, message, after=after)

    def _drop_stale(self) -> None:
        """Let go of copies whose rows have been handled elsewhere."""
        if not self._stale:
            return
        self._line.drop(lambda one: one.row in self._stale)
        self._held -= self._stale
        self._stale.clear()

    def _catch_up(self) -> None:
        self._line.join_early()
        if self._state is State.BEHIND:
            self._go(State.CAUGHT_UP)

    # ---- what goes out ----

    @property
    def reader(self) -> object:
        """The current reader; None: nobody reads."""
        return self._reader

    @property
    def is_quiet(self) -> bool:
        """Whether no message is in hand, and none in memory that is not stored, too."""
        return not self._hand and all(one.row is not None for one in self._line)

    @property
    def is_busy(self) -> bool:
        """Whether a message is in hand, or it is open and keeps its session in use by that."""
        return bool(self._hand) or (self._reader is not None and self._streams)

    def open(self, reader: object, now: float, *, streams: bool = False) -> None:
        """Begin to be read: what was stored before is to be fetched first."""
        self._reader, self._streams = reader, streams
        self._quiet_until = now + PATIENCE
        self.expect_more()
        if self._state is State.CAUGHT_UP:
            self._go(State.BEHIND)

    def leave(self, reader: object) -> None:
        """Stop being read, if it is still this one who reads."""
        if self._reader is reader:
            self._reader = None

    def take(self, now: float) -> Message | None:
        """Hand out the next message; `finish` or `put_back` must follow."""
        if not self.can_take(now):
            return None
        if self._line.first is None:
            self._catch_up()  # the store is silent: what is in memory need not wait for it
        message = self._line.pop()
        self._hand.take(message)
        return message

    def can_take(self, now: float) -> bool:
        """Say whether there is a next message that may go out."""
        if self._state is State.SEALED or self._state is State.ENDED:
            return False
        if now < self._hand.until:
            return False
        first = self._line.first
        if first is not None:
            return first.row not in self._stale
        return self._line.has_early and (self._state is State.CAUGHT_UP or now >= self._quiet_until)

    def may_change_at(self, now: float) -> float:
        """Return when `can_take` may have another answer although nothing has come."""
        moments = [self._hand.until]
        if self._state is State.BEHIND and self._line.has_early:
            moments.append(self._quiet_until)
        return min((one for one in moments if one > now), default=float("inf"))

    def finish(self, message: Message) -> bool:
        """Note that a message was handled; say whether its row is to be acknowledged."""
        self._hand.release(message)
        self.wake()
        return message.row is not None

    def put_back(self, message: Message) -> bool:
        """Take back a message that was not finished; False: it is too late for that."""
        self._hand.release(message)
        self.wake()
        if self._state is State.ENDED or message.life < self._floor:
            return False
        self._line.put_back(message)
        return True

    def is_current(self, message: Message) -> bool:
        """Say whether a message that came too late is one of the session that is held now."""
        return self._state is not State.ENDED and message.row in self._held

    def forget(self, rows: Iterable[int]) -> None:
        """Note that these rows are acknowledged, or dropped by the store."""
        was_full = len(self._held) >= _UNACKNOWLEDGED
        self._held.difference_update(rows)
        if was_full:  # its reader may fetch again
            self.wake()

    # ---- what becomes of the session ----

    def add_again(self, *, detach: bool, seal: bool, until: float) -> None:
        """Note that the session was added again: nothing goes out until its claim is answered.

        Args:
            detach: a newer transport has taken it over: detach the reader.
            seal: what is in memory may be another session's, for all that is known.
            until: how long the next reader waits for what the former one has in hand.
        """
        if detach:
            self._reader = None
            self._hand.wait_until(until)
        if self._state is State.ENDED:
            return
        self._life += 1
        self._asked = None
        if seal and (len(self) or self._hand):
            self._go(State.SEALED)
        elif self._state is State.CAUGHT_UP:
            self._go(State.BEHIND)
        self.wake()

    def claimed(self, *, is_other: bool, has_moved: bool, now: float) -> list[Message]:
        """Note what the claim said; return what was another session's, and is dropped."""
        dropped: list[Message] = []
        if is_other:
            dropped = self._drop_earlier_lives()
        elif has_moved:
            self._stale = {one.row for one in self._line if one.row is not None}
        if self._state in {State.SEALED, State.CAUGHT_UP}:
            self._go(State.BEHIND)
        self.expect_more()
        self._quiet_until = now + PATIENCE
        self.wake()
        return dropped

    def forget_rows(self) -> None:
        """Forget the rows of all messages, for the store went back: they are in memory only.

        What it still has is delivered once more; what it gives an old id to is another message.
        """
        in_hand = [] if self._hand.message is None else [self._hand.message]
        for message in (*self._line, *in_hand):
            message.row = None
        self._held.clear()
        self._stale.clear()
        self._asked = None
        self._own_waits = False
        self._newest_own = 0

    def _drop_earlier_lives(self) -> list[Message]:
        self._floor = self._life
        gone = self._line.drop(lambda one: one.life < self._floor)
        self._held.clear()
        self._stale.clear()
        self._own_waits = False
        if self._hand.message is not None and self._hand.message.life < self._floor:
            self._hand.release(self._hand.message)
        return gone

    def end(self) -> None:
        """Note that the session is not held here any more: its reader need not wait."""
        self._reader = self._asked = None
        self._go(State.ENDED)
        self.wake()

    def clear(self) -> list[Message]:
        """Take out all messages, and return them."""
        return self._line.drop(lambda _: True)

    def expired(self, now: float) -> list[Message]:
        """Take out the messages that have expired, and return them."""
        return self._line.drop(lambda one: one.expires_at < now)

    def handed_out(self) -> set[int]:
        """Return the rows that were handed to a reader and are not acknowledged."""
        return self._held - {one.row for one in self._line if one.row is not None}

    @property
    def row_in_hand(self) -> int | None:
        """The row that somebody has in hand."""
        return None if self._hand.message is None else self._hand.message.row
