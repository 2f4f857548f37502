"""The edge between the registry and its store.

Here every operation of the store gets a deadline, foreign errors become `StoreUnavailable`, and
questions wait at a gate of their own: however many there are, a thread is left for the refresh and
the sweep, and one for the writer's batch (invariant 17). Whoever leaves before a thread is at work
on its question has asked nothing. A caller that is cancelled while a thread works returns at once,
and the question keeps its place at the gate until it ends::

    caller ── waits for ──> task: gate ── store: limiter ── thread ──> answer
       └── leaves: cancels ──────┴──────────────┘  but no thread
"""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar, cast

import outcome
import trio

from trio_sessions._contact import Contact
from trio_sessions._estimate import ClockEstimate
from trio_sessions._interrupts import lone_interrupt
from trio_sessions._process import this_process
from trio_sessions._settings import Settings
from trio_sessions._witness import Witness
from trio_sessions.abc import (
    Bell,
    InspectionStore,
    Part,
    RevocationStore,
    SessionStore,
    Worker,
)
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.errors import (
    NotSupported,
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
    Stamped,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import ANSWERS, Answer, Batch, Committed, Verdict, Write

__all__ = ["INHERITED", "Edge", "Late", "chunked"]

logger = logging.getLogger("trio_sessions.rows")

T = TypeVar("T")

INHERITED = (
    "the registry was opened before this process was forked, and is its parent's: "
    "open one of your own"
)
# Made once: `Holder | None` makes a union each time that it is met.
_HOLDER_OR_NONE = (Holder, type(None))
_STR_OR_NONE = (str, type(None))

_FREE = 2  # tokens of the limiter that no question gets: for the pass, and for the writer


def chunked(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut ``items`` into slices of at most ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


class Late(StoreUnavailable):
    """A batch came later to the store than it may, and did nothing: ask again."""


class Edge:
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
        self.worker = worker
        self.contact = Contact()
        self._store = store
        self._witness = witness
        self._estimate = ClockEstimate(
            min(settings.store_timeout, store.gives_up_after or settings.store_timeout)
        )
        self._settings = settings
        self._process = this_process()
        self._gate = trio.Semaphore(max(1, settings.max_concurrent - _FREE))
        self._is_closed = False

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child: then rows and transports are its parent's."""
        return self._process is not this_process()

    async def _ask(
        self,
        operation: Callable[[], Awaitable[T]],
        kind: Any,
        scope: trio.CancelScope | None = None,
    ) -> T:
        """Await one operation, within ``store_timeout``; insist on its kind of answer.

        Args:
            operation: what is asked of the store.
            kind: of this class is the answer.
            scope: a new one, by which the caller may give up earlier.
        """
        if self.is_inherited:
            raise RegistryClosed(INHERITED)
        scope = scope or trio.CancelScope()
        scope.relative_deadline = self._settings.store_timeout
        with self.contact:
            try:
                with scope:
                    answer = await operation()
                    if not isinstance(answer, kind):
                        raise _breach(f"it answered with {type(answer).__name__}")
                    return answer
            except SessionsError:
                raise
            except Exception as exc:
                logger.exception("the store failed in a way that it does not promise")
                raise StoreUnavailable(
                    f"the store failed with {type(exc).__name__}; see the cause"
                ) from exc
            except BaseExceptionGroup as group:
                interrupt = lone_interrupt(group)
                if interrupt is not None:  # it came while the store waited in a nursery
                    raise interrupt from None
                raise
            raise StoreUnavailable(
                "the store did not answer within store_timeout "
                f"({self._settings.store_timeout:g} s){self._clock_that_jumps()}"
            )

    def _clock_that_jumps(self) -> str:
        """Say so if the time that has passed is no time: threads cannot keep up with it."""
        clock = trio.lowlevel.current_clock()  # a MockClock, but trio.testing is not imported here
        if getattr(clock, "autojump_threshold", math.inf) == math.inf:
            return ""
        if not self._store.may_outlast_cancellation:
            return ""
        return (
            ": the clock of this run jumps while the store's threads are at work; put "
            "`with trio_sessions.testing.virtual_time():` around what is tested"
        )

    async def _through_gate(self, operation: Callable[[], Awaitable[T]]) -> T:
        try:
            self._gate.acquire_nowait()  # no turn of the loop where nobody waits
        except trio.WouldBlock:
            await self._gate.acquire()
        try:
            if self._is_closed:
                raise RegistryClosed("the registry was closed before the store was asked")
            return await operation()
        finally:
            self._gate.release()

    async def _through_gate_alone(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Ask in a task of its own: a caller that leaves does not wait for a thread."""
        answer: outcome.Outcome[T] | None = None
        answered = trio.Event()
        scope = trio.CancelScope()

        async def ask() -> None:
            nonlocal answer
            with scope:
                answer = await outcome.acapture(self._through_gate, operation)
            answered.set()

        trio.lowlevel.spawn_system_task(ask)
        try:
            await answered.wait()
        finally:
            scope.cancel()
        assert answer is not None
        return answer.unwrap()

    async def _question(
        self, operation: Callable[[], Awaitable[T]], kind: Any, *, may_leave: bool = True
    ) -> T:
        """Ask at the gate; who has not been answered when the store is closed never will.

        Args:
            operation: what is asked of the store.
            kind: of this class is the answer.
            may_leave: whether the caller may leave while a thread is at work.
        """
        alone = may_leave and self._store.may_outlast_cancellation
        through = self._through_gate_alone if alone else self._through_gate
        try:
            return await self._ask(partial(through, operation), kind)
        except StoreUnavailable as exc:
            if self._is_closed:
                raise RegistryClosed("the registry was closed while the store was asked") from exc
            raise

    @property
    def questions_waiting(self) -> int:
        """Count those who wait at the gate."""
        return self._gate.statistics().tasks_waiting

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
        asked_at = trio.current_time()
        flight = self._witness.depart()
        try:
            batch = Batch(
                writes=writes, stamp=flight.known, not_after=self._estimate.not_after(writes)
            )
            committed = await self._ask(
                lambda: self._store.commit(self.worker, batch), Committed, scope
            )
            late = committed.verdict is Verdict.LATE
            self._estimate.read(committed.clock, asked_at)
            self._estimate.note_verdict(late=late)
            if late:
                raise Late("the batch came too late to the store, and did nothing")
            if committed.verdict is Verdict.DONE and committed.stamp is None:
                raise _breach("it has set no stamp")
            self._witness.land(flight, committed.stamp)
        finally:
            self._witness.lose(flight)
        if len(committed.answers) != len(writes):
            raise _breach(f"it answered {len(committed.answers)} of {len(writes)} writes")
        for write, answer in zip(writes, committed.answers, strict=True):
            if not isinstance(answer, (*ANSWERS[type(write)], RowUnavailable)):
                raise _breach(f"it answered a {type(write).__name__} with {type(answer).__name__}")
        return committed.answers

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
                raise _breach("it has set no stamp")
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

    def keeps(self, part: Part) -> bool:
        """Say whether the store keeps a part of the contract."""
        return part in self._store.parts

    def _keeps(self, part: Part, contract: str) -> SessionStore:
        if not self.keeps(part):
            raise NotSupported(
                f"{type(self._store).__name__} does not keep the part of the contract for this: "
                f"trio_sessions.abc.{contract}"
            )
        return self._store

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


def _breach(what: str) -> StoreUnavailable:
    return StoreUnavailable(f"the store broke its contract: {what}")
