"""One session as it was added, and what is known of its row.

::

                     ┌──────────── failed ───────────┐
                     v                               │
    (added) ──> UNWRITTEN ── claimed ──> WRITING ────┤
                     ^                               ├── kept ──> CONFIRMED ── lapsed ──┐
                     │                               └── lost ──> LOST <────────────────┘
                     └── the database has forgotten it ─────────────┴┘

The one owner of which state a session's row is in: only `Entry`'s own methods change it, and only
`trio_sessions._claims` calls these; `RowCounts` is told and counts. A row
that was never confirmed is never read as missing (invariant 3); one that is being written is
left alone by the pass. See docs/decisions/0009-one-writer.md.
"""

import enum
from typing import NamedTuple

import trio

from trio_sessions._pending import Pending
from trio_sessions.abc import Transport
from trio_sessions.errors import RowUnavailable
from trio_sessions.types import Capabilities, Holder, RemovalReason, Stamp
from trio_sessions.writes import Claimed, Keep, Outcome

__all__ = ["Entry", "Row", "RowCounts", "Told"]


class Row(enum.Enum):
    """What this worker knows of the row of a session that it holds."""

    UNWRITTEN = enum.auto()
    """No attempt to write it has been confirmed: it is never read as missing."""
    WRITING = enum.auto()
    """A claim is queued or under way."""
    CONFIRMED = enum.auto()
    """It was this worker's in a committed answer: if a later one lacks it, and the witness vouches
    for that, it is gone."""
    LOST = enum.auto()
    """In a committed answer a newer holder has it, or it was revoked, or was one too many of its
    owner; or it was swept while this worker slept. The next pass asks again, and removes."""

    __hash__ = object.__hash__  # an enum's own is slow before Python 3.12


_NEXT = {
    Row.UNWRITTEN: {Row.WRITING},
    Row.WRITING: {Row.UNWRITTEN, Row.CONFIRMED, Row.LOST},
    Row.CONFIRMED: {Row.UNWRITTEN, Row.LOST},
    Row.LOST: {Row.UNWRITTEN},
}


_REFUSALS = (Outcome.REVOKED, Outcome.TOO_MANY)
_NEVER = Stamp(history="", beat=0)


class Told(NamedTuple):
    """What the store has said of a session last."""

    holder: Holder | None
    capabilities: Capabilities | None
    data: str | Keep | None
    history: str
    """In which it was said; "": it was not, or is noted to be written once more."""


_NOTHING = Told(None, None, Keep.AS_IS, "")


