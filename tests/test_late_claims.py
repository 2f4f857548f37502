"""A claim that comes late, or only seems to: the newest connection of a session wins."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from conftest import Shared
from fleets import join, quick_store, rows
from proxy import Proxy
from trio.testing import MockClock

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore
from trio_sessions.writes import Batch, Claim, Committed, Verdict

SETTINGS: dict[str, Any] = {"session_ttl": 3600.0, "cleanup_interval": 1800.0}


class Noting(FaultyStore):
    """Keeps the verdict of each batch with a claim; each may be held up on its way to the store."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.arrives: trio.Event | None = None
        self.verdicts: list[Verdict] = []

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        if not any(batch.of(Claim)):
            return await super().commit(worker, batch)
        if self.arrives is not None:
            await self.arrives.wait()
        committed = await super().commit(worker, batch)
        self.verdicts.append(committed.verdict)
        return committed


async def warm_up(registry: SessionRegistry) -> None:
    """Add sessions until it is quick: else an older round trip says that the way is a slow one."""
    with trio.fail_after(40):
        took = 1.0
        while took > 0.1:
            start = trio.current_time()
            await registry.add_session("warm", FakeTransport())
            took = trio.current_time() - start


# ---- it is late ----


async def test_a_claim_that_takes_longer_than_its_client(
    proxy: Proxy, postgresql_schema: sa.URL
) -> None:
    """A's takes 0.3 s to the server, and the client moves to B after 0.1 s: B wins."""
    store = Noting(quick_store(proxy.url))
    old, new = FakeTransport(), FakeTransport()
    async with open_registry(store, **SETTINGS) as a, join(postgresql_schema) as b:
        await warm_up(a)
        store.verdicts.clear()
        proxy.fall_silent("to server")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.add_session, "s", old)
            await trio.sleep(0.1)
            await b.add_session("s", new)
            await trio.sleep(0.2)
            assert proxy.held_back > 0
            await proxy.heal()
        assert store.verdicts == [Verdict.LATE, Verdict.DONE]
        assert rows(postgresql_schema)["s"] == b.worker_id
        assert (await a.cleanup()).taken_over == ("s",)
        assert (old.disconnects, new.disconnects) == (1, 0)


async def test_a_claim_that_was_held_up_does_not_win_over_a_newer_one(shared: Shared) -> None:
    """It comes late, does nothing, goes again with its true age, and has lost."""
    store = Noting(shared.make_store())
    old, new = FakeTransport(), FakeTransport()
    async with shared.open(store=store) as a, shared.open() as b:
        await warm_up(a)
        store.verdicts.clear()
        store.arrives = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.add_session, "s", old)
            await trio.sleep(0.1)
            await b.add_session("s", new)
            await trio.sleep(0.2)
            store.arrives.set()
        assert store.verdicts == [Verdict.LATE, Verdict.DONE]
        assert shared.backdoor.rows()["s"] == b.worker_id
        assert (await a.cleanup()).taken_over == ("s",)
        assert (old.disconnects, new.disconnects) == (1, 0)


# ---- it seems to be ----


async def test_an_estimate_refuses_and_never_convicts(autojump_clock: MockClock) -> None:
    """The clock of the store steps forward, or this host has slept: the newest wins as ever."""
    shared = MemoryStore()
    store = FaultyStore(shared)
    async with open_registry(store) as a, open_registry(shared) as b:
        await a.add_session("s", FakeTransport())
        await b.add_session("s", FakeTransport())
        estimate = a._house._edge._estimate
        assert estimate._reading is not None
        estimate._reading -= 600.0
        store.calls.clear()
        start = trio.current_time()
        await a.add_session("s", FakeTransport())
        assert store.calls["Claim"] == 2, "it was refused once"
        assert trio.current_time() == start, "and went again at once"
        assert await b.locate_session("s") is not None
        assert shared._rows["s"].worker_id == a.worker_id


@contextmanager
def stepping_sqlite(
    url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[DatabaseStore, Callable[[float], None]]]:
    """Yield a store on a file, and what sets the machine's clock forward, as SQLite sees it."""
    ahead = 0.0
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + ahead)
    engine = sa.create_engine(url)

    def stepped(name: str, place: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            assert arguments[place] == "now" or name == "julianday"
            if arguments[place] == "now":
                here = place + 1
                arguments = (*arguments[:here], f"{ahead:+} seconds", *arguments[here:])
            marks = ", ".join("?" * len(arguments))
            with closing(sqlite3.connect(":memory:")) as plain:
                return plain.execute(f"SELECT {name}({marks})", arguments).fetchone()[0]

        return call

    @sa.event.listens_for(engine, "connect")
    def replace_functions(connection: sqlite3.Connection, record: object) -> None:
        connection.create_function("strftime", -1, stepped("strftime", 1))
        connection.create_function("julianday", -1, stepped("julianday", 0))

    def step(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    yield DatabaseStore(engine), step
    engine.dispose()


@contextmanager
def stepping_postgresql(
    schema: sa.URL,
) -> Iterator[tuple[DatabaseStore, Callable[[float], None]]]:
    """Yield a store for which functions of the schema hide those of the system, as above."""
    engine = sa.create_engine(schema, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)

    def step(seconds: float) -> None:
        with engine.connect() as connection:
            for name in ("now", "clock_timestamp", "statement_timestamp"):
                connection.exec_driver_sql(
                    f"CREATE OR REPLACE FUNCTION {name}() RETURNS timestamptz VOLATILE "
                    f"LANGUAGE sql AS $$SELECT pg_catalog.{name}() + interval '{seconds} s'$$"
                )

    step(0.0)
    path = f"{schema.query['options']},pg_catalog"
    yield DatabaseStore(schema.update_query_dict({"options": path})), step
    engine.dispose()


@pytest.fixture
def stepping(
    database: Shared, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[DatabaseStore, Callable[[float], None]]]:
    url = database.backdoor.engine.url  # type: ignore[attr-defined]
    if database.name == "sqlite":
        with stepping_sqlite(url, monkeypatch) as found:
            yield found
    else:
        with stepping_postgresql(url) as found:
            yield found


async def test_the_database_s_clock_steps_forward(
    database: Shared, stepping: tuple[DatabaseStore, Callable[[float], None]]
) -> None:
    """By 2 s, and then a new connection: it is refused once, asked again at once, and wins."""
    shared, step = stepping
    store = Noting(shared)
    old, new = FakeTransport(), FakeTransport()
    async with open_registry(store, **SETTINGS) as a, open_registry(shared, **SETTINGS) as b:
        await a.add_session("s", FakeTransport())
        await b.add_session("s", old)
        assert (await a.cleanup()).taken_over == ("s",)
        store.verdicts.clear()
        await trio.to_thread.run_sync(step, 2.0)
        await a.add_session("s", new)
        assert store.verdicts == [Verdict.LATE, Verdict.DONE]
        assert database.backdoor.rows() == {"s": a.worker_id}
        assert (await b.cleanup()).taken_over == ("s",)
        assert (await a.cleanup()).refreshed == 1
        assert (old.disconnects, new.disconnects) == (1, 0)
