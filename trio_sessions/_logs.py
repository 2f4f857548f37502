"""Logs of sessions: appended behind the claims of their rows, read as the store has them.

Appends of many calls share the batches of the writer, one statement each; a read is one question.
An entry belongs to the very session that it was appended to: what waits for one that is removed
here is never written for a later one of its id (invariant 14), and what a removed one has left in
the database is not read before its row is deleted.

A log is bounded in three ways: now and then an append says how many of its session are kept; what
is older than ``limits.log_ttl`` is expired by every registry that has appended something; and it
goes with its session. See docs/decisions/0013-mcp.md. Just over 400 lines, a
quarter of which are the public docstrings of `Logs`.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import outcome
import trio

from trio_sessions._background import Background
from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge
from trio_sessions._entry import Entry, Row
from trio_sessions._interrupts import uninterrupted
from trio_sessions._json import decode, encode, size_of
from trio_sessions._library import check_trio
from trio_sessions._logging import get_logger
from trio_sessions._orders import Order, Stage
from trio_sessions._pending import Pending
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable
from trio_sessions._writer import Writer
from trio_sessions.errors import SessionNotFound, SessionsError, StoreUnavailable
from trio_sessions.inspection import check_limit
from trio_sessions.types import LogEntry, StoredEntry, check_session_id, fingerprint
from trio_sessions.writes import Append

__all__ = ["KEEP", "Appending", "LogRoom", "Logs"]

logger = get_logger("trio_sessions.logs")

KEEP = 10_000  # entries of one session
_EVERY = 1000  # appends to it from here, of which one says so
_COUNTED = 10_000  # sessions whose appends are counted
_PIECE = 5000  # entries expired by one operation
_SIZE = 8 * 1024 * 1024  # bytes of one read
_TURN = 64 * 1024  # bytes decoded before the event loop gets its turn
_LARGEST = 2**63 - 1
_UNWRITTEN = "the session is held here, and its row could not be written yet"


class _Counts:
    """The number of appends to each session since the store was last told how many to keep.

    A session that is not counted yet, or was crowded out by others, begins anywhere: so however
    many there are, and whichever worker appends, one of `_EVERY` appends says it.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def is_due(self, session_id: str) -> bool:
        """Count an append; say whether this one tells the store how many entries to keep."""
        count = self._counts.pop(session_id, -1)
        if count < 0:
            count = random.randrange(_EVERY)  # noqa: S311 -- no secret
        is_due = count + 1 >= _EVERY
        self._counts[session_id] = 0 if is_due else count + 1
        if len(self._counts) > _COUNTED:
            del self._counts[next(iter(self._counts))]
        return is_due

    def owe(self, session_id: str) -> None:
        """Make the session's next append due: the one that was due was not written."""
        if session_id in self._counts:
            self._counts[session_id] = _EVERY


class _AppendOrder(Order[int | None]):
    """One event on its way to the store.

    Args:
        room: its.
        session_id: of whom.
        event: its JSON.
    """

    is_grouped = True
    group = "logs"

    __slots__ = ("_entry", "_event", "_is_due", "_room")

    def __init__(self, room: "LogRoom", session_id: str, event: str) -> None:
        super().__init__(session_id, size=size_of(event))
        self._room = room
        self._event = event
        self._entry = room.held(session_id)
        """The session that is meant, if it is held here."""
        self._is_due = False

    def make(self) -> Append | None:
        session_id = self.session_id
        entry = self._room.held(session_id)
        born: str | None = None
        if self._entry is not None:
            # It may have been added again here, or have ended; then another one may have its id.
            if entry is not None and entry.pending is self._entry.pending:
                self._entry = entry
            elif entry is not None:
                return None
            born = self._room.birth(self._entry)
            if entry is None and born is None:
                return None
        if entry is not None and entry.row is Row.UNWRITTEN:
            raise StoreUnavailable(f"{_UNWRITTEN}: {entry.error}") from entry.error
        self._is_due = self._is_due or self._room.counts.is_due(session_id)
        return Append(
            session_id=session_id,
            event=self._event,
            ended=self._room.ended(session_id),
            born=born,
            keep=KEEP if self._is_due else None,
        )

    def conclude(self, result: outcome.Outcome[int | None] | None) -> None:
        if self._is_due and not isinstance(result, outcome.Value):
            self._room.counts.owe(self.session_id)


