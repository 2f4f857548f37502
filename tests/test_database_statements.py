"""What goes over the wire to PostgreSQL: round trips, statements, plans, connections."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from proxy import Proxy
from statements import noting_engine, updates_of

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

pytestmark = pytest.mark.usefixtures("nothing_in_between")

REFRESH = "WITH asked"
RESTORE = "claim_inserts AS"
SWEEP = "INSERT INTO trio_fleet"


def statements_of(proxy: Proxy, what: str) -> list[str]:
    return [statement for statement in proxy.round_trips if what in statement]


async def add_many(registry: SessionRegistry, store: FaultyStore, amount: int) -> None:
    """Add sessions and leave the writing of their rows to one pass, which is quicker."""
    store.fail(Fault.FAILS, "Claim")
    async with trio.open_nursery() as nursery:
        for i in range(amount):
            nursery.start_soon(registry.add_session, f"session-{i:06}", FakeTransport())
    store.heal()
    assert store.faults["Claim"] > 0  # one for each batch
    assert len((await registry.cleanup()).restored) == amount
    store.faults.clear()


@pytest.fixture(params=["url", "engine"])
def store(request: pytest.FixtureRequest, proxy: Proxy) -> Iterator[DatabaseStore]:
    """A store behind the proxy, on an engine of its own and on one that was handed in."""
    if request.param == "url":
        yield DatabaseStore(proxy.url)
        return
    # Preparing a statement would cost one round trip more, once.
    engine = sa.create_engine(proxy.url, connect_args={"prepare_threshold": None})
    yield DatabaseStore(engine)
    engine.dispose()


async def test_refreshing_a_hundred_sessions_is_one_round_trip(
    proxy: Proxy, store: DatabaseStore
) -> None:
    """And the whole steady pass is two: the refresh and the sweep."""
    faulty = FaultyStore(store)
    async with open_registry(faulty) as registry:
        await add_many(registry, faulty, 100)
        for _ in range(8):
            proxy.reset()
            report = await registry.cleanup()
            assert report.refreshed == report.checked == 100
            assert len(statements_of(proxy, REFRESH)) == 1
            assert len(statements_of(proxy, SWEEP)) == 1
            assert len(proxy.round_trips) == 2


async def test_each_call_is_one_round_trip(proxy: Proxy, store: DatabaseStore) -> None:
    """A warm pool sends no ping, no BEGIN, no COMMIT and no ROLLBACK."""
    async with open_registry(store) as registry:
        await registry.add_session("first", FakeTransport())
        for _ in range(8):
            proxy.reset()
            await registry.add_session("s", FakeTransport())
            [added] = proxy.round_trips
            assert RESTORE in added
            proxy.reset()
            await registry.locate_session("elsewhere")
            [asked] = proxy.round_trips
            assert asked.startswith("SELECT trio_sessions.worker_id")
            proxy.reset()
            await registry.remove_session("s")
            [deleted] = proxy.round_trips
            assert "DELETE FROM trio_sessions" in deleted
        assert proxy.accepted == 1, "the calls did not share one connection"


async def test_an_idle_registry_sends_nothing(proxy: Proxy, store: DatabaseStore) -> None:
    """What is asked of the local table alone does not reach the database."""
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        proxy.reset()
        assert await registry.get_session("s") is not None
        assert await registry.session_exists("s") is True
        assert await registry.locate_session("s") == registry.worker_id
        assert await registry.get_all_session_ids() == ["s"]
        await registry.remove_session("unknown")
        assert registry.statistics().sessions == 1
        assert proxy.round_trips == []


@pytest.mark.parametrize(
    ("sessions", "batch_size", "chunks"), [(2500, 1000, 3), (200, 100, 2), (30, 1, 30)]
)
async def test_a_statement_carries_one_batch(
    proxy: Proxy, sessions: int, batch_size: int, chunks: int
) -> None:
    """Rows are restored and refreshed ``batch_size`` at a time."""
    store = FaultyStore(DatabaseStore(proxy.url))
    async with open_registry(store, batch_size=batch_size) as registry:
        proxy.reset()
        await add_many(registry, store, sessions)
        assert len(statements_of(proxy, RESTORE)) == chunks
        proxy.reset()
        assert (await registry.cleanup()).refreshed == sessions
        assert len(statements_of(proxy, REFRESH)) == chunks
        assert len(proxy.round_trips) == chunks + 1
        proxy.reset()
    assert len(statements_of(proxy, "DELETE")) == chunks + 1  # it asks until nothing is left


async def test_never_more_operations_than_max_concurrent(proxy: Proxy) -> None:
    """Ten chunks, three tokens: three operations at once on three connections, no more."""
    store = FaultyStore(DatabaseStore(proxy.url))
    async with open_registry(store, max_concurrent=3, batch_size=5) as registry:
        await add_many(registry, store, 50)
        proxy.reset()
        proxy.fall_silent("answers")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.cleanup)
            with trio.fail_after(40):
                await proxy.wait_until(lambda: proxy.in_flight == 3)
            await trio.testing.wait_all_tasks_blocked()
            statistics = registry.statistics()
            assert statistics.operations_running == 3
            assert statistics.operations_waiting == 7
            await proxy.heal()
        assert proxy.most_in_flight == 3
        assert proxy.accepted == proxy.connections == 3
        assert registry.statistics().operations_running == 0
        report = registry.statistics().last_report
        assert report is not None
        assert report.refreshed == 50


@pytest.mark.parametrize(("pool_size", "at_once"), [(0, 3), (3, 2)])
async def test_as_many_refreshes_as_the_pool_of_an_engine_has_but_one(
    proxy: Proxy, pool_size: int, at_once: int
) -> None:
    """That one is the stamp's. ``pool_size=0`` means no limit: as many as there are tokens."""
    engine = sa.create_engine(proxy.url, pool_size=pool_size)
    store = FaultyStore(DatabaseStore(engine))
    async with open_registry(store, max_concurrent=3, batch_size=5) as registry:
        await add_many(registry, store, 50)
        proxy.reset()
        proxy.fall_silent("answers")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.cleanup)
            with trio.fail_after(40):
                await proxy.wait_until(lambda: proxy.in_flight == at_once)
            await trio.testing.wait_all_tasks_blocked()
            assert registry.statistics().operations_running == at_once
            await proxy.heal()
        assert proxy.most_in_flight == at_once
    engine.dispose()


