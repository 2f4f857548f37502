"""The event loop is never held for long, however many sessions there are (invariant 12).

Counted, not timed: the work that is done in one step of a task, as calls of our functions and
comparisons of ids. It is that of a slice of the sessions, however many there are. Who goes by the
time is told the time.
"""

import asyncio
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import trio
from backdoors import MemoryBackdoor
from instruments import installed
from trio.testing import MockClock

import trio_sessions
from trio_sessions import Limits, SessionRegistry, open_registry
from trio_sessions._calls import TrioHost
from trio_sessions._draining import _Told
from trio_sessions._entry import Entry
from trio_sessions._rounds import Round
from trio_sessions._running import Running
from trio_sessions._verdicts import judge_rows
from trio_sessions.aio._steps import Steps
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore

pytestmark = pytest.mark.usefixtures("nothing_in_between")

OURS = Path(trio_sessions.__file__).parent
NOT_COUNTED = {"stores", "testing"}
"""A store in memory does in one step what others do in threads."""
SLICE = 4
MANY = 60 * SLICE
MOST = 52 * SLICE
"""What a step may do: the most is a batch of claims."""


@cache
def counts(code: CodeType) -> bool:
    """Say whether a function is one of those whose calls are counted."""
    file = Path(code.co_filename)
    return file.is_relative_to(OURS) and file.relative_to(OURS).parts[0] not in NOT_COUNTED


class Turns(trio.abc.Instrument):
    """Counts the work of each step, and keeps the largest.

    The steps of `trio_sessions._rounds` are left out: they end after some milliseconds, by a clock.
    """

    def __init__(self) -> None:
        self.largest = 0
        self.where: list[tuple[str, int]] = []
        self.chunks = 0
        """How many chunks were judged in one turn of the loop, at most."""
        self._step: Counter[str] = Counter()
        self._chunks = 0

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """Take a call for a piece of work; for `sys.setprofile`."""
        if event == "call" and counts(frame.f_code):
            self._step[frame.f_code.co_qualname] += 1
            self._chunks += frame.f_code is judge_rows.__code__
            self.chunks = max(self.chunks, self._chunks)

    def compare(self) -> None:
        """Count a comparison of ids."""
        self._step["comparison"] += 1

    def before_io_wait(self, timeout: float) -> None:
        self._chunks = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step.clear()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        work = self._step.total()
        if work > self.largest and "_rounds" not in task.name:
            self.largest, self.where = work, self._step.most_common(4)

    def take(self) -> tuple[int, list[tuple[str, int]]]:
        """Return the largest step since this was last asked, and what was done in it."""
        largest, self.largest = self.largest, 0
        return largest, self.where


class Id(str):
    """A session id that says when it is compared."""

    __slots__ = ("turns",)

    turns: Turns

    def __lt__(self, other: str) -> bool:
        self.turns.compare()
        return str(self) < str(other)


def make_ids(turns: Turns, number: int) -> list[Id]:
    """Return ids in an order that has nothing to do with theirs."""
    ids = [Id(f"session {n:05}") for n in range(number)]
    random.Random(0).shuffle(ids)
    for one in ids:
        one.turns = turns
    return ids


