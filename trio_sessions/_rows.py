"""The rows of this worker's sessions, and the edge between the registry and its store.

Here every store operation gets a deadline and foreign errors become `StoreUnavailable`.
Rows that could not be deleted, because the database was away, are kept for the next pass.
"""

import inspect
import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from trio_sessions._process import this_process
from trio_sessions._settings import Settings
from trio_sessions._table import NOBODY, Entry, LocalTable, Row
from trio_sessions.abc import Bell, SessionStore, Worker
from trio_sessions.errors import RegistryClosed, SessionsError, StoreUnavailable
from trio_sessions.types import (
    Capabilities,
    Holder,
    RowAnswers,
    RowClaim,
    Sent,
    StoredMessage,
    Swept,
    Undelivered,
    Wanted,
)

__all__ = ["INHERITED", "Rows", "chunked"]

logger = logging.getLogger("trio_sessions.rows")

T = TypeVar("T")

INHERITED = (
    "the registry was opened before this process was forked, and is its parent's: "
    "open one of your own"
)
MAX_LEFTOVER = 100_000
# How long the fleet may be silent before that counts as an outage, as a part of
# session_ttl; see docs/explanation.md, "An outage expires nobody", for the sum.
MAX_GAP = 0.4


def chunked(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut ``items`` into slices of at most ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


class Rows:
    """One worker's view of the store."""

    def __init__(
        self, store: SessionStore, worker: Worker, table: LocalTable, settings: Settings
    ) -> None:
        self.worker = worker
        self.leftover: dict[str, int] = {}
        """Ids of sessions removed here whose rows are still to be deleted, oldest first.

        With a generation: a row of a later one is that of another session.
        """
        self.confirmed: Callable[[Entry], None] = lambda _: None
        """Is told of each row that is known to be written."""
        self._leaving: dict[str, list[Entry]] = {}
        self.messages_dropped = 0
        """Messages that the store has dropped for this worker."""
        self._store = store
        self._table = table
        self._settings = settings
        self._process = this_process()

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child: then rows and transports are its parent's."""
        return self._process is not this_process()

    async def _ask(self, operation: Awaitable[T], kind: Any) -> T:
        """Await one store operation, within ``store_timeout``; insist on its kind of answer."""
        if self.is_inherited:
            if inspect.iscoroutine(operation):
                operation.close()
            raise RegistryClosed(INHERITED)
        try:
            with trio.move_on_after(self._settings.store_timeout):
                answer = await operation
                if not isinstance(answer, kind):
                    raise StoreUnavailable(
                        f"the store broke its contract: it answered with {type(answer).__name__}"
                    )
                return answer
        except SessionsError:
            raise
        except Exception as exc:
            logger.exception("the store failed in a way that it does not promise")
            raise StoreUnavailable(
                f"the store failed with {type(exc).__name__}; see the cause"
            ) from exc
        raise StoreUnavailable(
            f"the store did not answer within store_timeout ({self._settings.store_timeout:g} s)"
        )

    async def open(self) -> None:
        await self._ask(self._store.open(self.worker), object)

    async def close(self) -> None:
        if self.is_inherited:
            return
        try:
            await self._ask(self._store.close(self.worker), object)
        except SessionsError as exc:
            logger.warning("closing the store failed: %s", exc)

    async def write(self, entries: Sequence[Entry]) -> RowAnswers:
        """Write the rows of ``entries``, with what was said of them.

        Whatever happens, no entry is left in the state `Row.WRITING`. A row that was
        written for a session that has been removed meanwhile is deleted again.
        """
        try:
            return await self._write(entries)
        finally:
            gone = [entry.session_id for entry in entries if entry.session_id not in self._table]
            if gone:
                await self.delete(gone)  # now, or if that fails or is cancelled, later

    async def _write(self, entries: Sequence[Entry]) -> RowAnswers:
        for entry in entries:
            entry.row = Row.WRITING
        session_ids = [entry.session_id for entry in entries]
        unknown: Mapping[str, Exception | None] = dict.fromkeys(session_ids)
        said = {}
        try:
            await self._delete_what_was_left(entries)
            now = trio.current_time()
            said = {entry: (entry.pending.owner, entry.pending.capabilities) for entry in entries}
            claims = [
                RowClaim(
                    session_id=entry.session_id,
                    generation=entry.generation,
                    age=now - entry.added_at,
                    owner=owner or None,
                    capabilities=capabilities,
                )
                for entry, (owner, capabilities) in said.items()
            ]
            answers = await self._ask(self._store.write(self.worker, claims), RowAnswers)
            for entry, (owner, _) in said.items():
                if owner == NOBODY and entry.session_id in answers.held:
                    await self.set_owner(entry.session_id, None)
            unknown = answers.unknown
        except SessionsError as exc:
            unknown = dict.fromkeys(session_ids, exc)
            raise
        finally:
            for entry in entries:
                if entry in said and entry.session_id not in unknown:  # written, or not ours
                    entry.pending.forget(*said[entry])
                is_unknown = entry.session_id in unknown
                entry.note_row(
                    Row.UNWRITTEN if is_unknown else Row.CONFIRMED, unknown.get(entry.session_id)
                )
                self.confirmed(entry)
        return answers

    def may_be_left_behind(self, session_id: str) -> bool:
        """Say whether a row may be there that a session which was removed here has left."""
        return session_id in self.leftover or session_id in self._leaving

    def begin_to_leave(self, entries: Iterable[Entry]) -> None:
        """These sessions were removed, and their rows are still there."""
        for entry in entries:
            self._leaving.setdefault(entry.session_id, []).append(entry)

    def have_left(self, entries: Iterable[Entry]) -> None:
        """Their rows were deleted, or they are kept for later."""
        for entry in entries:
            self._leaving[entry.session_id].remove(entry)
            if not self._leaving[entry.session_id]:
                del self._leaving[entry.session_id]

    def leaving(self, session_id: str) -> list[Entry]:
        """Return the entries of removed sessions of this id whose rows may still be there."""
        return list(self._leaving.get(session_id, ()))

    async def _delete_what_was_left(self, entries: Sequence[Entry]) -> None:
        """Delete the rows of removed sessions of the same ids: nothing of theirs lives on."""
        for entry in entries:
            if entry.pending.leftover:
                older = entry.generation - 1
                deleting = self._store.delete(self.worker, [entry.session_id], up_to=older)
                messages = await self._ask(deleting, int)
                self.messages_dropped += messages  # not before: others count meanwhile
                entry.pending.leftover = False

    async def refresh(self, entries: Sequence[Entry]) -> RowAnswers:
        session_ids = [entry.session_id for entry in entries]
        return await self._ask(self._store.refresh(self.worker, session_ids), RowAnswers)

    async def delete(self, session_ids: Iterable[str]) -> None:
        """Delete the rows of removed sessions, in batches; what fails is kept for later.

        The row of a session that was added again meanwhile is spared: it is held now,
        or it is of a later generation than any that this call may delete.
        """
        gone = [session_id for session_id in session_ids if session_id not in self._table]
        self._keep_for_later(gone)
        for chunk in chunked(gone, self._settings.batch_size):
            # Again, because it may have been added while an earlier chunk was under way.
            wanted = sorted(session_id for session_id in chunk if session_id not in self._table)
            up_to = self._table.generation
            try:
                messages = await self._ask(
                    self._store.delete(self.worker, wanted, up_to=up_to), int
                )
            except SessionsError as exc:
                logger.warning(
                    "%d rows of removed sessions stay until a later pass: %s",
                    len(self.leftover),
                    exc,
                )
                return
            self.messages_dropped += messages
            for session_id in chunk:
                if self.leftover.get(session_id, up_to + 1) <= up_to:
                    del self.leftover[session_id]

    async def delete_leftover(self) -> None:
        """Try again to delete the rows that stayed behind."""
        if self.leftover:
            for session_id in [held for held in self.leftover if held in self._table]:
                del self.leftover[session_id]
            await self.delete(list(self.leftover))

    def _keep_for_later(self, session_ids: Iterable[str]) -> None:
        self.leftover.update(dict.fromkeys(session_ids, self._table.generation))
        while len(self.leftover) > MAX_LEFTOVER:  # the TTL will see to the oldest
            del self.leftover[next(iter(self.leftover))]

    async def delete_all(self) -> None:
        """Delete every row of this incarnation, in batches; does not raise."""
        limit = self._settings.batch_size
        try:
            while True:
                deleted = self._store.delete_all(self.worker, limit=limit)
                if await self._ask(deleted, int) < limit:
                    return
        except SessionsError as exc:
            logger.warning("rows of this worker stay until they expire: %s", exc)

    # ---- owners and capabilities ----

    async def set_owner(self, session_id: str, owner: str | None) -> bool:
        return await self._ask(self._store.set_owner(self.worker, session_id, owner), bool)

    async def claim_owner(self, session_id: str, owner: str) -> str | None:
        claimed = self._store.claim_owner(self.worker, session_id, owner)
        return await self._ask(claimed, str | None)

    async def set_capabilities(self, session_id: str, capabilities: Capabilities) -> bool:
        replaced = self._store.set_capabilities(self.worker, session_id, capabilities)
        return await self._ask(replaced, bool)

    async def get_capabilities(self, session_id: str) -> str | None:
        return await self._ask(self._store.get_capabilities(self.worker, session_id), str | None)

    async def elicitation_capable(self) -> list[str]:
        return await self._ask(self._store.elicitation_capable(self.worker), list)

    # ---- messages ----

    async def send(self, session_id: str, payload: str) -> Sent | None:
        return await self._ask(self._store.send(self.worker, session_id, payload), Sent | None)

    async def send_on(self, messages: Sequence[Undelivered]) -> int:
        return await self._ask(self._store.send_on(self.worker, messages), int)

    async def waiting(self) -> list[str]:
        return await self._ask(self._store.waiting(self.worker), list)

    async def fetch(self, wanted: Sequence[Wanted]) -> Mapping[str, Sequence[StoredMessage]]:
        return await self._ask(self._store.fetch(self.worker, wanted), Mapping)

    async def acknowledge(self, message_ids: Sequence[int]) -> None:
        await self._ask(self._store.acknowledge(self.worker, message_ids), object)

    @asynccontextmanager
    async def open_bell(self) -> AsyncIterator[Bell]:
        """Open the store's bell; whatever breaks it is `StoreUnavailable`."""
        if self.is_inherited:
            raise RegistryClosed(INHERITED)
        try:
            async with self._store.open_bell(self.worker) as bell:
                yield bell
        except SessionsError:
            raise
        except Exception as exc:
            logger.exception("the store's bell broke in a way that it does not promise")
            raise StoreUnavailable(f"the bell broke with {type(exc).__name__}") from exc

    # ---- other workers' rows ----

    async def locate(self, session_id: str) -> Holder | None:
        """Return who holds a session that is not held here.

        A row of this very incarnation is what a removed session left behind: nobody
        holds it.
        """
        holder = await self.locate_row(session_id)
        return None if holder is not None and self.is_own(holder) else holder

    async def locate_row(self, session_id: str) -> Holder | None:
        """Return what a session's row says, whoever holds it."""
        return await self._ask(self._store.locate(self.worker, session_id), Holder | None)

    def is_own(self, holder: Holder) -> bool:
        """Say whether a row is held by this incarnation."""
        own = self.worker.worker_id, self.worker.incarnation
        return (holder.worker_id, holder.incarnation) == own

    async def vouch(self) -> None:
        """Tell the store that the fleet can refresh now."""
        await self._sweep(limit=0)

    async def sweep(self) -> int:
        """Delete all that has expired, in batches; return how many sessions."""
        limit, expired = self._settings.batch_size, 0
        while True:
            swept = await self._sweep(limit=limit)
            expired += swept.sessions
            self.messages_dropped += swept.messages
            if swept.sessions < limit and swept.messages < limit:
                return expired

    async def _sweep(self, *, limit: int) -> Swept:
        swept = self._store.sweep(
            self.worker,
            session_ttl=self._settings.session_ttl,
            message_ttl=self._settings.message_ttl,
            max_gap=self._settings.session_ttl * MAX_GAP,
            limit=limit,
        )
        return await self._ask(swept, Swept)
