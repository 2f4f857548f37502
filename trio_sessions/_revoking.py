"""Revocation: sessions that somebody has ended for good, wherever they are held.

Whoever revokes marks ids in the store and deletes their rows, in one transaction. Each worker looks
for fresh marks twice a second while it holds sessions, and lets go of those that are marked. A
claim of a marked id is refused, so nothing late or old brings the session back; what is held here
and refused is let go at once. See docs/decisions/0012-operate.md.
"""

from collections.abc import Iterator, Sequence

import trio

from trio_sessions._claims import Claims
from trio_sessions._edge import Edge, chunked
from trio_sessions._entry import Entry
from trio_sessions._interrupts import uninterrupted
from trio_sessions._logging import get_logger
from trio_sessions._sessions import Sessions
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable
from trio_sessions.errors import NotSupported, SessionsError
from trio_sessions.inspection import Selection
from trio_sessions.revocation import Mark, Revocation
from trio_sessions.types import RemovalReason
from trio_sessions.writes import Outcome

__all__ = ["Revoking"]

logger = get_logger("trio_sessions.registry")

_LOOK = 0.5  # seconds between two looks for marks
_LONGEST = 5.0  # seconds between two attempts in an outage
_MARKS = 10_000  # a second, at most
_PIECE = 10_000  # rows revoked by one operation
_SLICE = 1000  # sessions ended before the event loop gets its turn


@uninterrupted
class Revoking:
    """The revocations of one worker, made and obeyed."""

    def __init__(
        self,
        *,
        edge: Edge,
        table: LocalTable,
        claims: Claims,
        sessions: Sessions,
        settings: Settings,
    ) -> None:
        self._edge = edge
        self._table = table
        self._sessions = sessions
        self._settings = settings
        self._looked = trio.current_time()
        """When the last look began that was answered."""
        self._ended: dict[str, None] = {}
        claims.notify_refused(self.refused)

    async def revoke(
        self, session_ids: Sequence[str], selection: Selection | None, reason: str
    ) -> int:
        """Revoke sessions, those of this worker too; see `SessionRegistry.revoke`."""
        ttl = self._settings.limits.revocation_ttl
        count, size = 0, _PIECE
        if selection is None:
            for part in chunked(list(dict.fromkeys(session_ids)), size):
                one = Revocation(session_ids=part, ttl=ttl, reason=reason)
                count += (await self._edge.revoke(one, limit=size)).sessions
        else:
            meant = Revocation(selection=selection, ttl=ttl, reason=reason)
            more = True
            while more:
                revoked = await self._edge.revoke(meant, limit=size)
                count += revoked.sessions
                more = revoked.more
        try:
            await self.look()
        except SessionsError as exc:  # they are revoked all the same, and the next look finds them
            logger.debug("cannot look for revoked sessions now: %s", exc)
        return count

    def refused(self, entry: Entry) -> None:
        """End a session whose claim was refused, if that was because its id is revoked."""
        if entry.refusal is Outcome.REVOKED:
            self._end([entry])

    def take_ended(self) -> list[str]:
        """Return the ids of the sessions that were let go since this was last asked."""
        ended, self._ended = self._ended, {}
        return list(ended)

    async def look(self) -> int:
        """End the sessions held here that were revoked since the last look.

        Returns:
            How many marks were looked at.

        Raises:
            StoreUnavailable: nothing is known.
        """
        asked = trio.current_time()
        # A mark gets its moment in its transaction, and is seen when that has ended.
        within = asked - self._looked + 2 * self._edge.gives_up_after
        marks = await self._edge.revocations(within)
        self._looked = asked
        for part in chunked(marks, _SLICE):
            self._end([entry for mark in part for entry in self._meant(mark, asked)])
            await trio.lowlevel.checkpoint()
        return len(marks)

    def _meant(self, mark: Mark, asked: float) -> Iterator[Entry]:
        """Yield the session that a mark means, if it is held here.

        While a mark counts, nobody may hold its id; a claim that was under way when the mark was
        committed may not have seen it. When its time is over, another session may: then it means
        those alone that were added before it was made, ``age`` seconds before the store looked.
        """
        entry = self._table.get(mark.session_id)
        latest = asked - mark.age if mark.is_over else asked
        if entry is not None and entry.added_at <= latest:
            yield entry

    async def keep_looking(self) -> None:
        """Look again and again, while sessions are held here.

        Cancellation: at any moment.
        """
        pause = _LOOK
        while True:
            await trio.sleep(pause)
            if not len(self._table):
                continue
            try:
                marks = await self.look()
            except NotSupported:
                return
            except SessionsError as exc:
                logger.debug("cannot look for revoked sessions now: %s", exc)
                pause = min(2 * pause, _LONGEST)
            else:
                # The same marks are seen again for a while: many of them are not asked for often.
                pause = min(max(_LOOK, marks / _MARKS), _LONGEST)

    def _end(self, entries: Sequence[Entry]) -> None:
        leaving = self._sessions.end(entries, RemovalReason.REVOKED)
        if leaving is not None:
            self._ended.update(dict.fromkeys(entry.session_id for entry in leaving.entries))
            logger.debug("let go of %d revoked sessions", len(leaving.entries))
