"""A chunk that needs longer than a statement may take is split, and so are the passes after it."""

import sqlite3
import time
from collections.abc import Iterator, Sequence

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from hypothesis import given
from hypothesis import strategies as st

from trio_sessions import OperationTooLong, SessionRegistry, StoreUnavailable, open_registry
from trio_sessions._portions import Portions
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore
from trio_sessions.types import RowAnswers

_ON_POSTGRESQL = """CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_sleep(0.01); RETURN new; END $$;
    CREATE TRIGGER dawdle BEFORE UPDATE ON trio_sessions FOR EACH ROW EXECUTE FUNCTION dawdle()"""
_ON_SQLITE = "CREATE TRIGGER dawdle BEFORE UPDATE ON trio_sessions BEGIN SELECT dawdle(); END"


class NotingStore(FaultyStore):
    """Notes the sizes of refreshes, and of those that took too long."""

    def __init__(self, store: DatabaseStore | MemoryStore) -> None:
        super().__init__(store)
        self.asked: list[int] = []
        self.too_long: list[int] = []

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        self.asked.append(len(session_ids))
        try:
            return await super().refresh(worker, session_ids)
        except OperationTooLong:
            self.too_long.append(len(session_ids))
            raise


@pytest.fixture
def slow_store(database: Shared) -> Iterator[NotingStore]:
    """A store whose operations have 0.8 s at most, and that knows what a trigger calls."""
    assert isinstance(database.backdoor, DatabaseBackdoor)
    url = database.backdoor.engine.url
    if database.name == "postgresql":
        yield NotingStore(DatabaseStore(url, operation_timeout=1.0, lock_timeout=0.2))
        return
    engine = sa.create_engine(url)

    @sa.event.listens_for(engine, "connect")
    def know_how_to_dawdle(connection: sqlite3.Connection, record: object) -> None:
        connection.create_function("dawdle", 0, lambda: time.sleep(0.01))

    yield NotingStore(DatabaseStore(engine, operation_timeout=1.0, lock_timeout=0.2))
    engine.dispose()


def slow_down(shared: Shared) -> None:
    """Let each row that is updated cost ten milliseconds."""
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    statement = _ON_SQLITE if shared.name == "sqlite" else _ON_POSTGRESQL
    shared.backdoor.execute(sa.text(statement))


async def add(registry: SessionRegistry, amount: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(amount):
            nursery.start_soon(registry.add_session, f"s{number:03}", FakeTransport())
    # A pass that has begun before leaves rows alone that are on their way.
    with trio.fail_after(40):
        while (await registry.cleanup()).refreshed < amount:
            await trio.sleep(0.01)


async def test_a_chunk_that_takes_too_long_is_split_and_refreshed(
    database: Shared, slow_store: NotingStore
) -> None:
    """In the same pass; the next one begins with as much as went well."""
    store = slow_store
    async with database.open(store=store) as registry:
        await add(registry, 200)
        slow_down(database)
        report = await registry.cleanup()
        assert max(store.too_long) == 200, "it was quick enough"
        assert (report.refreshed, dict(report.refresh_failures)) == (200, {})
        assert report.missing == ()
        store.asked.clear()
        report = await registry.cleanup()
        assert (report.refreshed, dict(report.refresh_failures)) == (200, {})
        assert max(store.asked) < 200
        assert registry.statistics().incomplete_passes == 0


async def test_with_no_time_to_split_the_next_passes_ask_for_less(
    database: Shared, slow_store: NotingStore
) -> None:
    """An interval shorter than two statement timeouts: nobody starves for it."""
    store = slow_store
    async with database.open(store=store, cleanup_interval=0.5, session_ttl=30.0) as registry:
        await add(registry, 200)
        slow_down(database)
        refreshed = 0
        with trio.fail_after(120):
            while refreshed < 200:
                report = await registry.cleanup()
                assert report.missing == ()
                assert all(
                    isinstance(error, OperationTooLong)
                    for error in report.refresh_failures.values()
                )
                refreshed = report.refreshed
        assert 200 in store.too_long, "it was quick enough"


async def test_a_row_that_always_takes_too_long_costs_only_itself() -> None:
    """It is found by halving, and teaches nothing about the size of chunks."""

    class OneIsEndless(FaultyStore):
        async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
            answers = await super().refresh(worker, session_ids)
            if "s037" in session_ids and self.is_slow:
                raise OperationTooLong("a trigger sleeps")
            return answers

        is_slow = False

    store = OneIsEndless(MemoryStore())
    async with open_registry(store) as registry:
        await add(registry, 64)
        store.is_slow = True
        for _ in range(3):
            store.calls.clear()
            report = await registry.cleanup()
            assert list(report.refresh_failures) == ["s037"]
            assert (report.refreshed, report.missing) == (63, ())
            assert store.calls["refresh"] == 13


async def test_a_silent_store_is_not_asked_in_halves() -> None:
    """Only one that has ended the operation itself."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        await add(registry, 64)
        store.error = StoreUnavailable("cut off")
        store.fail()
        store.calls.clear()
        report = await registry.cleanup()
        assert (report.refreshed, len(report.refresh_failures)) == (0, 64)
        assert store.calls["refresh"] == 1


# ---- how much is asked for at once ----


def test_a_good_series_tries_more_again() -> None:
    """Twice as much after each, up to ``batch_size``."""
    portions = Portions(1000)
    portions.too_much(1000)
    portions.too_much(500)
    portions.end_pass(complete=True)
    assert portions.size == 250
    sizes = []
    for _ in range(20):
        portions.end_pass(complete=True)
        sizes.append(portions.size)
    assert sizes == [250] * 7 + [500] * 8 + [1000] * 5
    portions.too_much(1000)
    assert portions.size == 500


def test_a_pass_that_was_not_answered_ends_the_series() -> None:
    """An outage says nothing about how long a statement takes."""
    portions = Portions(1000)
    portions.too_much(1000)
    portions.end_pass(complete=True)
    for _ in range(20):
        portions.end_pass(complete=False)
        for _ in range(7):
            portions.end_pass(complete=True)
    assert portions.size == 500


@pytest.mark.parametrize(("most", "least"), [(1, 1), (7, 1), (64, 1), (1000, 15), (6400, 100)])
def test_it_never_asks_row_by_row_because_of_one(most: int, least: int) -> None:
    """There is a floor, which with small batches is one row."""
    portions = Portions(most)
    for _ in range(20):
        portions.too_much(portions.size)
    assert portions.size == least


@given(
    most=st.integers(1, 2000),
    passes=st.lists(st.tuples(st.lists(st.integers(1, 2000)), st.booleans()), max_size=30),
)
def test_a_size_is_always_one_that_may_be_asked(
    most: int, passes: list[tuple[list[int], bool]]
) -> None:
    """From 1 to ``batch_size``, whatever was too much."""
    portions = Portions(most)
    for too_much, complete in passes:
        for rows in too_much:
            portions.too_much(rows)
        portions.end_pass(complete=complete)
        assert 1 <= portions.size <= most
