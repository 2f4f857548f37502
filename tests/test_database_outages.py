"""The network and the server fail for real, and nobody is removed for it."""

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from proxy import Proxy
from soak import longer

from trio_sessions import CleanupReport, SessionRegistry, StoreUnavailable, open_registry
from trio_sessions.stores.database import DatabaseStore, metadata
from trio_sessions.testing import FakeTransport

IDS = [f"session-{i}" for i in range(10)]
BOUND = 60.0  # seconds: connecting (at least 2), an operation (2), and much air for a busy machine


def quick_store(url: sa.URL) -> DatabaseStore:
    return DatabaseStore(url, connect_timeout=4, operation_timeout=2.0, lock_timeout=0.3)


@pytest.fixture
def backdoor(postgresql_schema: sa.URL) -> Iterator[DatabaseBackdoor]:
    """The server without the proxy."""
    backdoor = DatabaseBackdoor(postgresql_schema)
    yield backdoor
    backdoor.close()


def create_tables(url: sa.URL) -> None:
    """Create the tables before the store opens: it has little time for it here."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    metadata().create_all(engine)
    engine.dispose()


@asynccontextmanager
async def open_behind(proxy: Proxy, **settings: Any) -> AsyncIterator[SessionRegistry]:
    """Open a registry with ten sessions, whose database is away only as long as a test says."""
    await trio.to_thread.run_sync(create_tables, proxy.url)
    async with open_registry(quick_store(proxy.url), **settings) as registry:
        async with trio.open_nursery() as nursery:
            for session_id in IDS:
                nursery.start_soon(registry.add_session, session_id, FakeTransport())
        assert (await registry.cleanup()).refreshed == 10
        proxy.reset()
        yield registry


def assert_all_unknown(registry: SessionRegistry, report: CleanupReport) -> None:
    assert sorted(report.refresh_failures) == IDS
    for error in report.refresh_failures.values():
        assert isinstance(error, StoreUnavailable)
        assert error.__cause__ is not None
    assert report.disconnected == report.missing == report.restored == ()
    assert report.refreshed == report.expired == 0
    statistics = registry.statistics()
    assert statistics.sessions == 10
    # One is for the stamp, and one looks for revoked sessions.
    assert statistics.operations_running <= 2, "a thread is stuck"


async def assert_recovers(registry: SessionRegistry) -> None:
    with trio.fail_after(BOUND):
        report = await registry.cleanup()
    assert report.refreshed == 10
    assert not report.refresh_failures


@pytest.mark.parametrize(
    ("directions", "batch_size"),
    [
        pytest.param((), 1000, marks=longer),
        (("to server",), 1000),
        pytest.param(("to client",), 1000, marks=longer),
        ((), 2),
    ],
)
async def test_a_silent_network_in_the_middle_of_a_pass(
    proxy: Proxy, directions: tuple[str, ...], batch_size: int
) -> None:
    """The pass ends in bounded time, everyone is unknown, and the next one heals it."""
    async with open_behind(proxy, batch_size=batch_size) as registry:
        proxy.fall_silent(*directions)
        with trio.fail_after(BOUND):
            report = await registry.cleanup()
        assert proxy.held_back > 0
        assert_all_unknown(registry, report)
        await proxy.heal()
        await assert_recovers(registry)


async def test_an_outage_of_several_passes(proxy: Proxy) -> None:
    """Connections are cut and refused; sessions added and removed meanwhile are set right."""
    async with open_behind(proxy) as registry:
        await proxy.refuse()
        for _ in range(3):
            with trio.fail_after(BOUND):
                assert_all_unknown(registry, await registry.cleanup())
        with trio.fail_after(BOUND):
            await registry.add_session("added meanwhile", FakeTransport())
            await registry.remove_session(IDS[0])
            assert await registry.session_exists("elsewhere") is None
            with pytest.raises(StoreUnavailable):
                await registry.locate_session("elsewhere")
        assert registry.statistics().unconfirmed == registry.statistics().leftover_rows == 1
        assert proxy.connections == 0
        await proxy.heal()
        report = await registry.cleanup()
        assert report.refreshed == 9
        assert report.restored == ("added meanwhile",)
        assert registry.statistics().leftover_rows == 0


async def test_a_slow_network_is_no_outage(proxy: Proxy) -> None:
    """What takes long but ends within ``operation_timeout`` is an answer."""
    async with open_behind(proxy) as registry:
        proxy.delay = 0.2
        report = await registry.cleanup()
        assert report.duration > 0.8
        assert report.refreshed == 10
        proxy.delay = 0.0


async def test_a_question_may_be_left_alone(proxy: Proxy) -> None:
    """Whoever asks where a session is does not wait for a silent database when cancelled."""
    async with open_behind(proxy) as registry:
        proxy.fall_silent()
        start = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await registry.session_exists("elsewhere")
        assert scope.cancelled_caught
        assert trio.current_time() - start < 1.9  # of operation_timeout's two seconds
        assert registry.statistics().operations_running == 1
        with trio.fail_after(BOUND):
            while registry.statistics().operations_running:
                await trio.sleep(0.01)
        await proxy.heal()
        await assert_recovers(registry)


# ---- answers that are lost ----


async def test_an_added_row_whose_commit_was_not_answered(
    proxy: Proxy, backdoor: DatabaseBackdoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session stays unconfirmed and the next pass writes its row again."""
    monkeypatch.setattr("trio_sessions._estimate._LEAST", 60.0)  # a slow machine is not late here
    async with open_registry(quick_store(proxy.url)) as registry:
        proxy.fall_silent("answers")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.add_session, "s", FakeTransport())
            with trio.fail_after(BOUND):
                while not backdoor.rows():
                    await trio.lowlevel.checkpoint()
            proxy.cut()
        await proxy.heal()
        assert backdoor.rows() == {"s": registry.worker_id}
        assert registry.statistics().unconfirmed == 1
        report = await registry.cleanup()
        assert (report.restored, report.missing) == (("s",), ())
        assert (await registry.cleanup()).refreshed == 1


