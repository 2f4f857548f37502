"""The watch over one operation: what it may end, and when, without a thread or a database."""

import logging
import math
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing

from trio_sessions import open_registry
from trio_sessions._process import _processes, this_process
from trio_sessions.abc import Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._connections import Connections
from trio_sessions.stores.database._database import Database
from trio_sessions.stores.database._given import Rank
from trio_sessions.stores.database._operation import Operation, State, Withdrawn, current
from trio_sessions.stores.database.sqlite import DATABASE
from trio_sessions.testing import FakeTransport
from trio_sessions.types import Presence, Stamp
from trio_sessions.writes import Batch

OVER = -1.0  # seconds: whatever is bounded by it has taken too long at once


class NotingCutter:
    """Notes what is done to a connection."""

    def __init__(self, done: list[str], connection: object) -> None:
        self._done, self._connection = done, connection

    def cut(self) -> None:
        self._done.append(f"cut {self._connection}")

    def close(self) -> None:
        self._done.append(f"close {self._connection}")


def make(*, timeout: float, patience: float) -> tuple[Operation, list[str]]:
    """Return an operation whose thread runs, and what is done to its connections."""
    done: list[str] = []
    operation = Operation(
        lambda connection: NotingCutter(done, connection),
        timeout=timeout,
        patience=patience,
        process=this_process(),
    )
    operation._begin()
    return operation, done


@asynccontextmanager
async def opened(
    url: sa.URL, database: Database = DATABASE
) -> AsyncIterator[tuple[Connections, Worker]]:
    """Open connections to a file, for one worker."""
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(2))
    connections = Connections(database, url, None, DatabaseStore(url), None)
    await connections.open(worker, lambda _: None)
    yield connections, worker
    await connections.close(worker)


def is_open(connection: Any) -> bool:
    try:
        connection.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return False
    return True


def state_of(operation: Operation) -> State:
    return operation.state  # which mypy believes to stay what it was


def test_one_that_gets_no_connection_is_left_alone() -> None:
    """On a connection that it gets after all nothing may be sent."""
    operation, done = make(timeout=math.inf, patience=OVER)
    operation.look()
    assert state_of(operation) is State.WITHDRAWN
    with pytest.raises(Withdrawn):
        operation.hold("a")
    assert not done


@pytest.mark.parametrize("fails", [False, True])
async def test_a_connection_is_let_go_when_the_thread_ends(*, fails: bool) -> None:
    """Each look for messages is one on a connection that stays: it must leave no descriptor."""
    operation, done = make(timeout=math.inf, patience=math.inf)

    def work() -> str:
        operation.hold("a")
        if fails:
            raise OSError("it is gone")
        return "seen"

    limiter = trio.CapacityLimiter(1)
    if fails:
        with pytest.raises(OSError, match="it is gone"):
            await operation.run(work, limiter)
    else:
        assert await operation.run(work, limiter) == "seen"
    assert done == ["close a"]
    assert state_of(operation) is State.ENDED


async def test_whoever_is_cancelled_waits_for_the_thread() -> None:
    """What it does is under way, and the answer is not lost."""
    operation = Operation(
        lambda connection: NotingCutter([], connection),
        timeout=math.inf,
        patience=math.inf,
        process=this_process(),
    )
    begun, may_end = trio.Event(), threading.Event()

    def work() -> str:
        trio.from_thread.run_sync(begun.set, trio_token=token)
        return "done" if may_end.wait(9.0) else "nobody has let it end"

    token = trio.lowlevel.current_trio_token()
    answers: list[str] = []

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            answers.append(await operation.run(work, trio.CapacityLimiter(1)))

    scope = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, scope)
        await begun.wait()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        may_end.set()
    assert answers == ["done"]


async def test_an_engine_that_was_handed_in_is_not_asked_for_more_than_it_keeps(
    sqlite_url: sa.URL,
) -> None:
    """Its overflow is left to its owner, and of two connections one is kept for the stamp."""
    engine = sa.create_engine(sqlite_url, poolclass=sa.QueuePool, pool_size=2, max_overflow=9)
    store = DatabaseStore(engine)
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(5))
    lock, at_work, most = threading.Lock(), 0, 0

    def work(connection: sa.Connection) -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.05)
        with lock:
            at_work -= 1

    await store.open(worker)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(store.run, worker, work)
    finally:
        await store.close(worker)
        engine.dispose()
    assert most == 1


