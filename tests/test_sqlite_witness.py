"""The witness on SQLite: a file that has gone back, waits that are not late, statements."""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from witnesses import open_witnessed

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.errors import RowDoubtful, StoreUnavailable
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport
from trio_sessions.types import Stamp
from trio_sessions.writes import Claim, Send, SetOwner, Verdict

SETTINGS: dict[str, Any] = {"session_ttl": 3600.0, "cleanup_interval": 1800.0}

Make = Callable[[], DatabaseStore]


@pytest.fixture
def make(sqlite_url: sa.URL) -> Make:
    return lambda: DatabaseStore(sqlite_url, lock_timeout=9.0)


@contextlib.contextmanager
def connected(path: str | Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(str(path), isolation_level=None)) as connection:
        yield connection


def copy(source: str | Path, target: str | Path) -> None:
    """Copy a database, as a backup does."""
    with connected(source) as here, connected(target) as there:
        here.backup(there)


# ---- a file that has gone back ----


def remove(url: sa.URL, *endings: str) -> None:
    """Delete the file, or what SQLite has put beside it."""
    assert url.database is not None
    for ending in endings:
        Path(url.database + ending).unlink(missing_ok=True)


def put_over(copied: Path, url: sa.URL) -> None:
    """Let the copy be the file, and remove what belonged to the one before."""
    assert url.database is not None
    remove(url, "-wal", "-shm")
    copied.replace(url.database)


def write_into(copied: Path, url: sa.URL) -> None:
    """Write the copy into the file that others have open."""
    assert url.database is not None
    copy(copied, url.database)


@pytest.mark.parametrize("restore", [put_over, write_into])
async def test_a_file_that_has_gone_back_shows_a_lower_beat(
    make: Make, sqlite_url: sa.URL, tmp_path: Path, restore: Callable[[Path, sa.URL], None]
) -> None:
    """And a batch of somebody who knows of a higher one does nothing."""
    assert sqlite_url.database is not None
    copied = tmp_path / "copy.db"
    async with open_witnessed(make, "a") as a:
        await a.claim("before")
        before = a.known
        copy(sqlite_url.database, copied)
        await a.claim("after")
        restore(copied, sqlite_url)
        if restore is put_over:
            with pytest.raises(StoreUnavailable, match="replaced"):
                await a.store.refresh(a.worker, ["before"])
        answers = await a.store.refresh(a.worker, ["before", "after"])
        assert answers.held == {"before"}
        assert answers.stamp == before
        assert before.beat < a.known.beat
        for _ in range(3):  # it does not catch up
            committed = await a.claim("new")
            assert committed.verdict is Verdict.FORGOTTEN
            assert not await a.stamp()
            assert (await a.sweep()).stamped is not None
        assert await a.seen() == before
        assert DatabaseBackdoor(sqlite_url).rows() == {"before": "a"}
        assert not await a.begin(rewound=True), "no lease was lost"
        assert (await a.claim("new")).verdict is Verdict.DONE
        for write in (
            Send(session_id="after", payload="1"),
            SetOwner(session_id="after", owner="x"),
        ):
            [answer] = (await a.commit(write)).answers
            assert isinstance(answer, RowDoubtful)


async def test_another_file_has_another_history(make: Make, sqlite_url: sa.URL) -> None:
    """One that was made anew has none, until the worker begins one."""
    async with open_witnessed(make, "a") as a:
        await a.claim("s")
        remove(sqlite_url, "", "-wal", "-shm")
        with pytest.raises(StoreUnavailable, match="deleted or replaced"):
            await a.seen()
        assert await a.seen() is None
        assert (await a.claim("s")).verdict is Verdict.FORGOTTEN
        await a.begin(rewound=True)
        with pytest.raises(StoreUnavailable, match="restored, replaced or failed over"):
            await a.store.locate(a.worker, "s")
        assert (await a.claim("s")).verdict is Verdict.DONE
        assert await a.store.locate(a.worker, "s") is not None


async def test_the_doubt_lasts_two_of_the_longest_intervals(make: Make, sqlite_url: sa.URL) -> None:
    """Of all workers; who begins without a rewind, or with a shorter one, does not end it."""
    async with (
        open_witnessed(make, "a", session_ttl=2000.0),
        open_witnessed(make, "b", session_ttl=20.0) as b,
    ):
        backdoor = DatabaseBackdoor(sqlite_url)
        await b.begin(rewound=True)
        await b.begin(rewound=False)
        [(left,)] = backdoor.execute(
            sa.text("SELECT 86400 * (julianday(doubtful_until) - julianday('now')) FROM trio_fleet")
        )
        assert 1900.0 < left <= 2000.0
        backdoor.execute(sa.text("DELETE FROM trio_workers WHERE worker_id = 'a'"))
        await b.begin(rewound=True)
        [(later,)] = backdoor.execute(
            sa.text("SELECT 86400 * (julianday(doubtful_until) - julianday('now')) FROM trio_fleet")
        )
        assert 1900.0 < later <= left


