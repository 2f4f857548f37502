"""The edge between the registry and its store: what a worker asks of it, operation by operation.

How it asks, with a deadline and at a gate, stands in `trio_sessions._asking`. What an answer says
of the database's memory is shown to the witness here, and what it says of its clock to the
estimate.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import trio

from trio_sessions._asking import INHERITED, Asking, breach
from trio_sessions._estimate import ClockEstimate
from trio_sessions._settings import Settings
from trio_sessions._witness import Witness
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
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.errors import (
    RegistryClosed,
    RowUnavailable,
    SessionsError,
    StoreUnavailable,
)
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.types import (
    Begun,
    Holder,
    Presence,
    RowAnswers,
    Stamp,
    Stamped,
    StoredEntry,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import ANSWERS, Answer, Batch, Committed, Post, Verdict, Write

__all__ = ["Edge", "Late", "chunked"]

logger = logging.getLogger("trio_sessions.rows")

T = TypeVar("T")

# Made once: `Holder | None` makes a union each time that it is met.
_HOLDER_OR_NONE = (Holder, type(None))
_STR_OR_NONE = (str, type(None))
_NONE = type(None)
_ANY_SIZE = 2**62  # bytes


def chunked(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut ``items`` into slices of at most ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


class Late(StoreUnavailable):
    """A batch came later to the store than it may, and did nothing: ask again."""


class Edge(Asking):
    """One worker's way to its store.

    Args:
        store: the store.
        worker: who asks.
        witness: judges what the store answers.
        settings: ``store_timeout``, and what a sweep is told.
    """

    def __init__(
        self, store: SessionStore, worker: Worker, witness: Witness, settings: Settings
    ) -> None:
        super().__init__(store, settings)
        self.worker = worker
        self._witness = witness
        self._estimate = ClockEstimate(self.gives_up_after)

    async def open(self) -> None:
        """Open the store."""
        await self._ask(lambda: self._store.open(self.worker), object)

    async def close(self) -> None:
        """Close the store; does not raise."""
        self._is_closed = True
        if self.is_inherited:
            return
        try:
            await self._ask(lambda: self._store.close(self.worker), object)
        except SessionsError as exc:
            logger.warning("closing the store failed: %s", exc)

    # ---- the writer's, and the pass's ----

    async def commit(
        self, writes: Sequence[Write[object]], scope: trio.CancelScope
    ) -> Sequence[Answer]:
        """Commit a batch, which ``scope`` may cut; return an answer for each write.

        Raises:
            Late: it has done nothing; it may be asked for again at once.
            WentBack: what it has done, if anything, is worth nothing.
        """
        if all(isinstance(write, Post) for write in writes):
            # Letters rest on no row, so they need no witness. On PostgreSQL such a batch waits for
            # no disk, which the stamp of a worker's row would. See docs/decisions/0013-mcp.md.
            committed = await self._send(writes, None, scope)
        else:
            flight = self._witness.depart()
            try:
                committed = await self._send(writes, flight.known, scope)
                if committed.verdict is Verdict.DONE and committed.stamp is None:
                    raise breach("it has set no stamp")
                self._witness.land(flight, committed.stamp)
            finally:
                self._witness.lose(flight)
        if len(committed.answers) != len(writes):
            raise breach(f"it answered {len(committed.answers)} of {len(writes)} writes")
        for write, answer in zip(writes, committed.answers, strict=True):
            if not isinstance(answer, (*ANSWERS[type(write)], RowUnavailable)):
                raise breach(f"it answered a {type(write).__name__} with {type(answer).__name__}")
        return committed.answers

    async def _send(
        self, writes: Sequence[Write[object]], stamp: Stamp | None, scope: trio.CancelScope
    ) -> Committed:
        """Have the store commit a batch that is in time; raises `Late` if it is not."""
        asked_at = trio.current_time()
        batch = Batch(writes=writes, stamp=stamp, not_after=self._estimate.not_after(writes))
        committed = await self._ask(
            lambda: self._store.commit(self.worker, batch), Committed, scope
        )
        late = committed.verdict is Verdict.LATE
        self._estimate.read(committed.clock, asked_at)
        self._estimate.note_verdict(late=late)
        if late:
            raise Late("the batch came too late to the store, and did nothing")
        return committed

    async def refresh(self, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows.

        Raises:
            WentBack: the store has forgotten something, and no answer of it decides anything.
        """
        flight = self._witness.depart(counts=False)
        try:
            answers = await self._ask(
                lambda: self._store.refresh(self.worker, session_ids), RowAnswers
            )
            self._witness.show(flight, answers.stamp)
        finally:
            self._witness.lose(flight)
        return answers

    async def begin(self, history: str, presence: Presence, *, after: str | None) -> Begun:
        """Begin a history, after another one that the store does not have any more."""
        asked_at = trio.current_time()
        begun = await self._ask(
            lambda: self._store.begin(self.worker, history, presence, after=after), Begun
        )
        self._estimate.read(begun.clock, asked_at)
        return begun

    async def stamp(self, *, passed: bool) -> None:
        """Stamp the worker's row.

        Args:
            passed: a pass has just ended.

        Raises:
            WentBack: as `commit`.
        """
        asked_at = trio.current_time()
        flight = self._witness.depart()
        try:
            stamped = await self._ask(
                lambda: self._store.stamp(self.worker, flight.known, passed=passed), Stamped
            )
            self._estimate.read(stamped.clock, asked_at)
            self._witness.land(flight, stamped.stamp)
        finally:
            self._witness.lose(flight)

    async def own_rows(self, after: str) -> list[tuple[str, int]]:
        """Return ids and generations of rows of this incarnation, by id, those after ``after``."""
        limit = self._settings.batch_size
        return await self._ask(
            lambda: self._store.own_rows(self.worker, after=after, limit=limit), list
        )

    async def rows_left(self, after: str) -> list[tuple[str, int]]:
        """Return `own_rows` as a question, which its caller may leave."""
        limit = self._settings.batch_size
        return await self._question(
            lambda: self._store.own_rows(self.worker, after=after, limit=limit), list
        )

    async def delete_all(self) -> bool:
        """Delete every row of this incarnation, in batches; say whether it is done.

        It raises nothing: what fails is logged.
        """
        limit = self._settings.batch_size
        try:
            while True:
                deleted = await self._ask(
                    lambda: self._store.delete_all(self.worker, limit=limit), Swept
                )
                if not deleted.more:
                    return True
        except SessionsError as exc:
            logger.warning("rows of this worker stay until they expire: %s", exc)
            return False

    async def sweep(self, *, limit: int) -> Swept:
        """Stamp, for a pass has ended, and delete a bounded part of what has expired.

        Raises:
            WentBack: nothing was deleted.
        """
        settings = self._settings
        flight = self._witness.depart()
        try:
            swept = await self._ask(
                lambda: self._store.sweep(
                    self.worker,
                    session_ttl=settings.session_ttl,
                    message_ttl=settings.message_ttl,
                    max_gap=settings.session_ttl * MAX_GAP,
                    limit=limit,
                    stamp=flight.known,
                ),
                Swept,
            )
            if swept.stamped is None:
                raise breach("it has set no stamp")
            self._witness.land(flight, swept.stamped.stamp)
        finally:
            self._witness.lose(flight)
        return swept

    # ---- questions ----

    async def locate(self, session_id: str) -> Holder | None:
        """Return what a session's row says, whoever holds it."""
        return await self._question(
            lambda: self._store.locate(self.worker, session_id), _HOLDER_OR_NONE
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
            lambda: self._store.get_capabilities(self.worker, session_id), _STR_OR_NONE
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
        return await self._question(lambda: store.get_data(self.worker, session_id), _STR_OR_NONE)

    async def elicitation_capable(self) -> list[str]:
        """Return the ids of all sessions that can be asked."""
        return await self._question(lambda: self._store.elicitation_capable(self.worker), list)

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
            lambda: store.revoke(self.worker, revocation, limit=limit), Revoked, may_leave=False
        )

    async def revocations(self, within: float) -> list[Mark]:
        """Return the marks that were made so many seconds ago or later.

        Raises:
            NotSupported: the store lacks that part of the contract.
        """
        store = cast("RevocationStore", self._keeps(Part.REVOCATION, "RevocationStore"))
        return await self._question(
            lambda: store.revocations(self.worker, within=within), list, may_leave=False
        )

    # ---- mail; each raises `NotSupported` where the store lacks that part of the contract ----

    @property
    def _mail(self) -> MailStore:
        return cast("MailStore", self._keeps(Part.MAIL, "MailStore"))

    async def collect(self, *, limit: int, size: int = _ANY_SIZE) -> list[str]:
        """Take away letters to this worker; those of a lost answer are lost."""
        store = self._mail
        found = await self._question(
            lambda: store.collect(self.worker, limit=limit, size=size), Sequence, may_leave=False
        )
        return list(found)

    async def listen(self, topics: Sequence[str]) -> None:
        """Add topics that this worker listens to."""
        store = self._mail
        await self._question(lambda: store.listen(self.worker, topics), _NONE, may_leave=False)

    async def unlisten(self, topics: Sequence[str]) -> None:
        """Remove topics that this worker listens to."""
        store = self._mail
        await self._question(lambda: store.unlisten(self.worker, topics), _NONE, may_leave=False)

    async def living(self) -> frozenset[str]:
        """Return the incarnations, and the ids, of workers that are not late."""
        store = self._mail
        return await self._question(lambda: store.living(self.worker), frozenset, may_leave=False)

    async def expire_mail(self, *, older_than: float, limit: int) -> int:
        """Delete letters that nobody has taken away; return how many."""
        store = self._mail
        return await self._question(
            lambda: store.expire_mail(self.worker, older_than=older_than, limit=limit),
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
            lambda: store.read_log(self.worker, session_id, after=after, limit=limit, size=size),
            Sequence,
        )

    async def expire_logs(self, *, older_than: float, limit: int) -> int:
        """Delete entries of logs that are older than so many seconds; return how many.

        Raises:
            NotSupported: the store lacks that part of the contract.
        """
        store = self.check_keeps_logs()
        return await self._question(
            lambda: store.expire_logs(self.worker, older_than=older_than, limit=limit),
            int,
            may_leave=False,
        )

    # ---- messages ----

    async def waiting(self) -> list[str]:
        """Return the ids of sessions of this worker for which messages are stored."""
        return await self._question(lambda: self._store.waiting(self.worker), list, may_leave=False)

    async def fetch(self, wanted: Sequence[Wanted]) -> Mapping[str, Sequence[StoredMessage]]:
        """Return stored messages."""
        return await self._question(
            lambda: self._store.fetch(self.worker, wanted), Mapping, may_leave=False
        )

    @asynccontextmanager
    async def open_bell(self) -> AsyncIterator[Bell]:
        """Open the store's bell; whatever breaks it is `StoreUnavailable`."""
        if self.is_inherited:
            raise RegistryClosed(INHERITED)
        try:
            self.contact.bell_alive = False
            async with self._store.open_bell(self.worker) as bell:
                self.contact.bell_alive = True
                yield bell
        except SessionsError:
            raise
        except Exception as exc:
            logger.exception("the store's bell broke in a way that it does not promise")
            raise StoreUnavailable(f"the bell broke with {type(exc).__name__}") from exc
        finally:
            self.contact.bell_alive = False
