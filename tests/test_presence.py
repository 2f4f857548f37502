"""Whether a row is there is read from the snapshot, never from what an UPDATE has touched."""

import contextlib
import time
import uuid
from collections.abc import Iterator
from fnmatch import fnmatch

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from soak import longer

from trio_sessions import RowUnavailable, SessionRegistry, StoreUnavailable, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

LOCK_TIMEOUT = 0.3  # seconds


def ids(amount: int) -> list[str]:
    return [f"session-{number:03}" for number in range(amount)]


def back(shared: Shared) -> DatabaseBackdoor:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    return shared.backdoor


async def add(registry: SessionRegistry, amount: int) -> None:
    async with trio.open_nursery() as nursery:
        for session_id in ids(amount):
            nursery.start_soon(registry.add_session, session_id, FakeTransport())
    assert (await registry.cleanup()).refreshed == amount


_SWALLOWS = """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF new.session_id LIKE '{}' THEN RETURN NULL; END IF; RETURN new; END $$;
    CREATE TRIGGER swallow BEFORE UPDATE ON trio_sessions FOR EACH ROW EXECUTE FUNCTION swallow()"""
_IGNORES = """CREATE TRIGGER swallow BEFORE UPDATE ON trio_sessions
    WHEN new.session_id LIKE '{}' BEGIN SELECT RAISE(IGNORE); END"""


def swallow(shared: Shared, pattern: str) -> None:
    """Let a trigger swallow every update of the rows whose ids are LIKE it, in silence."""
    statement = _IGNORES if shared.name == "sqlite" else _SWALLOWS
    back(shared).execute(sa.text(statement.format(pattern)))


@contextlib.contextmanager
def locked_row(shared: Shared, session_id: str) -> Iterator[sa.Connection]:
    with back(shared).engine.connect() as connection:
        connection.exec_driver_sql(
            f"SELECT 1 FROM trio_sessions WHERE session_id = '{session_id}' FOR UPDATE"
        )
        yield connection
        connection.rollback()


def open_quick(shared: Shared) -> DatabaseStore:
    url = back(shared).engine.url
    return DatabaseStore(url, lock_timeout=LOCK_TIMEOUT, operation_timeout=20)


# ---- there, but not updated ----


@pytest.mark.parametrize(
    ("pattern", "batch_size"),
    [
        ("%", 7),
        ("%3", 1),
        ("session-007", 1000),
        *(
            pytest.param(pattern, size, marks=longer)
            for pattern, size in (("%", 1), ("%", 1000), ("%3", 7), ("%3", 1000))
        ),
        *(pytest.param("session-007", size, marks=longer) for size in (1, 7)),
    ],
)
async def test_a_trigger_that_swallows_updates_removes_nobody(
    database: Shared, pattern: str, batch_size: int
) -> None:
    """What it swallows is unknown and the error says so; the others are refreshed."""
    async with database.open(batch_size=batch_size) as registry:
        await add(registry, 50)
        swallow(database, pattern)
        swallowed = {one for one in ids(50) if fnmatch(one, pattern.replace("%", "*"))}
        report = await registry.cleanup()
        assert set(report.refresh_failures) == swallowed
        for error in report.refresh_failures.values():
            assert isinstance(error, RowUnavailable)
            assert "trigger" in str(error)
        assert report.missing == ()
        assert report.refreshed == 50 - len(swallowed)
        assert registry.statistics().incomplete_passes == 0


async def test_what_is_gone_is_missing_beside_what_is_swallowed(database: Shared) -> None:
    """A trigger hides no absence either."""
    async with database.open() as registry:
        await add(registry, 20)
        swallow(database, "%1")
        database.backdoor.delete("session-004", "session-011")
        report = await registry.cleanup()
        assert sorted(report.missing) == ["session-004", "session-011"]
        assert set(report.refresh_failures) == {"session-001"}
        assert report.refreshed == 17


@pytest.mark.parametrize("how", ["locked", "swallowed", "refused"])
async def test_rows_that_cannot_be_refreshed_outlive_their_ttl(
    postgresql: Shared, how: str
) -> None:
    """For 1.6 of it, while both workers' passes sweep: their holder is there, and says so."""
    ttl = 3.0
    settings = {"session_ttl": ttl, "cleanup_interval": ttl / 10}
    async with (
        postgresql.open(store=open_quick(postgresql), **settings) as a,
        postgresql.open(store=open_quick(postgresql), **settings) as b,
    ):
        for session_id in ids(5):
            await a.add_session(session_id, FakeTransport())
        with contextlib.ExitStack() as stack:
            if how == "locked":
                connection = stack.enter_context(back(postgresql).engine.connect())
                connection.exec_driver_sql("SELECT 1 FROM trio_sessions FOR UPDATE")
            elif how == "swallowed":
                swallow(postgresql, "%")
            else:
                check = "ADD CONSTRAINT refuse CHECK (false) NOT VALID"
                back(postgresql).execute(sa.text(f"ALTER TABLE trio_sessions {check}"))
            await trio.sleep(1.6 * ttl)
            for one in (a, b):
                statistics = one.statistics()
                assert statistics.passes > 3
                assert (statistics.removed_missing, statistics.expired) == (0, 0)
            assert list((await a.cleanup()).refresh_failures) == ids(5)
            assert postgresql.backdoor.rows() == dict.fromkeys(ids(5), a.worker_id)
            oldest = back(postgresql).execute(
                sa.text("SELECT max(extract(epoch FROM now() - last_accessed)) FROM trio_sessions")
            )
            assert oldest[0][0] > ttl, "they were refreshed after all"


