"""What is said of sessions: how it goes to the store, and where it waits for an unwritten row.

It stands in the session's line at the writer between the claims of its row, and may leave before
there is a row: a claim has failed, or was superseded because the session was added again, and the
next one is behind. Then it is noted, for that claim to write. It is noted for the very session that
it was said of (`Pending` stays the same as long as one is held here), never for a later one of the
same id (invariant 14). See docs/decisions/0009-one-writer.md.
"""

import abc
import enum
from collections.abc import Callable

import outcome

from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge
from trio_sessions._entry import Entry, Row
from trio_sessions._logging import get_logger
from trio_sessions._orders import Order
from trio_sessions._pending import Pending
from trio_sessions._table import LocalTable
from trio_sessions._writer import Writer
from trio_sessions.errors import SessionNotFound, SessionsError, StoreUnavailable
from trio_sessions.types import Holder, fingerprint
from trio_sessions.writes import Differs, Write

__all__ = ["Said", "SayOrder", "Saying", "What", "not_found"]

logger = get_logger("trio_sessions.rows")

Said = Holder | Differs | None
"""What the store answers: who holds the session; None: there is none."""

_NOT_OURS = (
    "the database says that this worker holds the session, which it does not: it lags behind, or a "
    "statement came late, and the next pass deletes the row; who holds the session is unknown"
)


class What(enum.StrEnum):
    """The parts of a session that can be changed, by their names in letters."""

    OWNER = "owner"
    CAPABILITIES = "capabilities"
    DATA = "data"


class SayOrder(Order[Said]):
    """An order to change something of a session, behind the claim of its row.

    Args:
        saying: whose.
        session_id: of whom.
        size: bytes, about.
    """

    __slots__ = ("_pending", "_saying", "noted_for")

    changes: What | None = None
    """What is changed where it is done, so that the session's holder should know; None: perhaps
    nothing."""

    def __init__(self, saying: "Saying", session_id: str, size: int = 0) -> None:
        super().__init__(session_id, size)
        self._saying = saying
        entry = saying.held(session_id)
        self._pending = None if entry is None else entry.pending
        self.noted_for: Entry | None = None
        """It is to be written with the row of this one."""

    def _note_if(self, *rows: Row) -> bool:
        """Note the change as pending if the session is held, its row in one of these states."""
        entry = self._entry()
        if entry is None or entry.row not in rows:
            return False
        self._note(entry)
        self.noted_for = entry
        return True

    def make(self) -> Write[Said] | None:
        if self._note_if(Row.UNWRITTEN):
            return None
        return self._write(self._saying.ended(self.session_id))

    def conclude(self, result: outcome.Outcome[Said] | None) -> None:
        if isinstance(result, outcome.Value):
            if result.value is None:
                self._note_if(Row.WRITING)  # by a claim that stands behind this in the line
            elif isinstance(result.value, Holder):
                self._learn(result.value)

    def _entry(self) -> Entry | None:
        """Return the session that this is said of, if it is still held here."""
        entry = self._saying.held(self.session_id)
        return entry if entry is not None and entry.pending is self._pending else None

    def _learn(self, holder: Holder) -> None:
        """Tell the session, if it is still held here, what the store has said of it."""
        entry = self._entry()
        if entry is not None:
            entry.learn(holder)
            self._tell(entry)
            self._supersede(entry.pending)
        if self.changes is not None:
            self._saying.changed(self.session_id, self.changes, holder)

    def _tell(self, entry: Entry) -> None:
        """Tell the entry what was written besides the owner."""

    def _supersede(self, pending: Pending) -> None:
        """Replace an older value that is to be written once more by this one."""

    @abc.abstractmethod
    def _write(self, ended: int) -> Write[Said]:
        """Return what is to be written now."""

    @abc.abstractmethod
    def _note(self, entry: Entry) -> None:
        """Note the change as pending, to be written with the row."""


