"""The lease has threads of its own: no load keeps a stamp waiting (invariant 17)."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport
from trio_sessions.types import Holder, RowAnswers, Stamp, Stamped
from trio_sessions.writes import Batch, Committed

T = TypeVar("T")

INTERVAL = 5.0  # seconds between two stamps


class Threads(MemoryStore):
    """Each operation takes a token of the limiter, as a thread does; what is held does not end."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[str] = set()
        self.takes: dict[str, float] = {}
        """Seconds, for operations that take their time."""
        self.began: list[tuple[str, float]] = []
        """What was at work, and since when."""
        self.most = 0
        """Tokens that were taken at one time."""
        self.most_of_lease = 0
        self._released = trio.Event()

    def release(self) -> None:
        self.held.clear()
        self._released.set()

    def count(self, name: str) -> int:
        return sum(one == name for one, _ in self.began)

    async def _in_thread(
        self, name: str, worker: Worker, operation: Callable[[], Awaitable[T]]
    ) -> T:
        async with worker.limiter:
            self.began.append((name, trio.current_time()))
            taken = int(worker.limiter.borrowed_tokens)
            if name in {"stamp", "begin"}:
                self.most_of_lease = max(self.most_of_lease, taken)
            else:
                self.most = max(self.most, taken)
            if name in self.held:
                await self._released.wait()
            if name in self.takes:
                await trio.sleep(self.takes[name])
            return await operation()

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        ask = super().locate
        return await self._in_thread("locate", worker, lambda: ask(worker, session_id))

    def commit_at_once(self, worker: Worker, batch: Batch) -> Committed | None:
        return None

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        commit = super().commit
        return await self._in_thread("commit", worker, lambda: commit(worker, batch))

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        refresh = super().refresh
        return await self._in_thread("refresh", worker, lambda: refresh(worker, session_ids))

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        set_it = super().stamp
        return await self._in_thread("stamp", worker, lambda: set_it(worker, stamp, passed=passed))


@asynccontextmanager
async def busy(
    tokens: int, *, sessions: int = 0
) -> AsyncIterator[tuple[Threads, SessionRegistry, trio.Nursery]]:
    """Open a registry with so many tokens, and a nursery for what hangs; release that at last."""
    store = Threads()
    async with (
        open_registry(store, max_concurrent=tokens, batch_size=1) as registry,
        trio.open_nursery() as nursery,
    ):
        for number in range(sessions):
            await registry.add_session(f"s{number}", FakeTransport())
        yield store, registry, nursery
        store.release()


async def load(registry: SessionRegistry, nursery: trio.Nursery) -> None:
    """Ask a hundred questions and add a session, and wait until nothing moves any more."""
    for number in range(100):
        nursery.start_soon(registry.locate_session, f"elsewhere {number}")
    nursery.start_soon(registry.add_session, "late", FakeTransport())
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("tokens", [1, 2, 5])
async def test_a_stamp_waits_for_no_load(autojump_clock: MockClock, tokens: int) -> None:
    """It goes out at its moment, though no question, batch or refresh ever ends."""
    async with busy(tokens, sessions=10) as (store, registry, nursery):
        store.held = {"locate", "commit", "refresh"}
        await load(registry, nursery)
        nursery.start_soon(registry.cleanup)
        await trio.testing.wait_all_tasks_blocked()
        assert registry.statistics().operations_running == tokens
        assert registry.statistics().operations_waiting
        store.began.clear()
        begun_at = trio.current_time()
        await trio.sleep(2.5 * INTERVAL)
        stamps = [begun for name, begun in store.began if name == "stamp"]
        assert len(stamps) >= 2
        assert all(b - a <= INTERVAL for a, b in zip([begun_at, *stamps], stamps, strict=False))


@pytest.mark.parametrize("tokens", [3, 5])
async def test_a_refresh_waits_for_no_question_and_no_batch(
    autojump_clock: MockClock, tokens: int
) -> None:
    """Of three tokens or more one is left to it, however many ask."""
    async with busy(tokens, sessions=1) as (store, registry, nursery):
        store.held = {"locate", "commit"}
        store.began.clear()
        await load(registry, nursery)
        assert store.count("commit") == 1
        assert store.count("locate") == tokens - 2
        now = trio.current_time()
        nursery.start_soon(registry.cleanup)
        await trio.testing.wait_all_tasks_blocked()
        assert [begun for name, begun in store.began if name == "refresh"] == [now]


@pytest.mark.parametrize(("tokens", "waits"), [(1, 2.0), (2, 1.0), (3, 0.0)])
async def test_a_refresh_waits_for_what_is_at_work_and_not_for_the_line_behind(
    autojump_clock: MockClock, tokens: int, waits: float
) -> None:
    """Of one token: for a question and the batch; of two, for whichever of them ends first."""
    async with busy(tokens, sessions=1) as (store, registry, nursery):
        store.takes = {"locate": 1.0, "commit": 1.0}
        store.began.clear()
        await load(registry, nursery)
        now = trio.current_time()
        nursery.start_soon(registry.cleanup)
        await trio.sleep(5)
        assert [begun for name, begun in store.began if name == "refresh"] == [now + waits]
        assert store.count("locate") >= 3
        store.takes.clear()


@pytest.mark.parametrize("tokens", [1, 2])
async def test_of_two_tokens_questions_take_one(autojump_clock: MockClock, tokens: int) -> None:
    """While nothing is written a refresh finds the other; of one token they take that."""
    async with busy(tokens, sessions=1) as (store, registry, nursery):
        store.held = {"locate"}
        store.began.clear()
        for number in range(100):
            nursery.start_soon(registry.locate_session, f"elsewhere {number}")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(registry.cleanup)
        await trio.testing.wait_all_tasks_blocked()
        assert store.count("locate") == 1
        assert store.count("refresh") == tokens - 1


async def test_a_stamp_waits_for_no_other_stamp(autojump_clock: MockClock) -> None:
    """One of a pass that hangs must not hide from the loop that the database went back."""
    async with busy(1) as (store, registry, nursery):
        store.held = {"stamp"}
        store.began.clear()
        nursery.start_soon(partial(registry._house._edge.stamp, passed=True))
        await trio.sleep(1.5 * INTERVAL)
        assert store.count("stamp") == 2


@pytest.mark.parametrize("tokens", [1, 2, 5])
async def test_what_is_at_work_at_once_is_bounded(autojump_clock: MockClock, tokens: int) -> None:
    """By ``max_concurrent``; and one stamp beside it."""
    async with busy(tokens, sessions=10) as (store, registry, nursery):
        store.held = {"refresh", "locate", "commit", "stamp"}
        await load(registry, nursery)
        nursery.start_soon(registry.cleanup)
        await trio.sleep(2.5 * INTERVAL)
        statistics = registry.statistics()
        assert store.most == statistics.operations_running == statistics.operations_limit == tokens
        assert store.most_of_lease == 1