class Hashed(Id):
    """A session id that says when our code compares it, looks it up, or makes a set of it."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        if counts(sys._getframe(1).f_code):
            self.turns.compare()
        return str(self) < str(other)

    def __hash__(self) -> int:
        if counts(sys._getframe(1).f_code):
            self.turns.compare()
        return str.__hash__(self)


class Watch:
    """So many sessions of a registry, and the largest step of each thing that happens to them."""

    def __init__(self, turns: Turns, number: int) -> None:
        self.steps: dict[str, tuple[int, list[tuple[str, int]]]] = {}
        self.turns = turns
        memory = MemoryStore()
        self.store, self.backdoor = FaultyStore(memory), MemoryBackdoor(memory)
        self.ids = make_ids(turns, number)
        self.number = number

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Note the largest step of the block."""
        self.turns.take()
        yield
        self.steps[what] = self.turns.take()

    async def add_all(self, registry: SessionRegistry) -> dict[str, FakeTransport]:
        transports: dict[str, FakeTransport] = {one: FakeTransport() for one in self.ids}
        async with trio.open_nursery() as nursery:
            for one, transport in transports.items():
                nursery.start_soon(registry.add_session, one, transport)
        return transports

    async def lose_a_quarter_thrice(self, registry: SessionRegistry) -> None:
        """Let sessions end for each reason that a pass knows."""
        with self.step("added"):
            transports = await self.add_all(registry)
        with self.step("refreshed"):
            assert (await registry.cleanup()).refreshed == self.number
        quarter = self.number // 4
        for one in self.ids[:quarter]:
            transports[one].state = "closed"
        with self.step("disconnected"):
            assert len((await registry.cleanup()).disconnected) == quarter
        self.backdoor.delete(*self.ids[quarter : 2 * quarter])
        with self.step("missing"):
            assert len((await registry.cleanup()).missing) == quarter
        for one in self.ids[2 * quarter : 3 * quarter]:
            self.backdoor.give(one, "another")
        with self.step("taken over"):
            assert len((await registry.cleanup()).taken_over) == quarter

    async def lose_all_thrice(self, registry: SessionRegistry) -> None:
        """Empty the table, let all leave while the store is away, and let the store go back."""
        await self.add_all(registry)
        self.backdoor.delete(*self.ids)
        with self.step("held"):
            assert len((await registry.cleanup()).held) == self.number
        with self.step("missing again"):
            assert len((await registry.cleanup()).missing) == self.number
        transports = await self.add_all(registry)
        for transport in transports.values():
            transport.state = "closed"
        self.store.fail()
        assert len((await registry.cleanup()).disconnected) == self.number
        self.store.heal()
        with self.step("deleted later"):
            await registry.cleanup()
        assert registry.statistics().leftover_rows == 0
        await self.add_all(registry)
        self.backdoor.go_back(None)
        with self.step("restored"):
            assert len((await registry.cleanup()).restored) == self.number


@contextmanager
def counting() -> Iterator[Turns]:
    """Count what is done in the block, in this run of Trio."""
    turns, before = Turns(), sys.getprofile()
    trio.lowlevel.add_instrument(turns)
    sys.setprofile(turns.note)
    try:
        yield turns
    finally:
        sys.setprofile(before)
        trio.lowlevel.remove_instrument(turns)


