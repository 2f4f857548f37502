"""One worker's way to the simulated database, and what can go wrong on it."""

import enum
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from trio_sessions.abc import Part, Worker
from trio_sessions.errors import SessionsError, StoreUnavailable
from trio_sessions.testing._simulation._database import Database

__all__ = ["FAR", "PATIENCE", "LinkFault", "Network", "Way"]

T = TypeVar("T")

PATIENCE = 2.0  # seconds after which an operation is given up
_A_MOMENT = 0.035  # seconds: less than the shortest margin, and more than the longest latency
_HELD_UP = 1.0  # seconds that a statement is held up, at most: less than the longest margin
_LOST, _UNANSWERED = 0.4, 0.3  # of those: told as lost at once, or done and not answered
FAR = 5 * PATIENCE  # seconds ahead: no last moment lies there that was reckoned by the right clock


class LinkFault(enum.Enum):
    """What becomes of operations."""

    NONE = "none"
    REFUSES = "refuses"
    HANGS = "hangs"
    SLOW = "answers late"
    LOSES = "loses the answer"
    LATE = "executes late"
    UNSTEADY = "holds up, and loses"
    """Statements arrive some time later, in any order; callers may be told that they are lost."""
    OVERTAKES = "is overtaken"
    """Batches are told as lost at once, and arrive a moment later, still in time."""
    HOLDS_STAMPS = "holds up stamps"
    """Stamps alone arrive some time later, and are not answered."""


_ALONE = {
    LinkFault.OVERTAKES: ("commit",),
    LinkFault.HOLDS_STAMPS: ("stamp", "sweep"),
}
"""Faults of some kinds of statements alone."""
_OVERTAKEN = frozenset({LinkFault.UNSTEADY, LinkFault.OVERTAKES, LinkFault.HOLDS_STAMPS})


