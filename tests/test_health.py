"""What `health()` says: facts that a probe decides on; it asks nobody for them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import trio
import trio.testing
import trio_asyncio
import uvloop
from backdoors import MemoryBackdoor
from trio.testing import MockClock

from trio_sessions import RegistryClosed, RegistryHealth, SessionRegistry, aio, open_registry
from trio_sessions.errors import OperationTooLong, RowLocked, SessionsError
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


@asynccontextmanager
async def opened(store: FaultyStore) -> AsyncIterator[SessionRegistry]:
    with trio.fail_after(1_000_000):  # of the mock clock
        async with open_registry(store, store_timeout=30.0, cleanup_interval=300.0) as registry:
            yield registry


# ---- the database ----


async def test_a_new_registry_is_well(store: FaultyStore, autojump_clock: MockClock) -> None:
    """The first pass was a good one; nobody listens yet, and the loop was not measured."""
    async with opened(store) as registry:
        health = registry.health()
        assert health == RegistryHealth(
            worker_id=registry.worker_id,
            closed=False,
            draining=False,
            database_answers=True,
            database_away=0.0,
            since_good_pass=health.since_good_pass,
            held=0,
            unknown_transport=0.0,
            unknown_row=0.0,
            bell_alive=None,
            loop_lag=None,
        )
        assert health.since_good_pass == 0.0
        with pytest.raises(FrozenInstanceError):
            health.closed = True  # type: ignore[misc]
    assert registry.health().closed is True


async def test_an_outage_is_as_long_as_it_goes_unanswered(
    store: FaultyStore, autojump_clock: MockClock
) -> None:
    """From the first operation without an answer on; passes without one are no good ones."""
    async with opened(store) as registry:
        await registry.add_session("alice", FakeTransport())
        await trio.sleep(100)
        assert registry.health().since_good_pass == 100.0
        store.fail(Fault.FAILS)
        await registry.cleanup()
        assert store.faults
        await trio.sleep(50)
        health = registry.health()
        assert (health.database_answers, health.database_away) == (False, 50.0)
        assert health.since_good_pass == 150.0
        store.heal()
        await registry.cleanup()
        health = registry.health()
        assert (health.database_answers, health.database_away) == (True, 0.0)
        assert health.since_good_pass == 0.0


async def test_no_answer_within_the_timeout_is_none(
    store: FaultyStore, autojump_clock: MockClock
) -> None:
    """It counts from when that was known."""
    async with opened(store) as registry:
        store.fail(Fault.HANGS)
        await registry.cleanup()
        assert store.faults
        health = registry.health()
        assert (health.database_answers, health.database_away) == (False, 0.0)
        await trio.sleep(1)
        assert registry.health().database_away == 1.0
        store.heal()


@pytest.mark.parametrize("error", [RowLocked("locked"), OperationTooLong("too long")])
async def test_a_database_that_says_that_it_cannot_has_answered(
    store: FaultyStore, error: SessionsError, autojump_clock: MockClock
) -> None:
    """A lock, or too much at once, is no outage."""
    async with opened(store) as registry:
        await registry.add_session("alice", FakeTransport())
        store.error = error
        store.fail(Fault.FAILS, "refresh")
        report = await registry.cleanup()
        assert store.faults["refresh"]
        assert list(report.refresh_failures) == ["alice"]
        assert registry.health().database_answers is True


async def test_the_brake_is_on_while_the_last_pass_has_held_sessions(
    autojump_clock: MockClock,
) -> None:
    """And off when they are there again, or gone."""
    store = MemoryStore()
    ids = [f"s{number}" for number in range(12)]
    async with open_registry(store) as registry:
        for session_id in ids:
            await registry.add_session(session_id, FakeTransport())
        MemoryBackdoor(store).delete(*ids)
        await registry.cleanup()
        assert registry.health().held == 12
        await registry.cleanup()
        assert registry.health().held == 0
        assert await registry.get_all_session_ids() == []


async def test_the_bell_is_alive_while_the_worker_hears(
    store: FaultyStore, autojump_clock: MockClock
) -> None:
    """Not known before anybody reads; not alive while it cannot be opened."""
    async with opened(store) as registry:
        await registry.add_session("alice", FakeTransport())
        store.fail(Fault.FAILS, "open_bell", times=1)
        async with registry.open_inbox("alice"):
            await trio.testing.wait_all_tasks_blocked()
            assert store.faults["open_bell"] == 1
            assert registry.health().bell_alive is False
            while registry.health().bell_alive is False:
                await trio.sleep(0.1)
            assert registry.health().bell_alive is True
    assert registry.health().bell_alive is False


async def test_a_registry_that_is_drained_says_so(store: FaultyStore) -> None:
    """So that nobody new is sent to it."""
    async with open_registry(store) as registry:
        assert registry.health().draining is False
        await registry.drain(0.0)
        assert registry.health().draining is True


# ---- the loop ----


async def test_a_loop_that_stood_still_is_late(store: FaultyStore, mock_clock: MockClock) -> None:
    """While it goes on, and for ten seconds after; nothing is measured before the first call."""
    async with opened(store) as registry:
        assert registry.health().loop_lag is None
        await trio.testing.wait_all_tasks_blocked()
        assert registry.health().loop_lag is None
        mock_clock.jump(4.0)  # nothing runs meanwhile
        assert registry.health().loop_lag == 3.0
        mock_clock.jump(2.0)
        assert registry.health().loop_lag == 5.0
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked()
            assert registry.health().loop_lag == 5.0
            mock_clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert registry.health().loop_lag == 0.0


async def test_who_does_not_ask_pays_for_no_task(
    store: FaultyStore, autojump_clock: MockClock
) -> None:
    """One task from the first call on, and it ends with the registry."""

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    before = tasks()
    async with opened(store) as registry:
        opened_ = tasks()
        for _ in range(3):
            registry.health()
        assert tasks() == opened_ + 1
    registry.health()
    await trio.testing.wait_all_tasks_blocked()
    assert tasks() == before


async def test_another_thread_may_ask_and_starts_nothing(store: FaultyStore) -> None:
    """As a server of metrics does."""
    async with open_registry(store) as registry:
        before = trio.lowlevel.current_statistics().tasks_living
        health = await trio.to_thread.run_sync(registry.health)
        assert (health.worker_id, health.loop_lag) == (registry.worker_id, None)
        assert trio.lowlevel.current_statistics().tasks_living == before


async def test_nothing_is_asked(store: FaultyStore, autojump_clock: MockClock) -> None:
    """Whatever the database does, the answer is there, and no checkpoint before it."""
    async with opened(store) as registry:
        store.fail(Fault.HANGS)
        asked = store.calls.copy()
        with trio.testing.assert_no_checkpoints():
            registry.health()
        assert store.calls == asked
        store.heal()


# ---- asyncio ----


def run(loop: str, main: Any) -> None:
    if loop == "trio-asyncio":

        async def in_trio() -> None:
            async with trio_asyncio.open_loop():
                await trio_asyncio.aio_as_trio(main)()

        trio.run(in_trio)
        return
    factory = asyncio.SelectorEventLoop if loop == "asyncio" else uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio-asyncio"])
def test_it_says_the_same_on_asyncio(loop: str) -> None:
    """From asyncio's side of the thread; a loop that was held up shows, and an end too."""

    async def main() -> None:
        registry = aio.SessionRegistry()
        with pytest.raises(RegistryClosed):
            registry.health()
        async with registry:
            health = registry.health()
            assert (health.closed, health.database_answers) == (False, True)
            assert health.worker_id == registry.worker_id
            assert health.loop_lag is None
            await asyncio.sleep(0.05)  # the task begins
            time.sleep(1.2)  # noqa: ASYNC251 -- what is measured
            lag = registry.health().loop_lag
            assert lag is not None
            assert lag > 0.1
        assert registry.health().closed is True

    run(loop, main)
