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
   each other; see `trio_sessions._messages._door`.

The states stand in `_state`, which messages are held and by whom in `_held`, what is known of the
rows in the store in `_fetching`. See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Iterable, Mapping, Sequence

from trio_sessions._messages._arrivals import Arrivals
from trio_sessions._messages._door import Door
from trio_sessions._messages._fetching import MOST, Asked, Fetching, Found
from trio_sessions._messages._held import Held, Stage
from trio_sessions._messages._line import Line, Message, Waiting
from trio_sessions._messages._state import Progress, State
from trio_sessions.types import StoredMessage

__all__ = ["MOST", "Asked", "Inbox", "Message", "State"]

_UNACKNOWLEDGED = 2000  # rows in memory, or handled and not acknowledged; then none is fetched


class Inbox(Arrivals):
    """The inbox of one session. It stays when that is added again; its removal ends it.

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
        "_limit",
        "_line",
        "_progress",
        "_reader",
        "_streams",
        "_ttl",
        "held",
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
        self._limit = size
        self._ttl = message_ttl
        self._progress = Progress()
        self._reader: object = None
        self._streams = False
        self._line = Line(waiting or Waiting())
        self.held = Held(self._line)
        """The messages that are held, and by whom."""
        self._fetching = Fetching(session_id, self.held, self._line, size, message_ttl)
        self._door = Door(session_id, self._line, self._fetching, storing)

    def __len__(self) -> int:
        return self._line.count

    @property
    def state(self) -> State:
        """The state of the inbox."""
        return self._progress.state

    # ---- what this worker sends ----

    def accept(self, payload: str, now: float) -> bool:
        """Take a message of this worker, unless it has to wait in the store."""
        if self.state is State.ENDED or self._fetching.own_waits or self._door.is_storing:
            return False
        line = self._line
        if line.count >= MOST or line.size >= self._limit:
            return False
        message = Message(payload, now + self._ttl, life=self.held.life)
        if self._progress.is_caught_up:
            line.append(message)
            self.wake()
        else:
            line.append_early(message)
        return True

    async def wait_until_may_store(self) -> None:
        """Wait until a message may go to the store, in the order of the calls; see rule 3."""
        await self._door.wait(self)

    def note_row(self, row: int) -> None:
        """Note that this worker has stored a message."""
        is_here = self.held.stage(row) is not None or self.state is State.ENDED
        self._fetching.note_own(row, is_here=is_here)
        if not is_here:
            self.expect_more()
            self._line.note_stored(row)

    # ---- what is fetched ----

    def expect_more(self) -> None:
        """Note that rows may be in the store that have not been fetched."""
        self._fetching.note_news()
        self._progress.expect_more()

    @property
    def should_fetch(self) -> bool:
        """Whether to fetch: it is read, and there is reason and room for stored messages."""
        if self._reader is None or self._fetching.is_under_way or self.state is State.CAUGHT_UP:
            return False
        has_doubt = self.held.count(Stage.IN_DOUBT) > 0
        return (has_doubt or self._line.count_due <= MOST // 2) and self._may_fetch

    @property
    def _may_fetch(self) -> bool:
        return self._progress.is_open and not self._is_full and self._door.may_fetch

    @property
    def _is_full(self) -> bool:
        return len(self.held) >= _UNACKNOWLEDGED

    def ask(self, most: int, now: float) -> Asked | None:
        """Begin a fetch of ``most`` bytes at most; None: not now. Answer it, or give it up."""
        if self._fetching.is_under_way or not self._may_fetch:
            return None
        return self._fetching.begin(most, now)

    def give_up_fetch(self, asked: Asked) -> None:
        """Note that a fetch has failed; wake the reader, who waits for it no longer."""
        if self._fetching.fail(asked):
            self.wake()

    def answer(self, asked: Asked, found: Sequence[StoredMessage], now: float) -> None:
        """Take the answer to a fetch; ignore it if it comes too late."""
        match self._fetching.end(asked, found, now):
            case Found.NOTHING:
                return
            case Found.SOME:
                pass  # what was not fetched is expected already
            case Found.ALL:
                self._catch_up(State.CAUGHT_UP)
            case Found.ALL_BUT_NEWS:
                self._catch_up(State.MORE)
        self.wake()

    def _catch_up(self, state: State) -> None:
        self._line.join_early()
        self._progress.go(state)

    # ---- what goes out ----

    @property
    def reader(self) -> object:
        """The current reader; None: nobody reads."""
        return self._reader

    @property
    def is_busy(self) -> bool:
        """Whether a message is in hand, or it is open and keeps its session in use by that."""
        is_streaming = self._reader is not None and self._streams
        return is_streaming or self.held.in_hand is not None

    def open(self, reader: object, now: float, *, streams: bool = False) -> None:
        """Attach a reader: what was stored before is to be fetched first."""
        self._reader, self._streams = reader, streams
        self._fetching.expect(now)
        self.expect_more()
        self._progress.fall_behind()

    def leave(self, reader: object) -> None:
        """Detach a reader, if it is the current one."""
        if self._reader is reader:
            self._reader = None

    def take(self, reader: object, now: float) -> Message | None:
        """Hand out the next message; `finish` or `put_back` must follow."""
        if not self.can_take(now):
            return None
        if self._line.first is None:  # the store is silent: memory need not wait for it
            self._catch_up(State.MORE)
        return self.held.take(reader)

    def can_take(self, now: float) -> bool:
        """Say whether there is a next message that may go out."""
        if not self._progress.is_open or now < self.held.until:
            return False
        if (first := self._line.first) is not None:
            return not self.held.is_in_doubt(first)
        return self._line.has_early and now >= self._fetching.silent_at

    def may_change_at(self, now: float) -> float:
        """Return when `can_take` may have another answer although nothing has come."""
        moments = [self.held.until]
        if self.state is State.BEHIND and self._line.has_early:
            moments.append(self._fetching.silent_at)
        return min((one for one in moments if one > now), default=float("inf"))

    def finish(self, reader: object) -> bool:
        """Note that a reader has handled what it has; False: it has nothing."""
        if had_one := self.held.finish(reader):
            self.wake()
        return had_one

    def put_back(self, reader: object) -> int:
        """Take back what a reader has not finished; return how many messages are dropped for it."""
        dropped = self.held.put_back(reader, has_ended=self.state is State.ENDED)
        self.wake()
        return dropped

    @property
    def has_handled(self) -> bool:
        """Whether something of a session that is held is to be acknowledged."""
        return self.state is not State.ENDED and self.held.count(Stage.HANDLED) > 0

    def acknowledged(self, rows: Iterable[int]) -> None:
        """Note that rows are acknowledged."""
        was_full = self._is_full
        self.held.acknowledged(rows)
        if was_full:  # its reader may fetch again
            self.wake()

    def swept(self) -> None:
        """Forget the rows of expired messages, which the store has dropped, too."""
        if self.held.count(Stage.EXPIRED):
            self.held.swept()
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
            self.held.wait_until(until)
        if self.state is State.ENDED:
            return
        self.held.begin_life()
        self._fetching.abandon()
        if seal and (len(self) or self.held.in_hand is not None):
            self._progress.go(State.SEALED)
        else:
            self._progress.fall_behind()
        self.wake()

    def claimed(self, *, is_other: bool, has_moved: bool, now: float) -> list[Message]:
        """Take the answer to the claim; return messages of another session, to be dropped."""
        dropped: list[Message] = []
        if is_other:
            dropped = self.held.drop_earlier_lives()
            self._fetching.forget_own()
        elif has_moved:
            self.held.doubt()
        if self.state is not State.ENDED:
            self._progress.go(State.BEHIND)
        self.expect_more()
        self._fetching.expect(now)
        self.wake()
        return dropped

    def forget_rows(self) -> None:
        """Forget the rows of all messages, for the store went back: they are in memory only."""
        self.held.forget_rows()
        self._fetching.abandon()
        self._fetching.forget_own()

    def end(self) -> None:
        """Note that the session is not held here any more: its reader need not wait."""
        self._reader = None
        self._fetching.abandon()
        self._progress.go(State.ENDED)
        self.wake()