def test_the_patience_is_for_a_connection_only() -> None:
    """Whoever has one has the whole timeout; then it is let go, and the caller waits."""
    operation, done = make(timeout=math.inf, patience=OVER)
    operation.hold("a")
    operation.look()
    assert state_of(operation) is State.CONNECTED
    operation.release()
    operation.look()
    assert state_of(operation) is State.ENDED
    assert done == ["close a"]


def test_one_that_takes_too_long_is_cut_once() -> None:
    """Where the pool connects again, the new connection is watched like the first."""
    operation, done = make(timeout=OVER, patience=math.inf)
    operation.look()
    assert state_of(operation) is State.WAITING
    operation.hold("a")
    operation.look()
    operation.look()
    assert state_of(operation) is State.CUT
    assert done == ["cut a"]
    operation.hold("b")
    operation.look()
    operation.release()
    assert state_of(operation) is State.CUT, "who fails now was cut"
    assert done == ["cut a", "close a", "cut b", "close b"]


async def test_a_connection_is_watched_before_anything_is_sent_on_it(sqlite_url: sa.URL) -> None:
    """Also what is sent when it has just been made; a server may hang there as well."""
    states: list[State | None] = []

    def note(connection: object, record: object) -> None:
        states.append(None if current.operation is None else current.operation.state)

    sa.event.listen(sa.Pool, "connect", note)
    try:
        async with open_registry(DatabaseStore(sqlite_url)) as registry:
            await registry.add_session("s", FakeTransport())
    finally:
        sa.event.remove(sa.Pool, "connect", note)
    assert set(states) == {State.CONNECTED}


async def test_a_connection_that_comes_too_late_is_closed(
    sqlite_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it any more; nothing is sent on it, and the pool never sees it."""
    made: list[sqlite3.Connection] = []
    async with opened(sqlite_url) as (connections, _):
        engine = connections._engine
        assert engine is not None
        connect = engine.dialect.connect

        def note(*args: Any, **kwargs: Any) -> Any:
            made.append(connect(*args, **kwargs))  # type: ignore[arg-type]
            return made[-1]

        engine.dispose()  # what the opening has left there
        monkeypatch.setattr(engine.dialect, "connect", note)
        operation, done = make(timeout=math.inf, patience=OVER)
        operation.look()
        monkeypatch.setattr(current, "operation", operation, raising=False)
        with pytest.raises(Withdrawn):
            engine.connect()
        monkeypatch.undo()
    assert done == []
    [connection] = made
    assert not is_open(connection)


@pytest.mark.parametrize("is_broken", [False, True])
async def test_what_is_given_back_is_closed_and_forgotten(
    sqlite_url: sa.URL, *, is_broken: bool
) -> None:
    """However broken it is: nothing connects anew for it, and only a forked child keeps it.

    That is watched, but for what comes after SQLAlchemy: nobody may cut it any more then.
    """
    let_go: list[str] = []

    class LookingCutter(NotingCutter):
        def close(self) -> None:
            let_go.append("open" if is_open(self._connection) else "closed")

    database = replace(DATABASE, cutter=lambda one: LookingCutter([], one))
    async with opened(sqlite_url, database) as (connections, worker):
        taken = await connections.take(worker, lambda one: one.exec_driver_sql("SELECT 1"))
        driver = taken.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
        assert connections._taken == {taken: driver}
        if is_broken:
            taken.invalidate()
        made: list[object] = []
        assert connections._engine is not None
        sa.event.listen(connections._engine.pool, "connect", lambda *one: made.append(one))
        let_go.clear()
        await connections.give_back(worker, taken)
        assert let_go == ["open" if is_broken else "closed"]
        assert not is_open(driver)
        assert connections._taken == {}
        assert taken.closed
        assert made == []
        assert (taken, driver) not in _processes[-1].inherited


async def test_what_sqlalchemy_logs_shows_no_values(
    sqlite_url: sa.URL, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever lets it log each statement does not get the ids of sessions, which are secrets."""
    caplog.set_level(logging.INFO, "sqlalchemy.engine")
    async with open_registry(DatabaseStore(sqlite_url)) as registry:
        await registry.add_session("secret", FakeTransport(), owner="alice")
    assert "INSERT INTO trio_sessions" in caplog.text
    assert "secret" not in caplog.text
    assert "alice" not in caplog.text


class NotingDatabase:
    """Stands in for what a `Database` knows of the driver."""

    def __init__(self, done: list[str]) -> None:
        self._done = done

    def cutter(self, driver: object) -> NotingCutter:
        return NotingCutter(self._done, driver)


def test_what_is_cut_beside_the_pool_is_let_go(sqlite_url: sa.URL) -> None:
    """Each cutter has a descriptor of its own, which nobody else would close."""
    done: list[str] = []
    timeouts = DatabaseStore(sqlite_url)
    database: Any = NotingDatabase(done)
    connections = Connections(database, sqlite_url, None, timeouts, None)
    taken: Any = {"one": "a", "two": "b"}
    connections._taken = taken
    connections._cut_what_was_taken()
    assert done == ["cut a", "close a", "cut b", "close b"]


@pytest.mark.parametrize("is_astray", [False, True])
async def test_who_finds_the_database_gone_tells_whoever_waits_beside_the_pool(
    sqlite_url: sa.URL, *, is_astray: bool
) -> None:
    """Nothing else would end a wait for messages on the connection to the old one."""
    done: list[str] = []
    database = replace(
        DATABASE,
        leads_astray=lambda error: is_astray and "no_table" in str(error),
        cutter=lambda driver: NotingCutter(done, driver),
    )
    timeouts = DatabaseStore(sqlite_url)
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    connections = Connections(database, sqlite_url, None, timeouts, None)
    await connections.open(worker, lambda _: None)
    taken: Any = {"bell": "the bell's"}
    connections._taken = taken
    with pytest.raises(StoreUnavailable, match="no such table"):
        await connections.run(worker, lambda one: one.exec_driver_sql("SELECT 1 FROM no_table"))
    assert done.count("cut the bell's") == is_astray
    connections._taken = {}
    await connections.close(worker)


async def test_closing_waits_for_what_runs_and_no_longer(sqlite_url: sa.URL) -> None:
    """Its caller has the answer, and the engine its connection back, before that is disposed of."""
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(2))
    connections = Connections(DATABASE, sqlite_url, None, DatabaseStore(sqlite_url), None)
    begun, may_end, ended = trio.Event(), threading.Event(), list[str]()

    def work(connection: sa.Connection) -> None:
        trio.from_thread.run_sync(begun.set)
        may_end.wait(30)
        ended.append("work")

    async def close() -> None:
        await connections.close(worker)
        ended.append("close")

    await connections.open(worker, lambda _: None)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connections.run, worker, work)
            await begun.wait()
            nursery.start_soon(close)
            await trio.testing.wait_all_tasks_blocked()
            may_end.set()
    assert ended == ["work", "close"]


