"""Sessions come and go here: what has to happen together when one is added, or has ended.

The only one that takes out of the table, and the one that puts into it; but an adopted session is
put there by `trio_sessions._adopting`, when it is won. What is decided in one step of the program,
and in the order of the calls, is done in synchronous code; what takes time (a transport, a row)
goes on by itself, whoever waits for it. See docs/decisions/0009-one-writer.md.
"""

import logging
from collections.abc import Sequence

import outcome
import trio

from trio_sessions._background import Background
from trio_sessions._calls import TransportCalls
from trio_sessions._claims import Claims, wait_all
from trio_sessions._counters import Counters
from trio_sessions._departures import Departures
from trio_sessions._edge import chunked
from trio_sessions._entry import Entry
from trio_sessions._leaving import Disconnecting, Leaving
from trio_sessions._logging import get_logger
from trio_sessions._messages import Messages
from trio_sessions._orders import Order
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable
from trio_sessions.abc import Transport
from trio_sessions.errors import SessionRevoked, TooManySessions
from trio_sessions.types import OnRemoved, RemovalReason, fingerprint
from trio_sessions.writes import Claimed, Outcome

__all__ = ["Sessions"]

logger = get_logger("trio_sessions.registry")

_MOVED = {RemovalReason.MISSING, RemovalReason.TAKEN_OVER}
"""Their rows are gone or another worker's, as the store has confirmed."""

_SLICE = 1000  # sessions ended before the event loop gets its turn


