"""A store object is open in one Trio run at a time; another run is refused, or waits for nobody."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import MemoryBackdoor
from conftest import STORES
from trio.testing import MockClock
from witnesses import open_witnessed

from trio_sessions import StoreInUse, StoreUnavailable, aio, open_registry
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport
from trio_sessions.writes import Post


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> SessionStore:
    if request.param == "memory":
        return MemoryStore()
    name = "sqlite_url" if request.param == "sqlite" else "postgresql_schema"
    return DatabaseStore(request.getfixturevalue(name))


class InThreads:
    """Runs a function in threads; what one raises is kept."""

    def __init__(self) -> None:
        self.results: list[object] = []
        self._threads: list[threading.Thread] = []

    def start(self, function: Callable[[], object]) -> None:
        def keep_result() -> None:
            try:
                self.results.append(function())
            except Exception as exc:  # noqa: BLE001 -- looked at by the test
                self.results.append(exc)

        self._threads.append(threading.Thread(target=keep_result, daemon=True))
        self._threads[-1].start()

    def join(self) -> list[object]:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), "a run hangs"
        return self.results


async def work(
    store: SessionStore, ready: Callable[[], object], go_on: Callable[[], object]
) -> str:
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        ready()
        await trio.to_thread.run_sync(go_on)
        assert (await registry.cleanup()).refreshed == 1
    return "worked"


class Connection:
    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        pass


async def work_on_asyncio(
    store: SessionStore, ready: Callable[[], object], go_on: Callable[[], object]
) -> str:
    async with aio.SessionRegistry(store) as registry:
        await registry.add_session("s", Connection())
        ready()
        await asyncio.to_thread(go_on)
        assert (await registry.cleanup()).refreshed == 1
    return "worked"


RUNS: dict[str, Callable[..., Any]] = {
    "trio": lambda *args: trio.run(work, *args),
    "asyncio": lambda *args: asyncio.run(work_on_asyncio(*args)),
}


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    run: Callable[..., Any] = RUNS[request.param]
    return run


def nothing() -> None:
    """Neither wait nor tell."""


def test_a_second_run_is_refused_at_once(
    store: SessionStore, run: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The error says what to do, nothing is logged; the first one does not notice."""
    threads, ready, go_on = InThreads(), threading.Event(), threading.Event()
    threads.start(lambda: run(store, ready.set, go_on.wait))
    assert ready.wait(20)
    for second in RUNS.values():
        with pytest.raises(StoreInUse, match="make a store for each") as caught:
            second(store, nothing, nothing)
        assert isinstance(caught.value, StoreUnavailable)
        assert isinstance(caught.value, RuntimeError)
        assert "AssertionError" not in str(caught.value)
    go_on.set()
    assert threads.join() == ["worked"]
    assert caplog.text == ""
    assert run(store, nothing, nothing) == "worked"


def test_runs_that_open_it_at_the_same_moment(store: SessionStore, run: Callable[..., Any]) -> None:
    """One of them gets it."""
    barrier, threads = threading.Barrier(3), InThreads()

    def open_it() -> object:
        barrier.wait(20)
        return run(store, nothing, lambda: barrier.wait(20))

    def be_refused() -> object:
        try:
            return open_it()
        except StoreInUse:
            barrier.wait(20)  # only now may the one that has it end
            return "refused"

    for _ in range(3):
        threads.start(be_refused)
    assert sorted(map(str, threads.join())) == ["refused", "refused", "worked"]


def worker(name: str) -> Worker:
    return Worker(worker_id=name, incarnation=name, limiter=trio.CapacityLimiter(5))


def test_a_run_that_has_ended_without_closing(store: SessionStore) -> None:
    """As after a crash: the next run opens the store as if it had been closed."""
    trio.run(store.open, worker("crashed"))
    assert RUNS["trio"](store, nothing, nothing) == "worked"
    trio.run(store.close, worker("crashed"))  # it has nothing any more


CRASH = """
import sys, trio
from trio_sessions import open_registry
from trio_sessions.stores import resolve_store

store = resolve_store(sys.argv[1])

class BrokenClock(trio.abc.Clock):
    broken = False
    def start_clock(self): pass
    def current_time(self): return 0.0
    def deadline_to_sleep_time(self, deadline):
        if self.broken: raise ZeroDivisionError
        return 0.0

async def crash(clock):
    async with open_registry(store):
        clock.broken = True
        await trio.sleep_forever()

async def main():
    async with open_registry(store) as registry:
        print((await registry.cleanup()).checked)

clock = BrokenClock()
try:
    trio.run(crash, clock, clock=clock)
except trio.TrioInternalError as exc:
    kept = exc  # so that Python has not tidied up either
    trio.run(main)
"""


@pytest.mark.parametrize("url", ["memory:", "sqlite:///sessions.db"])
def test_a_run_that_trio_itself_has_ended(tmp_path: Path, url: str) -> None:
    """Nobody closed anything, and the run never finished: the next one opens the store."""
    ended = subprocess.run(
        [sys.executable, "-c", CRASH, url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.stdout == "0\n", ended.stderr


@pytest.mark.parametrize("url", ["sqlite_url", "postgresql_schema"])
def test_the_connections_of_a_run_that_has_ended_are_closed(
    request: pytest.FixtureRequest, url: str
) -> None:
    """By the next one."""
    store = DatabaseStore(request.getfixturevalue(url))
    pools: list[sa.QueuePool] = []

    async def crash() -> None:
        await store.open(worker("crashed"))
        engine = store._opened.state._engine
        assert engine is not None
        assert isinstance(engine.pool, sa.QueuePool)
        pools.append(engine.pool)
        assert engine.pool.checkedin() == 1

    trio.run(crash)
    assert RUNS["trio"](store, nothing, nothing) == "worked"
    assert pools[0].checkedin() == 0


def test_a_closed_store_says_so(store: SessionStore) -> None:
    """Its operations answer nothing."""

    async def main() -> None:
        await store.open(worker("w"))
        await store.close(worker("w"))
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.locate(worker("w"), "s")

    trio.run(main)


def test_messages_have_their_time_in_the_next_run_too() -> None:
    """Its clock may begin anywhere, and so much later that all of them would have expired."""
    store = MemoryStore()

    async def keep() -> None:
        async with open_registry(store) as registry:
            await registry.add_session("s", FakeTransport())
            await registry.broadcast("s", "hello", durable=True)
            MemoryBackdoor(store).insert("kept", "another worker")
            store._rows["kept"].messages |= store._rows["s"].messages

    async def look() -> None:
        async with open_registry(store) as registry:
            await registry.cleanup()
            assert list(MemoryBackdoor(store).messages()) == ["kept"]

    trio.run(keep, clock=MockClock())
    later = MockClock()
    later.jump(1_000_000.0)
    trio.run(look, clock=later)


def test_letters_have_their_time_in_the_next_run_too() -> None:
    """As messages have: none expires for its run has ended, and each does in the end."""
    store = MemoryStore()

    async def leave() -> None:
        async with open_witnessed(lambda: store, "a") as a:
            letter = Post(session_id="line", payload="1", to=a.worker.incarnation)
            assert (await a.commit(letter)).answers == [1]

    async def look() -> None:
        async with open_witnessed(lambda: store, "b") as b:
            assert await store.expire_mail(b.worker, older_than=100.0, limit=10) == 0
            later.jump(101.0)
            assert await store.expire_mail(b.worker, older_than=100.0, limit=10) == 1

    trio.run(leave, clock=MockClock())
    later = MockClock()
    later.jump(1_000_000.0)
    trio.run(look, clock=later)