async def test_whose_lease_it_is_comes_first(
    sqlite_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few connections each kind leaves one to those before it."""
    store = DatabaseStore(sqlite_url)
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    ranks: list[Rank] = []

    async def run(
        self: object, worker: Worker, work: object, *, rank: Rank = Rank.OTHERS, **how: object
    ) -> None:
        ranks.append(rank)
        raise StoreUnavailable

    monkeypatch.setattr(DatabaseStore, "run", run)
    presence = Presence(session_ttl=9.0, cleanup_interval=3.0, stamp_interval=1.0, version="1")
    stamp = Stamp(history="h", beat=1)
    for asked in (
        store.begin(worker, "h", presence, after=None),
        store.stamp(worker, stamp, passed=False),
        store.sweep(worker, session_ttl=9.0, message_ttl=9.0, max_gap=9.0, limit=1),
        store.refresh(worker, ["s"]),
        store.commit(worker, Batch(writes=[], stamp=stamp)),
        store.locate(worker, "s"),
    ):
        with pytest.raises(StoreUnavailable):
            await asked
    assert ranks == [Rank.LEASE] * 2 + [Rank.PASS] * 2 + [Rank.WRITER, Rank.OTHERS]
    assert sorted(ranks) == ranks


async def test_a_statement_that_takes_too_long_is_cut(sqlite_url: sa.URL) -> None:
    """The watch looks at what runs, again and again."""
    store = DatabaseStore(sqlite_url, lock_timeout=0.1, operation_timeout=0.3)
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    await store.open(worker)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    try:
        with pytest.raises(StoreUnavailable, match="operation_timeout"):
            await store.run(worker, lambda connection: connection.exec_driver_sql(endless).all())
        assert await store.run(worker, lambda one: one.exec_driver_sql("SELECT 1").scalar()) == 1
    finally:
        await store.close(worker)