class Saying:
    """The changes that one worker makes of sessions, wherever they are held."""

    def __init__(
        self,
        *,
        edge: Edge,
        writer: Writer,
        claims: Claims,
        table: LocalTable,
        departures: Departures,
    ) -> None:
        self._edge = edge
        self._writer = writer
        self._claims = claims
        self._table = table
        self._departures = departures
        self._listeners: list[Callable[[str, What, Holder], None]] = []

    def notify(self, listener: Callable[[str, What, Holder], None]) -> None:
        """Tell ``listener`` of what is changed here of a session that another worker holds."""
        self._listeners.append(listener)

    def changed(self, session_id: str, what: What, holder: Holder) -> None:
        """Note that something of a session was changed."""
        if not self._edge.is_own(holder):
            for listener in self._listeners:
                listener(session_id, what, holder)

    def held(self, session_id: str) -> Entry | None:
        """Return the session if it is held here."""
        return self._table.get(session_id)

    def _unwritten(self, session_id: str) -> Entry | None:
        """Return the session if it is held here and its row could not be written."""
        entry = self._table.get(session_id)
        return entry if entry is not None and entry.row is Row.UNWRITTEN else None

    def ended(self, session_id: str) -> int:
        """Return the generation up to which the session's row is left over."""
        return self._departures.ended(session_id)

    async def say(self, order: SayOrder) -> bool:
        """Write behind the claim of the row; False: nobody holds the session."""
        said = await self.give(order)
        if order.noted_for is not None:
            await order.noted_for.answered()
        return said is not None or order.noted_for is not None

    async def give(self, order: SayOrder) -> Said:
        """Write behind the claim of the row; return the store's answer."""
        entry = self._unwritten(order.session_id)
        if entry is not None:
            self._claims.write(entry)
        return await self._writer.do(order)

    async def _noted(self, session_id: str) -> Entry | None:
        """Return the session if what is pending for it cannot be written now.

        Or if its row was forgotten, and cannot be written anew.

        One attempt to write it is made, unless one is under way already: many may ask at once.
        """
        entry = self._table.get(session_id)
        if entry is None or (entry.pending.is_empty and not entry.was_forgotten):
            return None
        await self._claims.attempt([entry])
        return self._unwritten(session_id)

    async def _locate(self, session_id: str) -> tuple[Holder | None, bool]:
        """Return the holder as its row says, and whether the row is only left over.

        Where the session, or what was left over, has been replaced while the store was asked, it is
        asked again: the answer may be of either session.

        Raises:
            StoreUnavailable: the row is this worker's, which neither holds the session nor has
                left it over. A replica lags, and it is another's by now; or a late statement has
                written it, and the next pass deletes it.
        """
        while True:
            known = ended, _ = self._known(session_id)
            holder = await self._edge.locate(session_id)
            if self._known(session_id) == known:
                if holder is None or not self._edge.is_own(holder):
                    return holder, False
                if not ended and session_id not in self._table:
                    raise StoreUnavailable(_NOT_OURS)
                return holder, ended > 0

    def _known(self, session_id: str) -> tuple[int, Pending | None]:
        """Return a value that changes when answers may be of another session of this id."""
        entry = self._table.get(session_id)
        return self._departures.ended(session_id), None if entry is None else entry.pending

    def _told(self, session_id: str) -> tuple[Entry | None, object]:
        """Return the session if it is held here, with what the store has said of it last."""
        entry = self._table.get(session_id)
        return entry, None if entry is None else entry.told

    def _may_learn(self, session_id: str, asked: tuple[Entry | None, object]) -> bool:
        entry, _ = asked
        return (
            entry is not None
            and entry.row is Row.CONFIRMED
            and entry.pending.is_empty
            and self._claims.birth(entry) is not None  # confirmed by the database as it is now
            and self._told(session_id) == asked
        )

    async def _is_newer(self, session_id: str, asked: tuple[Entry | None, object]) -> bool:
        """Say whether what was read of a session held here is newer than what was known of it.

        Another worker has said it then, and no rewind is to undo it. But the database may have gone
        back unnoticed, so that it is older: it has to show first that it has forgotten nothing, and
        that the row is this worker's.

        Args:
            session_id: the session.
            asked: what `_told` has returned before the store was asked.
        """
        if not self._may_learn(session_id, asked):
            return False
        try:
            answers = await self._edge.refresh([session_id])
        except SessionsError as exc:
            logger.debug("what was read of a session may be old, and is not noted: %s", exc)
            return False
        return session_id in answers.held and self._may_learn(session_id, asked)

    async def _is_elsewhere(self, session_id: str) -> bool:
        holder = await self._edge.locate(session_id)
        return holder is not None and not self._edge.is_own(holder)

    async def _is_left_behind(self, session_id: str) -> bool:
        """Say whether the session's row is only what one that was removed here has left."""
        if not self._departures.ended(session_id):
            return False
        holder, is_left_over = await self._locate(session_id)
        return holder is None or is_left_over


def not_found(session_id: str) -> SessionNotFound:
    """Return the error that says that there is no such session."""
    return SessionNotFound(f"session {fingerprint(session_id)} is held by no worker")