@uninterrupted
class Appending:
    """An event that is being appended; made by `Logs.append_soon`."""

    def __init__(self, order: _AppendOrder, writer: Writer) -> None:
        """Not for users."""
        self._order = order
        self._writer = writer

    @property
    def size(self) -> int:
        """Bytes of the event."""
        return self._order.size

    @property
    def is_settled(self) -> bool:
        """Whether it is known what has become of it."""
        return self._order.stage is Stage.SETTLED

    @property
    def result(self) -> int | BaseException | None:
        """The id of the entry, or what `Logs.append` would raise; None: it is not settled."""
        if not self.is_settled:
            return None
        return self._order.error or self._order.value or _nobody_holds(self._order.session_id)

    async def wait(self) -> None:
        """Wait until it is settled, which goes on at once then.

        Cancellation: it is appended all the same. A checkpoint.
        """
        self._writer.hasten(self._order)
        await self._order.settled()
        await trio.lowlevel.checkpoint()


@uninterrupted
class LogRoom:
    """The logs of the sessions of all workers, as one worker appends to them and reads them."""

    def __init__(
        self,
        *,
        edge: Edge,
        writer: Writer,
        claims: Claims,
        table: LocalTable,
        departures: Departures,
        background: Background,
        settings: Settings,
    ) -> None:
        self.counts = _Counts()
        self._edge = edge
        self._writer = writer
        self._claims = claims
        self._table = table
        self._departures = departures
        self._background = background
        self._settings = settings
        self._expires = False
        """The task that expires old entries has been started."""

    def held(self, session_id: str) -> Entry | None:
        """Return a session if it is held here."""
        return self._table.get(session_id)

    def birth(self, entry: Entry) -> str | None:
        """Return the birth of a session, if it is certain."""
        return self._claims.birth(entry)

    def ended(self, session_id: str) -> int:
        """Return the generation up to which a session's row is left over."""
        return self._departures.ended(session_id)

    # ---- appending ----

    async def append(self, session_id: str, event: Any) -> int:
        """See `Logs.append`."""
        encoded = self._encode(event)
        await self._writer.admit()
        order = self._order(session_id, encoded)
        entry_id = await self._writer.answer(self._writer.give(order))
        if entry_id is None:
            raise _nobody_holds(session_id)
        return entry_id

    def append_soon(self, session_id: str, event: Any) -> Appending:
        """See `Logs.append_soon`."""
        encoded = self._encode(event)
        if self._writer.is_full:
            raise StoreUnavailable("too much waits to be written")
        order = self._order(session_id, encoded)
        self._writer.give(order, may_wait=True)
        return Appending(order, self._writer)

    def _encode(self, event: Any) -> str:
        encoded = encode(event, what="the event", limit=self._settings.max_message_bytes)
        self._edge.check_keeps_logs()
        self._expire_from_now_on()
        return encoded

    def _order(self, session_id: str, event: str) -> _AppendOrder:
        entry = self._table.get(session_id)
        if entry is not None and entry.row is Row.UNWRITTEN:
            self._claims.write(entry)
        return _AppendOrder(self, session_id, event)

    # ---- reading ----

    async def read(self, session_id: str, *, after: int, limit: int) -> list[LogEntry]:
        """See `Logs.read`."""
        while True:
            entry = self._table.get(session_id)
            if entry is not None:
                await self._claims.attempt([entry])
                if entry.row is Row.UNWRITTEN and self._table.holds(entry):
                    raise StoreUnavailable(f"{_UNWRITTEN}: {entry.error}") from entry.error
            known = self._known(session_id)
            if await self._is_left_behind(session_id):
                return []
            stored = await self._edge.read_log(session_id, after=after, limit=limit, size=_SIZE)
            if self._known(session_id) == known:  # else they may be those of either session
                return await _decode(stored)

    def _known(self, session_id: str) -> tuple[Pending | None, int]:
        entry = self._table.get(session_id)
        return None if entry is None else entry.pending, self._departures.ended(session_id)

    async def _is_left_behind(self, session_id: str) -> bool:
        """Say whether the row is only what a session that was removed here has left."""
        if not self._departures.ended(session_id):
            return False
        holder = await self._edge.locate(session_id)
        return holder is not None and self._edge.is_own(holder)

    # ---- expiry ----

    def _expire_from_now_on(self) -> None:
        if not self._expires:
            self._expires = True
            self._background.start_lasting(self._keep_expiring)

    async def _keep_expiring(self) -> None:
        """Delete old entries of all sessions, now and then, piece by piece.

        Cancellation: at any moment.
        """
        while True:
            jitter = 0.9 + 0.2 * random.random()  # noqa: S311 -- no secret
            await trio.sleep(self._settings.cleanup_interval * jitter)
            try:
                await self.expire()
            except SessionsError as exc:
                logger.debug("cannot expire logs now: %s", exc)

    async def expire(self) -> int:
        """Delete what is older than ``limits.log_ttl``; return how many."""
        older_than, total = self._settings.limits.log_ttl, 0
        while True:
            expired = await self._edge.expire_logs(older_than=older_than, limit=_PIECE)
            total += expired
            if expired < _PIECE:
                return total


