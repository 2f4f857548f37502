"""What a fault is, the list of all of them, and how each is played."""

import enum
import itertools
import statistics
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import trio

from faults.world import Arrange, World, nothing

__all__ = [
    "FAULTS",
    "Database",
    "Fault",
    "Memory",
    "Played",
    "assert_harmless",
    "fault",
    "play",
]

ACTS_BEFORE, ACTS_MEANWHILE = 5, 10  # of the crowd

_WORDS = {
    "pgbouncer": "PgBouncer",
    "ttl": "TTL",
    "read only": "read-only",
    "fail over": "fail-over",
}
"""How words are written that stand in the names of functions."""

Strike: TypeAlias = Callable[[World], AsyncIterator[str]]


class Database(enum.Enum):
    """What the workers share."""

    POSTGRESQL = "PostgreSQL"
    SQLITE = "SQLite"


class Memory(enum.Enum):
    """What becomes of that which the database has confirmed."""

    KEPT = "nothing is forgotten: no worker may think so, and no accepted message may be lost"
    LOST = "the last of it is forgotten: the workers notice it, and messages may be lost with it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        name: what happens, in a few words.
        how: how it is made.
        database: on which database.
        strike: makes it happen, and yields how it was witnessed; is led back to heal it.
        arrange: prepares the world, before its workers open.
        options: with which PostgreSQL is started.
        session_ttl: of all workers, seconds.
        memory: what the database forgets by it.
    """

    name: str
    how: str
    database: Database
    strike: Callable[[World], AbstractAsyncContextManager[str]]
    arrange: Arrange
    options: Mapping[str, str]
    session_ttl: float
    memory: Memory

    def __str__(self) -> str:
        return f"{self.database.value}: {self.name}"


FAULTS: list[Fault] = []
"""All that the files beside this one have declared."""


def fault(
    database: Database,
    *,
    arrange: Arrange = nothing,
    options: Mapping[str, str] | None = None,
    session_ttl: float = 30.0,
    memory: Memory = Memory.KEPT,
) -> Callable[[Strike], Fault]:
    """Declare a fault: an async generator that strikes, yields its witness, and heals.

    Its name says what happens, its docstring how it is made; both stand in the docs.
    """

    def declare(strike: Strike) -> Fault:
        assert strike.__doc__
        words = strike.__name__.replace("_", " ")
        for lower, proper in _WORDS.items():
            words = words.replace(lower, proper)
        declared = Fault(
            name=words[0].upper() + words[1:],
            how=" ".join(strike.__doc__.split()).rstrip("."),
            database=database,
            strike=asynccontextmanager(strike),
            arrange=arrange,
            options=options or {},
            session_ttl=session_ttl,
            memory=memory,
        )
        FAULTS.append(declared)
        return declared

    return declare


@dataclass(slots=True, kw_only=True)
class Played:
    """What became of all rounds of a fault."""

    fault: str
    how: str
    database: str
    witnesses: list[str] = field(default_factory=list)
    sessions: int = 0
    """Live ones when it happened, of all rounds together."""
    expired: int = 0
    """Of these, sessions of workers that died, or lost their lease while they slept."""
    lost: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    messages: int = 0
    """Accepted in all, and of these never delivered."""
    messages_lost: int = 0
    rewinds: int = 0
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the end of each fault until all was well."""
    wrong: dict[str, object] = field(default_factory=dict)

    def record(self, **more: Any) -> dict[str, Any]:
        """Return what the report is made of."""
        told = asdict(self)
        del told["wrong"]
        recoveries = self.recoveries
        return {
            **told,
            **more,
            "witnesses": list(dict.fromkeys(self.witnesses)),
            "injected": len(self.witnesses),
            "lost": len(self.lost),
            "left_over": len(self.left_over),
            "recoveries": [round(one, 3) for one in recoveries],
            "median": round(statistics.median(recoveries), 2) if recoveries else None,
            "worst": round(max(recoveries), 2) if recoveries else None,
        }


async def play(world: World, fault: Fault, rounds: int) -> Played:
    """Let a fault happen again and again, until it does harm, or was played often enough."""
    played = Played(fault=fault.name, how=fault.how, database=fault.database.value)
    await _assert_well(world)
    for _ in range(rounds):
        expired = len(world.expired)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.crowd.run)
            await world.crowd.until_acted(ACTS_BEFORE)
            async with fault.strike(world) as witness:
                assert witness, f"{fault} was not witnessed: it shows nothing"
                played.witnesses.append(witness)
                played.sessions += world.number_alive() + len(world.expired) - expired
                await world.crowd.until_acted(ACTS_MEANWHILE)
            healed = trio.current_time()
            nursery.cancel_scope.cancel()
        if fault.memory is Memory.LOST:
            world.crowd.forgive()
        played.wrong = await world.until_well()
        played.recoveries.append(trio.current_time() - healed)
        if played.wrong:
            break
    played.expired = len(world.expired)
    played.lost = world.lost()
    played.left_over = await world.left_over()
    played.rewinds = sum(one.statistics().database_rewinds for one in world.registries)
    clients = world.crowd.staying
    played.messages = sum(len(one.accepted) for one in clients)
    played.messages_lost = len(list(itertools.chain.from_iterable(c.missing() for c in clients)))
    return played


async def _assert_well(world: World) -> None:
    wrong = await world.until_well()
    assert not wrong, f"before any fault: {wrong}"


def assert_harmless(fault: Fault, played: Played) -> None:
    """Fail if a fault has done what no fault may do."""
    assert not played.lost, f"live sessions were disconnected: {played}"
    assert not played.left_over, f"something was left over: {played}"
    assert not played.wrong, f"all was not well again: {played}"
    if fault.memory is Memory.KEPT:
        assert played.rewinds == 0, f"the database went back, it was thought: {played}"
        assert played.messages_lost == 0, str(played)
    else:
        assert played.rewinds > 0, f"nobody has noticed what was forgotten: {played}"