async def test_a_doubt_in_the_future_is_set_right(make: Make, sqlite_url: sa.URL) -> None:
    """It was noted while the clock was ahead."""
    left = "SELECT 86400 * (julianday(doubtful_until) - julianday('now')) FROM trio_fleet"
    later = "strftime('%Y-%m-%d %H:%M:%f', doubtful_until, '+1 day')"
    async with open_witnessed(make, "a", session_ttl=600.0) as a:
        backdoor = DatabaseBackdoor(sqlite_url)
        await a.begin(rewound=True)
        backdoor.execute(sa.text(f"UPDATE trio_fleet SET doubtful_until = {later}"))
        assert backdoor.execute(sa.text(left))[0][0] > 86400
        await a.stamp()
        [(seconds,)] = backdoor.execute(sa.text(left))
        assert 500.0 < seconds <= 600.0
        with pytest.raises(StoreUnavailable, match="restored, replaced or failed over"):
            await a.store.locate(a.worker, "nobody")


# ---- and what a registry makes of it ----


async def add(registry: SessionRegistry, *session_ids: str) -> dict[str, FakeTransport]:
    transports = {session_id: FakeTransport() for session_id in session_ids}
    async with trio.open_nursery() as nursery:
        for session_id, transport in transports.items():
            nursery.start_soon(registry.add_session, session_id, transport)
    return transports


async def assert_all_alive(
    registry: SessionRegistry, url: sa.URL, transports: dict[str, FakeTransport]
) -> None:
    """Pass until all rows are there; nobody may have gone meanwhile."""
    for _ in range(2):  # the first may only have found that the file is another one
        assert (await registry.cleanup()).missing == ()
    report = await registry.cleanup()
    assert (report.refreshed, report.missing) == (len(transports), ())
    assert registry.statistics().database_rewinds == 1
    assert sum(one.disconnects for one in transports.values()) == 0
    rows = DatabaseBackdoor(url).rows()
    held = {one for one, worker_id in rows.items() if worker_id == registry.worker_id}
    assert held == transports.keys()


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("restore", [put_over, write_into])
async def test_a_backup_that_was_restored_removes_nobody(
    sqlite_url: sa.URL,
    tmp_path: Path,
    restore: Callable[[Path, sa.URL], None],
    batch_size: int,
) -> None:
    """Neither who was there when it was made, nor who has come since."""
    assert sqlite_url.database is not None
    copied = tmp_path / "copy.db"
    settings: dict[str, Any] = {**SETTINGS, "batch_size": batch_size}
    async with (
        open_registry(DatabaseStore(sqlite_url), **settings) as a,
        open_registry(DatabaseStore(sqlite_url), **settings) as b,
    ):
        of_a = await add(a, *(f"a{number}" for number in range(12)))
        copy(sqlite_url.database, copied)
        of_a |= await add(a, "since")
        of_b = await add(b, *(f"b{number}" for number in range(5)))
        await b.set_session_owner("b0", "owner")
        restore(copied, sqlite_url)
        await assert_all_alive(a, sqlite_url, of_a)
        await assert_all_alive(b, sqlite_url, of_b)
        assert DatabaseBackdoor(sqlite_url).owners()["b0"] == "owner"


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
async def test_a_file_that_was_made_anew_removes_nobody(
    sqlite_url: sa.URL, batch_size: int
) -> None:
    """Deleted, and made again by a worker that restarts; every connection turns to the new one."""
    settings: dict[str, Any] = {**SETTINGS, "batch_size": batch_size}
    async with open_registry(DatabaseStore(sqlite_url), **settings) as registry:
        transports = await add(registry, *(f"s{number}" for number in range(40)))
        await registry.cleanup()  # on several connections, where it is in several chunks
        remove(sqlite_url, "", "-wal", "-shm")
        async with open_registry(DatabaseStore(sqlite_url), **settings) as restarted:
            await restarted.add_session("restarted", FakeTransport())
            await assert_all_alive(registry, sqlite_url, transports)
            assert await registry.locate_session("restarted") == restarted.worker_id


# ---- late ----


async def test_a_wait_for_the_file_is_not_late(make: Make, sqlite_url: sa.URL) -> None:
    """The batch has begun before."""
    assert sqlite_url.database is not None
    async with open_witnessed(make, "a") as a:
        clock = (await a.claim("s")).clock
        assert clock is not None
        assert abs(clock - time.time()) < 60.0
        last = time.time() + 2.0
        with connected(sqlite_url.database) as locker:
            locker.execute("BEGIN IMMEDIATE")

            async def unlock() -> None:
                while time.time() <= last + 0.1:
                    await trio.sleep(0.05)
                locker.execute("ROLLBACK")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(unlock)
                write = Claim(session_id="t", generation=1, age=0.0)
                committed = await a.commit(write, not_after=last)
        assert time.time() > last, "it did not wait for the file"
        assert committed.verdict is Verdict.DONE
        assert committed.clock is not None
        assert committed.clock <= last


# ---- a sweep that fails ----


