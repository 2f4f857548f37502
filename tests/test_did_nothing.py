"""A store says whether what has failed was surely not carried out: then it has counted no beat."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared, share_memory
from proxy import Proxy
from trio.testing import MockClock

from trio_sessions import SessionRegistry, StoreUnavailable
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database.postgresql._errors import has_refused
from trio_sessions.stores.database.sqlite._connections import has_refused as sqlite_has_refused
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Presence, Stamp

PRESENCE = Presence(session_ttl=100.0, cleanup_interval=50.0, stamp_interval=5.0, version="1")


class Client:
    """A worker that has begun a history."""

    def __init__(self, store: DatabaseStore) -> None:
        self.store = store
        self.worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))

    async def stamp(self) -> int:
        """Return the beat that is counted."""
        stamped = await self.store.stamp(self.worker, Stamp(history="h", beat=1), passed=False)
        assert stamped.stamp is not None
        return stamped.stamp.beat

    async def fails_into(self, errors: list[StoreUnavailable]) -> None:
        errors.append(await self.fails())

    async def fails(self) -> StoreUnavailable:
        """Stamp, and return the error."""
        with pytest.raises(StoreUnavailable) as caught:
            await self.stamp()
        return caught.value


@pytest.fixture
def backdoor(postgresql_schema: sa.URL) -> Iterator[DatabaseBackdoor]:
    backdoor = DatabaseBackdoor(postgresql_schema)
    yield backdoor
    backdoor.close()


@asynccontextmanager
async def opened(url: sa.URL, *, lock_timeout: float = 0.2) -> AsyncIterator[Client]:
    timeout = max(1.0, 2 * lock_timeout)
    store = DatabaseStore(
        url, connect_timeout=4, operation_timeout=timeout, lock_timeout=lock_timeout
    )
    client = Client(store)
    await client.store.open(client.worker)
    try:
        await client.store.begin(client.worker, "h", PRESENCE, after=None)
        yield client
    finally:
        await client.store.close(client.worker)


async def test_a_connection_that_is_refused(proxy: Proxy) -> None:
    """One that was cut may have carried something; once there is none, nothing was sent."""
    async with opened(proxy.url) as client:
        await proxy.refuse()
        errors = [await client.fails() for _ in range(4)]
        assert errors[-1].did_nothing
        await proxy.heal()
        assert await client.stamp() == 2


async def test_an_answer_that_is_lost(proxy: Proxy) -> None:
    """It was carried out: the beat was counted."""
    async with opened(proxy.url) as client:
        proxy.fall_silent("answers")
        assert not (await client.fails()).did_nothing
        await proxy.heal()
        assert await client.stamp() == 3


@pytest.mark.parametrize(
    "trouble",
    [
        "CREATE TRIGGER no BEFORE UPDATE ON trio_workers EXECUTE FUNCTION no_writes()",
        "ALTER TABLE trio_workers ADD CHECK (beat < 2)",
    ],
    ids=["trigger", "constraint"],
)
async def test_a_server_that_says_no(
    postgresql_schema: sa.URL, backdoor: DatabaseBackdoor, trouble: str
) -> None:
    """It has rolled back, and lives."""
    no = "CREATE FUNCTION no_writes() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$"
    async with opened(postgresql_schema) as client:
        backdoor.execute(sa.text(no))
        backdoor.execute(sa.text(trouble))
        assert (await client.fails()).did_nothing
        assert backdoor.workers() == {"w": 1}


@pytest.mark.parametrize("ends", [False, True], ids=["its lock_timeout passes", "it is ended"])
async def test_a_lock(postgresql_schema: sa.URL, backdoor: DatabaseBackdoor, *, ends: bool) -> None:
    """The last word of a server process that is ended may be younger than a commit."""
    waits = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND query LIKE '%trio_workers%'"
    )
    async with opened(postgresql_schema, lock_timeout=20.0 if ends else 0.1) as client:
        with backdoor.engine.begin() as other:
            other.execute(sa.text("LOCK TABLE trio_workers IN ACCESS EXCLUSIVE MODE"))
            errors: list[StoreUnavailable] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.fails_into, errors)
                with trio.fail_after(20):
                    while ends and not errors:
                        await trio.sleep(0.02)
                        other.execute(waits)
        assert [one.did_nothing for one in errors] == [not ends]


TRIGGERS = {
    "postgresql": (
        "CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$",
        "CREATE TRIGGER no BEFORE DELETE ON trio_sessions FOR EACH ROW EXECUTE FUNCTION stay()",
    ),
    "sqlite": (
        "CREATE TRIGGER no BEFORE DELETE ON trio_sessions BEGIN SELECT RAISE(ABORT, 'no'); END",
    ),
}


async def test_a_sweep_that_has_stamped(database: Shared) -> None:
    """Its stamp is a transaction of its own: that the next one is refused does not undo it."""
    backdoor = database.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    async with opened(backdoor.engine.url) as client:
        assert await client.stamp() == 2
        backdoor.insert("s", "gone", age=10_000.0)
        [(vouched_at,)] = backdoor.execute(sa.select(backdoor.fleet.c.vouched_at))
        long_ago = vouched_at - timedelta(seconds=10_000)
        backdoor.execute(sa.update(backdoor.fleet).values(unbroken_since=long_ago))
        for statement in TRIGGERS[database.name]:
            backdoor.execute(sa.text(statement))
        with pytest.raises(StoreUnavailable) as caught:
            await client.store.sweep(
                client.worker,
                session_ttl=100.0,
                message_ttl=100.0,
                max_gap=1e6,
                limit=10,
                stamp=Stamp(history="h", beat=1),
            )
        assert not caught.value.did_nothing
        assert backdoor.workers()["w"] == 3


def test_an_error_of_a_store_s_own_kind_has_an_answer() -> None:
    class Away(StoreUnavailable):
        def __init__(self) -> None:
            pass

    assert not Away().did_nothing
    assert StoreUnavailable(did_nothing=True).did_nothing


@pytest.mark.parametrize(
    ("sqlstate", "is_no"),
    [
        ("23514", True),
        ("25006", True),
        ("40001", True),
        ("40003", False),
        ("53300", True),
        ("57014", True),
        ("57P01", False),
        ("57P03", False),
        ("08006", False),
        ("58030", False),
        ("XX000", False),
        (None, False),
    ],
)
def test_what_a_server_says_last(sqlstate: str | None, *, is_no: bool) -> None:
    """It may have committed before it was ended, or before it failed."""
    error = psycopg.Error()
    error.sqlstate = sqlstate
    assert has_refused(sa.exc.DBAPIError("", {}, error)) is is_no


@pytest.mark.parametrize(
    ("code", "is_no"),
    [
        (sqlite3.SQLITE_BUSY, True),
        (sqlite3.SQLITE_BUSY | 1 << 8, True),  # an extended one: SQLITE_BUSY_RECOVERY
        (sqlite3.SQLITE_IOERR, False),
        (sqlite3.SQLITE_CORRUPT, False),
        (None, False),
    ],
)
def test_an_error_of_sqlite_says_whether_nothing_is_in_the_file(
    code: int | None, *, is_no: bool
) -> None:
    """What is not known to say so may be there."""
    error = sqlite3.OperationalError("an error")
    if code is not None:
        error.sqlite_errorcode = code
    assert sqlite_has_refused(sa.exc.DBAPIError("", {}, error)) is is_no


async def test_a_file_that_is_locked(sqlite_file: sa.URL) -> None:
    """The transaction has not begun."""
    async with opened(sqlite_file) as client:
        assert sqlite_file.database is not None
        with closing(sqlite3.connect(sqlite_file.database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert (await client.fails()).did_nothing
            other.execute("ROLLBACK")
        assert await client.stamp() == 2


@pytest.mark.usefixtures("nothing_in_between")
async def test_an_outage_in_which_nothing_arrived_leaves_no_doubt(shared: Shared) -> None:
    """What is confirmed after it, and deleted by hand, is missing at once."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await cut_passes(registry, store, Fault.FAILS)
        await registry.add_session("s", FakeTransport())
        shared.backdoor.delete("s")
        assert (await registry.cleanup()).missing == ("s",)


@pytest.mark.usefixtures("nothing_in_between")
async def test_who_cannot_tell_leaves_a_doubt(autojump_clock: MockClock) -> None:
    """What is confirmed after it may have been forgotten: the row is written anew, once."""
    with share_memory() as shared:
        store = FaultyStore(shared.make_store())
        async with shared.open(store=store) as registry:
            await cut_passes(registry, store, Fault.HANGS)
            await registry.add_session("s", FakeTransport())
            for _ in range(4):  # the beats pass what was lost
                await registry.cleanup()
            shared.backdoor.delete("s")
            report = await registry.cleanup()
            assert report.missing == ()
            assert "written anew" in str(report.refresh_failures["s"])
            assert (await registry.cleanup()).refreshed == 1
            assert shared.backdoor.rows() == {"s": registry.worker_id}
            shared.backdoor.delete("s")
            assert (await registry.cleanup()).missing == ("s",)


async def cut_passes(registry: SessionRegistry, store: FaultyStore, fault: Fault) -> None:
    """Run three passes whose stamps come to nothing."""
    store.fail(fault, "sweep")
    for _ in range(3):
        await registry.cleanup()
    assert store.faults["sweep"] == 3
    store.heal()
