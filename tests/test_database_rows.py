"""Locks, triggers and deadlocks: one bad row costs only itself, a bad table costs nobody."""

import contextlib
import logging
import time
import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from trio.testing import MockClock

from trio_sessions import RowUnavailable, SessionRegistry, StoreUnavailable, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import RowAnswers

pytestmark = pytest.mark.usefixtures("nothing_in_between")

LOCK_TIMEOUT = 0.3  # seconds
BOUND = 20.0  # seconds: some of those, on a busy machine


def back(shared: Shared) -> DatabaseBackdoor:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    return shared.backdoor


def quick_store(shared: Shared) -> DatabaseStore:
    return DatabaseStore(back(shared).engine.url, lock_timeout=LOCK_TIMEOUT, operation_timeout=20)


def ids(amount: int) -> list[str]:
    return [f"session-{i:03}" for i in range(amount)]


@asynccontextmanager
async def open_with(
    shared: Shared, amount: int, **settings: Any
) -> AsyncIterator[tuple[SessionRegistry, FaultyStore]]:
    """Open a registry whose sessions all have a row; the store counts operations."""
    store = FaultyStore(settings.pop("store", None) or quick_store(shared))
    async with shared.open(store=store, **settings) as registry:
        for session_id in ids(amount):
            await registry.add_session(session_id, FakeTransport())
        assert (await registry.cleanup()).refreshed == amount
        store.calls.clear()
        yield registry, store


@contextlib.contextmanager
def locked(shared: Shared, *statements: str) -> Iterator[None]:
    """Hold what these statements lock, as somebody else's transaction does."""
    with back(shared).engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
        yield
        connection.rollback()


def lock_row(session_id: str, strength: str = "UPDATE") -> str:
    return f"SELECT 1 FROM trio_sessions WHERE session_id = '{session_id}' FOR {strength}"


def lock_all(shared: Shared) -> str:
    if shared.name == "sqlite":
        return "BEGIN IMMEDIATE"
    return "LOCK TABLE trio_sessions IN ACCESS EXCLUSIVE MODE"


# ---- errors ----


