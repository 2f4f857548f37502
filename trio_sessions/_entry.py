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
        "_active_at",
        "_answered",
        "_born",
        "_confirmed_by",
        "_counts",
        "_ended",
        "_error",
        "_is_certain",
        "_is_let_in",
        "_most_of_owner",
        "_refusal",
        "_row",
        "_told",
        "_was_forgotten",
        "added_at",
        "generation",
        "held_since",
        "pending",
        "removal",
        "session_id",
        "tenure",
        "transport",
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
        self._active_at = added_at
        self.held_since: float = added_at if replaced is None else replaced.held_since
        """When its id was first added here."""
        self.pending: Pending = Pending() if replaced is None else replaced.pending
        goes_on = replaced is not None and replaced.transport is transport
        self.tenure: object = replaced.tenure if replaced is not None and goes_on else object()
        """Identifies the time for which one transport holds the session: it stays the same
        when the session is added again with that transport, by whatever call."""
        self._row = Row.UNWRITTEN
        self._counts = counts or RowCounts()
        self._counts.change(None, self._row)
        self._error: Exception | None = None
        self._born = None if replaced is None else replaced.born
        self._is_certain = replaced is None or replaced.is_certain
        self._was_forgotten = replaced is not None and replaced.was_forgotten
        self._confirmed_by = _NEVER
        self._told = _NOTHING if replaced is None else replaced.told
        self._refusal: Outcome | None = None
        self._most_of_owner: int | None = None if replaced is None else replaced.most_of_owner
        self._is_let_in: bool = replaced is not None and replaced.is_let_in
        self.removal: RemovalReason | None = None
        """The reason why it has left the table; None: it has not. `end` sets it, and nobody else; a
        pass asks for it of all that are missing at once, so it is no property."""
        self._ended: trio.Event | None = None
        self._answered: trio.Event | None = None

    # ---- its use ----

    @property
    def active_at(self) -> float:
        """When it was heard of last."""
        return self._active_at

    def note_activity(self, moment: float) -> None:
        """Note when it was heard of, on Trio's clock."""
        self._active_at = moment

    # ---- the row ----

    @property
    def row(self) -> Row:
        """The state of the row."""
        return self._row

    @property
    def error(self) -> Exception | None:
        """The error of the last claim; None: it has not failed."""
        return self._error

    @property
    def refusal(self) -> Outcome | None:
        """Why its last claim was refused: its id is revoked, or its owner has too many."""
        return self._refusal

    @property
    def most_of_owner(self) -> int | None:
        """How many sessions its owner may have; None: that is not asked any more.

        Until its row is written, or an outage lets it in: nobody can be counted then.
        """
        return self._most_of_owner

    @property
    def is_let_in(self) -> bool:
        """Whether its claim could not be done, for something was locked.

        It is held, and goes on being claimed with the limit. Who is in is not turned away: refused,
        it is claimed without.
        """
        return self._is_let_in

    def limit(self, most_of_owner: int | None) -> None:
        """Set how many sessions its owner may have, else its claim is refused; None: any number."""
        self._most_of_owner = most_of_owner

    @property
    def born(self) -> str | None:
        """The session's birth, as its claim or that of an earlier entry was answered."""
        return self._born

    @property
    def is_certain(self) -> bool:
        """Whether no claim has failed since one was answered: it may have been carried out."""
        return self._is_certain

    @property
    def told(self) -> Told:
        """What the store has said of the session last."""
        return self._told

    @property
    def data(self) -> str | Keep | None:
        """The session's data, as far as this worker knows; `Keep.AS_IS`: it knows nothing of it.

        What is still to be written, else what the store has said last. It may be older than what
        another worker has written since.
        """
        return self._told.data if self.pending.data is Keep.AS_IS else self.pending.data

    def claim(self) -> None:
        """Note that a claim is on its way."""
        self._go(Row.WRITING)

    @property
    def was_forgotten(self) -> bool:
        """Whether the database went back, and no claim of the row was answered since."""
        return self._was_forgotten

    @property
    def confirmed_by(self) -> Stamp:
        """The stamp that an answer about the row has to show, or a later one, to count."""
        return self._confirmed_by

    def confirm(self, claimed: Claimed, stamp: Stamp) -> None:
        """Note how the claim was answered.

        Args:
            claimed: the answer.
            stamp: of this worker, not lower than the one that the claim's batch has set.
        """
        self._refusal = claimed.outcome if claimed.outcome in _REFUSALS else None
        lost = self._refusal is not None or claimed.outcome is Outcome.LOST
        if not lost:
            self._born = claimed.born
            self._told = Told(claimed.holder, claimed.capabilities, claimed.data, stamp.history)
        self._confirmed_by = stamp
        self._most_of_owner = None
        self._is_certain, self._was_forgotten = True, False
        self._answer(Row.LOST if lost else Row.CONFIRMED, None)

    def fail(self, error: Exception | None) -> None:
        """Note that the claim has failed; None: it was not made, for it is not needed any more."""
        if isinstance(error, RowUnavailable):
            self._is_let_in = True
        else:
            self._most_of_owner = None
        self._refusal = None
        self._is_certain &= error is None
        self._answer(Row.UNWRITTEN, error)

    def learn(self, holder: Holder) -> None:
        """Note what the store has said of the session: it may have to be written once more."""
        self._told = self._told._replace(holder=holder)

    def learn_capabilities(self, capabilities: Capabilities) -> None:
        """Note capabilities that were written with the row, or read from it."""
        self._told = self._told._replace(capabilities=capabilities)

    def learn_data(self, data: str | None) -> None:
        """Note data that was written with the row, or read from it."""
        self._told = self._told._replace(data=data)

    def forget(self) -> None:
        """Note that the database may have forgotten the row: it is to be written anew."""
        self._say_again()
        self._go(Row.UNWRITTEN)

    def recall(self, history: str) -> None:
        """Add what is known of the session to its claim, if the database went back since.

        Args:
            history: the present one, begun because the database went back.
        """
        if self._told.history not in {"", history}:
            self._say_again()

    def _say_again(self) -> None:
        holder, capabilities, data, _ = self._told
        if holder is not None:
            self.pending.note_again(holder, capabilities, data)
        self._born = None  # it may get another birth, and is the same session all the same
        self._was_forgotten = True
        self._told = self._told._replace(history="")

    def lapse(self, stamp: Stamp) -> None:
        """Note that the row was swept, for this worker had lost its lease.

        Args:
            stamp: the one with which this worker begins again.
        """
        self._confirmed_by = stamp
        if self._row is Row.CONFIRMED:
            self._go(Row.LOST)

    def _answer(self, row: Row, error: Exception | None) -> None:
        self._go(row)
        self._error = error
        if self._answered is not None:
            self._answered.set()
            self._answered = None

    def _go(self, row: Row) -> None:
        if row not in _NEXT[self._row]:
            raise RuntimeError(f"a row cannot go from {self._row.name} to {row.name}")
        if self.removal is None:
            self._counts.change(self._row, row)
        self._row = row

    async def answered(self) -> None:
        """Wait until the claim that is on its way has been answered."""
        while self._row is Row.WRITING:
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
            self._counts.change(self._row, None)
            self.removal = reason
        if self._ended is not None:
            self._ended.set()