@uninterrupted
class Logs:
    """The logs of sessions, as `SessionRegistry.logs`: events that are read again and again."""

    def __init__(self, room: LogRoom, check_open: Callable[[], None]) -> None:
        """Not for users."""
        self._room = room
        self._check_open = check_open

    async def append(self, session_id: str, event: Any) -> int:
        """Append an event to a session's log, whoever holds the session.

        Calls that come at once share a transaction. What one worker appends to one session stays
        in the order of the calls.

        Args:
            session_id: the session.
            event: any JSON value, of at most ``max_message_bytes``.

        Returns:
            Its id, which is greater than that of every entry of the session before.

        Raises:
            TypeError, ValueError: JSON cannot carry the event (NaN and infinity neither).
            MessageTooLarge: it is too large.
            SessionNotFound: the database has confirmed that no worker holds the session, or it was
                removed here meanwhile.
            StoreUnavailable: the database is away, or the row is locked; the event may or may not
                have been appended.
            NotSupported: the store lacks this part of the contract.
            RegistryClosed: the registry is closed.

        Cancellation: it may or may not have been appended; what has not left is withdrawn.
        """
        check_trio()
        check_session_id(session_id)
        self._check_open()
        return await self._room.append(session_id, event)

    def append_soon(self, session_id: str, event: Any) -> Appending:
        """Append an event for which nobody waits; it stays in the order of all appends from here.

        It goes with the next batch that this worker writes, or within 20 ms, so that many cost as
        much as one. Whoever lets many go must wait for them, now and then: they are in memory.

        Args:
            session_id: the session.
            event: as of `append`.

        Raises:
            TypeError, ValueError, MessageTooLarge, NotSupported, RegistryClosed: as `append`.
            StoreUnavailable: too much waits to be written. What `append` would raise later is the
                ``result`` of the returned object.

        Never a checkpoint.
        """
        check_session_id(session_id)
        self._check_open()
        return self._room.append_soon(session_id, event)

    async def read(self, session_id: str, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        """Return entries of a session's log by their ids; one round trip.

        To follow a log, ask with ``after`` the id of the last entry that you have: whatever is
        appended, by whichever worker, you miss nothing. The end, for now, is an empty list; one
        that has fewer than ``limit`` entries is not: about 8 MiB are read at a time.

        Args:
            session_id: the session; an unknown one has no entries.
            after: only entries with a greater id.
            limit: at most so many, 1 to 10,000.

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it.
            StoreUnavailable: the database cannot say; or the session is held here, and its row
                could not be written yet.
            NotSupported: the store lacks this part of the contract.
            RegistryClosed: the registry is closed.
        """
        check_trio()
        check_session_id(session_id)
        check_limit(limit)
        _check_after(after)
        self._check_open()
        return await self._room.read(session_id, after=after, limit=limit)


def _nobody_holds(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"session {fingerprint(session_id)} is held by no worker")


def _check_after(after: object) -> None:
    if isinstance(after, bool) or not isinstance(after, int):
        raise TypeError(f"after must be an int, the id of an entry, not {type(after).__name__}")
    if not 0 <= after <= _LARGEST:
        raise ValueError(f"after must be the id of an entry, 0 to {_LARGEST}, not {after}")


async def _decode(stored: Sequence[StoredEntry]) -> list[LogEntry]:
    """Decode entries, and let others run meanwhile."""
    entries, taken = list[LogEntry](), 0
    for one in stored:
        entries.append(LogEntry(id=one.id, event=decode(one.event), age=one.age))
        taken += len(one.event)
        if taken >= _TURN:
            taken = 0
            await trio.lowlevel.checkpoint()
    return entries