async def test_each_in_one_statement_that_waits_for_no_row(postgresql: Shared) -> None:
    """Locked, swallowed, taken over, gone and refreshed are told apart at once."""
    async with postgresql.open(store=open_quick(postgresql)) as registry:
        await add(registry, 8)
        swallow(postgresql, "session-001")
        postgresql.backdoor.delete("session-002")
        postgresql.backdoor.give("session-003", "somebody else")
        with locked_row(postgresql, "session-004"):
            report = await registry.cleanup()
        assert set(report.refresh_failures) == {"session-001", "session-004"}
        assert "trigger" in str(report.refresh_failures["session-001"])
        assert "locked" in str(report.refresh_failures["session-004"])
        assert sorted(report.missing) == ["session-002", "session-003"]
        assert report.taken_over == ("session-003",)
        assert report.refreshed == 4


@pytest.mark.parametrize(
    ("deed", "afterwards"),
    [
        ("UPDATE trio_sessions SET worker_id = 'b' WHERE session_id = 'session-001'", "taken over"),
        ("DELETE FROM trio_sessions WHERE session_id = 'session-001'", "missing"),
    ],
)
async def test_a_row_that_moves_under_the_refresh_is_judged_by_the_next_pass(
    postgresql: Shared, deed: str, afterwards: str
) -> None:
    """The refresh waits for its lock: the snapshot has the row, the UPDATE does not."""
    async with postgresql.open() as registry:
        await add(registry, 3)
        with locked_row(postgresql, "session-001") as connection:

            def change_it_while_the_refresh_waits() -> None:
                waiting = sa.text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND query LIKE '%UPDATE trio_sessions%'"
                )
                give_up = time.monotonic() + 5
                while back(postgresql).execute(waiting) == [(0,)]:
                    assert time.monotonic() < give_up, "the refresh did not wait"
                connection.exec_driver_sql(deed)
                connection.commit()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, change_it_while_the_refresh_waits)
                report = await registry.cleanup()
        assert set(report.refresh_failures) == {"session-001"}
        assert "was not updated" in str(report.refresh_failures["session-001"])
        assert (report.missing, report.refreshed) == ((), 2)
        report = await registry.cleanup()
        assert report.missing == ("session-001",)
        assert report.taken_over == (("session-001",) if afterwards == "taken over" else ())


# ---- taken over ----


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
async def test_a_report_tells_taken_over_from_gone(everywhere: Shared, batch_size: int) -> None:
    """Both are missing here; of those taken over another worker has the row."""
    async with (
        everywhere.open(worker_id="a", batch_size=batch_size) as a,
        everywhere.open(worker_id="b") as b,
    ):
        await add(a, 9)
        await trio.sleep(0.02)  # the database's clock must move, SQLite's by a millisecond
        for session_id in ("session-002", "session-003"):
            await b.add_session(session_id, FakeTransport())
        everywhere.backdoor.delete("session-005")
        report = await a.cleanup()
        assert sorted(report.missing) == ["session-002", "session-003", "session-005"]
        assert sorted(report.taken_over) == ["session-002", "session-003"]
        assert report.refreshed == 6


# ---- row level security ----


@contextlib.contextmanager
def somebody_else(shared: Shared) -> Iterator[sa.URL]:
    """Return the URL of a role that may do everything with the tables, and owns nothing."""
    name, engine = f"r_{uuid.uuid4().hex[:12]}", back(shared).engine
    with engine.begin() as connection:
        schema = connection.exec_driver_sql("SELECT current_schema()").scalar_one()
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        connection.exec_driver_sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {name}")
        connection.exec_driver_sql(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {name}")
    try:
        yield engine.url.set(username=name, password="secret")
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {name}")
            connection.exec_driver_sql(f"DROP ROLE {name}")


@pytest.mark.parametrize("is_given", [False, True], ids=["our engine", "yours"])
@pytest.mark.parametrize("batch_size", [7, 1000])
async def test_row_level_security_removes_nobody(
    postgresql: Shared,
    batch_size: int,
    is_given: bool,  # noqa: FBT001 -- a parameter
) -> None:
    """Rows that it hides are kept, and the error says what to do; when it is off, all is well."""
    async with postgresql.open():
        pass  # the tables are their owner's
    with somebody_else(postgresql) as url:
        engine = sa.create_engine(url, poolclass=sa.QueuePool)
        store = DatabaseStore(engine if is_given else url, create_tables=False)
        async with open_registry(store, batch_size=batch_size) as registry:
            await add(registry, 20)
            owner = back(postgresql)
            owner.execute(sa.text("ALTER TABLE trio_sessions ENABLE ROW LEVEL SECURITY"))
            for _ in range(3):
                report = await registry.cleanup()
                assert sorted(report.refresh_failures) == ids(20)
                assert (report.missing, report.held) == ((), ())
            error = report.refresh_failures["session-000"]
            assert isinstance(error, StoreUnavailable)
            assert "row" in str(error) and "security" in str(error)  # noqa: PT018 -- one thing
            owner.execute(sa.text("ALTER TABLE trio_sessions DISABLE ROW LEVEL SECURITY"))
            report = await registry.cleanup()
            assert report.refreshed == 20
        engine.dispose()
