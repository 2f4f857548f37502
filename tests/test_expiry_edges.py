"""What expires, at its edges: at the very moment, beside locks, without the fleet's row."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa
from backdoors import Backdoor, MemoryBackdoor
from conftest import Shared, share_database
from test_database_rows import back, locked, open_with
from trio.testing import MockClock
from witnesses import Witnessed, open_witnessed

from trio_sessions.abc import InspectionStore, SessionStore
from trio_sessions.inspection import WorkerState
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.writes import Claimed, Outcome

pytestmark = pytest.mark.usefixtures("nothing_in_between")

TTL = 600.0
HOUR = 3600.0


# ---- at the very moment ----


@contextlib.contextmanager
def stopped_clock(schema: sa.URL) -> Iterator[tuple[sa.URL, Callable[[float], None]]]:
    """Give PostgreSQL a clock that stands, and say what moves it.

    Functions of a schema that stands before ``pg_catalog`` in the path are found first.
    """
    [path] = [schema.query["options"]]
    assert isinstance(path, str)
    url = schema.update_query_dict({"options": f"{path},pg_catalog"})
    engine = sa.create_engine(schema, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE standing (moment timestamptz)")
        connection.exec_driver_sql("INSERT INTO standing VALUES ('2020-01-01 12:00Z')")
        for name in ("now", "clock_timestamp", "statement_timestamp", "transaction_timestamp"):
            connection.exec_driver_sql(
                f"CREATE FUNCTION {name}() RETURNS timestamptz STABLE LANGUAGE sql "
                "AS 'SELECT moment FROM standing'"
            )

    def move(seconds: float) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                f"UPDATE standing SET moment = moment + interval '{seconds} s'"
            )

    yield url, move
    engine.dispose()


async def live_until(
    a: Witnessed, b: Witnessed, move: Callable[[float], None], *, row: float, stamp: float
) -> list[int]:
    """Return what ``a`` sweeps when ``b`` has been silent for just its TTL, and a bit longer.

    Args:
        a: vouches, and sweeps.
        b: holds a session, and dies.
        move: moves the clock.
        row: seconds after which the row was last refreshed.
        stamp: seconds after which the worker was last stamped.
    """
    assert await a.stamp()
    await b.claim("s")
    passed = 0.0
    for moment, is_row in sorted([(row, True), (stamp, False)]):
        move(moment - passed)
        passed = moment
        if is_row:
            assert (await b.store.refresh(b.worker, ["s"])).held == {"s"}
        else:
            assert await b.stamp(passed=True)
    swept = []
    for step in (200.0, 200.0, TTL - 400.0, 0.25):
        move(step)
        swept.append((await a.sweep()).sessions)
    return swept


EDGES = pytest.mark.parametrize(("row", "stamp"), [(0.0, 0.0), (2.0, 1.0), (1.0, 2.0)])


@asynccontextmanager
async def two_workers(
    make_store: Callable[[], SessionStore],
) -> AsyncIterator[tuple[Witnessed, Witnessed]]:
    """Open the one who sweeps, with a shorter TTL, and the one who dies."""
    async with (
        open_witnessed(make_store, "a", session_ttl=TTL - 100.0) as a,
        open_witnessed(make_store, "b", session_ttl=TTL) as b,
    ):
        yield a, b


@EDGES
async def test_at_exactly_its_ttl_a_row_is_kept_on_postgresql(
    postgresql_schema: sa.URL, row: float, stamp: float
) -> None:
    """The row or the lease, whichever ends later; a moment afterwards it goes."""
    with (
        stopped_clock(postgresql_schema) as (url, move),
        share_database("postgresql", url) as shared,
    ):
        async with two_workers(shared.make_store) as (a, b):
            assert await live_until(a, b, move, row=row, stamp=stamp) == [0, 0, 0, 1]


@EDGES
async def test_at_exactly_its_ttl_a_row_is_kept_in_memory(
    mock_clock: MockClock, row: float, stamp: float
) -> None:
    """The same."""
    store = MemoryStore()
    async with two_workers(lambda: store) as (a, b):
        assert await live_until(a, b, mock_clock.jump, row=row, stamp=stamp) == [0, 0, 0, 1]


async def sweep_until_gone(
    a: Witnessed, move: Callable[[float], None], backdoor: Backdoor
) -> list[bool]:
    """Say whether the row of a silent worker is there at its TTL, and a bit later."""
    there = []
    for step in (200.0, 200.0, TTL - 400.0, 0.25):
        move(step)
        await a.sweep()
        there.append("b" in backdoor.workers())
    return there


async def test_at_exactly_its_ttl_a_worker_is_kept_on_postgresql(
    postgresql_schema: sa.URL,
) -> None:
    """Its own row, when it has no session any more."""
    with (
        stopped_clock(postgresql_schema) as (url, move),
        share_database("postgresql", url) as shared,
    ):
        async with two_workers(shared.make_store) as (a, _):
            assert await sweep_until_gone(a, move, shared.backdoor) == [True, True, True, False]


async def test_at_exactly_its_ttl_a_worker_is_kept_in_memory(mock_clock: MockClock) -> None:
    """The same."""
    store = MemoryStore()
    async with two_workers(lambda: store) as (a, _):
        there = await sweep_until_gone(a, mock_clock.jump, MemoryBackdoor(store))
        assert there == [True, True, True, False]


async def outlive_a_gap(
    a: Witnessed, b: Witnessed, move: Callable[[float], None]
) -> list[tuple[WorkerState, int]]:
    """Return what a silent ``b`` is, and what ``a`` sweeps, as a series that began anew goes on.

    Args:
        a: vouches again after a gap, and sweeps.
        b: holds a session, and died before.
        move: moves the clock.
    """
    assert await a.stamp()
    await b.claim("s")
    move(2 * TTL)
    assert await a.stamp(), "nobody has vouched since: this begins a series"
    found = []
    for step in (200.0, 200.0, TTL - 400.25, 0.25):
        move(step)
        assert await a.stamp()
        store = a.store
        assert isinstance(store, InspectionStore)
        [state] = [one.state for one in await store.list_workers(a.worker) if one.worker_id == "b"]
        found.append((state, (await a.sweep()).sessions))
    return found


LATE_THEN_GONE = [*3 * [(WorkerState.LATE, 0)], (WorkerState.GONE, 1)]


async def test_a_series_is_as_old_as_a_ttl_at_that_very_moment_on_postgresql(
    postgresql_schema: sa.URL,
) -> None:
    """An operator is told that a worker is gone exactly when a sweep takes its rows."""
    with (
        stopped_clock(postgresql_schema) as (url, move),
        share_database("postgresql", url) as shared,
    ):
        async with two_workers(shared.make_store) as (a, b):
            assert await outlive_a_gap(a, b, move) == LATE_THEN_GONE


async def test_a_series_is_as_old_as_a_ttl_at_that_very_moment_in_memory(
    mock_clock: MockClock,
) -> None:
    """The same."""
    store = MemoryStore()
    async with two_workers(lambda: store) as (a, b):
        assert await outlive_a_gap(a, b, mock_clock.jump) == LATE_THEN_GONE


# ---- two claims of one moment ----


async def claim_twice(make_store: Callable[[], SessionStore]) -> list[Outcome]:
    """Return what becomes of two claims of the same moment, and of the first one once more."""
    async with two_workers(make_store) as (a, b):
        outcomes = list[Outcome]()
        for one in (a, b, a):
            [claimed] = (await one.claim("s")).answers
            assert isinstance(claimed, Claimed)
            outcomes.append(claimed.outcome)
        return outcomes


IN_THEIR_ORDER = [Outcome.INSERTED, Outcome.TAKEN_OVER, Outcome.TAKEN_OVER]


async def test_of_two_claims_of_one_moment_the_second_wins(
    mock_clock: MockClock,
) -> None:
    """What the store has heard of later is newer, where nothing else tells.

    In a database two claims are never of one moment: each has waited for a thread.
    """
    store = MemoryStore()
    assert await claim_twice(lambda: store) == IN_THEIR_ORDER


# ---- without the fleet's row ----


async def test_a_fleet_s_row_that_is_lost_expires_nobody(database: Shared) -> None:
    """Where there are sessions a new series begins: whoever could not stamp has a whole TTL."""
    async with (
        open_witnessed(database.make_store, "a") as a,
        open_witnessed(database.make_store, "b") as b,
    ):
        await a.sweep()
        await b.claim("s")
        database.backdoor.age(7 * HOUR)
        database.backdoor.age_workers(7 * HOUR, "b")
        back(database).execute(sa.delete(back(database).fleet))
        assert (await a.sweep()).sessions == 0
        assert await a.stamp()
        assert (await a.sweep()).sessions == 0
        assert database.backdoor.rows() == {"s": "b"}
        assert database.backdoor.workers().keys() == {"a", "b"}


async def test_a_stamp_that_finds_no_row_of_the_fleet_begins_a_series_too(
    database: Shared,
) -> None:
    """And one that is vouched for without any session has no beginning: nobody has to wait."""
    async with (
        open_witnessed(database.make_store, "a") as a,
        open_witnessed(database.make_store, "b") as b,
    ):
        await b.claim("s")
        back(database).execute(sa.delete(back(database).fleet))
        assert await a.stamp()
        [(since,)] = back(database).execute(sa.select(back(database).fleet.c.unbroken_since))
        assert since is not None
        database.backdoor.delete("s")
        back(database).execute(sa.delete(back(database).fleet))
        assert await a.stamp()
        [(since,)] = back(database).execute(sa.select(back(database).fleet.c.unbroken_since))
        assert since is None


# ---- beside what is locked ----


def forget_series(shared: Shared) -> None:
    """Let everything expire by its own age."""
    back(shared).execute(sa.update(back(shared).fleet).values(unbroken_since=None))


async def test_one_locked_expired_row_beside_others(postgresql: Shared) -> None:
    """It is passed over and nothing waits for it: the others go, and it goes with the next pass."""
    async with open_with(postgresql, 1) as (registry, store):
        for number in range(5):
            postgresql.backdoor.insert(f"dead {number}", "another", age=2 * HOUR)
        forget_series(postgresql)
        lock = "SELECT 1 FROM trio_sessions WHERE session_id = 'dead 2' FOR UPDATE"
        with locked(postgresql, lock):
            assert (await registry.cleanup()).expired == 4
            assert postgresql.backdoor.rows().keys() == {"session-000", "dead 2"}
            assert store.calls["sweep"] == 1
        assert (await registry.cleanup()).expired == 1


async def test_one_locked_message_beside_others(postgresql: Shared) -> None:
    """Of those that are too old, and of a session that has expired, which stays with it."""
    async with open_with(postgresql, 2, message_ttl=HOUR) as (registry, _):
        for session_id in ("session-000", "session-001"):
            for number in range(3):
                await registry.broadcast(session_id, number, durable=True)
        postgresql.backdoor.age_messages(2 * HOUR)
        for session_id in ("dead 0", "dead 1"):
            postgresql.backdoor.insert(session_id, "another", age=2 * HOUR)
            insert = sa.insert(back(postgresql).messages_table)
            for _ in range(3):
                back(postgresql).execute(insert.values(session_id=session_id, payload="0"))
        forget_series(postgresql)
        first = "(SELECT min(id) FROM trio_messages WHERE session_id = '{}')"
        lock = "SELECT 1 FROM trio_messages WHERE id = {} FOR UPDATE"
        with locked(
            postgresql,
            lock.format(first.format("session-001")),
            lock.format(first.format("dead 1")),
        ):
            assert (await registry.cleanup()).expired == 1
            assert sorted(postgresql.backdoor.messages()) == ["dead 1", "session-001"]
            assert postgresql.backdoor.rows().keys() == {"session-000", "session-001", "dead 1"}
        assert (await registry.cleanup()).expired == 1
        assert postgresql.backdoor.messages() == []
        assert registry.statistics().messages_dropped == 12


async def test_one_locked_row_beside_one_taken_over(postgresql: Shared) -> None:
    """The locked one is kept, also if it is locked by whoever takes it over; the other goes."""
    async with open_with(postgresql, 10) as (registry, _):
        postgresql.backdoor.give("session-005", "another")
        postgresql.backdoor.give("session-006", "another")
        with locked(
            postgresql,
            "SELECT 1 FROM trio_sessions "
            "WHERE session_id IN ('session-004', 'session-006') FOR UPDATE",
        ):
            report = await registry.cleanup()
        assert report.taken_over == ("session-005", "session-006"), "its holder is read, not locked"
        assert list(report.refresh_failures) == ["session-004"]
        assert report.refreshed == 7
        assert postgresql.backdoor.rows()["session-005"] == "another"
