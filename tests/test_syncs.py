"""How often a batch waits for the disk, counted by a PostgreSQL that syncs as in production.

Not so of SQLite, which counts none, and whose calls of fsync nobody may see without a tracer.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from servers import make_server

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

pytestmark = pytest.mark.usefixtures("nothing_in_between")

MANY = 200
IDS = [f"s{number}" for number in range(MANY)]
COUNT = {
    True: (
        "SELECT sum(fsyncs)::int FROM pg_stat_io "
        "WHERE object = 'wal' AND backend_type = 'client backend'"
    ),
    False: "SELECT wal_sync::int FROM pg_stat_wal",  # before version 18, of all processes
}


@pytest.fixture
def engine(empty_data: tuple[Path, Path]) -> Iterator[sa.Engine]:
    """To a server that waits for its disk; only who commits does, and nothing goes by itself."""
    options = {
        "fsync": "on",
        "synchronous_commit": "on",
        "wal_sync_method": "fdatasync",
        "wal_writer_delay": "10s",
    }
    with make_server(empty_data, **options) as server:
        engine = sa.create_engine(server.url, pool_size=6, max_overflow=0)
        yield engine
        engine.dispose()


class Counted:
    """What happened in a block."""

    syncs = 0
    batches = 0


def syncs(engine: sa.Engine) -> int:
    """Return how often the server has synced its log for its clients."""
    connections = [engine.connect() for _ in range(engine.pool.checkedin())]  # type: ignore[attr-defined]
    for connection in connections:  # each counts for itself until it is told to hand that in
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
        connection.commit()
    version = connections[0].dialect.server_version_info or ()
    counted = connections[0].scalar(sa.text(COUNT[version >= (18,)]))
    for connection in connections:
        connection.close()
    assert isinstance(counted, int)
    return counted


@contextmanager
def counting(engine: sa.Engine, registry: SessionRegistry) -> Iterator[Counted]:
    """Count syncs, and the batches of a registry."""
    counted = Counted()
    batches, before = registry.statistics().batches, syncs(engine)
    yield counted
    counted.batches = registry.statistics().batches - batches
    counted.syncs = syncs(engine) - before


@asynccontextmanager
async def at_once() -> AsyncIterator[trio.Nursery]:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            yield nursery


async def test_a_batch_waits_for_the_disk_once_and_one_of_letters_never(
    engine: sa.Engine,
) -> None:
    """However many are added, sent to and removed; letters are worth no sync."""
    async with AsyncExitStack() as stack:
        registry, other = [
            await stack.enter_async_context(open_registry(DatabaseStore(engine), worker_id=name))
            for name in ("a", "b")
        ]
        listening = await stack.enter_async_context(other.topics.subscribe("news"))

        with counting(engine, registry) as added:
            async with at_once() as nursery:
                for one in IDS:
                    nursery.start_soon(registry.add_session, one, FakeTransport())
        with counting(engine, registry) as sent:
            async with at_once() as nursery:
                for one in IDS:
                    nursery.start_soon(partial(registry.broadcast, one, "hello", durable=True))
        told = list[Counted]()
        for _ in range(3):
            with counting(engine, registry) as counted:
                async with at_once() as nursery:
                    for number in range(MANY):
                        nursery.start_soon(registry.topics.publish, "news", number)
            told.append(counted)
            with trio.fail_after(60):
                heard = [await anext(listening) for _ in range(MANY)]
            assert sorted(heard) == list(range(MANY))
        with counting(engine, registry) as removed:
            async with at_once() as nursery:
                for one in IDS:
                    nursery.start_soon(registry.remove_session, one)

    for counted in (added, sent, removed):
        # What comes first may make a batch of its own, and all that comes meanwhile the next one.
        assert 1 <= counted.syncs == counted.batches <= 2
    # PostgreSQL tidies up a page of workers that it reads, and logs that with whatever comes next.
    assert told[0].syncs <= 1
    assert [one.syncs for one in told[1:]] == [0, 0]
    assert all(one.batches for one in told)
