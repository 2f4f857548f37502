"""Owners and capabilities: the store's answer, and what waits for an unwritten row."""

from collections.abc import Awaitable

from trio_sessions._json import decode
from trio_sessions._rows import Rows
from trio_sessions._table import Entry, LocalTable, Row
from trio_sessions.errors import SessionNotFound, SessionsError, StoreUnavailable
from trio_sessions.types import Capabilities, fingerprint

__all__ = ["Owners"]


class Owners:
    """What is said about sessions, wherever they are held.

    Nothing is answered from memory when the store can be asked: another worker may have
    removed the session, or changed what is said of it.
    """

    def __init__(self, *, table: LocalTable, rows: Rows) -> None:
        self._table = table
        self._rows = rows

    def _unwritten(self, session_id: str) -> Entry | None:
        """Return the session if it is held here and its row is not known to be written."""
        entry = self._table.get(session_id)
        return None if entry is None or entry.row is Row.CONFIRMED else entry

    async def write(self, session_id: str) -> None:
        """Write the row of a session that is held here, if that is still to be done.

        Raises:
            StoreUnavailable: it could not be.
        """
        entry = self._unwritten(session_id)
        if entry is not None:
            answers = await self._rows.write([entry])
            if session_id in answers.unknown:
                raise StoreUnavailable("the session's row could not be written") from (
                    answers.unknown[session_id]
                )

    async def set_owner(self, session_id: str, owner: str | None) -> None:
        entry = self._unwritten(session_id)
        if entry is not None:
            entry.owner = owner
        await self._say(entry, session_id, self._rows.set_owner(session_id, owner))

    async def _say(self, entry: Entry | None, session_id: str, saying: Awaitable[bool]) -> None:
        try:
            known = await saying
        except SessionsError:
            if entry is None:
                raise
            return  # it is written with the row
        if not known and entry is None and self._table.get(session_id) is None:
            raise SessionNotFound(f"session {fingerprint(session_id)} is held by no worker")

    async def claim_owner(self, session_id: str, owner: str) -> str | None:
        try:
            await self.write(session_id)
            return await self._rows.claim_owner(session_id, owner)
        except SessionsError:
            return None

    async def get_owner(self, session_id: str) -> str | None:
        entry = self._unwritten(session_id)
        try:
            holder = await self._rows.locate_row(session_id)
        except SessionsError:
            if entry is None or entry.owner is None:
                raise
            return entry.owner
        if holder is None:
            return None if entry is None else entry.owner
        return holder.owner

    async def set_capabilities(self, session_id: str, capabilities: Capabilities) -> None:
        entry = self._unwritten(session_id)
        if entry is not None:
            entry.capabilities = capabilities
        saying = self._rows.set_capabilities(session_id, capabilities)
        await self._say(entry, session_id, saying)

    async def get_capabilities(self, session_id: str) -> dict[str, object] | None:
        entry = self._unwritten(session_id)
        waiting = None if entry is None or entry.capabilities is None else entry.capabilities
        try:
            encoded = await self._rows.get_capabilities(session_id)
        except SessionsError:
            if waiting is None:
                raise
            encoded = waiting.encoded
        if encoded is None and waiting is not None:
            encoded = waiting.encoded
        if encoded is None:
            return None
        decoded = decode(encoded)
        assert isinstance(decoded, dict)
        return decoded