class Network:
    """Where statements are under way.

    Args:
        database: where they lead.
        chance: decides how long they take.
        latency: seconds, one way, at most.
        parts: those that are played, of the optional parts of the contract: what workers do for
            the sake of one of them, they do only where the store keeps it.
    """

    def __init__(
        self,
        database: Database,
        chance: random.Random | None = None,
        *,
        latency: float = 0.0,
        parts: frozenset[Part] = frozenset(),
    ) -> None:
        self.database = database
        self.chance = chance or random.Random(0)  # noqa: S311 -- to be replayed
        self.latency = latency
        self.fault = LinkFault.NONE
        """Of the database as such: for everybody."""
        self.parts = parts
        self.late_executed = 0
        self._nursery: trio.Nursery | None = None
        self._era = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let statements arrive long after whoever sent them has left."""
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    def send_astray(self, delay: float, statement: Callable[[], Awaitable[object]]) -> None:
        """Execute a statement later, when nobody waits for it."""
        if self._nursery is not None:
            self._nursery.start_soon(self._arrive_late, delay, statement)

    async def _arrive_late(self, delay: float, statement: Callable[[], Awaitable[object]]) -> None:
        era = self._era
        await trio.sleep(delay)
        if era != self._era:
            return
        try:
            await statement()
        except SessionsError:
            return  # nobody hears of it
        self.late_executed += 1

    def drop_what_is_astray(self) -> None:
        """Lose all statements that are still under way."""
        self._era += 1


class Way:
    """The way of one worker, and the state of its process."""

    def __init__(self, network: Network, *, in_threads: bool = False) -> None:
        self.fault = LinkFault.NONE
        self.is_dead = False
        """The worker's process has died: nothing leaves it any more."""
        self.pauses = 0
        """How often the process was stopped."""
        self.faults: dict[str, int] = {}
        self.in_threads = in_threads
        self._network = network
        self._database = network.database
        self._running = trio.Event()
        self._running.set()
        self._refreshing = trio.Event()
        self._refreshing.set()

    # ---- the worker's process ----

    def pause(self) -> None:
        """Stop the process: nothing leaves it, and no answer is read."""
        self.pauses += 1
        self._running = trio.Event()

    def hang(self) -> None:
        """Let refreshes hang as a thread may that no bound ends; all else goes its way."""
        self._refreshing = trio.Event()

    async def while_refreshing(self) -> None:
        """Wait until refreshes do not hang; no deadline ends that."""
        if not self._refreshing.is_set() and not self.is_dead:
            with trio.CancelScope(shield=True):
                await self._refreshing.wait()

    def resume(self) -> None:
        """Let the process go on, and its pass."""
        self._running.set()
        self._refreshing.set()

    @property
    def is_paused(self) -> bool:
        """Whether the process is stopped."""
        return not self._running.is_set()

    async def while_running(self) -> None:
        """Wait until the process runs; nothing in it notices how long that takes."""
        if not self._running.is_set() and not self.is_dead:
            with trio.CancelScope(shield=True):
                await self._running.wait()

    # ---- the way ----

    def _count(self, fault: LinkFault) -> None:
        self.faults[fault.value] = self.faults.get(fault.value, 0) + 1

    async def _travel(self, most: float) -> None:
        if most:
            await trio.sleep(self._network.chance.uniform(0.0, most))
        else:
            await trio.lowlevel.checkpoint()

    async def _ask(
        self,
        kind: str,
        worker: Worker,
        operation: Callable[[], Awaitable[T]],
        *,
        may_land_late: bool = True,
    ) -> T:
        async def statement() -> T:
            return await self._database.execute(kind, worker, operation)

        await self.while_running()
        if self.is_dead:
            raise StoreUnavailable("the process has died")
        fault = self.fault if self.fault is not LinkFault.NONE else self._network.fault
        if kind not in _ALONE.get(fault, (kind,)):
            fault = LinkFault.NONE
        if fault is not LinkFault.NONE:
            self._count(fault)
        answer = await self._meet(fault, statement, may_land_late=may_land_late)
        await self.while_running()
        return answer

    async def _meet(
        self, fault: LinkFault, statement: Callable[[], Awaitable[T]], *, may_land_late: bool
    ) -> T:
        """Carry a statement out as a fault has it."""
        network = self._network
        chance = network.chance
        if fault is LinkFault.REFUSES:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("connection refused", did_nothing=True)
        if fault is LinkFault.HANGS:
            if chance.random() < 0.3:  # noqa: PLR2004 -- some arrive when the way is open again
                delay = chance.choice([3.0, 20.0, 90.0])
                if may_land_late:
                    network.send_astray(delay, statement)
            await trio.sleep(PATIENCE)
            raise StoreUnavailable("no answer")
        if fault is LinkFault.LATE:
            delay = chance.choice([0.5, 2.0, 5.0, 30.0, 100.0])
            if may_land_late:
                network.send_astray(delay, statement)
            await trio.sleep(chance.uniform(0.0, PATIENCE))
            raise StoreUnavailable("the connection was lost")
        if fault in _OVERTAKEN:
            return await self._arrive_late(fault, statement, may_land_late=may_land_late)
        await self._travel(0.45 if fault is LinkFault.SLOW else network.latency)
        answer = await statement()
        await self._travel(0.45 if fault is LinkFault.SLOW else network.latency)
        if fault is LinkFault.LOSES:
            raise StoreUnavailable("the connection was lost after COMMIT")
        return answer

    async def _arrive_late(
        self, fault: LinkFault, statement: Callable[[], Awaitable[T]], *, may_land_late: bool
    ) -> T:
        """Carry a statement out behind others that were sent later."""
        chance = self._network.chance
        if fault is LinkFault.OVERTAKES:
            if may_land_late:
                self._network.send_astray(_A_MOMENT, statement)
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("the connection was lost")
        if fault is LinkFault.HOLDS_STAMPS:
            await trio.sleep(chance.uniform(0.0, _HELD_UP))
            await statement()
            raise StoreUnavailable("the connection was lost after COMMIT")
        delay = chance.uniform(0.0, _HELD_UP)
        if may_land_late and chance.random() < _LOST:
            self._network.send_astray(delay, statement)
            await self._travel(_HELD_UP / 20)
            raise StoreUnavailable("the connection was lost")
        await trio.sleep(delay)
        answer = await statement()
        await self._travel(_HELD_UP / 5)
        if chance.random() < _UNANSWERED:
            raise StoreUnavailable("the connection was lost after COMMIT")
        return answer