async def test_all_chunks_are_under_way_together(proxy: Proxy) -> None:
    """A slow network is waited for once, not once for each of twenty chunks."""
    store = FaultyStore(DatabaseStore(proxy.url))
    async with open_registry(store, batch_size=5) as registry:
        await add_many(registry, store, 100)
        proxy.fall_silent("answers")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.cleanup)
            with trio.fail_after(40):
                await proxy.wait_until(lambda: proxy.in_flight == 20)
            await proxy.heal()


# ---- plans ----


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def test_refresh_delete_and_locate_use_the_primary_key(postgresql_schema: sa.URL) -> None:
    """In a table of 20,000 rows none of them reads the whole, and none is quadratic."""
    async with contextlib.AsyncExitStack() as stack:
        engine, noted = stack.enter_context(noting_engine(postgresql_schema))
        store = FaultyStore(DatabaseStore(engine))
        registry = await stack.enter_async_context(open_registry(store))
        await add_many(registry, store, 1000)
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO trio_sessions (session_id, worker_id) "
                "SELECT 'other-' || i, 'another worker' FROM generate_series(1, 20000) i"
            )
            connection.exec_driver_sql("ANALYZE trio_sessions")
        await registry.cleanup()
        await registry.locate_session("other-7")
        await registry.remove_session("session-000000")
        seen = {
            name: (statement, parameters)
            for statement, parameters in noted.items()
            for name, beginning in {
                "refresh": "WITH asked",
                "delete": "WITH witness",
                "locate": "SELECT trio_sessions.worker_id",
            }.items()
            if " ".join(statement.split()).startswith(beginning)
            and (name != "delete" or "deletions_asked" in statement)
        }
        assert set(seen) == {"refresh", "delete", "locate"}
        others = {"ix_trio_messages_session_id_id", "trio_messages_pkey"} | {
            "trio_workers_pkey",
            "trio_fleet_pkey",
            "ix_trio_logs_session_id_id",
            "trio_logs_pkey",
        }
        with engine.connect() as connection:
            for name, (statement, parameters) in seen.items():
                if name == "delete":  # every batch is told so
                    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                explain = f"EXPLAIN (FORMAT JSON) {statement}"
                [plan] = connection.exec_driver_sql(explain, parameters).scalar_one()
                found = list(nodes(plan["Plan"]))
                used = {node["Index Name"] for node in found if "Index Name" in node}
                assert used - others == {"trio_sessions_pkey"}, name
                assert not [node for node in found if node["Node Type"] == "Seq Scan"], name
                if name == "refresh":
                    loops = [node for node in found if node["Node Type"] == "Nested Loop"]
                    assert not loops, plan


async def test_refreshes_are_hot_updates(postgresql_schema: sa.URL) -> None:
    """Steady passes touch no index: the column has none, and its pages have room."""
    # One connection, so that it can be told to hand in its statistics.
    engine = sa.create_engine(postgresql_schema, pool_size=1, max_overflow=0)
    store = FaultyStore(DatabaseStore(engine))

    async with open_registry(store, max_concurrent=1) as registry:
        await add_many(registry, store, 2000)
        for _ in range(5):  # until the rows have spread over the pages
            await registry.cleanup()
        before, hot_before = await trio.to_thread.run_sync(updates_of, engine, "trio_sessions")
        for _ in range(5):
            await registry.cleanup()
        after, hot_after = await trio.to_thread.run_sync(updates_of, engine, "trio_sessions")

        assert after - before == 10_000
        assert (hot_after - hot_before) / (after - before) > 0.9
    engine.dispose()