async def test_a_refresh_whose_commit_was_not_answered(
    proxy: Proxy, backdoor: DatabaseBackdoor
) -> None:
    """Unknown is unknown, although the rows were refreshed."""
    moments = sa.select(sa.func.min(backdoor.sessions.c.last_accessed))
    async with open_behind(proxy) as registry:
        before = backdoor.execute(moments)
        proxy.fall_silent("answers")
        reports: list[CleanupReport] = []

        async def run_pass() -> None:
            reports.append(await registry.cleanup())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_pass)
            with trio.fail_after(BOUND):
                while backdoor.execute(moments) == before:
                    await trio.lowlevel.checkpoint()
            proxy.cut()
        assert_all_unknown(registry, reports[0])
        await proxy.heal()
        await assert_recovers(registry)


async def test_a_deletion_whose_commit_was_not_answered(
    proxy: Proxy, backdoor: DatabaseBackdoor
) -> None:
    """It is repeated by the next pass, harmlessly."""
    async with open_behind(proxy) as registry:
        proxy.fall_silent("answers")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.remove_session, IDS[0])
            with trio.fail_after(BOUND):
                while IDS[0] in backdoor.rows():
                    await trio.lowlevel.checkpoint()
            proxy.cut()
        await proxy.heal()
        assert registry.statistics().leftover_rows == 1
        assert (await registry.cleanup()).refreshed == 9
        assert registry.statistics().leftover_rows == 0


# ---- the server ----


def backends(backdoor: DatabaseBackdoor) -> list[int]:
    """Return the process ids of the server's other connections to this schema's test."""
    select = sa.text(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'trio_sessions test'"
    )
    return [pid for (pid,) in backdoor.execute(select)]


