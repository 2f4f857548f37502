"""Owners and capabilities: the store's answer, and what waits for an unwritten row."""

from collections.abc import Iterable

import trio

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

    def __init__(self, *, table: LocalTable, rows: Rows, batch_size: int) -> None:
        self._batch_size = batch_size
        self._table = table
        self._rows = rows

    async def write(self, session_id: str) -> None:
        """Write the row of a session that is held here, if that is still to be done.

        Raises:
            StoreUnavailable: it could not be.
        """
        entry = await self._unwritten(session_id)
        if entry is not None:
            answers = await self._rows.write([entry])
            if session_id in answers.unknown:
                raise StoreUnavailable("the session's row could not be written") from (
                    answers.unknown[session_id]
                )

    async def _unwritten(self, session_id: str) -> Entry | None:
        """Return the session if it is held here and its row is not known to be written.

        A write that is under way is waited for: what is said now is not in it.
        """
        while (entry := self._table.get(session_id)) is not None and entry.row is Row.WRITING:
            await entry.written()
        return None if entry is None or entry.row is Row.CONFIRMED else entry

    async def _written_with(self, entry: Entry) -> bool:
        """Write a row with what has just been noted; False: another worker's is newer.

        If it cannot be written now, what was noted is written with it later.
        """
        try:
            answers = await self._rows.write([entry])
        except SessionsError:
            return True
        return entry.session_id in answers.held or entry.session_id in answers.unknown

    async def _write_all(self, session_ids: Iterable[str]) -> None:
        """Write the rows of sessions held here, with what was noted for them, as far as possible.

        Of those that stay unwritten nobody can know more than what was noted. Of the others
        the store knows.
        """
        await trio.lowlevel.checkpoint()
        for chunk in chunked(sorted(session_ids), self._batch_size):
            for session_id in chunk:
                await self._unwritten(session_id)
            entries = self._all_unwritten(chunk)
            if entries:
                try:
                    await self._rows.write(entries)
                except SessionsError:
                    return

    def _all_unwritten(self, session_ids: Iterable[str]) -> list[Entry]:
        entries = map(self._table.get, session_ids)
        return [entry for entry in entries if entry is not None and entry.row is Row.UNWRITTEN]

    async def _only_left_behind(self, session_id: str) -> bool:
        """Say whether the row of the session is what one that was removed here has left."""
        return self._may_be_left_behind(session_id) and await self._rows.locate(session_id) is None

    def _may_be_left_behind(self, session_id: str) -> bool:
        entry = self._table.get(session_id)
        if entry is None:
            return self._rows.may_be_left_behind(session_id)
        return entry.pending.leftover

    async def set_owner(self, session_id: str, owner: str | None) -> None:
        entry = await self._unwritten(session_id)
        if entry is not None:
            entry.pending.owner = NOBODY if owner is None else owner
            if await self._written_with(entry):
                return
        if await self._only_left_behind(session_id) or not (
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
        entry = self._table.get(session_id)
        if entry is not None and entry.pending.owner is not None:
            await self._write_all([session_id])
            if entry.row is Row.UNWRITTEN and entry.pending.owner is not None:
                return entry.pending.owner or None
        holder = await self._rows.locate_row(session_id)
        if holder is None:
            return None
        is_held = session_id in self._table and not self._may_be_left_behind(session_id)
        return holder.owner if is_held or not self._rows.is_own(holder) else None

    async def set_capabilities(self, session_id: str, capabilities: Capabilities) -> None:
        entry = await self._unwritten(session_id)
        if entry is not None:
            entry.pending.capabilities = capabilities
            if await self._written_with(entry):
                return
        if await self._only_left_behind(session_id) or not (
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
        entry = self._table.get(session_id)
        if entry is not None and entry.pending.capabilities is not None:
            await self._write_all([session_id])
            if entry.row is Row.UNWRITTEN and entry.pending.capabilities is not None:
                return entry.pending.capabilities.encoded
        if await self._only_left_behind(session_id):
            return None
        return await self._rows.get_capabilities(session_id)

    async def elicitation_capable(self) -> list[str]:
        noted = [e.session_id for e in self._table.snapshot() if e.pending.capabilities is not None]
        await self._write_all(noted)
        unwritten = {
            entry.session_id: entry.pending.capabilities.elicitation
            for entry in self._all_unwritten(noted)
            if entry.pending.capabilities is not None
        }
        written = {
            session_id: True
            for session_id in await self._rows.elicitation_capable()
            if not await self._only_left_behind(session_id)
        }
        return [session_id for session_id, asked in {**written, **unwritten}.items() if asked]


def _not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"session {fingerprint(session_id)} is held by no worker")
