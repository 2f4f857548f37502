"""What can go wrong with a SQLite file, and engines that users bring along."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.lowlevel

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._errors import hide_values
from trio_sessions.stores.database.sqlite._connections import (
    create_engine,
    engine_options,
    transaction,
)
from trio_sessions.testing import FakeTransport


def quick_store(url: sa.URL) -> DatabaseStore:
    return DatabaseStore(url, lock_timeout=0.3, operation_timeout=2)


@contextmanager
def locked_by_another_process(path: str | None) -> Iterator[None]:
    """Let another process hold the write lock of the file."""
    program = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    assert path is not None
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        try:
            yield
            assert process.poll() is None, "it did not hold the lock to the end"
        finally:
            process.kill()


@pytest.mark.parametrize("batch_size", [1000, 1])
async def test_a_file_locked_by_another_process(sqlite_url: sa.URL, batch_size: int) -> None:
    """Everyone is unknown, in bounded time; the next pass sets it right."""
    async with open_registry(quick_store(sqlite_url), batch_size=batch_size) as registry:
        for i in range(5):
            await registry.add_session(f"s{i}", FakeTransport())
        with locked_by_another_process(sqlite_url.database):
            start = time.monotonic()
            with trio.fail_after(40):
                report = await registry.cleanup()
                await registry.add_session("added", FakeTransport())
                await registry.remove_session("s0")
            assert time.monotonic() - start < 60
            assert len(report.refresh_failures) == 5
            assert "locked" in str(report.refresh_failures["s1"])
            assert (report.refreshed, report.missing) == (0, ())
            assert await registry.locate_session("elsewhere") is None  # readers go on
        report = await registry.cleanup()
        assert (report.refreshed, report.restored) == (4, ("added",))


async def test_leaving_while_the_file_is_locked(sqlite_url: sa.URL) -> None:
    """It takes bounded time and raises nothing."""
    with trio.fail_after(40):
        async with open_registry(quick_store(sqlite_url)) as registry:
            await registry.add_session("s", FakeTransport())
            lock = locked_by_another_process(sqlite_url.database)
            lock.__enter__()
    lock.__exit__(None, None, None)
    assert registry.statistics().leftover_rows == 1


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    """Opening fails, names the folder, and says what to do."""
    url = f"sqlite:///{tmp_path / 'nowhere' / 'sessions.db'}"
    with pytest.raises(StoreUnavailable, match=r"the folder .*nowhere.* create the folder"):
        async with open_registry(url):
            raise AssertionError("it opened")
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def garbage(sqlite_url: sa.URL) -> Iterator[sa.URL]:
    """A file that is no database, and stays as it is."""
    path = Path(sqlite_url.database or "")
    path.write_text("no database " * 1000)
    yield sqlite_url
    assert path.read_text() == "no database " * 1000


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_file_that_is_no_database(garbage: sa.URL) -> None:
    """Opening fails, alters nothing and leaves nothing open."""
    before = open_files()
    with pytest.raises(StoreUnavailable, match="not a database") as caught:
        async with open_registry(garbage):
            raise AssertionError("it opened")
    assert isinstance(caught.value.__cause__, sa.exc.DatabaseError)
    assert open_files() <= before


async def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    """Opening fails."""
    with pytest.raises(StoreUnavailable):
        async with open_registry(f"sqlite:///{tmp_path}"):
            raise AssertionError("it opened")


async def test_a_file_opened_for_reading_only(sqlite_url: sa.URL) -> None:
    """Opening fails and says why: a worker without a row of its own has no witness."""
    async with open_registry(sqlite_url) as writer:
        await writer.add_session("s", FakeTransport())
        read_only = sa.make_url(f"sqlite:///file:{sqlite_url.database}?mode=ro&uri=true")
        with pytest.raises(StoreUnavailable, match="readonly"):
            async with open_registry(read_only):
                raise AssertionError("it opened")
        assert (await writer.cleanup()).refreshed == 1


async def test_a_file_that_becomes_read_only(sqlite_url: sa.URL) -> None:
    """What cannot be written is unknown, not missing."""
    engine = sa.create_engine(sqlite_url)
    query_only = 0

    @sa.event.listens_for(engine, "checkout")
    def set_mode(connection: Any, record: object, proxy: object) -> None:
        connection.execute(f"PRAGMA query_only = {query_only}")

    async with open_registry(engine) as registry:
        await registry.add_session("s", FakeTransport())
        query_only = 1
        report = await registry.cleanup()
        assert "readonly" in str(report.refresh_failures["s"])
        assert report.missing == ()
        query_only = 0
        assert (await registry.cleanup()).refreshed == 1
    engine.dispose()


async def test_a_full_disk(sqlite_url: sa.URL) -> None:
    """Sessions stay, unconfirmed, until there is room."""
    engine = sa.create_engine(sqlite_url)
    pages = 1_000_000

    @sa.event.listens_for(engine, "checkout")
    def set_room(connection: Any, record: object, proxy: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    async with open_registry(engine) as registry:
        pages = 1  # no more than there are
        for i in range(100):
            await registry.add_session(f"{i:03}" + "x" * 250, FakeTransport())
        unconfirmed = registry.statistics().unconfirmed
        assert unconfirmed > 0
        report = await registry.cleanup()
        assert len(report.refresh_failures) == unconfirmed
        assert "full" in str(next(iter(report.refresh_failures.values())))
        assert report.missing == ()
        pages = 1_000_000
        report = await registry.cleanup()
        assert len(report.restored) == unconfirmed
        assert registry.statistics().sessions == 100
    engine.dispose()


async def test_an_engine_that_begins_transactions_by_itself(sqlite_url: sa.URL) -> None:
    """SQLAlchemy's own recipe for SQLite's transactions does not stand in our way."""
    engine = sa.create_engine(sqlite_url)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    async with open_registry(engine) as registry:
        await registry.add_session("s", FakeTransport())
        assert registry.statistics().unconfirmed == 0
        assert (await registry.cleanup()).refreshed == 1
        assert await registry.locate_session("elsewhere") is None
        await registry.remove_session("s")
        assert registry.statistics().leftover_rows == 0
    engine.dispose()


def test_what_has_failed_leaves_no_transaction(sqlite_url: sa.URL) -> None:
    """Nor is what an engine has begun by itself in the way: all that was done is undone."""
    timeouts = DatabaseStore(sqlite_url)
    engine = create_engine(sqlite_url, 1, timeouts)
    ours = engine.execution_options(**engine_options(sqlite_url, timeouts))
    with ours.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (n INTEGER)")
        connection.exec_driver_sql("BEGIN")
        with pytest.raises(ZeroDivisionError), transaction(connection):
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            raise ZeroDivisionError
        driver: Any = connection.connection.dbapi_connection
        assert not driver.in_transaction
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 0
        with transaction(connection):
            connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        assert connection.exec_driver_sql("SELECT n FROM t").scalars().all() == [2]
    engine.dispose()


async def test_many_writers_take_turns(sqlite_url: sa.URL) -> None:
    """Twenty threads write to one file at once, and none finds it locked."""
    # SQLite's own waiting is not fair: two stores compete for the file, each with a queue.
    stores = [DatabaseStore(sqlite_url, lock_timeout=9) for _ in range(2)]
    async with (
        open_registry(stores[0], batch_size=1) as a,
        open_registry(stores[1], batch_size=1) as b,
    ):
        async with trio.open_nursery() as nursery:
            for i in range(60):
                nursery.start_soon((a, b)[i % 2].add_session, f"s{i}", FakeTransport())
        assert a.statistics().unconfirmed == b.statistics().unconfirmed == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.cleanup)
            nursery.start_soon(b.cleanup)
        for registry in (a, b):
            report = registry.statistics().last_report
            assert report is not None
            assert (report.refreshed, dict(report.refresh_failures)) == (30, {})


@trio.lowlevel.enable_ki_protection
def press_in_trio() -> None:
    """Press Ctrl-C where no task is hit by it: the main task gets it at its checkpoint."""
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_does_not_cut_a_write_that_has_begun(sqlite_url: sa.URL) -> None:
    """Its caller may leave at once; the write is the writer's, which closing waits for."""
    events = []

    async def main() -> None:
        store = DatabaseStore(sqlite_url, lock_timeout=5.0)
        async with open_registry(store) as registry, trio.open_nursery() as nursery:
            await registry.add_session("s", FakeTransport())
            locker = sqlite3.connect(str(sqlite_url.database), isolation_level=None)
            locker.execute("BEGIN IMMEDIATE")

            async def press() -> None:
                with trio.CancelScope(shield=True):
                    while not registry.statistics().operations_running:
                        await trio.lowlevel.checkpoint()
                    press_in_trio()
                    for _ in range(100):
                        await trio.lowlevel.checkpoint()
                    events.append(f"{registry.statistics().operations_running} runs")
                    locker.execute("ROLLBACK")
                    locker.close()

            nursery.start_soon(press)
            try:
                await registry.set_session_owner("s", "owner")
            except KeyboardInterrupt:
                events.append("interrupted")
                raise

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(BaseException) as caught:  # noqa: PT011 -- looked at below
            trio.run(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert events == ["interrupted", "1 runs"]
    assert isinstance(caught.value, BaseExceptionGroup)  # by the nursery of the test
    assert isinstance(caught.value.exceptions[0], KeyboardInterrupt)
    with contextlib.closing(sqlite3.connect(str(sqlite_url.database))) as connection:
        assert connection.execute("SELECT * FROM trio_sessions").fetchall() == []


def test_no_error_in_a_chain_shows_values() -> None:
    """However deep the driver's is below ours; frames hold them too."""
    secret = "a credential"

    def execute(session_id: str) -> None:
        raise sa.exc.DBAPIError(f"INSERT {len(session_id)}", {"id": session_id}, OSError("full"))

    try:
        try:
            execute(secret)
        except sa.exc.DBAPIError as exc:
            driver = exc
            raise ValueError("in between")  # noqa: B904 -- a context, no cause
    except ValueError as exc:
        error = StoreUnavailable("away")
        error.__cause__ = exc
    assert secret in str(driver)
    hide_values(error)
    assert driver.params is None
    assert secret not in "".join(traceback.format_exception(error))
    assert "full" in str(driver), "what is no value is kept"
    innermost = driver.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    assert innermost is not None
    assert innermost.tb_frame.f_locals == {}