def named(proxy: Proxy) -> DatabaseStore:
    return quick_store(proxy.url.update_query_dict({"application_name": "trio_sessions test"}))


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Hang processes of the server."""
    for pid in pids:
        if Path(f"/proc/{pid}/comm").read_text().strip() != "postgres":
            pytest.skip("the server's processes are out of reach")
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.usefixtures("nothing_in_between")
@pytest.mark.parametrize("whole_server", [False, True])
async def test_a_server_that_hangs(
    proxy: Proxy, backdoor: DatabaseBackdoor, *, whole_server: bool
) -> None:
    """Its processes are there and say nothing: everyone is unknown, in bounded time."""
    async with open_registry(named(proxy)) as registry:
        for session_id in IDS:
            await registry.add_session(session_id, FakeTransport())
        assert (await registry.cleanup()).refreshed == 10
        hung = backends(backdoor)
        assert hung
        with stopped(*hung, *([parent(hung[0])] if whole_server else [])):
            with trio.fail_after(BOUND):
                report = await registry.cleanup()
            assert {state(pid) for pid in hung} == {"T"}
            assert_all_unknown(registry, report)
            if whole_server:  # new connections are not answered either
                with trio.fail_after(BOUND):
                    assert_all_unknown(registry, await registry.cleanup())
        await assert_recovers(registry)


@pytest.mark.usefixtures("nothing_in_between")
async def test_idle_connections_that_the_server_has_ended(
    proxy: Proxy, backdoor: DatabaseBackdoor
) -> None:
    """The next operations do not even notice."""
    async with open_registry(named(proxy), batch_size=2, max_concurrent=5) as registry:
        for session_id in IDS:
            await registry.add_session(session_id, FakeTransport())
        await registry.cleanup()
        ended = backends(backdoor)
        assert ended
        for pid in ended:
            backdoor.execute(sa.select(sa.func.pg_terminate_backend(pid)))
        with trio.fail_after(BOUND):
            await proxy.wait_until(lambda: proxy.connections == 0)
        assert (await registry.session_exists("elsewhere")) is False
        await assert_recovers(registry)


@pytest.mark.usefixtures("nothing_in_between")
async def test_ended_connections_of_an_engine_of_yours(
    proxy: Proxy, backdoor: DatabaseBackdoor
) -> None:
    """Without a check of its pool an operation may fail: unknown, and then all is well."""
    engine = sa.create_engine(proxy.url)
    async with open_registry(DatabaseStore(engine, operation_timeout=2, lock_timeout=0.3)) as r:
        for session_id in IDS:
            await r.add_session(session_id, FakeTransport())
        await r.cleanup()
        proxy.cut()
        await proxy.wait_until(lambda: proxy.connections == 0)
        assert_all_unknown(r, await r.cleanup())
        await assert_recovers(r)
    engine.dispose()


async def test_a_silent_network_under_an_engine_of_yours(proxy: Proxy) -> None:
    """Its operations are bounded, too, and it stays usable."""
    engine = sa.create_engine(proxy.url, connect_args={"connect_timeout": 2})
    async with open_registry(DatabaseStore(engine, operation_timeout=2, lock_timeout=0.3)) as r:
        for session_id in IDS:
            await r.add_session(session_id, FakeTransport())
        proxy.fall_silent()
        with trio.fail_after(BOUND):
            assert_all_unknown(r, await r.cleanup())
        await proxy.heal()
        await assert_recovers(r)
    engine.dispose()


async def test_an_engine_whose_pool_is_exhausted(postgresql_schema: sa.URL) -> None:
    """No connection is to be had: unknown, nobody is removed."""
    engine = sa.create_engine(postgresql_schema, pool_size=1, max_overflow=0, pool_timeout=0.2)
    async with open_registry(engine, max_concurrent=1) as registry:
        for session_id in IDS:
            await registry.add_session(session_id, FakeTransport())
        with engine.connect():
            with trio.fail_after(BOUND):
                report = await registry.cleanup()
            assert_all_unknown(registry, report)
            assert "pool" in str(report.refresh_failures[IDS[0]])
        await assert_recovers(registry)
    engine.dispose()


@contextlib.contextmanager
def engine_that_pings(url: sa.URL, **settings: Any) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url, pool_pre_ping=True, **settings)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.mark.parametrize("leaves", [False, True])
async def test_an_engine_that_pings_a_silent_server(proxy: Proxy, *, leaves: bool) -> None:
    """A pass and closing are bounded: an operation without a connection is withdrawn."""
    with engine_that_pings(proxy.url) as engine:
        store = DatabaseStore(engine, operation_timeout=2.0, lock_timeout=0.3)
        with trio.fail_after(40):
            async with open_registry(store) as registry:
                for session_id in IDS:
                    await registry.add_session(session_id, FakeTransport())
                assert (await registry.cleanup()).refreshed == 10
                proxy.fall_silent()
                start = time.monotonic()
                if not leaves:
                    report = await registry.cleanup()
                    assert time.monotonic() - start < BOUND
                    assert proxy.held_back > 0
                    assert sorted(report.refresh_failures) == IDS
                    assert "nothing has been sent" in str(report.refresh_failures[IDS[0]])
                    assert report.missing == report.disconnected == ()
                    assert registry.statistics().operations_running > 0, "no thread was left alone"
                    await proxy.heal()
                    proxy.cut()
                    await assert_recovers(registry)
                    while registry.statistics().operations_running:
                        await trio.sleep(0.01)
        if leaves:
            assert time.monotonic() - start < BOUND
            assert proxy.held_back > 0
            proxy.cut()


@pytest.mark.usefixtures("nothing_in_between")
async def test_a_withdrawn_operation_never_happens(
    proxy: Proxy, backdoor: DatabaseBackdoor
) -> None:
    """Its connection comes after all, and goes back unused: no row is written behind our backs."""
    with engine_that_pings(proxy.url, pool_size=1, max_overflow=0) as engine:
        store = DatabaseStore(engine, operation_timeout=2.0, lock_timeout=0.3)
        async with open_registry(store) as registry:
            proxy.fall_silent()
            with trio.fail_after(BOUND):
                await registry.add_session("s", FakeTransport())
            assert registry.statistics().unconfirmed == 1
            assert proxy.held_back > 0
            await proxy.heal()
            proxy.reset()
            with trio.fail_after(BOUND):
                while registry.statistics().operations_running:
                    await trio.sleep(0.01)
            assert backdoor.rows() == {}
            assert not [one for one in proxy.round_trips if "INSERT" in one]
            assert (await registry.cleanup()).restored == ("s",)
            assert backdoor.rows() == {"s": registry.worker_id}


@pytest.mark.usefixtures("nothing_in_between")
async def test_an_engine_that_pings_a_server_that_hangs(
    proxy: Proxy, backdoor: DatabaseBackdoor
) -> None:
    """The server's processes are stopped; when they go on, so does all else."""
    url = proxy.url.update_query_dict({"application_name": "trio_sessions test"})
    with engine_that_pings(url) as engine:
        store = DatabaseStore(engine, operation_timeout=2.0, lock_timeout=0.3)
        async with open_registry(store) as registry:
            for session_id in IDS:
                await registry.add_session(session_id, FakeTransport())
            hung = backends(backdoor)
            assert hung
            with stopped(*hung):
                with trio.fail_after(BOUND):
                    report = await registry.cleanup()
                assert {state(pid) for pid in hung} == {"T"}
                assert sorted(report.refresh_failures) == IDS
            await assert_recovers(registry)
            with trio.fail_after(BOUND):
                while registry.statistics().operations_running:
                    await trio.sleep(0.01)