async def test_an_error_says_nothing_of_what_is_in_the_row(
    postgresql: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does its traceback: PostgreSQL adds the whole row to what it says."""
    caplog.set_level("DEBUG")
    async with open_with(postgresql, 0) as (registry, _):
        await registry.add_session("secret-id", FakeTransport())
        back(postgresql).execute(
            sa.text("ALTER TABLE trio_messages ADD CHECK (length(payload) < 10)")
        )
        back(postgresql).execute(sa.text("ALTER TABLE trio_sessions ADD CHECK (owner <> 'nobody')"))
        for refused in (
            registry.broadcast("secret-id", "secret-payload", durable=True),
            registry.set_session_owner("secret-id", "nobody"),
        ):
            with pytest.raises(RowUnavailable, match=r"CheckViolation: .* violates") as caught:
                await refused
            said = "".join(traceback.format_exception(caught.value))
            assert "violates check constraint" in said
            assert "secret" not in said
            assert "nobody" not in said
        back(postgresql).execute(
            sa.text("ALTER TABLE trio_sessions ADD CHECK (session_id = 'other') NOT VALID")
        )
        assert list((await registry.cleanup()).refresh_failures) == ["secret-id"]
    assert "violates check constraint" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("lock", "options", "operation_timeout"),
    [
        ("LOCK TABLE trio_sessions IN ACCESS EXCLUSIVE MODE", "-clock_timeout=300", 5.0),
        ("SELECT * FROM trio_sessions FOR UPDATE", "", 1.0),  # until the connection is cut
    ],
)
async def test_an_engine_of_yours_that_shows_parameters_does_not_show_ours(
    postgresql: Shared, lock: str, options: str, operation_timeout: float
) -> None:
    """Whatever breaks: the whole table is locked, or the connection is cut under a statement."""
    url = back(postgresql).engine.url
    options = f"{url.query['options']} {options}"
    engine = sa.create_engine(url, connect_args={"options": options})
    store = DatabaseStore(
        engine, operation_timeout=operation_timeout, lock_timeout=0.5, listen=False
    )
    async with open_registry(store) as registry:
        await registry.add_session("secret-id", FakeTransport())
        with locked(postgresql, lock):
            report = await registry.cleanup()
    engine.dispose()
    text = "".join(traceback.format_exception(report.refresh_failures["secret-id"]))
    assert "The above exception was the direct cause" in text
    assert "secret" not in text


# ---- locks ----


@pytest.mark.parametrize("strength", ["UPDATE", "NO KEY UPDATE", "SHARE"])
async def test_a_locked_row_costs_only_itself(postgresql: Shared, strength: str) -> None:
    """The others of its chunk are refreshed, within about the lock timeout."""
    async with open_with(postgresql, 10) as (registry, store):
        with locked(postgresql, lock_row("session-003", strength)):
            report = await registry.cleanup()
            assert list(report.refresh_failures) == ["session-003"]
            assert isinstance(report.refresh_failures["session-003"], RowUnavailable)
            assert report.refreshed == 9
            assert report.missing == ()
            assert LOCK_TIMEOUT <= report.duration < BOUND
            assert store.calls["refresh"] == 1
        report = await registry.cleanup()
        assert (report.refreshed, dict(report.refresh_failures)) == (10, {})


async def test_two_rows_locked_by_two_transactions(postgresql: Shared) -> None:
    """Both are unknown, and that takes no longer than one."""
    async with open_with(postgresql, 10) as (registry, _):
        with (
            locked(postgresql, lock_row("session-002")),
            locked(postgresql, lock_row("session-007")),
        ):
            report = await registry.cleanup()
            assert sorted(report.refresh_failures) == ["session-002", "session-007"]
            assert report.refreshed == 8
            assert report.duration < BOUND
        assert (await registry.cleanup()).refreshed == 10


async def test_a_locked_row_and_a_missing_one(postgresql: Shared) -> None:
    """The locked one is kept, the missing one is removed."""
    async with open_with(postgresql, 10) as (registry, _):
        postgresql.backdoor.delete("session-005")
        with locked(postgresql, lock_row("session-004")):
            report = await registry.cleanup()
        assert report.missing == ("session-005",)
        assert list(report.refresh_failures) == ["session-004"]
        assert report.refreshed == 8


async def test_a_row_lock_that_does_not_hinder(postgresql: Shared) -> None:
    """FOR KEY SHARE, which a foreign key takes when a message is inserted, is no obstacle."""
    async with open_with(postgresql, 3) as (registry, _):
        with locked(postgresql, lock_row("session-001", "KEY SHARE")):
            assert (await registry.cleanup()).refreshed == 3


@pytest.mark.parametrize("amount", [1, 60])
async def test_a_locked_table_leaves_everyone_unknown(database: Shared, amount: int) -> None:
    """In bounded time, however many rows there are: it is not asked in halves."""
    async with open_with(database, amount) as (registry, store):
        with locked(database, lock_all(database)):
            start = time.monotonic()
            report = await registry.cleanup()
            assert time.monotonic() - start < BOUND
            assert sorted(report.refresh_failures) == ids(amount)
            assert store.calls["refresh"] == 1
            for error in report.refresh_failures.values():
                assert isinstance(error, StoreUnavailable)
                assert not isinstance(error, RowUnavailable)
            assert report.missing == ()
        assert (await registry.cleanup()).refreshed == amount


async def test_a_session_added_while_the_table_is_locked(database: Shared) -> None:
    """It stays, unconfirmed, and the next pass writes its row."""
    async with open_with(database, 1) as (registry, _):
        transport = FakeTransport()
        with locked(database, lock_all(database)):
            await registry.add_session("s", transport)
            assert await registry.get_session("s") is transport
            assert registry.statistics().unconfirmed == 1
        assert database.backdoor.rows().keys() == {"session-000"}
        report = await registry.cleanup()
        assert (report.restored, report.missing, report.refreshed) == (("s",), (), 1)
        assert database.backdoor.rows().keys() == {"session-000", "s"}


async def test_restoring_while_the_table_is_locked(database: Shared) -> None:
    """Rows that were never written are not asked in halves either."""
    async with open_with(database, 1) as (registry, store):
        store.fail(Fault.FAILS, "Claim")
        for i in range(60):
            await registry.add_session(f"added-{i}", FakeTransport())
        store.heal()
        store.calls.clear()
        with locked(database, lock_all(database)):
            start = time.monotonic()
            report = await registry.cleanup()
            assert time.monotonic() - start < BOUND
            assert len(report.refresh_failures) == 61
            assert store.calls["Claim"] == 1
            assert report.restored == report.missing == ()
        assert len((await registry.cleanup()).restored) == 60


async def test_restoring_where_one_row_is_locked(postgresql: Shared) -> None:
    """Rows of another worker are taken over, but for the one that somebody holds."""
    store = FaultyStore(quick_store(postgresql))
    async with postgresql.open(store=store) as registry:
        for session_id in ids(64):
            postgresql.backdoor.insert(session_id, "another worker", age=60)
        back(postgresql).execute(
            sa.text("UPDATE trio_sessions SET taken_at = now() - interval '1 minute'")
        )
        store.fail(Fault.FAILS, "Claim")
        for session_id in ids(64):
            await registry.add_session(session_id, FakeTransport())
        store.heal()
        with locked(postgresql, lock_row("session-003")):
            start = time.monotonic()
            report = await registry.cleanup()
            assert time.monotonic() - start < BOUND
        assert list(report.refresh_failures) == ["session-003"]
        assert len(report.restored) == 63
        assert (await registry.cleanup()).restored == ("session-003",)


async def test_a_deadlock_is_broken_and_repeated(postgresql: Shared) -> None:
    """The chunk that PostgreSQL gave up is asked again, and nobody is removed."""
    url = back(postgresql).engine.url
    # Our lock timeout must not come before the server finds the deadlock, after 1 s.
    store = DatabaseStore(url, lock_timeout=4, operation_timeout=20)
    async with open_with(postgresql, 2, store=store) as (registry, counted):
        with back(postgresql).engine.connect() as connection:
            connection.exec_driver_sql("SET deadlock_timeout = '10s'")  # so that we lose
            connection.exec_driver_sql(lock_row("session-001"))

            def close_the_circle() -> None:
                waiting = sa.text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND query LIKE '%UPDATE trio_sessions%'"
                )
                while back(postgresql).execute(waiting) == [(0,)]:
                    pass
                connection.exec_driver_sql(lock_row("session-000"))
                connection.rollback()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, close_the_circle)
                with trio.fail_after(40):
                    report = await registry.cleanup()
        assert counted.calls["refresh"] == 3, "there was no deadlock"
        assert report.refreshed == 2
        assert report.missing == ()


# ---- triggers ----


def refuse(shared: Shared, session_id: str, *, how: str | None = None) -> None:
    """Let a trigger refuse every update of one session's row, or of all that are LIKE it."""
    backdoor = back(shared)
    if shared.name == "sqlite":
        backdoor.execute(
            sa.text(
                "CREATE TRIGGER refuse BEFORE UPDATE ON trio_sessions "
                f"WHEN new.session_id LIKE '{session_id}' "
                f"BEGIN SELECT RAISE({how or 'ABORT'}, 'refused by a trigger'); END"
            )
        )
        return
    backdoor.execute(
        sa.text(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF new.session_id LIKE '{session_id.replace('%', '%%')}' THEN "
            f"RAISE EXCEPTION 'refused by a trigger' USING ERRCODE = '{how or 'P0001'}'; "
            "END IF; RETURN new; END $$"
        )
    )
    backdoor.execute(
        sa.text(
            "CREATE TRIGGER refuse BEFORE UPDATE ON trio_sessions "
            "FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    )


def allow(shared: Shared) -> None:
    where = "" if shared.name == "sqlite" else " ON trio_sessions"
    back(shared).execute(sa.text(f"DROP TRIGGER refuse{where}"))


async def test_a_refused_row_costs_only_itself(database: Shared) -> None:
    """It is found by halving: 64 rows take 13 statements."""
    async with open_with(database, 64) as (registry, store):
        refuse(database, "session-037")
        report = await registry.cleanup()
        assert list(report.refresh_failures) == ["session-037"]
        assert isinstance(report.refresh_failures["session-037"], RowUnavailable)
        assert "refused by a trigger" in str(report.refresh_failures["session-037"])
        assert report.refreshed == 63
        assert report.missing == ()
        assert store.calls["refresh"] == 13
        allow(database)
        assert (await registry.cleanup()).refreshed == 64


async def test_many_refused_rows_cost_only_themselves(database: Shared) -> None:
    """Each of them is found, however many there are."""
    async with open_with(database, 80) as (registry, _):
        refuse(database, "session-%3")
        for _ in range(2):
            report = await registry.cleanup()
            assert sorted(report.refresh_failures) == [i for i in ids(80) if i.endswith("3")]
            assert report.refreshed == 72
        assert registry.statistics().incomplete_passes == 0


async def test_a_flood_of_bad_rows_does_not_keep_a_pass_from_its_end(
    autojump_clock: MockClock,
) -> None:
    """Halving stops after half of the interval; what may be good makes the pass incomplete."""

    class RefusesRows(FaultyStore):
        async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
            await trio.sleep(1)
            raise RowUnavailable("a bad row")

    store = RefusesRows(MemoryStore())
    async with open_registry(store, cleanup_interval=100.0, session_ttl=1000.0) as registry:
        for number in range(200):
            await registry.add_session(f"s{number}", FakeTransport())
        start = trio.current_time()
        report = await registry.cleanup()
        assert 50 <= trio.current_time() - start < 60
        assert len(report.refresh_failures) == 200
        assert registry.statistics().incomplete_passes == 1


async def test_a_trigger_that_rolls_back_by_itself(sqlite: Shared) -> None:
    """SQLite's RAISE(ROLLBACK) has ended our transaction already: still only that row."""
    async with open_with(sqlite, 8) as (registry, _):
        refuse(sqlite, "session-003", how="ROLLBACK")
        report = await registry.cleanup()
        assert list(report.refresh_failures) == ["session-003"]
        assert "refused by a trigger" in str(report.refresh_failures["session-003"])
        assert report.refreshed == 7


async def test_a_failing_pass_sweeps_nobody(postgresql: Shared) -> None:
    """Where the database fails for a reason that is no row's own, the dead rows stay, too."""
    async with open_with(postgresql, 8) as (registry, _):
        postgresql.backdoor.insert("dead", "dead worker", age=7200)
        refuse(postgresql, "session-003", how="58030")  # io_error
        report = await registry.cleanup()
        assert sorted(report.refresh_failures) == ids(8)
        assert report.expired == 0
        assert "dead" in postgresql.backdoor.rows()
        allow(postgresql)
        report = await registry.cleanup()
        assert (report.refreshed, report.expired) == (8, 1)
        assert "dead" not in postgresql.backdoor.rows()


async def test_dropped_tables_remove_nobody(database: Shared) -> None:
    """A table that is gone says nothing about rows."""
    async with open_with(database, 3) as (registry, _):
        for name in ("logs", "messages", "sessions", "fleet"):
            back(database).execute(sa.text(f"DROP TABLE trio_{name}"))
        report = await registry.cleanup()
        assert sorted(report.refresh_failures) == ids(3)
        assert report.missing == ()
        back(database).sessions.metadata.create_all(back(database).engine)
        assert (await registry.cleanup()).missing == tuple(ids(3))  # now it says something


async def test_an_error_names_no_session_and_no_values(
    database: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """Ids are credentials: neither the error nor the log repeats them."""
    async with open_with(database, 4) as (registry, _):
        refuse(database, "session-002")
        with caplog.at_level("DEBUG", logger="trio_sessions"):
            report = await registry.cleanup()
        error = report.refresh_failures["session-002"]
        assert "session-0" not in f"{error!r} {error.__cause__!r} {caplog.text}"
        assert "refused by a trigger" in caplog.text


async def test_the_engine_s_own_log_has_no_ids(
    database: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever lets SQLAlchemy log its statements sees the statements, and not of whom they are."""
    caplog.set_level(logging.INFO, "sqlalchemy.engine")
    async with database.open() as registry:
        await registry.add_session("a credential", FakeTransport())
        await registry.set_session_owner("a credential", "somebody")
        await registry.cleanup()
        assert await registry.session_exists("a credential")
    assert "trio_sessions" in caplog.text, "the statements are logged"
    assert "hide_parameters" in caplog.text
    assert "a credential" not in caplog.text
    assert "somebody" not in caplog.text


async def test_a_row_that_is_refused_costs_no_connection(sqlite: Shared) -> None:
    """The connection is good: only what was lost, or leads to the wrong server, is thrown away."""
    engine = sa.create_engine(back(sqlite).engine.url)
    closed = 0

    @sa.event.listens_for(engine, "close")
    def count(*_: object) -> None:
        nonlocal closed
        closed += 1

    async with open_registry(DatabaseStore(engine), cleanup_interval=1800.0) as registry:
        await registry.add_session("good", FakeTransport())
        back(sqlite).execute(
            sa.text(
                "CREATE TRIGGER refuse BEFORE INSERT ON trio_sessions "
                "WHEN NEW.session_id = 'bad' BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        )
        await registry.add_session("bad", FakeTransport())
        assert list((await registry.cleanup()).refresh_failures) == ["bad"]
        await registry.add_session("good too", FakeTransport())
        assert closed == 0
    engine.dispose()