class Sessions:
    """The sessions of one worker, on their way in and out."""

    def __init__(
        self,
        *,
        table: LocalTable,
        calls: TransportCalls,
        claims: Claims,
        departures: Departures,
        messages: Messages,
        background: Background,
        counters: Counters,
        settings: Settings,
    ) -> None:
        self._table = table
        self._calls = calls
        self._claims = claims
        self._departures = departures
        self._messages = messages
        self._background = background
        self._counters = counters
        self._settings = settings
        self._boarding: Leaving | None = None
        """Those who leave with a job that has not begun: one for all of a turn of the loop."""
        claims.notify_refused(self._turn_away)

    # ---- in ----

    async def add(
        self,
        session_id: str,
        transport: Transport,
        *,
        owner: str | None = None,
        data: str | None = None,
    ) -> None:
        """Hold a session from now on, and wait until its row has been claimed, or could not be.

        Args:
            session_id: its id.
            transport: the live connection.
            owner: to be written with the row; None: that stays.
            data: likewise, encoded.

        Raises:
            SessionRevoked: its id is revoked; it is not held any more.
            TooManySessions: nor is it, for its owner has as many as it may; nothing was written.

        Cancellation: all of it goes on.
        """
        entry, replaced = self._table.put(session_id, transport, trio.current_time())
        if owner is not None:
            entry.pending.note_owner(owner)
        if data is not None:
            entry.pending.note_data(data)
        if replaced is None:
            self._departures.begin_again(session_id)
        if owner is not None and replaced is None:
            entry.limit(self._settings.limits.max_sessions_per_owner)
        disconnecting: trio.Event | None = None
        if replaced is not None:
            self._messages.add_again(entry, replaced)
            if replaced.transport is not transport:
                disconnecting = self._background.start_job(self._disconnect, replaced)
        claim = self._claims.write(entry)
        await self._wait_claimed(entry, claim)
        if disconnecting is not None:
            await disconnecting.wait()
        if entry.removal is RemovalReason.REVOKED:  # by its claim, or by a look that was quicker
            raise SessionRevoked(
                f"session {fingerprint(session_id)} was revoked, and its id is refused for "
                "limits.revocation_ttl: its transport was disconnected"
            )
        if entry.refusal is Outcome.TOO_MANY:
            raise TooManySessions(
                "the session's owner has as many sessions as limits.max_sessions_per_owner "
                f"({self._settings.limits.max_sessions_per_owner}) lets one have"
            )

    def _turn_away(self, entry: Entry) -> None:
        """Take a session out that was refused before anything was written; no row is left of it.

        Its transport is left to whoever has brought it.
        """
        if entry.refusal is Outcome.TOO_MANY and self._table.discard(entry, RemovalReason.REMOVED):
            self._messages.depart([entry], moved=True)

    async def _wait_claimed(self, entry: Entry, claim: Order[Claimed]) -> None:
        await claim.settled()
        if entry.is_let_in:  # it may have been refused, and claimed without a limit
            await entry.answered()
        if claim.error is not None:
            logger.warning(
                "session %s is added but unconfirmed, the next pass writes its row: %s",
                fingerprint(entry.session_id),
                claim.error,
            )

    # ---- out ----

    async def remove(self, session_id: str, transport: Transport | None) -> None:
        """End a session held here, and wait until nothing is left of it.

        Args:
            session_id: an unknown one is no error.
            transport: only if this very one holds the session; None: whatever does.

        Cancellation: it goes on.
        """
        entry = self._table.get(session_id)
        if entry is None or (transport is not None and entry.transport is not transport):
            await trio.lowlevel.checkpoint()
            return
        self._table.discard(entry, RemovalReason.REMOVED)
        self._counters.count_removals(RemovalReason.REMOVED, 1)
        if self._boarding is None:
            self._boarding = self._start_leaving()
        await wait_all(self._see_off([entry], self._boarding, moved=False))

    def end(self, entries: Sequence[Entry], reason: RemovalReason) -> Leaving | None:
        """End those of these sessions that are still the ones published.

        Args:
            entries: sessions that were held here.
            reason: why.

        Returns:
            Those sessions on their way out; None: none of them was.
        """
        gone = [entry for entry in entries if self._table.discard(entry, reason)]
        if not gone:
            return None
        self._counters.count_removals(reason, len(gone))
        leaving = self._start_leaving()
        self._see_off(gone, leaving, moved=reason in _MOVED)
        return leaving

    def hand_over(self, entries: Sequence[Entry]) -> tuple[list[Entry], trio.Event | None]:
        """End those of these sessions that are still here, for their clients to go elsewhere.

        Their rows stay, as what has departed and is not due, until `Departures.finish` is told.

        Returns:
            Those sessions; and what is set when their transports have been disconnected.
        """
        gone = [one for one in entries if self._table.discard(one, RemovalReason.DRAINED)]
        if not gone:
            return gone, None
        self._counters.count_removals(RemovalReason.DRAINED, len(gone))
        self._departures.begin(gone)
        self._messages.depart(gone, moved=True, stays=True)
        return gone, self._background.start_job(self._part, gone)

    async def end_all(self) -> list[Leaving]:
        """End every session, when none can be added any more."""
        ended = list[Leaving]()
        for part in chunked(self._table.snapshot(), _SLICE):
            leaving = self.end(part, RemovalReason.CLOSED)
            if leaving is not None:
                ended.append(leaving)
            await trio.lowlevel.checkpoint()
        return ended

    def _start_leaving(self) -> Leaving:
        leaving = Leaving(self._claims, self._counters)
        self._background.start_job(self._finish, leaving)
        return leaving

    def _see_off(
        self, entries: Sequence[Entry], leaving: Leaving, *, moved: bool
    ) -> Sequence[Order[int]]:
        self._departures.begin(entries)
        self._messages.depart(entries, moved=moved)
        return leaving.join(entries)

    async def _finish(self, leaving: Leaving) -> None:
        """Disconnect the transports of sessions that have ended, and delete their rows."""
        if self._boarding is leaving:
            self._boarding = None
        timeout = self._settings.disconnect_timeout
        try:
            await self._calls.disconnect(leaving.entries, timeout, leaving)
        finally:
            if self._settings.on_removed is not None:
                self._background.start_job(self._tell, self._settings.on_removed, leaving.entries)
            error = await leaving.finish()
            self._departures.finish(leaving.entries)
        leaving.log_failures()
        if error is not None:
            logger.warning(
                "rows of %d removed sessions are kept for the next pass: %s",
                len(leaving.entries),
                error,
            )

    async def _part(self, entries: Sequence[Entry]) -> None:
        """Disconnect the transports of sessions that are handed over."""
        disconnecting = Disconnecting(self._counters)
        timeout = self._settings.disconnect_timeout
        await self._calls.disconnect(entries, timeout, disconnecting)
        disconnecting.log_failures()
        if self._settings.on_removed is not None:
            self._background.start_job(self._tell, self._settings.on_removed, entries)

    async def _tell(self, on_removed: OnRemoved, entries: Sequence[Entry]) -> None:
        """Call ``on_removed`` for these sessions, and log what fails."""
        timeout = self._settings.disconnect_timeout
        answers = await self._calls.tell(on_removed, entries, timeout)
        failures = [one.error for one in answers.values() if isinstance(one, outcome.Error)]
        if failures:
            self._counters.count_listener_failures(len(failures))
            logger.warning(
                "on_removed failed for %d of %d sessions; the first error is %r",
                len(failures),
                len(entries),
                failures[0],
                exc_info=failures[0] if logger.isEnabledFor(logging.DEBUG) else None,
            )

    async def _disconnect(self, replaced: Entry) -> None:
        disconnecting = Disconnecting(self._counters)
        await self._calls.disconnect([replaced], self._settings.disconnect_timeout, disconnecting)
        disconnecting.log_failures()
