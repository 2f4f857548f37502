"""What a worker asks its store at the gate: of others' sessions, of messages, mail and logs.

Each is a question as `trio_sessions._asking` explains it, with the kind of its answer. No answer
says anything of the database's memory; what does stands in `trio_sessions._edge`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar, cast

from trio_sessions._asking import INHERITED, Asking, breach, insist
from trio_sessions._life import Life
from trio_sessions._logging import get_logger
from trio_sessions._settings import Settings
from trio_sessions.abc import (
    Bell,
    DataStore,
    InspectionStore,
    LogStore,
    MailStore,
    Part,
    RevocationStore,
    SessionStore,
    Worker,
)
from trio_sessions.errors import RegistryClosed, SessionsError, StoreUnavailable
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.types import Holder, StoredEntry, StoredMessage, Wanted

__all__ = ["Questions"]

logger = get_logger("trio_sessions.rows")

T = TypeVar("T")

# Made once: `Holder | None` makes a union each time that it is met.
_HOLDER_OR_NONE = (Holder, type(None))
_STR_OR_NONE = (str, type(None))
_NONE = type(None)
_ANY_SIZE = 2**62  # bytes


class Questions(Asking):
    """The questions of one worker.

    Args:
        store: the store.
        worker: who asks.
        settings: as of `Asking`, and ``batch_size``.
        life: of the registry.
    """

    def __init__(self, store: SessionStore, worker: Worker, settings: Settings, life: Life) -> None:
        super().__init__(store, settings, life)
        self.worker = worker

    async def locate(self, session_id: str) -> Holder | None:
        """Return what a session's row says, whoever holds it."""
        return await self._question(
            partial(self._store.locate, self.worker, session_id), _HOLDER_OR_NONE
        )

    def is_incarnation(self, incarnation: str) -> bool:
        """Say whether it is this worker's."""
        return incarnation == self.worker.incarnation

    def is_own(self, holder: Holder) -> bool:
        """Say whether a row is held by this incarnation."""
        own = self.worker.worker_id, self.worker.incarnation
        return (holder.worker_id, holder.incarnation) == own

    async def get_capabilities(self, session_id: str) -> str | None:
        """Return a session's capabilities, encoded."""
        return await self._question(
            partial(self._store.get_capabilities, self.worker, session_id), _STR_OR_NONE
        )

    def check_keeps(self, part: Part, contract: str) -> None:
        """Raise `NotSupported` if the store lacks a part of the contract."""
        self._keeps(part, contract)

    async def get_data(self, session_id: str) -> str | None:
        """Return a session's data, encoded.

        Raises:
            NotSupported: the store lacks that part of the contract.
        """
        store = cast("DataStore", self._keeps(Part.DATA, "DataStore"))
        return await self._question(partial(store.get_data, self.worker, session_id), _STR_OR_NONE)

    async def elicitation_capable(self) -> list[str]:
        """Return the ids of all sessions that can be asked."""
        return await self._question(partial(self._store.elicitation_capable, self.worker), list)

    async def inspect(
        self,
        question: Callable[[InspectionStore, Worker], Awaitable[T]],
        kind: Any,
        *,
        may_leave: bool = True,
    ) -> T:
        """Ask what only operators ask.

        Args:
            question: what is asked of the store.
            kind: of this class is the answer.
            may_leave: it changes nothing, so the caller may leave while a thread is at work.

        Raises:
            NotSupported: the store lacks that part of the contract.
        """
        store = cast("InspectionStore", self._keeps(Part.INSPECTION, "InspectionStore"))
        return await self._question(lambda: question(store, self.worker), kind, may_leave=may_leave)

    async def revoke(self, revocation: Revocation, *, limit: int) -> Revoked:
        """Mark ids as revoked, and delete their rows.

        Raises:
            NotSupported: the store lacks that part of the contract.
        """
        store = cast("RevocationStore", self._keeps(Part.REVOCATION, "RevocationStore"))
        return await self._question(
            partial(store.revoke, self.worker, revocation, limit=limit), Revoked, may_leave=False
        )

    async def revocations(self, within: float) -> list[Mark]:
        """Return the marks that were made so many seconds ago or later.

        Raises:
            NotSupported: the store lacks that part of the contract.
        """
        store = cast("RevocationStore", self._keeps(Part.REVOCATION, "RevocationStore"))
        return await self._question(
            partial(store.revocations, self.worker, within=within), list, may_leave=False
        )

    # ---- mail; each raises `NotSupported` where the store lacks that part of the contract ----

    @property
    def _mail(self) -> MailStore:
        return cast("MailStore", self._keeps(Part.MAIL, "MailStore"))

    async def collect(self, *, limit: int, size: int = _ANY_SIZE) -> list[str]:
        """Take away letters to this worker; those of a lost answer are lost."""
        store = self._mail
        found = await self._question(
            partial(store.collect, self.worker, limit=limit, size=size), Sequence, may_leave=False
        )
        return list(found)

    async def listen(self, topics: Sequence[str]) -> None:
        """Add topics that this worker listens to."""
        store = self._mail
        await self._question(partial(store.listen, self.worker, topics), _NONE, may_leave=False)

    async def unlisten(self, topics: Sequence[str]) -> None:
        """Remove topics that this worker listens to."""
        store = self._mail
        await self._question(partial(store.unlisten, self.worker, topics), _NONE, may_leave=False)

    async def living(self) -> frozenset[str]:
        """Return the incarnations, and the ids, of workers that are not late."""
        store = self._mail
        return await self._question(partial(store.living, self.worker), frozenset, may_leave=False)

    async def expire_mail(self, *, older_than: float, limit: int) -> int:
        """Delete letters that nobody has taken away; return how many."""
        store = self._mail
        return await self._question(
            partial(store.expire_mail, self.worker, older_than=older_than, limit=limit),
            int,
            may_leave=False,
        )

    # ---- logs ----

    def check_keeps_logs(self) -> "LogStore":
        """Return the store as one that keeps logs.

        Raises:
            NotSupported: it lacks that part of the contract.
        """
        return cast("LogStore", self._keeps(Part.LOGS, "LogStore"))

    async def read_log(
        self, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        """Return entries of a session's log, by their ids.

        Raises:
            NotSupported: the store lacks that part of the contract.
        """
        store = self.check_keeps_logs()
        return await self._question(
            partial(store.read_log, self.worker, session_id, after=after, limit=limit, size=size),
            Sequence,
        )

    async def expire_logs(self, *, older_than: float, limit: int) -> int:
        """Delete entries of logs that are older than so many seconds; return how many.

        Raises:
            NotSupported: the store lacks that part of the contract.
        """
        store = self.check_keeps_logs()
        return await self._question(
            partial(store.expire_logs, self.worker, older_than=older_than, limit=limit),
            int,
            may_leave=False,
        )

    async def rows_left(self, after: str) -> list[tuple[str, int]]:
        """Return `own_rows` as a question, which its caller may leave."""
        limit = self._settings.batch_size
        return await self._question(
            partial(self._store.own_rows, self.worker, after=after, limit=limit), list
        )

    # ---- messages ----

    async def waiting(self) -> list[str]:
        """Return the ids of sessions of this worker for which messages are stored."""
        return await self._question(
            partial(self._store.waiting, self.worker), list, may_leave=False
        )

    async def fetch(self, wanted: Sequence[Wanted]) -> Mapping[str, Sequence[StoredMessage]]:
        """Return stored messages."""
        return await self._question(
            partial(self._store.fetch, self.worker, wanted), Mapping, may_leave=False
        )

    @asynccontextmanager
    async def open_bell(self) -> AsyncIterator[Bell]:
        """Open the store's bell; whatever breaks it is `StoreUnavailable`.

        What the block raises comes out as it is, though the store's bell may have wrapped it.
        """
        if self.is_inherited:
            raise RegistryClosed(INHERITED)
        of_the_block: Exception | None = None
        try:
            self.contact.note_bell(alive=False)
            opened = partial(self._store.open_bell, self.worker)
            async with insist(opened(), AbstractAsyncContextManager, opened) as bell:
                self.contact.note_bell(alive=True)
                try:
                    yield _CheckedBell(bell)
                except Exception as exc:
                    of_the_block = exc
                    raise
        except SessionsError:
            raise
        except Exception as exc:  # of whoever wrote the store
            if of_the_block is not None:
                raise of_the_block from None
            raise _broken(exc) from exc
        finally:
            self.contact.note_bell(alive=False)


class _CheckedBell:
    """A store's bell, held to its contract.

    Args:
        bell: the store's.
    """

    def __init__(self, bell: Bell) -> None:
        self._bell = bell

    async def wait(self) -> frozenset[str] | None:
        """Wait as the store's does; whatever breaks it is `StoreUnavailable`."""
        try:
            rung = await self._bell.wait()
        except SessionsError:
            raise
        except Exception as exc:  # of whoever wrote the store
            raise _broken(exc) from exc
        if rung is not None and not isinstance(rung, frozenset | set):
            raise breach(f"its bell answered with {type(rung).__name__}")
        return rung


def _broken(exc: Exception) -> StoreUnavailable:
    logger.error("the store's bell broke in a way that it does not promise", exc_info=exc)
    return StoreUnavailable(f"the bell broke with {type(exc).__name__}")
