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
   within its timeout, what is stored gives a boundary, else the store counts as silent (`take`).

The states stand in `_state`, which messages are held and by whom in `_held`, what is known of the
rows in the store in `_fetching`. See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import trio

from trio_sessions._messages._arrivals import Arrivals
from trio_sessions._messages._fetching import MOST, Asked, Fetching, Found
from trio_sessions._messages._held import Held, Stage
from trio_sessions._messages._line import Line, Message, Waiting
from trio_sessions._messages._state import NEXT, State
from trio_sessions.types import StoredMessage

__all__ = ["MOST", "Asked", "Inbox", "Message", "State"]

_UNACKNOWLEDGED = 2000  # rows in memory, or handled and not acknowledged; then none is fetched


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
        "_door",
        "_fetching",
        "_held",
        "_limit",
        "_line",
        "_reader",
        "_state",
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
        self._held = Held(self._line)
        self._fetching = Fetching(session_id, self._held, self._line, size, message_ttl)
        self._storing = storing

    def __len__(self) -> int:
        return self._line.count

    @property
    def state(self) -> State:
        """The state of the inbox."""
        return self._state

    @property
    def held(self) -> Held:
        """The messages that are held, and by whom."""
        return self._held

    def _go(self, state: State) -> None:
        if state is not self._state:
            if state not in NEXT[self._state]:
                raise RuntimeError(f"an inbox cannot go from {self._state.name} to {state.name}")
            self._state = state

    def _fall_behind(self) -> None:
        if self._state is State.CAUGHT_UP or self._state is State.MORE:
            self._go(State.BEHIND)

    # ---- what this worker sends ----

    def accept(self, payload: str, now: float) -> bool:
        """Take a message of this worker, unless it has to wait in the store."""
        if self._state is State.ENDED or self._fetching.own_waits or self._is_storing:
            return False
        line = self._line
        if line.count >= MOST or line.size >= self._limit:
            return False
        message = Message(payload, now + self._ttl, life=self._held.life)
        if self._state is State.CAUGHT_UP or self._state is State.MORE:
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
        return not (self._fetching.is_under_way and self._line.is_unbounded)

    @property
    def _is_storing(self) -> bool:
        """A message of this worker is on its way to the store."""
        return self.session_id in self._storing

    def note_row(self, row: int) -> None:
        """Note that this worker has stored a message."""
        is_here = self._held.stage(row) is not None or self._state is State.ENDED
        self._fetching.note_own(row, is_here=is_here)
        if not is_here:
            self.expect_more()
            self._line.note_stored(row)

    # ---- what is fetched ----

    def expect_more(self) -> None:
        """Note that rows may be in the store that have not been fetched."""
        self._fetching.note_news()
        self._note_more()

    def _note_more(self) -> None:
        if self._state is State.CAUGHT_UP:
            self._go(State.MORE)

    @property
    def should_fetch(self) -> bool:
        """Whether to fetch: it is read, and there is reason and room for stored messages."""
        if self._reader is None or self._fetching.is_under_way or self._state is State.CAUGHT_UP:
            return False
        has_doubt = self._held.count(Stage.IN_DOUBT) > 0
        return (has_doubt or self._line.count_due <= MOST // 2) and self._may_fetch

    @property
    def _may_fetch(self) -> bool:
        if self._state is State.SEALED or self._state is State.ENDED:
            return False
        if len(self._held) >= _UNACKNOWLEDGED:
            return False
        return not (self._is_storing and self._line.is_unbounded)

    def ask(self, most: int, now: float) -> Asked | None:
        """Begin to fetch what there is room for, ``most`` bytes at most; None: nothing now.

        `answer` or `give_up_fetch` must follow.
        """
        if self._fetching.is_under_way or not self._may_fetch:
            return None
        asked = self._fetching.begin(most, now)
        if asked is None:
            self._note_more()  # as far as is known
        return asked

    def give_up_fetch(self, asked: Asked) -> None:
        """Note that a fetch has failed."""
        if self._fetching.fail(asked):
            self.wake()

    def answer(self, asked: Asked, found: Sequence[StoredMessage], now: float) -> None:
        """Take what was fetched; it may come too late."""
        match self._fetching.end(asked, found, now):
            case Found.NOTHING:
                return
            case Found.SOME:
                self._note_more()
            case Found.ALL:
                self._catch_up(State.CAUGHT_UP)
            case Found.ALL_BUT_NEWS:
                self._catch_up(State.MORE)
        self.wake()

    def _catch_up(self, state: State) -> None:
        self._line.join_early()
        self._go(state)

    # ---- what goes out ----

    @property
    def reader(self) -> object:
        """The current reader; None: nobody reads."""
        return self._reader

    @property
    def is_quiet(self) -> bool:
        """Whether no message is in hand, and none in memory that is not stored, too."""
        return self._held.in_hand is None and all(one.row is not None for one in self._line)

    @property
    def is_busy(self) -> bool:
        """Whether a message is in hand, or it is open and keeps its session in use by that."""
        is_streaming = self._reader is not None and self._streams
        return is_streaming or self._held.in_hand is not None

    def open(self, reader: object, now: float, *, streams: bool = False) -> None:
        """Begin to be read: what was stored before is to be fetched first."""
        self._reader, self._streams = reader, streams
        self._fetching.expect(now)
        self.expect_more()
        self._fall_behind()

    def leave(self, reader: object) -> None:
        """Stop being read, if it is still this one who reads."""
        if self._reader is reader:
            self._reader = None

    def take(self, reader: object, now: float) -> Message | None:
        """Hand out the next message; `finish` or `put_back` must follow."""
        if not self.can_take(now):
            return None
        if self._line.first is None:
            self._catch_up(State.MORE)  # the store is silent: memory need not wait for it
        return self._held.take(reader)

    def can_take(self, now: float) -> bool:
        """Say whether there is a next message that may go out."""
        if self._state is State.SEALED or self._state is State.ENDED:
            return False
        if now < self._held.until:
            return False
        first = self._line.first
        if first is not None:
            return not self._held.is_in_doubt(first)
        return self._line.has_early and now >= self._fetching.silent_at

    def may_change_at(self, now: float) -> float:
        """Return when `can_take` may have another answer although nothing has come."""
        moments = [self._held.until]
        if self._state is State.BEHIND and self._line.has_early:
            moments.append(self._fetching.silent_at)
        return min((one for one in moments if one > now), default=float("inf"))

    def finish(self, reader: object) -> bool:
        """Note that a reader has handled what it has; False: it has nothing."""
        if not self._held.finish(reader):
            return False
        self.wake()
        return True

    def put_back(self, reader: object) -> int:
        """Take back what a reader has not finished; return how many messages are dropped for it."""
        dropped = self._held.put_back(reader, has_ended=self._state is State.ENDED)
        self.wake()
        return dropped

    @property
    def has_handled(self) -> bool:
        """Whether something of a session that is held is to be acknowledged."""
        return self._state is not State.ENDED and self._held.count(Stage.HANDLED) > 0

    def acknowledged(self, rows: Iterable[int]) -> None:
        """Note that rows are acknowledged."""
        with self._wakes_if_full():
            self._held.acknowledged(rows)

    def swept(self) -> None:
        """Note that the store has dropped what was too old."""
        with self._wakes_if_full():
            self._held.swept()

    @contextmanager
    def _wakes_if_full(self) -> Iterator[None]:
        """Let the reader fetch again, if there was no room."""
        was_full = len(self._held) >= _UNACKNOWLEDGED
        yield
        if was_full:
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
            self._held.wait_until(until)
        if self._state is State.ENDED:
            return
        self._held.life += 1
        self._fetching.abandon()
        if seal and (len(self) or self._held.in_hand is not None):
            self._go(State.SEALED)
        else:
            self._fall_behind()
        self.wake()

    def claimed(self, *, is_other: bool, has_moved: bool, now: float) -> list[Message]:
        """Note what the claim said; return what was another session's, and is dropped."""
        dropped: list[Message] = []
        if is_other:
            dropped = self._held.drop_earlier_lives()
            self._fetching.forget_own()
        elif has_moved:
            self._held.doubt()
        if self._state is not State.ENDED:
            self._go(State.BEHIND)
        self.expect_more()
        self._fetching.expect(now)
        self.wake()
        return dropped

    def forget_rows(self) -> None:
        """Note that the store went back: what is here is in memory only, whatever is there."""
        self._held.forget_rows()
        self._fetching.abandon()
        self._fetching.forget_own()

    def end(self) -> None:
        """Note that the session is not held here any more: its reader need not wait."""
        self._reader = None
        self._fetching.abandon()
        self._go(State.ENDED)
        self.wake()