async def test_no_step_grows_with_the_number_of_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to all of them at once: a turn of the loop comes after so many."""
    for module in ("_claims", "_cleanup", "_restoring", "_sessions"):
        monkeypatch.setattr(f"trio_sessions.{module}._SLICE", SLICE)
    with counting() as turns:
        watch = Watch(turns, MANY)
        async with open_registry(
            watch.store,
            session_ttl=3600.0,
            cleanup_interval=1800.0,
            mass_missing_brake=0.4,
            batch_size=SLICE,
        ) as registry:
            await watch.lose_a_quarter_thrice(registry)
            await watch.lose_all_thrice(registry)
            turns.take()
        watch.steps["closed"] = turns.take()
    assert {what: step for what, step in watch.steps.items() if step[0] > MOST} == {}
    assert all(largest > SLICE for largest, _ in watch.steps.values()), "the work is seen"
    assert turns.chunks == 1, "one chunk is judged at a time, and others run in between"
    assert watch.backdoor.rows() == {}


async def test_no_step_grows_with_the_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a chunk is one session: to begin with them takes turns, too."""
    monkeypatch.setattr("trio_sessions._cleanup._SLICE", 3 * SLICE)
    with counting() as turns:
        watch = Watch(turns, MOST + MOST // 2)
        async with open_registry(
            watch.store, session_ttl=3600.0, cleanup_interval=1800.0, batch_size=1
        ) as registry:
            watch.store.fail()
            await watch.add_all(registry)
            watch.store.heal()
            with watch.step("restored"):
                assert len((await registry.cleanup()).restored) == watch.number
            with watch.step("refreshed"):
                assert (await registry.cleanup()).refreshed == watch.number
    assert {what: step for what, step in watch.steps.items() if step[0] > MOST} == {}
    assert all(largest > 1 for largest, _ in watch.steps.values()), "the work is seen"


async def test_no_look_at_them_grows_with_their_number(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can be asked, how many wait to be written, and what becomes of their messages."""
    for module in ("_cleanup", "_owners", "_messages._inboxes", "_messages._reading"):
        monkeypatch.setattr(f"trio_sessions.{module}._SLICE", SLICE)
    monkeypatch.setattr("trio_sessions._messages._reading._BATCH", SLICE)
    with counting() as turns:
        watch = Watch(turns, MANY)
        async with (
            open_registry(watch.store, message_ttl=60.0, batch_size=SLICE) as registry,
            open_registry(watch.store) as other,
            AsyncExitStack() as inboxes,
        ):
            await watch.add_all(registry)
            for one in watch.ids:
                await registry.store_client_capabilities(one, {"elicitation": {}})
                await registry.broadcast(one, "in memory")
            with watch.step("asked"):
                assert len(await registry.get_elicitation_capable_sessions()) == MANY
            with watch.step("expired"):
                await trio.sleep(61)
                await registry.cleanup()
            statistics = registry.statistics()
            assert (statistics.messages_dropped, statistics.messages_in_memory) == (MANY, 0)
            for one in watch.ids:
                await inboxes.enter_async_context(registry.open_inbox(one))
                await other.broadcast(one, "in the store")
            while registry.statistics().messages_in_memory < MANY:
                await trio.sleep(0.01)
            with watch.step("looked for"):
                await registry._house.messages._reading._look_for_all()
                await trio.lowlevel.checkpoint()
            with watch.step("counted"):
                await trio.lowlevel.checkpoint()
                registry.statistics()
                await trio.lowlevel.checkpoint()
            assert registry.statistics().unconfirmed == 0
    assert {what: step for what, step in watch.steps.items() if step[0] > MOST} == {}
    assert watch.steps["counted"][0] > 0, "the work is seen"


async def test_no_step_of_those_who_leave_grows_with_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that were revoked elsewhere, and those that a drain tells to leave."""
    for module in ("_draining", "_revoking"):
        monkeypatch.setattr(f"trio_sessions.{module}._SLICE", SLICE)
    with counting() as turns:
        watch = Watch(turns, MANY)
        async with (
            open_registry(watch.store, batch_size=SLICE) as registry,
            open_registry(watch.store) as other,
        ):
            await watch.add_all(registry)
            await other.revoke(*watch.ids[: MANY // 2])
            with watch.step("revoked"):
                await registry._house.revoking.look()
            assert len(registry._house.table) == MANY // 2
            told = _Told()
            with watch.step("told to leave"):
                await registry._house.draining._tell(told, [], only_quiet=True)
            assert len(told.ids) == MANY // 2
    assert {what: step for what, step in watch.steps.items() if step[0] > MOST} == {}
    assert all(largest > SLICE for largest, _ in watch.steps.values()), "the work is seen"


async def test_no_step_of_a_drain_grows_with_their_number(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to count the rows that wait for their clients, nor to end, nor to say how it was."""
    for module in ("_draining", "_sessions"):
        monkeypatch.setattr(f"trio_sessions.{module}._SLICE", SLICE)
    with counting() as turns:
        watch = Watch(turns, MANY)
        watch.ids = [Hashed(one) for one in watch.ids]
        for one in watch.ids:
            one.turns = turns
        async with open_registry(watch.store, batch_size=10 * SLICE) as registry:
            await watch.add_all(registry)
            with watch.step("drained"):
                report = await registry.drain(1.0)
            assert (len(report.drained), report.waiting) == (MANY, MANY)
    assert {what: step for what, step in watch.steps.items() if step[0] > MOST} == {}
    assert all(largest > SLICE for largest, _ in watch.steps.values()), "the work is seen"


async def test_no_step_of_ending_the_idle_grows_with_their_number(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are over a limit are looked for, and ended, before any transport is asked."""
    monkeypatch.setattr("trio_sessions._cleanup._SLICE", SLICE)
    with counting() as turns:
        watch = Watch(turns, MANY)
        async with open_registry(
            watch.store,
            limits=Limits(idle_timeout=60.0),
            session_ttl=3600.0,
            cleanup_interval=1800.0,
            batch_size=SLICE,
        ) as registry:
            await watch.add_all(registry)
            await trio.sleep(61)
            with watch.step("idle"):
                assert len((await registry.cleanup()).idle) == MANY
    largest, where = watch.steps["idle"]
    assert SLICE < largest <= MOST, where


async def test_no_step_after_a_lost_lease_grows_with_the_number_of_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those whose rows were swept are looked for, to be asked for once more."""
    for module in ("_cleanup", "_restoring", "_sessions"):
        monkeypatch.setattr(f"trio_sessions.{module}._SLICE", SLICE)
    with counting() as turns:
        watch = Watch(turns, MANY)
        settings: dict[str, Any] = {"session_ttl": 3600.0, "cleanup_interval": 1800.0}
        async with (
            open_registry(watch.store, batch_size=SLICE, **settings) as registry,
            open_registry(watch.store, **settings) as other,
        ):
            await watch.add_all(registry)
            watch.backdoor.age(7200.0)
            watch.backdoor.age_workers(7200.0, registry.worker_id)
            assert (await other.cleanup()).expired == MANY
            with watch.step("lease lost"):
                assert len((await registry.cleanup()).missing) == MANY
    largest, where = watch.steps["lease lost"]
    assert SLICE < largest <= MOST, where


# ---- those that go by the time, or by the size ----


class Clock:
    """A clock that goes on by what each piece of work takes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Turn(trio.abc.Instrument):
    """Counts the steps of tasks, so that it can be said what was done in the same one."""

    now = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.now += 1


def per_turn(turns: list[int]) -> list[int]:
    """Return how much was done in each turn, in their order."""
    return list(Counter(turns).values())


async def test_a_round_of_calls_goes_by_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some milliseconds of transports that answer at once others get their turn."""
    clock, done = Clock(), list[int]()
    monkeypatch.setattr("trio_sessions._rounds.time", clock)

    class Takes(FakeTransport):
        async def is_connected(self) -> bool:
            clock.now += 0.0008
            done.append(turn.now)
            return True

    entries = [Entry(f"s{number}", Takes(), 1, 0.0) for number in range(9)]
    host = TrioHost()
    async with host.open():
        with installed(Turn()) as turn:
            answers = await Round(host, Running(), "is_connected", entries, 1.0).ask()
    assert set(answers.values()) == {True}
    assert per_turn(done) == [3, 3, 3]


async def test_letters_are_handed_on_by_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was away for long finds many, and reads them with others in between."""
    monkeypatch.setattr("trio_sessions._mail._office._SLICE", 100)
    done = list[int]()
    async with open_registry(MemoryStore()) as registry:
        office = registry._house._mail._office
        with installed(Turn()) as turn:
            monkeypatch.setattr(office, "receive", lambda _: done.append(turn.now))
            await office._hand_on(["x" * 40] * 8)
    assert per_turn(done) == [3, 3, 2]


def test_the_steps_of_a_guest_run_go_by_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one follows the other, asyncio gets its turn after a millisecond."""
    clock, done = Clock(), list[int]()
    monkeypatch.setattr("trio_sessions.aio._steps.time", clock)

    async def main() -> None:
        steps, turn = Steps(asyncio.get_running_loop()), 0

        def step() -> None:
            clock.now += 0.0004
            done.append(turn)
            if len(done) < 8:
                steps.soon(step)

        steps.soon(step)
        while len(done) < 8:
            await asyncio.sleep(0)
            turn += 1

    asyncio.run(main())
    assert per_turn(done) == [3, 3, 2]


_SLICES = re.compile(r"^_\w*SLICE\w*\b(?: = ([\d_.]+)  # (\w+) .*gets its turn)?", re.MULTILINE)
"""Of a module: how much of what is done before others get their turn."""
_FEW = {
    "sessions": 1000,
    "inboxes": 1000,
    "deletions": 1000,
    "characters": 100_000,
    "seconds": 0.002,
}


def test_slices_are_small() -> None:
    """A thousand sessions are judged within a few milliseconds; of every module."""
    found = {
        str(file.relative_to(OURS)): slices
        for file in OURS.rglob("*.py")
        if (slices := _SLICES.findall(file.read_text(encoding="utf-8")))
    }
    assert found.keys() >= {"_cleanup.py", str(Path("_messages", "_reading.py"))}
    large = {
        name: (number, unit)
        for name, slices in found.items()
        for number, unit in slices
        if unit not in _FEW or float(number) > _FEW[unit]
    }
    assert large == {}
