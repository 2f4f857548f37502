"""The edge between the registry and its store: what the writer and the pass ask of it.

What an answer says of the database's memory is shown to the witness here, and what it says of its
clock to the estimate. What is asked at the gate stands in `trio_sessions._questions`, and how
anything is asked, with a deadline, in `trio_sessions._asking`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import trio

from trio_sessions._asking import breach
from trio_sessions._estimate import ClockEstimate
from trio_sessions._life import Life, Phase
from trio_sessions._logging import get_logger
from trio_sessions._questions import Questions
from trio_sessions._settings import Settings
from trio_sessions._witness import Witness
from trio_sessions.abc import (
    SessionStore,
    Worker,
)
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.errors import (
    RowUnavailable,
    SessionsError,
    StoreUnavailable,
)
from trio_sessions.types import (
    Begun,
    Presence,
    RowAnswers,
    Stamp,
    Stamped,
    Swept,
)
from trio_sessions.writes import ANSWERS, Answer, Batch, Committed, Post, Verdict, Write

__all__ = ["Edge", "Late", "chunked"]

logger = get_logger("trio_sessions.rows")

T = TypeVar("T")

_STAMPS = 2  # threads: for the loop that stamps; and for a pass, what is forwarded, or a history
_LAST = 0.25  # of store_timeout, at least, for the store to close when all else has had its time

_LATE = "the batch came too late to the store, and did nothing"

_ANSWERS = {write: (*kinds, RowUnavailable) for write, kinds in ANSWERS.items()}


def chunked(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut ``items`` into slices of at most ``size``."""
    return (items[start : start + size] for start in range(0, len(items), size))


class Late(StoreUnavailable):
    """A batch came later to the store than it may, and did nothing: ask again."""

    def __init__(self, message: str = _LATE) -> None:  # an exception is copied by its args
        super().__init__(message, did_nothing=True)


class Edge(Questions):
    """One worker's way to its store.

    Args:
        store: the store.
        worker: who asks.
        witness: judges what the store answers.
        settings: ``store_timeout``, and what a sweep is told.
        life: of the registry.
    """

    def __init__(
        self,
        store: SessionStore,
        worker: Worker,
        witness: Witness,
        settings: Settings,
        life: Life,
    ) -> None:
        super().__init__(store, worker, settings, life)
        self._lease = replace(worker, limiter=trio.CapacityLimiter(_STAMPS))
        """This worker, with threads of its own for what keeps its lease: no load delays that."""
        self._witness = witness
        self._estimate = ClockEstimate(self.gives_up_after)
        self._close_by = math.inf

    async def open(self) -> None:
        """Open the store."""
        await self._ask(partial(self._store.open, self.worker), object)

    def close_by(self, deadline: float) -> None:
        """Bound `close`: what is left until this moment on Trio's clock, but some time in any case.

        Threads that are still at work have to give their connections back.
        """
        self._close_by = deadline

    def _closing_scope(self) -> trio.CancelScope:
        least = trio.current_time() + self._settings.store_timeout * _LAST
        return trio.CancelScope(deadline=max(self._close_by, least))

    async def close(self) -> None:
        """Close the store; does not raise."""
        self._life.go(Phase.CLOSED)
        if self.is_inherited:
            return
        try:
            with self._closing_scope() as scope:
                await self._ask(partial(self._store.close, self.worker), object)
            if scope.cancelled_caught:
                logger.warning("the store did not close in time")
        except SessionsError as exc:
            logger.warning("closing the store failed: %s", exc)

    # ---- the writer's, and the pass's ----

    async def commit(
        self,
        writes: Sequence[Write[object]],
        new_scope: Callable[[], trio.CancelScope],
        *,
        at_once: bool = False,
    ) -> Sequence[Answer]:
        """Commit a batch; return an answer for each write.

        Args:
            writes: the batch.
            new_scope: makes the scope in which the store is awaited, and which may be cut.
            at_once: without a checkpoint, if the store has to wait for nothing.

        Raises:
            Late: it has done nothing; it may be asked for again at once.
            WentBack: what it has done, if anything, is worth nothing.
        """
        if isinstance(writes[0], Post) and all(isinstance(write, Post) for write in writes):
            # Letters rest on no row, so they need no witness. On PostgreSQL such a batch waits for
            # no disk, which the stamp of a worker's row would. See docs/decisions/0013-mcp.md.
            committed = await self._send(writes, None, new_scope, at_once=at_once)
        else:
            with self._witness.depart() as flight:
                committed = await self._send(writes, flight.known, new_scope, at_once=at_once)
                if committed.verdict is Verdict.DONE and committed.stamp is None:
                    raise breach("it has set no stamp")
                self._witness.land(flight, committed.stamp)
        if len(committed.answers) != len(writes):
            raise breach(f"it answered {len(committed.answers)} of {len(writes)} writes")
        for write, answer in zip(writes, committed.answers, strict=True):
            if not isinstance(answer, _ANSWERS[type(write)]):
                raise breach(f"it answered a {type(write).__name__} with {type(answer).__name__}")
        return committed.answers

    async def _send(
        self,
        writes: Sequence[Write[object]],
        stamp: Stamp | None,
        new_scope: Callable[[], trio.CancelScope],
        *,
        at_once: bool,
    ) -> Committed:
        """Have the store commit a batch that is in time; raises `Late` if it is not."""
        asked_at = trio.current_time()
        batch = Batch(writes=writes, stamp=stamp, not_after=self._estimate.not_after(writes))
        store = self._store
        committed = await self._ask(
            partial(store.commit, self.worker, batch),
            Committed,
            new_scope=new_scope,
            at_once=partial(store.commit_at_once, self.worker, batch) if at_once else None,
        )
        late = committed.verdict is Verdict.LATE
        self._estimate.read(committed.clock, asked_at)
        self._estimate.note_verdict(late=late)
        if late:
            raise Late
        return committed

    async def refresh(self, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows.

        Raises:
            WentBack: the store has forgotten something, and no answer of it decides anything.
        """
        with self._witness.depart(counts=False) as flight:
            answers = await self._ask(
                partial(self._store.refresh, self.worker, session_ids), RowAnswers
            )
            self._witness.show(flight, answers.stamp)
        return answers

    async def begin(self, history: str, presence: Presence, *, after: str | None) -> Begun:
        """Begin a history, after another one that the store does not have any more."""
        asked_at = trio.current_time()
        begun = await self._ask(
            partial(self._store.begin, self._lease, history, presence, after=after), Begun
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
        with self._witness.depart() as flight:
            stamped = await self._ask(
                partial(self._store.stamp, self._lease, flight.known, passed=passed), Stamped
            )
            self._estimate.read(stamped.clock, asked_at)
            self._witness.land(flight, stamped.stamp)

    async def own_rows(self, after: str) -> list[tuple[str, int]]:
        """Return ids and generations of rows of this incarnation, by id, those after ``after``."""
        limit = self._settings.batch_size
        return await self._ask(
            partial(self._store.own_rows, self.worker, after=after, limit=limit), list
        )

    async def delete_all(self) -> bool:
        """Delete every row of this incarnation, in batches; say whether it is done.

        It raises nothing: what fails is logged.
        """
        limit = self._settings.batch_size
        try:
            while True:
                deleted = await self._ask(
                    partial(self._store.delete_all, self.worker, limit=limit), Swept
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
        with self._witness.depart() as flight:
            swept = await self._ask(
                partial(
                    self._store.sweep,
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
        return swept