class RowCounts:
    """A count of one table's entries by the state of their row; the entries keep it."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers = dict.fromkeys(Row, 0)

    def of(self, *rows: Row) -> int:
        """Return how many have it in one of these states."""
        return sum(self._numbers[row] for row in rows)

    def change(self, before: Row | None, after: Row | None) -> None:
        """Note that the row of an entry goes on to another state; None: it is in no table."""
        if before is not None:
            self._numbers[before] -= 1
        if after is not None:
            self._numbers[after] += 1


class Entry:
    """One session as it was added; adding the id again makes another entry.

    Args:
        session_id: its id.
        transport: the live connection.
        generation: counts the sessions added by this incarnation, from 1.
        added_at: on Trio's clock.
        replaced: the entry of the same id that it succeeds, if that was held until now. What was
            said of the session and is still to be written passes on to this one.
        counts: is told of its row until it ends.
    """

    __slots__ = (
        "_answered",
        "_counts",
        "_ended",
        "active_at",
        "added_at",
        "born",
        "confirmed_by",
        "error",
        "generation",
        "held_since",
        "is_certain",
        "is_let_in",
        "most_of_owner",
        "pending",
        "refusal",
        "removal",
        "row",
        "session_id",
        "tenure",
        "told",
        "transport",
        "was_forgotten",
    )

    def __init__(
        self,
        session_id: str,
        transport: Transport,
        generation: int,
        added_at: float,
        *,
        replaced: "Entry | None" = None,
        counts: RowCounts | None = None,
    ) -> None:
        self.session_id = session_id
        self.transport = transport
        self.generation = generation
        self.added_at = added_at
        # Passes and claims ask for these of each session: attributes. Only the methods below set
        # them.
        self.active_at = added_at
        """When it was heard of last."""
        self.held_since: float = added_at if replaced is None else replaced.held_since
        """When its id was first added here."""
        self.pending: Pending = Pending() if replaced is None else replaced.pending
        goes_on = replaced is not None and replaced.transport is transport
        self.tenure: object = replaced.tenure if replaced is not None and goes_on else object()
        """Identifies the time for which one transport holds the session: it stays the same
        when the session is added again with that transport, by whatever call."""
        self.row = Row.UNWRITTEN
        """The state of the row."""
        self._counts = counts or RowCounts()
        self._counts.change(None, self.row)
        self.error: Exception | None = None
        """The error of the last claim; None: it has not failed."""
        self.born: str | None = None if replaced is None else replaced.born
        """The session's birth, as its claim or that of an earlier entry was answered."""
        self.is_certain: bool = replaced is None or replaced.is_certain
        """Whether no claim has failed since one was answered: it may have been carried out."""
        self.was_forgotten: bool = replaced is not None and replaced.was_forgotten
        """Whether the database went back, and no claim of the row was answered since."""
        self.confirmed_by = _NEVER
        """The stamp that an answer about the row has to show, or a later one, to count."""
        self.told: Told = _NOTHING if replaced is None else replaced.told
        """What the store has said of the session last."""
        self.refusal: Outcome | None = None
        """Why its last claim was refused: its id is revoked, or its owner has too many."""
        self.most_of_owner: int | None = None if replaced is None else replaced.most_of_owner
        """How many sessions its owner may have; None: that is not asked any more.

        Until its row is written, or an outage lets it in: nobody can be counted then.
        """
        self.is_let_in: bool = replaced is not None and replaced.is_let_in
        """Whether its claim could not be done, for something was locked.

        It is held, and goes on being claimed with the limit. Who is in is not turned away: refused,
        it is claimed without.
        """
        self.removal: RemovalReason | None = None
        """The reason why it has left the table; None: it has not."""
        self._ended: trio.Event | None = None
        self._answered: trio.Event | None = None

    # ---- its use ----

    def note_activity(self, moment: float) -> None:
        """Note when it was heard of, on Trio's clock."""
        self.active_at = moment

    # ---- the row ----

    def limit(self, most_of_owner: int | None) -> None:
        """Set how many sessions its owner may have, else its claim is refused; None: any number."""
        self.most_of_owner = most_of_owner

    @property
    def data(self) -> str | Keep | None:
        """The session's data, as far as this worker knows; `Keep.AS_IS`: it knows nothing of it.

        What is still to be written, else what the store has said last. It may be older than what
        another worker has written since.
        """
        return self.told.data if self.pending.data is Keep.AS_IS else self.pending.data

    def claim(self) -> None:
        """Note that a claim is on its way."""
        self._go(Row.WRITING)

    def confirm(self, claimed: Claimed, stamp: Stamp) -> None:
        """Note how the claim was answered.

        Args:
            claimed: the answer.
            stamp: the one that the claim's batch has set.
        """
        self.refusal = claimed.outcome if claimed.outcome in _REFUSALS else None
        lost = self.refusal is not None or claimed.outcome is Outcome.LOST
        if not lost:
            self.born = claimed.born
            self.told = Told(claimed.holder, claimed.capabilities, claimed.data, stamp.history)
        self.confirmed_by = stamp
        self.most_of_owner = None
        self.is_certain, self.was_forgotten = True, False
        self._answer(Row.LOST if lost else Row.CONFIRMED, None)

    def fail(self, error: Exception | None) -> None:
        """Note that the claim has failed; None: it was not made, for it is not needed any more."""
        if isinstance(error, RowUnavailable):
            self.is_let_in = True
        else:
            self.most_of_owner = None
        self.refusal = None
        self.is_certain &= error is None
        self._answer(Row.UNWRITTEN, error)

    def learn(self, holder: Holder) -> None:
        """Note what the store has said of the session: it may have to be written once more."""
        self.told = self.told._replace(holder=holder)

    def learn_capabilities(self, capabilities: Capabilities) -> None:
        """Note capabilities that were written with the row, or read from it."""
        self.told = self.told._replace(capabilities=capabilities)

    def learn_data(self, data: str | None) -> None:
        """Note data that was written with the row, or read from it."""
        self.told = self.told._replace(data=data)

    def forget(self) -> None:
        """Note that the database may have forgotten the row: it is to be written anew."""
        self._say_again()
        self._go(Row.UNWRITTEN)

    def recall(self, history: str) -> None:
        """Add what is known of the session to its claim, if the database went back since.

        Args:
            history: the present one, begun because the database went back.
        """
        if self.told.history not in {"", history}:
            self._say_again()

    def _say_again(self) -> None:
        holder, capabilities, data, _ = self.told
        if holder is not None:
            self.pending.note_again(holder, capabilities, data)
        self.born = None  # it may get another birth, and is the same session all the same
        self.was_forgotten = True
        self.told = self.told._replace(history="")

    def lapse(self, stamp: Stamp) -> None:
        """Note that the row was swept, for this worker had lost its lease.

        Args:
            stamp: the one with which this worker begins again.
        """
        self.confirmed_by = stamp
        if self.row is Row.CONFIRMED:
            self._go(Row.LOST)

    def _answer(self, row: Row, error: Exception | None) -> None:
        self._go(row)
        self.error = error
        if self._answered is not None:
            self._answered.set()
            self._answered = None

    def _go(self, row: Row) -> None:
        if row not in _NEXT[self.row]:
            raise RuntimeError(f"a row cannot go from {self.row.name} to {row.name}")
        if self.removal is None:
            self._counts.change(self.row, row)
        self.row = row

    async def answered(self) -> None:
        """Wait until the claim that is on its way has been answered."""
        while self.row is Row.WRITING:
            if self._answered is None:
                self._answered = trio.Event()
            await self._answered.wait()

    # ---- the end ----

    @property
    def ended(self) -> trio.Event:
        """Set when the entry has left the table; made when somebody first asks for it."""
        if self._ended is None:
            self._ended = trio.Event()
            if self.removal is not None:
                self._ended.set()
        return self._ended

    def end(self, reason: RemovalReason) -> None:
        """Tell whoever waits for it that the entry has left the table, and note why."""
        if self.removal is None:
            self._counts.change(self.row, None)
            self.removal = reason
        if self._ended is not None:
            self._ended.set()
