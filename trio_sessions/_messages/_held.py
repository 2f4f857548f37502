"""Which messages of a session are in memory or with a reader, and in which stage. Synchronous.

::

                   ┌── IN_DOUBT ── not in the store any more ──> (gone)
    may be handled │      │
        elsewhere  │      │ still there
                   │      v
    fetched ──> WAITING ──── taken ──> IN_HAND ── finished ──> HANDLED ── acknowledged ──> (gone)
                   ^                   │    │                    ^
                   └──── put back ─────┘    └──> OVERTAKEN ──────┘ finished, or put back too late

    WAITING, IN_DOUBT, IN_HAND ── older than message_ttl ──> EXPIRED ── swept ──> (gone)

Each row that is held has a stage, and is not fetched, but for one that is in doubt. A message in
memory only goes the same way, and is gone where a row would be handled or expired. Only the methods
of `Held` change a stage. What is dropped on the way they return, for whoever counts it: so a
message goes to a reader who handles it, to the sweep, to the next holder, or is counted
(invariant 15).

A *life* of the inbox is the time between two addings of its session. If a claim says that it is
another session than before, nothing of an earlier life is its own: that is dropped, and what its
former reader still has is neither put back nor acknowledged (invariant 14).

See docs/decisions/0009-one-writer.md.
"""

import enum
from collections.abc import Iterable
from itertools import islice

from trio_sessions._messages._line import Line, Message, has_expired

__all__ = ["Held", "Stage"]


class Stage(enum.Enum):
    """How far a row is that is held; see the drawing above."""

    WAITING = enum.auto()
    """It is in the line."""
    IN_DOUBT = enum.auto()
    """It is in the line, and another worker may have handled it: it is asked for once more."""
    IN_HAND = enum.auto()
    """The last reader has it, and nothing goes out before it comes back."""
    OVERTAKEN = enum.auto()
    """A former reader has it, and the next one does not wait for it any more."""
    HANDLED = enum.auto()
    """It is to be acknowledged."""
    EXPIRED = enum.auto()
    """It was too old: the sweep deletes and counts it."""

    __hash__ = object.__hash__  # an enum's own is slow before Python 3.12


_NEXT: dict[Stage | None, set[Stage | None]] = {
    None: {Stage.WAITING},
    Stage.WAITING: {Stage.IN_DOUBT, Stage.IN_HAND, Stage.EXPIRED},
    Stage.IN_DOUBT: {Stage.WAITING, Stage.EXPIRED, None},
    Stage.IN_HAND: {Stage.WAITING, Stage.OVERTAKEN, Stage.HANDLED, Stage.EXPIRED},
    Stage.OVERTAKEN: {Stage.HANDLED},
    Stage.HANDLED: {None},
    Stage.EXPIRED: {None},
}


