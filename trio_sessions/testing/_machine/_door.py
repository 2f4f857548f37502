"""The way of one worker to what is shared: it can be cut, held up, or made slow."""

import contextlib
import enum
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar, get_type_hints

import trio

from trio_sessions._asking import breach, insist, insist_async
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.errors import SessionsError
from trio_sessions.testing._conformance._kinds import misfits
from trio_sessions.testing._faults import Fault, FaultyStore
from trio_sessions.writes import Acknowledge, Batch, Committed

__all__ = ["Door", "Reach"]

T = TypeVar("T")


class Reach(enum.Enum):
    """How a worker reaches what is shared."""

    WELL = "well"
    SLOW = "slow"
    """Each operation is done at once, and answered late."""
    AWAY = "away"
    """Nothing is done, and each operation fails."""
    ANSWERS_LOST = "answers lost"
    """Each operation is done, and then fails."""
    HELD = "held"
    """Each operation waits, and goes on when the worker does."""

    @property
    def is_heard(self) -> bool:
        """Whether answers come, and so can be evidence."""
        return self in {Reach.WELL, Reach.SLOW}

    @property
    def commits(self) -> bool:
        """Whether what is asked is done, heard or not."""
        return self.is_heard or self is Reach.ANSWERS_LOST


_FAULTS = {Reach.AWAY: Fault.FAILS, Reach.ANSWERS_LOST: Fault.COMMITS_THEN_FAILS}


@dataclass(frozen=True, slots=True)
class _HeldBack:
    has_come: trio.Event
    may_go: trio.Event


class Door(FaultyStore):
    """A store that one worker reaches as `reach` says.

    Args:
        store: the store that does the work.
        lateness: seconds by which an answer is late.
    """

    def __init__(self, store: SessionStore, lateness: float) -> None:
        super().__init__(store)
        self.reach = Reach.WELL
        self._lateness = lateness
        self._let_go = trio.Event()
        self._held_back: _HeldBack | None = None
        self._is_leading_astray = False
        self._answering = 0
        self._astray: list[Callable[[], Awaitable[object]]] = []

    def lead_astray(self) -> None:
        """Let writes from now on be told as failed, and be done by `arrive`, not before."""
        self._is_leading_astray = True

    @property
    def is_straight(self) -> bool:
        """Whether what is written arrives, and is answered, as it should be."""
        return self.reach is Reach.WELL and not self._is_leading_astray

    @property
    def is_answering(self) -> bool:
        """Whether something was asked that is still to be answered, and is not held up."""
        return self._answering > 0

    def lead_straight(self) -> None:
        """Let writes go their way again; those that are astray still are."""
        self._is_leading_astray = False

    async def arrive(self) -> None:
        """Do what was led astray, in the order in which it was sent; nobody hears of it."""
        astray, self._astray = self._astray, []
        for write in astray:
            with contextlib.suppress(SessionsError):
                await write()

    @contextlib.contextmanager
    def hold_back_receipts(self) -> Iterator[trio.Event]:
        """Let batches that acknowledge messages wait until the block ends; the first sets this."""
        held_back = self._held_back = _HeldBack(trio.Event(), trio.Event())
        try:
            yield held_back.has_come
        finally:
            self._held_back = None
            held_back.may_go.set()

    def set_reach(self, reach: Reach) -> None:
        """Change how the worker reaches it; what was held goes on, unless it still is."""
        if reach is Reach.HELD and self.reach is not Reach.HELD:
            self._let_go = trio.Event()
        self.reach = reach
        if reach is not Reach.HELD:
            self._let_go.set()
        if reach in _FAULTS:
            self.fail(_FAULTS[reach])
        else:
            self.heal()

    def commit_at_once(self, worker: Worker, batch: Batch) -> Committed | None:
        """Let the store below do it, where all is as it should be; None: it has to be waited for.

        So a store's own ``commit_at_once`` is played with, and its ``commit`` whenever the registry
        asks for that, or something is wrong.
        """
        is_held_back = self._held_back is not None and _acknowledges(batch)
        if is_held_back or not self.is_straight:
            return None
        asked = self._store.commit_at_once
        answer = insist(asked(worker, batch), (Committed, type(None)), asked)
        for wrong in misfits(answer, Committed | None):
            raise breach(f"{type(self._store).__name__}.commit_at_once returned {wrong}")
        return answer

    async def _through(self, name: str, operation: Callable[[], Awaitable[T]], *kinds: str) -> T:
        operation = partial(self._hold_to_contract, name, operation)
        if self.reach is Reach.HELD:
            await self._let_go.wait()
        if self._held_back is not None and Acknowledge.__name__ in kinds:
            self._held_back.has_come.set()
            await self._held_back.may_go.wait()
        if self._is_leading_astray and name == "commit":
            self._astray.append(operation)
            await trio.lowlevel.checkpoint()
            raise self.error
        is_slow = self.reach is Reach.SLOW
        self._answering += 1
        try:
            answer = await super()._through(name, operation, *kinds)
            if is_slow:
                await trio.sleep(self._lateness)
            return answer
        finally:
            self._answering -= 1

    async def _hold_to_contract(self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        """Do it, and insist that the store below answers as its contract says."""
        called = f"{type(self._store).__name__}.{name}"
        answer = await insist_async(operation(), called)
        for wrong in misfits(answer, _returned(name)):
            raise breach(f"{called} returned {wrong}")
        return answer


def _acknowledges(batch: Batch) -> bool:
    return any(isinstance(write, Acknowledge) for write in batch.writes)


@cache
def _returned(name: str) -> Any:
    """Return what a method returns; of the bell: what comes before it is opened."""
    hint = get_type_hints(getattr(FaultyStore, name))["return"]
    return Any if name == "open_bell" or hint is type(None) else hint
