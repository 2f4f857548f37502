"""A clock that jumps, with a database whose work is done in threads."""

import threading

import pytest
import trio
import trio.testing
from conftest import Shared
from soak import longer
from trio.testing import MockClock

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore, virtual_time


async def let_time_pass(shared: Shared) -> int:
    async with shared.open(session_ttl=3600.0, cleanup_interval=300.0) as registry:
        await registry.add_session("s", FakeTransport())
        await trio.sleep(1000.0)
        assert await registry.session_exists("s") is True
        statistics = registry.statistics()
        assert (statistics.sessions, statistics.refresh_failures) == (1, 0)
        return statistics.passes


@pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgresql", marks=longer)], indirect=True
)
async def test_time_passes_with_a_database(autojump_clock: MockClock, database: Shared) -> None:
    """A pass every five minutes, each answered, in no time; the clock is as it was afterwards."""
    with virtual_time() as clock:
        assert clock is autojump_clock
        assert await let_time_pass(database) >= 4
    assert autojump_clock.autojump_threshold == 0
    assert autojump_clock.current_time() >= 1000.0


async def test_without_the_helper_the_error_says_what_to_do(
    autojump_clock: MockClock, sqlite: Shared
) -> None:
    """The clock jumps over store_timeout while the thread is at work."""
    store = FaultyStore(sqlite.make_store())
    store.fail(Fault.HANGS, "open")  # as a thread that is at work, for longer than a jump takes
    with pytest.raises(StoreUnavailable, match=r"with trio_sessions\.testing\.virtual_time\(\):"):
        async with sqlite.open(store=store):
            raise AssertionError("it opened")


@pytest.mark.parametrize("clock", [None, MockClock(autojump_threshold=0)])
async def test_a_store_that_is_slow_by_itself_is_no_fault_of_the_clock(
    clock: MockClock | None,
) -> None:
    """Where no thread is at work, or no clock jumps, the error speaks of neither."""

    async def main() -> None:
        store = FaultyStore(MemoryStore())
        store.fail(Fault.HANGS, "open")
        with pytest.raises(StoreUnavailable, match=r"within store_timeout \(0\.01 s\)$"):
            async with open_registry(store, store_timeout=0.01):
                pass

    await trio.to_thread.run_sync(lambda: trio.run(main, clock=clock))


async def test_the_clock_stands_still_while_a_thread_is_at_work(
    autojump_clock: MockClock,
) -> None:
    """And jumps as soon as none is."""
    go_on = threading.Event()
    started = trio.Event()
    moments: list[float] = []

    async def work() -> None:
        await trio.to_thread.run_sync(at_work)
        moments.append(trio.current_time())

    def at_work() -> None:
        trio.from_thread.run_sync(started.set)
        assert go_on.wait(30)

    with virtual_time():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await started.wait()
            with trio.move_on_after(50.0) as scope:
                await trio.testing.wait_all_tasks_blocked(0.02)
                await trio.testing.wait_all_tasks_blocked(0.02)
                go_on.set()
                await trio.sleep_forever()
        assert moments == [0.0]
        assert scope.cancelled_caught
        assert trio.current_time() == 50.0


def test_it_says_which_clock_it_needs() -> None:
    """Real time does not jump, nor does a clock that is moved by hand."""

    async def enter() -> None:
        with pytest.raises(RuntimeError, match="autojump_clock of pytest-trio"), virtual_time():
            pass

    for clock in (None, MockClock(), MockClock(rate=10)):
        trio.run(enter, clock=clock)