class Held:
    """The messages of one inbox, by stage; see the head of this file.

    Args:
        line: the messages that wait, in their order. Nobody else takes one out.
    """

    __slots__ = ("_floor", "_last", "_life", "_line", "_rows", "_stages", "_taken", "_until")

    def __init__(self, line: Line) -> None:
        self._line = line
        self._stages: dict[int, Stage] = {}
        self._rows: dict[Stage, dict[int, None]] = {stage: {} for stage in Stage}
        """The same by stage, in the order in which they came to it; `_go` keeps both."""
        self._taken: dict[object, Message] = {}
        """What each reader has; a former one may still have its own."""
        self._last: object = None
        """The reader that has taken one last: the next one waits for what it has."""
        self._until = float("inf")
        self._life = 0
        self._floor = 0
        """Messages of earlier lives belong to another session."""

    def __len__(self) -> int:
        return len(self._stages)

    # ---- what is asked ----

    def stage(self, row: int) -> Stage | None:
        """Return the stage of a row; None: it is not held."""
        return self._stages.get(row)

    def rows(self, *stages: Stage) -> frozenset[int]:
        """Return the rows that are in one of these stages."""
        return frozenset().union(*(self._rows[stage] for stage in stages))

    def count(self, stage: Stage) -> int:
        """Return how many rows are in a stage."""
        return len(self._rows[stage])

    def is_in_doubt(self, message: Message) -> bool:
        """Say whether another worker may have handled a message that waits."""
        return message.row is not None and self._stages.get(message.row) is Stage.IN_DOUBT

    @property
    def not_to_be_fetched(self) -> frozenset[int]:
        """The rows that are held, and not in doubt."""
        return frozenset(self._stages.keys() - self._rows[Stage.IN_DOUBT].keys())

    @property
    def life(self) -> int:
        """How often the session was added again; a message has the life in which it came."""
        return self._life

    @property
    def in_hand(self) -> Message | None:
        """The message for which the next reader has to wait."""
        return self._taken.get(self._last)

    @property
    def until(self) -> float:
        """The moment until which the next reader waits for it; -inf: nothing is in hand."""
        return self._until if self._last in self._taken else float("-inf")

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in hand or to be acknowledged, and nothing in memory only."""
        is_stored = all(one.row is not None for one in self._line)
        return is_stored and self.in_hand is None and not self._rows[Stage.HANDLED]

    def handled(self, most: int) -> tuple[int, ...]:
        """Return rows that are to be acknowledged, the first that were handled, sorted."""
        return tuple(sorted(islice(self._rows[Stage.HANDLED], most)))

    # ---- the stages ----

    def _go(self, row: int | None, stage: Stage | None) -> None:
        if row is None:
            return
        before = self._stages.get(row)
        if stage not in _NEXT[before]:
            raise RuntimeError(f"a message cannot go from {before} to {stage}")
        if before is not None:
            del self._rows[before][row]
        if stage is None:
            del self._stages[row]
        else:
            self._stages[row] = stage
            self._rows[stage][row] = None

    def _forget(self, rows: Iterable[int]) -> None:
        for row in rows:
            del self._rows[self._stages.pop(row)][row]

    def add_row(self, row: int, message: Message, *, after: float) -> None:
        """Put a fetched row into the line, in its place; see `Line.append_row`."""
        self._go(row, Stage.WAITING)
        self._line.append_row(row, message, after=after)

    def take(self, reader: object) -> Message:
        """Hand out the next message; `finish`, `put_back` or `expire_in_hand` must follow."""
        if (former := self.in_hand) is not None:
            self._go(former.row, Stage.OVERTAKEN)
        message = self._line.pop()
        self._taken[reader] = message
        self._last, self._until = reader, float("inf")
        self._go(message.row, Stage.IN_HAND)
        return message

    def wait_until(self, moment: float) -> None:
        """Limit how long the next reader waits for the message in hand."""
        self._until = moment

    def finish(self, reader: object) -> bool:
        """Note that a reader has handled what it has; False: it has nothing."""
        message = self._taken.pop(reader, None)
        if message is None:
            return False
        if message.life >= self._floor and not self._was_acknowledged(message):
            self._go(message.row, Stage.HANDLED)
        return True

    def _was_acknowledged(self, message: Message) -> bool:
        """Say whether a message that a reader has was acknowledged when its session left."""
        return message.row in self._rows[Stage.HANDLED]

    def put_back(self, reader: object, *, has_ended: bool) -> int:
        """Take back what a reader has not finished; return how many messages are dropped for it.

        Args:
            reader: whose.
            has_ended: the session is not held here any more. A row that was not acknowledged when
                it left waits for its next holder.
        """
        is_in_hand = reader is self._last
        message = self._taken.pop(reader, None)
        if message is None:
            return 0
        if is_in_hand and not has_ended:
            self._go(message.row, Stage.WAITING)
            self._line.put_back(message)
            return 0
        if message.row is None:
            return 1
        if message.life < self._floor:
            return 0
        if has_ended:
            return int(self._was_acknowledged(message))
        self._go(message.row, Stage.HANDLED)  # others went before it: it would be out of order
        return 1

    def acknowledged(self, rows: Iterable[int]) -> None:
        """Note that rows are acknowledged."""
        for row in rows:
            if row in self._rows[Stage.HANDLED]:
                self._go(row, None)

    # ---- message_ttl ----

    def expire(self, now: float) -> int:
        """Take out what has waited for too long; return how many messages are dropped.

        A row is counted by the sweep that deletes it.
        """
        if not self._line.count:
            return 0
        gone = self._line.drop(lambda one: has_expired(one.expires_at, now))
        for message in gone:
            self._go(message.row, Stage.EXPIRED)
        return sum(message.row is None for message in gone)

    def expire_in_hand(self, reader: object) -> int:
        """Take back what a reader was given too late; return how many messages are dropped."""
        message = self._taken.pop(reader)
        self._go(message.row, Stage.EXPIRED)
        return int(message.row is None)

    def swept(self) -> None:
        """Forget the rows of expired messages, which the store has dropped, too."""
        for row in list(self._rows[Stage.EXPIRED]):
            self._go(row, None)

    # ---- whose they are ----

    def doubt(self) -> None:
        """Mark waiting rows as possibly handled elsewhere: they are fetched once more."""
        for row in list(self._rows[Stage.WAITING]):
            self._go(row, Stage.IN_DOUBT)

    def confirm(self, row: int) -> None:
        """Note that a row is still in the store: nobody has handled it."""
        if row in self._rows[Stage.IN_DOUBT]:
            self._go(row, Stage.WAITING)

    def drop_doubtful(self) -> None:
        """Drop copies that the fetch did not find: their rows were handled elsewhere."""
        for message in self._line.drop(self.is_in_doubt) if self.count(Stage.IN_DOUBT) else ():
            self._go(message.row, None)

    def begin_life(self) -> None:
        """Begin another life, for the session was added again."""
        self._life += 1

    def drop_earlier_lives(self) -> list[Message]:
        """Drop what is another session's; return those of its messages that waited."""
        self._floor = self._life
        gone = self._line.drop(lambda one: one.life < self._floor)
        if self.in_hand is not None and self.in_hand.life < self._floor:
            self._last = None
        here = (*self._line, *self._taken.values())
        kept = {one.row for one in here if one.life >= self._floor}
        self._forget([row for row in self._stages if row not in kept])
        return gone

    def forget_rows(self) -> None:
        """Forget the rows of all messages, for the store went back: they are in memory only.

        What it still has is delivered once more; what it gives an old id to is another message.
        """
        for message in (*self._line, *self._taken.values()):
            message.row = None
        self._forget(list(self._stages))

    # ---- the end ----

    def clear(self) -> list[Message]:
        """Take out all messages that wait, and return them."""
        return self._line.drop(lambda _: True)

    def depart(self, *, moved: bool) -> frozenset[int]:
        """Mark rows in hand as handled, for the session has left; return all to acknowledge.

        One that a reader puts back afterwards is dropped: nobody delivers it once more.

        Args:
            moved: leave the row in hand to the next holder, who delivers it.
        """
        ended = (Stage.OVERTAKEN,) if moved else (Stage.OVERTAKEN, Stage.IN_HAND)
        for row in self.rows(*ended):
            self._go(row, Stage.HANDLED)
        return self.rows(Stage.HANDLED)