async def test_threads_that_were_left_alone_are_bounded(proxy: Proxy) -> None:
    """By the limiter, however long the silence lasts; and each question is answered in time."""
    with engine_that_pings(proxy.url, pool_size=2, max_overflow=0) as engine:
        store = DatabaseStore(engine, operation_timeout=2.5, lock_timeout=0.1)
        async with open_registry(store, max_concurrent=3, store_timeout=2.0) as registry:
            proxy.fall_silent()
            for _ in range(5):
                with trio.fail_after(BOUND):
                    assert await registry.session_exists("elsewhere") is None
            assert registry.statistics().operations_running == 3
            await proxy.heal()
            with trio.fail_after(BOUND):
                while registry.statistics().operations_running:
                    await trio.sleep(0.01)
            assert await registry.session_exists("elsewhere") is False


# ---- opening and leaving ----


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("fault", ["refused", "silent", "silent after connecting", "no database"])
async def test_opening_with_the_database_away(
    proxy: Proxy, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """It fails in bounded time, names the cause, hides the password, and leaves nothing open."""
    url = proxy.url.set(username="postgres", password="s3cret")
    before = open_files()
    if fault == "refused":
        await proxy.refuse()
    elif fault == "silent":
        proxy.fall_silent()
    elif fault == "silent after connecting":
        proxy.fall_silent("answers")
    else:
        url = url.set(database="not_there")
    store = quick_store(url)
    start = time.monotonic()
    with caplog.at_level("DEBUG"), pytest.raises(StoreUnavailable) as caught:
        async with open_registry(store):
            raise AssertionError("it opened")
    assert time.monotonic() - start < BOUND
    assert isinstance(caught.value.__cause__, sa.exc.OperationalError)
    texts = [str(caught.value), repr(caught.value), str(caught.value.__cause__), caplog.text]
    assert not [text for text in [*texts, repr(store)] if "s3cret" in text]
    assert "postgresql+psycopg://postgres:***@127.0.0.1" in str(caught.value)
    assert not store._opened.is_open
    await proxy.heal()
    with trio.fail_after(BOUND):
        await proxy.wait_until(lambda: proxy.connections == 0)
    assert open_files() <= before


@pytest.mark.parametrize("fault", ["refused", "silent", "cut"])
async def test_leaving_with_the_database_away(proxy: Proxy, fault: str) -> None:
    """It takes bounded time, disconnects everyone, and raises nothing."""
    transport = FakeTransport()
    async with open_behind(proxy) as registry:
        await registry.add_session("s", transport)
        if fault == "refused":
            await proxy.refuse()
        elif fault == "silent":
            proxy.fall_silent()
        else:
            proxy.cut()
        start = time.monotonic()
    assert time.monotonic() - start < BOUND
    assert transport.disconnects == 1
    assert registry.statistics().leftover_rows == (11 if fault != "cut" else 0)
    assert registry.statistics().operations_running == 0


async def test_a_body_that_raises_while_the_database_is_away(proxy: Proxy) -> None:
    """Its exception comes out bare."""

    async def run() -> None:
        async with open_behind(proxy):
            proxy.fall_silent()
            raise KeyError

    with trio.fail_after(BOUND), pytest.raises(KeyError):
        await run()
