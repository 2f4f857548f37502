"""A SQLite file that several make at once, and one that is deleted or replaced under us."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor

from trio_sessions import SessionRegistry, StoreUnavailable, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport
from trio_sessions.writes import Batch, Claim

# A stamp that came between would be the next operation, and notice everything.
pytestmark = pytest.mark.usefixtures("nothing_in_between")

SETTINGS: dict[str, Any] = {"session_ttl": 3600.0, "cleanup_interval": 1800.0}

PROGRAM = """
import sys
import time

import trio

from trio_sessions import open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport


async def main():
    for line in sys.stdin:
        path, moment = line.split()
        while time.time() < float(moment):
            pass
        try:
            store = DatabaseStore(f"sqlite:///{path}", lock_timeout=5.0)
            async with open_registry(store) as registry:
                await registry.add_session(sys.argv[1], FakeTransport())
                print("opened", registry.statistics().unconfirmed, flush=True)
        except Exception as exc:
            print(f"{type(exc).__name__}: {exc}", flush=True)


print("ready", flush=True)
trio.run(main)
"""


@pytest.mark.timeout(120)
def test_two_processes_open_one_new_file_at_the_same_moment(tmp_path: Path) -> None:
    """Both open it, each time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]

    def hear() -> list[str]:
        return [process.stdout.readline().strip() for process in processes if process.stdout]

    try:
        assert hear() == ["ready", "ready"]
        for number in range(4):
            moment = time.time() + 0.02
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{tmp_path / str(number)}.db {moment}\n")
                process.stdin.flush()
            assert hear() == ["opened 0", "opened 0"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def begin_to_write(url: sa.URL) -> sqlite3.Connection:
    """Return a connection with a transaction that is about to write to a file without WAL.

    SQLite's busy handler does not wait for it where a file is put into WAL mode.
    """
    assert url.database is not None
    connection = sqlite3.connect(url.database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    other: Any = sqlite3.connect(url.database, timeout=5.0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("PRAGMA journal_mode = WAL")
    assert time.monotonic() - start < 4.0, "it waited by itself"
    other.close()
    return connection


async def test_a_new_file_is_opened_while_another_writes_to_it(sqlite_url: sa.URL) -> None:
    """As soon as the other has ended."""
    connection = begin_to_write(sqlite_url)

    async def end() -> None:
        await trio.sleep(0.3)
        connection.close()

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            async with open_registry(DatabaseStore(sqlite_url)) as registry:
                await registry.add_session("s", FakeTransport())
                assert registry.statistics().unconfirmed == 0


async def test_opening_a_new_file_waits_no_longer_than_lock_timeout(sqlite_url: sa.URL) -> None:
    """It fails then, and says why."""
    connection = begin_to_write(sqlite_url)
    start = time.monotonic()
    with trio.fail_after(40), pytest.raises(StoreUnavailable, match="database is locked"):
        async with open_registry(DatabaseStore(sqlite_url, lock_timeout=0.4)):
            raise AssertionError("it opened")
    assert 0.4 <= time.monotonic() - start < 60.0
    connection.close()


# ---- a file that is deleted or replaced under us ----


def remove(url: sa.URL) -> None:
    """Delete the file, with what SQLite has put beside it."""
    assert url.database is not None
    for ending in ("", "-wal", "-shm"):
        Path(url.database + ending).unlink(missing_ok=True)


def make_store(url: sa.URL, kind: str, **settings: Any) -> DatabaseStore:
    return DatabaseStore(sa.create_engine(url) if kind == "engine" else url, **settings)


@pytest.mark.parametrize("kind", ["url", "engine"])
@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_was_deleted_is_noticed_before_the_next_operation(
    sqlite_url: sa.URL, kind: str, *, replaced: bool
) -> None:
    """That is unknown, and removes nobody; what follows is asked of the file that is there."""
    store = make_store(sqlite_url, kind)
    async with open_registry(store, **SETTINGS) as registry:
        transports = {f"s{number}": FakeTransport() for number in range(5)}
        for session_id, transport in transports.items():
            await registry.add_session(session_id, transport)
        await registry.cleanup()
        remove(sqlite_url)
        if replaced:
            async with open_registry(DatabaseStore(sqlite_url), **SETTINGS) as other:
                await other.add_session("other's", FakeTransport())
        report = await registry.cleanup()
        assert report.missing == ()
        assert set(report.refresh_failures) == set(transports)
        for error in report.refresh_failures.values():
            assert isinstance(error, StoreUnavailable)
            assert "was deleted or replaced" in str(error)
        await registry.add_session("new", FakeTransport())
        rows = DatabaseBackdoor(sqlite_url).rows()
        assert rows.pop("new") == registry.worker_id
        assert rows.keys() <= transports.keys()  # they are being written anew
        for transport in transports.values():
            assert transport.disconnects == 0
    if store._given_engine is not None:
        store._given_engine.dispose()


@pytest.mark.parametrize(
    "ask",
    [
        lambda registry: registry.locate_session("s"),
        lambda registry: registry.broadcast("elsewhere", 1),
    ],
    ids=["locate", "broadcast"],
)
async def test_no_question_is_answered_from_the_file_that_was_deleted(
    sqlite_url: sa.URL, ask: Callable[[SessionRegistry], Awaitable[object]]
) -> None:
    """Nor with what the new one knows, which is nothing."""
    async with open_registry(DatabaseStore(sqlite_url), **SETTINGS) as registry:
        DatabaseBackdoor(sqlite_url).insert("elsewhere", "another worker")
        remove(sqlite_url)
        with pytest.raises(StoreUnavailable, match="deleted or replaced"):
            await ask(registry)


async def test_every_connection_of_the_pool_is_thrown_away(sqlite_url: sa.URL) -> None:
    """Else some would see the old file, and some the new one."""
    store = DatabaseStore(sqlite_url)
    worker = Worker(worker_id="w", incarnation="w", limiter=trio.CapacityLimiter(5))
    await store.open(worker)
    together = threading.Barrier(5)

    def meet(connection: sa.Connection) -> None:
        together.wait(10)

    async def all_at_once() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(store.run, worker, meet)

    await all_at_once()
    remove(sqlite_url)
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        await store.refresh(worker, ["s"])
    together.reset()
    await all_at_once()  # no one of them is told again
    claim = Claim(session_id="s", generation=1, age=0.0)
    await store.commit(worker, Batch(writes=[claim]))
    for _ in range(6):
        assert (await store.refresh(worker, ["s"])).held == {"s"}
    await store.close(worker)


async def test_messages_arrive_by_the_new_file(sqlite_url: sa.URL) -> None:
    """Whoever looks at the old one for news would see none for ever."""
    async with (
        open_registry(DatabaseStore(sqlite_url), **SETTINGS) as a,
        open_registry(DatabaseStore(sqlite_url), **SETTINGS) as b,
    ):
        await a.add_session("before", FakeTransport())
        remove(sqlite_url)
        for registry in (a, b):
            with pytest.raises(StoreUnavailable):
                await registry.locate_session("s")
        await a.add_session("s", FakeTransport())
        with trio.fail_after(40):
            async with a.open_inbox("s") as inbox:
                await b.broadcast("s", "hello")
                assert await anext(inbox) == "hello"


async def test_tables_that_must_not_be_created_are_not(sqlite_url: sa.URL) -> None:
    """All stays unknown, until somebody has made them."""
    async with open_registry(DatabaseStore(sqlite_url), **SETTINGS):
        pass
    store = DatabaseStore(sqlite_url, create_tables=False)
    async with open_registry(store, **SETTINGS) as registry:
        await registry.add_session("s", FakeTransport())
        remove(sqlite_url)
        for _ in range(2):
            report = await registry.cleanup()
            assert (report.missing, set(report.refresh_failures)) == ((), {"s"})
        assert await registry.session_exists("s")


async def test_an_opening_that_is_cancelled_leaves_nothing_open(sqlite_url: sa.URL) -> None:
    """Neither a connection nor a place that nobody gives back."""
    store = DatabaseStore(sqlite_url)
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.open(worker)
    assert scope.cancelled_caught
    assert not store._opened.is_open