async def test_a_sweep_that_fails_has_stamped(make: Make, sqlite_url: sa.URL) -> None:
    """Else whoever is the only one to sweep would lose its lease by a backlog."""
    backdoor = DatabaseBackdoor(sqlite_url)
    async with open_witnessed(make, "a") as a:
        await a.sweep()
        backdoor.insert("dead", "another", age=7000.0)
        backdoor.execute(
            sa.text(
                "CREATE TRIGGER refuse BEFORE DELETE ON trio_sessions"
                " BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        )
        backdoor.age_workers(700.0)
        beat = a.known.beat
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="refused"):
                await a.sweep()
        assert await a.seen() == Stamp(history=a.known.history, beat=beat + 2)
        backdoor.execute(sa.text("DROP TRIGGER refuse"))
        assert (await a.sweep()).sessions == 1
        [(age,)] = backdoor.execute(
            sa.text("SELECT 86400 * (julianday('now') - julianday(passed_at)) FROM trio_workers")
        )
        assert age < 60.0


async def test_a_pause_in_the_middle_of_a_sweep_is_a_gap(sqlite_url: sa.URL) -> None:
    """The host slept after it had vouched, and nobody could stamp meanwhile."""
    backdoor = DatabaseBackdoor(sqlite_url)
    engine = sa.create_engine(sqlite_url)
    pauses: list[float] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def pause(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("BEGIN") and pauses:
            seconds = pauses.pop()
            backdoor.age(seconds)
            backdoor.age_workers(seconds)
            if seconds:
                backdoor.age_fleet(seconds)

    def make() -> DatabaseStore:
        return DatabaseStore(engine)

    async with open_witnessed(make, "a") as a, open_witnessed(make, "b") as b:
        await a.sweep()
        await b.claim("s")
        pauses += [3600.0, 0.0]
        assert (await a.sweep()).sessions == 0
        assert not pauses
        assert backdoor.workers().keys() == {"a", "b"}
        assert (await a.sweep()).sessions == 0
        assert backdoor.rows() == {"s": "b"}
    engine.dispose()


async def test_a_stamp_that_a_trigger_swallows_is_none(make: Make, sqlite_url: sa.URL) -> None:
    """Nor is anything of its batch done, for the beat that it would be judged by is not there."""
    async with open_witnessed(make, "a") as a:
        DatabaseBackdoor(sqlite_url).execute(
            sa.text(
                "CREATE TRIGGER swallow BEFORE UPDATE ON trio_workers"
                " BEGIN SELECT RAISE(IGNORE); END"
            )
        )
        for write in (lambda: a.claim("s"), a.stamp, a.sweep):
            with pytest.raises(StoreUnavailable, match="trigger"):
                await write()
        assert DatabaseBackdoor(sqlite_url).rows() == {}
        assert await a.seen() == a.known


async def test_an_incarnation_is_known_to_be_gone_for_a_week(
    make: Make, sqlite_url: sa.URL
) -> None:
    """What went earlier is forgotten when the next one goes."""
    backdoor = DatabaseBackdoor(sqlite_url)
    gone = sa.text("SELECT incarnation FROM trio_gone ORDER BY incarnation")
    async with open_witnessed(make, "a") as a:
        await a.sweep()
        for days in (8, 6):
            backdoor.execute(
                sa.text(
                    "INSERT INTO trio_gone (incarnation, gone_at) "
                    f"VALUES ('{days}', datetime('now', '-{days} days'))"
                )
            )
        async with open_witnessed(make, "b") as b:
            backdoor.age_workers(700.0, "b")
            await a.sweep()
            assert backdoor.execute(gone) == [("6",), (b.worker.incarnation,)]


# ---- statements ----


@pytest.fixture
def noting(sqlite_url: sa.URL) -> Iterator[tuple[Make, list[str]]]:
    engine = sa.create_engine(sqlite_url)
    noted: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        noted.append(statement.split(maxsplit=1)[0])

    yield lambda: DatabaseStore(engine), noted
    engine.dispose()


async def test_what_is_asked_of_the_file(noting: tuple[Make, list[str]]) -> None:
    """A batch reads its worker's row and stamps it; a refresh reads it; little more."""
    make, noted = noting
    async with open_witnessed(make, "a") as a:
        await a.sweep()
        noted.clear()
        await a.claim("s")
        assert noted == [
            *("BEGIN", "SELECT"),  # the worker's row
            *("SELECT", "SELECT"),  # the row, and whether the id is revoked
            *("DELETE", "DELETE"),  # what an earlier session has left: messages, and its log
            *("INSERT", "SELECT"),
            *("UPDATE", "COMMIT"),  # the stamp
        ]
        noted.clear()
        await a.store.refresh(a.worker, ["s"])
        assert noted == ["BEGIN", "UPDATE", "SELECT", "COMMIT"]
        noted.clear()
        await a.stamp()
        assert noted == ["BEGIN", "SELECT", "UPDATE", "INSERT", "COMMIT"]
        noted.clear()
        await a.sweep()
        stamped = ["BEGIN", "SELECT", "UPDATE", "INSERT", "COMMIT"]
        assert noted == [*stamped, "BEGIN", "SELECT", "DELETE", "SELECT", "COMMIT"]
