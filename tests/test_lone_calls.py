"""What a lone call costs: turns of the loop, tasks, scopes, and calls of ours. Counted, not timed.

Each turn, task and scope has a price of Trio's own, of some microseconds. Many calls at once share
them. See docs/decisions/0009-one-writer.md.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trio_sessions
from trio_sessions import SessionRegistry, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.writes import Batch, Committed

pytestmark = pytest.mark.usefixtures("nothing_in_between", "no_clock_in_rounds")

IDS = [f"s{number}" for number in range(100)]
OURS = Path(trio_sessions.__file__).parent
SCOPE = trio.CancelScope.__enter__.__code__
MOST_TO_ADD, MOST_TO_REMOVE = 135, 170
"""Calls of our functions, those of the memory store among them; a resumed one counts again."""


@pytest.fixture
def no_clock_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No round of calls gives the loop its turn for taking long: a busy machine takes long."""
    monkeypatch.setattr("trio_sessions._rounds._SLICE", 3600.0)


class Counts(trio.abc.Instrument):
    """Counts what Trio does."""

    def __init__(self) -> None:
        self.turns = self.tasks = 0

    def before_io_wait(self, timeout: float) -> None:
        self.turns += 1

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.tasks += 1


class AtOnce:
    """A transport that never waits."""

    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        pass


@cache
def is_ours(code: CodeType) -> bool:
    """Say whether a function is one of the package's."""
    return Path(code.co_filename).is_relative_to(OURS)


class Calls:
    """Counts calls of the package's functions, and scopes that are entered."""

    def __init__(self) -> None:
        self.functions = self.scopes = 0

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """Take note of a call; for `sys.setprofile`."""
        if event == "call":
            self.functions += is_ours(frame.f_code)
            self.scopes += frame.f_code is SCOPE


@contextmanager
def counting_calls() -> Iterator[Calls]:
    """Count in the block."""
    calls, before = Calls(), sys.getprofile()
    sys.setprofile(calls.note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@contextmanager
def counting() -> Iterator[Counts]:
    """Count in the block."""
    counts = Counts()
    trio.lowlevel.add_instrument(counts)
    yield counts
    trio.lowlevel.remove_instrument(counts)


async def add(registry: SessionRegistry, session_id: str) -> None:
    """Add a session with a transport of its own."""
    await registry.add_session(session_id, AtOnce())


async def test_a_lone_call_takes_few_turns(mock_clock: MockClock) -> None:
    """To add: the batch, and the caller. To remove: two tasks and two turns more."""
    async with open_registry() as registry:
        with counting() as added:
            for session_id in IDS:
                await add(registry, session_id)
        with counting() as removed:
            for session_id in IDS:
                await registry.remove_session(session_id)
    lone = len(IDS)
    assert (added.turns, added.tasks) == (2 * lone, 0)
    # The job begins; whoever calls the transport begins, and ends; the writer commits, while the
    # job is told of that; the caller and the job are told.
    assert (removed.turns, removed.tasks) == (4 * lone, 2 * lone)


async def test_a_lone_call_asks_little_of_trio_and_of_us(mock_clock: MockClock) -> None:
    """To add enters no scope; to remove three: the job's, its bound, and the transport's."""
    async with open_registry() as registry:
        await wait_all_tasks_blocked()
        with counting_calls() as added:
            for session_id in IDS:
                await add(registry, session_id)
        with counting_calls() as removed:
            for session_id in IDS:
                await registry.remove_session(session_id)
    lone = len(IDS)
    assert (added.scopes, removed.scopes) == (0, 3 * lone)
    assert 0 < added.functions <= MOST_TO_ADD * lone
    assert 0 < removed.functions <= MOST_TO_REMOVE * lone


async def test_calls_at_once_share_their_turns(mock_clock: MockClock) -> None:
    """A hundred take about the turns of one; and one job, and one task calls all transports."""
    async with open_registry() as registry:
        with counting() as added:
            async with trio.open_nursery() as nursery:
                for session_id in IDS:
                    nursery.start_soon(add, registry, session_id)
        with counting() as removed:
            async with trio.open_nursery() as nursery:
                for session_id in IDS:
                    nursery.start_soon(registry.remove_session, session_id)
    assert added.tasks == len(IDS)
    assert removed.tasks == len(IDS) + 2
    # Some more for the tasks to begin, and for their nursery to end.
    assert added.turns <= 2 * 2
    assert removed.turns <= 2 * 4


class CommitsInItsOwnWay(MemoryStore):
    """Notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        self.batches.append(len(batch.writes))
        return await super().commit(worker, batch)


async def test_a_store_that_commits_in_its_own_way_is_awaited(mock_clock: MockClock) -> None:
    """What it inherits is not asked for in its place."""
    store = CommitsInItsOwnWay()
    async with open_registry(store) as registry:
        await add(registry, "s")
        assert store.batches == [1]
        await registry.remove_session("s")
    assert store.batches == [1, 1]


async def test_batches_that_follow_each_other_take_turns(mock_clock: MockClock) -> None:
    """A long line holds the loop for one batch at a time."""
    async with open_registry(batch_size=1) as registry:
        with counting() as added:
            async with trio.open_nursery() as nursery:
                for session_id in IDS:
                    nursery.start_soon(add, registry, session_id)
    assert added.turns >= len(IDS)
