"""Owners and capabilities: the store's answer, and what waits for an unwritten row."""

from collections.abc import Callable, Sequence

from trio_sessions._json import decode
from trio_sessions._rows import Rows, chunked
from trio_sessions._table import NOBODY, Entry, LocalTable, Row
from trio_sessions.errors import SessionNotFound, SessionsError, StoreUnavailable
from trio_sessions.types import Capabilities, fingerprint

__all__ = ["Owners"]


class Owners:
    """What is said about sessions, wherever they are held.

    Nothing is answered from memory when the store can be asked: another worker may have
    removed the session, or changed what is said of it.
    """

    def __init__(
        self,
        *,
        table: LocalTable,
        rows: Rows,
        write: Callable[[Sequence[Entry]], object],
        batch_size: int,
    ) -> None:
        self._table = table
        self._rows = rows
        self._write = write
        """Begins to write rows; it goes on whoever waits for it."""
        self._batch_size = batch_size

    async def write(self, session_id: str) -> None:
        """Write the row of a session that is held here, if that is still to be done.

        Raises:
            StoreUnavailable: it could not be.
        """
        entry = await self._unwritable(session_id)
        if entry is not None:
            raise StoreUnavailable(
                f"the session's row could not be written: {entry.error}"
            ) from entry.error

    async def _unwritable(self, session_id: str) -> Entry | None:
        """Return the session if it is held here and its row cannot be written now.

        One attempt is made, unless one is under way already: many may ask at once. No
        checkpoint after it, so what is noted now is written with the next attempt.
        """
        while (entry := self._table.get(session_id)) is not None:
            await self._attempt([entry])
            if self._table.holds(entry):
                return entry if entry.row is Row.UNWRITTEN else None
        return None

    async def _attempt(self, entries: Sequence[Entry]) -> None:
        """Have rows written that are not, and wait for it."""
        unwritten = [entry for entry in entries if entry.row is Row.UNWRITTEN]
        unwritten.sort(key=lambda entry: entry.session_id)  # the order in which rows are locked
        for chunk in chunked(unwritten, self._batch_size):
            self._write(chunk)
        for entry in entries:
            while entry.row is Row.WRITING:
                await entry.written()

    async def _only_left_behind(self, session_id: str) -> bool:
        """Say whether the row of the session is what one that was removed here has left."""
        return self._may_be_left_behind(session_id) and await self._rows.locate(session_id) is None

    def _may_be_left_behind(self, session_id: str) -> bool:
        entry = self._table.get(session_id)
        if entry is None:
            return self._rows.may_be_left_behind(session_id)
        return entry.pending.leftover

    async def set_owner(self, session_id: str, owner: str | None) -> None:
        entry = await self._unwritable(session_id)
        if entry is not None:
            entry.pending.owner = NOBODY if owner is None else owner
        elif await self._only_left_behind(session_id) or not (
            await self._rows.set_owner(session_id, owner)
        ):
            raise _not_found(session_id)

    async def claim_owner(self, session_id: str, owner: str) -> str | None:
        try:
            await self.write(session_id)
            if await self._only_left_behind(session_id):
                return None
            return await self._rows.claim_owner(session_id, owner)
        except SessionsError:
            return None

    async def get_owner(self, session_id: str) -> str | None:
        if self._has_noted(session_id):
            entry = await self._unwritable(session_id)
            if entry is not None and entry.pending.owner is not None:
                return entry.pending.owner or None
        holder = await self._rows.locate_row(session_id)
        if holder is None:
            return None
        is_held = session_id in self._table and not self._may_be_left_behind(session_id)
        return holder.owner if is_held or not self._rows.is_own(holder) else None

    async def set_capabilities(self, session_id: str, capabilities: Capabilities) -> None:
        entry = await self._unwritable(session_id)
        if entry is not None:
            entry.pending.capabilities = capabilities
        elif await self._only_left_behind(session_id) or not (
            await self._rows.set_capabilities(session_id, capabilities)
        ):
            raise _not_found(session_id)

    async def get_capabilities(self, session_id: str) -> dict[str, object] | None:
        encoded = await self._encoded_capabilities(session_id)
        if encoded is None:
            return None
        decoded = decode(encoded)
        assert isinstance(decoded, dict)
        return decoded

    async def _encoded_capabilities(self, session_id: str) -> str | None:
        if self._has_noted(session_id):
            entry = await self._unwritable(session_id)
            if entry is not None and entry.pending.capabilities is not None:
                return entry.pending.capabilities.encoded
        if await self._only_left_behind(session_id):
            return None
        return await self._rows.get_capabilities(session_id)

    def _has_noted(self, session_id: str) -> bool:
        entry = self._table.get(session_id)
        return entry is not None and entry.pending.is_noted

    async def elicitation_capable(self) -> list[str]:
        await self._attempt([entry for entry in self._table.snapshot() if entry.pending.is_noted])
        noted = {
            entry.session_id: entry.pending.capabilities.elicitation
            for entry in self._table.snapshot()
            if entry.pending.capabilities is not None and entry.row is not Row.CONFIRMED
        }
        written = {
            session_id: True
            for session_id in await self._rows.elicitation_capable()
            if not await self._only_left_behind(session_id)
        }
        return [session_id for session_id, asked in {**written, **noted}.items() if asked]


def _not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"session {fingerprint(session_id)} is held by no worker")
