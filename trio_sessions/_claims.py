"""The rows of the sessions held here: claimed through the writer, and deleted.

Whoever follows the claims is told of each that is answered, in the same step in which its entry
is: so nobody acts on a row that is not known to be this session's.

See docs/decisions/0009-one-writer.md; 0010-evidence.md for claims that are lost while the database
is in doubt, 0012-operate.md for the limit of an owner.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import outcome
import trio

from trio_sessions._counters import Counters
from trio_sessions._departures import Departures
from trio_sessions._edge import chunked
from trio_sessions._entry import Entry, Row
from trio_sessions._logging import get_logger
from trio_sessions._orders import Order
from trio_sessions._table import LocalTable
from trio_sessions._witness import Witness
from trio_sessions._writer import Writer
from trio_sessions.errors import RowDoubtful
from trio_sessions.types import fingerprint
from trio_sessions.writes import Claim, Claimed, Delete, Keep, Outcome, Unfinished

__all__ = ["ClaimListener", "Claims", "wait_all"]

logger = get_logger("trio_sessions.rows")

_SLICE = 1000  # deletions before the event loop gets its turn
_LOST_IN_DOUBT = (
    "the database went back, and says that a newer connection of the session is elsewhere: that is "
    "believed only when every worker has had the time to write its rows anew"
)


class ClaimListener(Protocol):
    """A listener for answered claims."""

    def claimed(
        self, entry: Entry, *, is_other: bool, has_moved: bool, was_forgotten: bool
    ) -> None:
        """Note that the row of a session that is held here is known to be this worker's.

        Args:
            entry: the session.
            is_other: it was removed elsewhere, and this is another one of the same id.
            has_moved: another worker may have held it since its last claim was answered.
            was_forgotten: the store went back: its messages may be others than before, and so may
                their ids.
        """
        ...


class _ClaimOrder(Order[Claimed]):
    __slots__ = ("_claims", "_entry", "_made")

    def __init__(self, claims: "Claims", entry: Entry) -> None:
        super().__init__(entry.session_id, size=entry.pending.size)
        self._claims = claims
        self._entry = entry
        self._made: Claim | None = None

    def make(self) -> Claim | None:
        self._made = self._claims.make(self._entry)
        return self._made

    @property
    def is_in_a_queue(self) -> bool:
        return self._entry.most_of_owner is not None

    def advance(self, part: Unfinished) -> None:
        self._claims.dropped(part.dropped)

    def conclude(self, result: outcome.Outcome[Claimed] | None) -> None:
        if isinstance(result, outcome.Value):
            assert self._made is not None
            self._claims.conclude(self._entry, self._made, result.value)
        elif isinstance(result, outcome.Error):
            assert isinstance(result.error, Exception)
            self._entry.fail(result.error)
        else:
            self._entry.fail(None)


class _DeleteOrder(Order[int]):
    __slots__ = ("_claims", "_up_to")

    def __init__(self, claims: "Claims", session_id: str) -> None:
        super().__init__(session_id)
        self._claims = claims
        self._up_to = 0

    def make(self) -> Delete | None:
        self._up_to = self._claims.departures.ended(self.session_id)
        return Delete(session_id=self.session_id, up_to=self._up_to) if self._up_to else None

    def advance(self, part: Unfinished) -> None:
        self._claims.dropped(part.dropped)

    def conclude(self, result: outcome.Outcome[int] | None) -> None:
        if isinstance(result, outcome.Value):
            self._claims.deleted(self.session_id, self._up_to, result.value)


class Claims:
    """The rows of one worker's sessions."""

    def __init__(
        self,
        *,
        writer: Writer,
        witness: Witness,
        table: LocalTable,
        departures: Departures,
        counters: Counters,
    ) -> None:
        self.departures = departures
        self._writer = writer
        self._witness = witness
        self._table = table
        self._counters = counters
        self._listeners: list[ClaimListener] = []
        self._refused: list[Callable[[Entry], None]] = []

    def notify(self, listener: ClaimListener) -> None:
        """Tell ``listener`` of every claim that is answered."""
        self._listeners.append(listener)

    def notify_refused(self, listener: Callable[[Entry], None]) -> None:
        """Tell ``listener`` of every claim that was refused: the entry says why."""
        self._refused.append(listener)

    # ---- writing ----

    def write(self, entry: Entry, *, first: bool = False) -> Order[Claimed]:
        """Give the claim of a session's row to the writer; the entry tells how it is answered.

        Args:
            entry: the session.
            first: before everything else that waits to be written of it.
        """
        entry.claim()
        return self._writer.give(_ClaimOrder(self, entry), first=first)

    def write_anew(self, entry: Entry) -> bool:
        """Claim a row once more that the database may have forgotten; False: there is no need.

        With the owner, capabilities and data that the session has as far as this worker knows. No
        need: the session is not held any more, or its row is still to be written anyway.
        """
        if not self._table.holds(entry) or entry.row not in {Row.CONFIRMED, Row.LOST}:
            return False
        entry.forget()
        self.write(entry, first=True)
        return True

    def lapse(self, entry: Entry) -> None:
        """Note that a row was swept, for this worker had lost its lease."""
        if entry.row in {Row.CONFIRMED, Row.LOST}:
            entry.lapse(self._witness.known)

    def adopted(self, entry: Entry, claim: Claim, claimed: Claimed) -> None:
        """Take note of a claim that was answered before its session was held here."""
        entry.claim()
        self.conclude(entry, claim, claimed)

    async def attempt(self, entries: Iterable[Entry]) -> None:
        """Claim the unwritten rows of these, and wait until all of their claims are answered.

        Many may ask for it at once: they share one attempt.
        """
        entries = list(entries)
        for entry in entries:
            if entry.row is Row.UNWRITTEN and self._table.holds(entry):
                self.write(entry)
        await trio.lowlevel.checkpoint_if_cancelled()
        for entry in entries:
            await entry.answered()

    def make(self, entry: Entry) -> Claim | None:
        """Return the claim of an entry as it is now; None: it is not held any more."""
        if not self._table.holds(entry):
            return None
        if not self._witness.has_lapsed:
            # It may have been added again before anybody noticed that the database went back.
            entry.recall(self._witness.known.history)
        return Claim(
            session_id=entry.session_id,
            generation=entry.generation,
            age=trio.current_time() - entry.added_at,
            ended=self.departures.ended(entry.session_id),
            owner=entry.pending.owner,
            capabilities=entry.pending.capabilities,
            data=entry.pending.data,
            most_of_owner=entry.most_of_owner,
        )

    def birth(self, entry: Entry) -> str | None:
        """Return the birth of a session; None: it is not known, or the database may have lost it.

        Then the row may have another one, although the session is the same.
        """
        is_current = entry.confirmed_by.history == self._witness.known.history
        return entry.born if is_current else None

    def conclude(self, entry: Entry, claim: Claim, claimed: Claimed) -> None:
        """Take note of the answer to a claim."""
        if entry.was_forgotten and claimed.outcome is Outcome.LOST and self._witness.is_in_doubt:
            # That row may be as it once was, of a holder that has lost the session since, by the
            # clock of another server. Its worker deletes what it does not hold; ask again then.
            entry.fail(RowDoubtful(_LOST_IN_DOUBT))
            return
        if claimed.outcome is Outcome.TOO_MANY and entry.is_let_in:
            self._write_beyond_the_limit(entry)
            return
        before, was_certain = entry.born, entry.is_certain
        was_forgotten = entry.was_forgotten
        if claimed.outcome is not Outcome.TOO_MANY:  # else what was left here is there yet
            self.departures.settle(entry.session_id, claim.ended)
            self.dropped(claimed.dropped)
            entry.pending.forget(claim)
        entry.confirm(claimed, self._witness.landed)
        if entry.refusal is not None:
            for refused in self._refused:
                refused(entry)
            return
        brings = (
            claim.owner is not Keep.AS_IS
            or claim.capabilities is not None
            or claim.data is not Keep.AS_IS
        )
        if brings and entry.row is Row.LOST and not was_forgotten:
            logger.warning(
                "what was said of session %s (owner, capabilities or data) while its row could "
                "not be written is dropped: another worker holds a newer connection of it; say it "
                "once more",
                fingerprint(entry.session_id),
            )
        if entry.row is Row.CONFIRMED and self._table.holds(entry):
            for listener in self._listeners:
                listener.claimed(
                    entry,
                    is_other=before is not None and before != claimed.born,
                    has_moved=claimed.outcome is not Outcome.KEPT or not was_certain,
                    was_forgotten=was_forgotten,
                )

    def _write_beyond_the_limit(self, entry: Entry) -> None:
        """Claim a session once more whose owner has as many as it may: it has been let in."""
        logger.warning(
            "session %s was let in while its owner's sessions could not be counted, and is one "
            "more than limits.max_sessions_per_owner: it stays",
            fingerprint(entry.session_id),
        )
        entry.fail(None)
        if self._table.holds(entry):
            self.write(entry, first=True)

    # ---- deleting ----

    def deletion(self, session_id: str) -> Order[int]:
        """Return the order to delete what removed sessions of this id have left."""
        return _DeleteOrder(self, session_id)

    def delete(self, deletion: Order[int]) -> Order[int]:
        """Give a deletion to the writer; if it fails, `delete_what_is_due` repeats it."""
        return self._writer.give(deletion)

    def deleted(self, session_id: str, up_to: int, messages: int) -> None:
        """Take note of an answered deletion."""
        self.departures.settle(session_id, up_to)
        self.dropped(messages)

    def dropped(self, messages: int) -> None:
        """Count messages that were dropped with the session that they were for."""
        self._counters.count_dropped(messages)

    async def delete_what_is_due(self) -> None:
        """Delete what earlier deletions could not."""
        deletions = list[Order[int]]()
        for part in chunked(self.departures.due(), _SLICE):
            deletions += [self.delete(self.deletion(one)) for one in part]
            await trio.lowlevel.checkpoint()
        for given in chunked(deletions, _SLICE):
            await wait_all(given)
            await trio.lowlevel.checkpoint()


async def wait_all(orders: Collection[Order[int]]) -> BaseException | None:
    """Wait until these orders are settled; return the first error, if there is one."""
    error: BaseException | None = None
    for order in orders:
        await order.settled()
        if error is None:
            error = order.error
    return error
