"""Questions to a database: however many ask, the writer and the pass find their way."""

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from proxy import Proxy

from trio_sessions import open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._questions import Questions
from trio_sessions.stores.database._schema import tables
from trio_sessions.testing import FakeTransport

pytestmark = pytest.mark.usefixtures("nothing_in_between")


@contextlib.contextmanager
def made_store(proxy: Proxy, pool_size: int | None) -> Iterator[DatabaseStore]:
    """A store with an engine of its own, or with one of ours."""
    if pool_size is None:
        yield DatabaseStore(proxy.url)
        return
    engine = sa.create_engine(proxy.url, pool_size=pool_size)
    try:
        yield DatabaseStore(engine)
    finally:
        engine.dispose()


def is_question(statement: str) -> bool:
    return statement.startswith("SELECT trio_sessions.worker_id")


@pytest.mark.parametrize(
    ("pool_size", "tokens", "questions"),
    [(None, 4, 2), (None, 5, 3), (5, 20, 2), (4, 20, 1), (20, 5, 3)],
)
async def test_a_flood_of_questions_leaves_three_connections(
    proxy: Proxy, pool_size: int | None, tokens: int, questions: int
) -> None:
    """For the writer, the pass and the stamp, whoever has made the engine (invariant 17)."""
    with made_store(proxy, pool_size) as store:
        async with (
            open_registry(store, max_concurrent=tokens) as registry,
            trio.open_nursery() as nursery,
        ):
            await registry.add_session("s", FakeTransport())
            proxy.fall_silent("answers")
            for number in range(100):
                nursery.start_soon(registry.locate_session, f"elsewhere {number}")
            with trio.fail_after(40):
                await proxy.wait_until(lambda: proxy.in_flight == questions)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert proxy.in_flight == questions
                nursery.start_soon(registry.add_session, "t", FakeTransport())
                await proxy.wait_until(lambda: proxy.in_flight == questions + 1)
                nursery.start_soon(registry.cleanup)
                await proxy.wait_until(lambda: proxy.in_flight == questions + 2)
                nursery.start_soon(partial(registry._house._edge.stamp, passed=False))
                await proxy.wait_until(lambda: proxy.in_flight == questions + 3)
            await proxy.heal()


async def test_a_pool_of_three_leaves_the_stamp_and_the_refresh_theirs(proxy: Proxy) -> None:
    """Then batches wait for questions; the lease waits for neither."""
    with made_store(proxy, 3) as store:
        async with open_registry(store) as registry, trio.open_nursery() as nursery:
            await registry.add_session("s", FakeTransport())
            proxy.fall_silent("answers")
            with trio.fail_after(40):
                nursery.start_soon(registry.add_session, "t", FakeTransport())
                await proxy.wait_until(lambda: proxy.in_flight == 1)
                for number in range(100):
                    nursery.start_soon(registry.locate_session, f"elsewhere {number}")
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert proxy.in_flight == 1
                nursery.start_soon(registry.cleanup)
                await proxy.wait_until(lambda: proxy.in_flight == 2)
                nursery.start_soon(partial(registry._house._edge.stamp, passed=False))
                await proxy.wait_until(lambda: proxy.in_flight == 3)
            await proxy.heal()


@pytest.mark.parametrize("is_copy", [False, True])
async def test_a_flood_at_one_store_leaves_another_of_the_engine_its_pass_and_stamp(
    proxy: Proxy,
    is_copy: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """The connections are the engine's, whatever options a store was handed it with."""
    engine = sa.create_engine(proxy.url, pool_size=4, max_overflow=0)
    given = engine.execution_options(logging_token="other") if is_copy else engine
    try:
        async with (
            open_registry(DatabaseStore(engine)) as flooded,
            open_registry(DatabaseStore(given)) as other,
            trio.open_nursery() as nursery,
        ):
            await other.add_session("s", FakeTransport())
            proxy.fall_silent("answers")
            with trio.fail_after(40):
                for registry in (flooded, other):
                    for number in range(100):
                        nursery.start_soon(registry.locate_session, f"elsewhere {number}")
                    nursery.start_soon(registry.add_session, "t", FakeTransport())
                await proxy.wait_until(lambda: proxy.in_flight == 2)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert proxy.in_flight == 2
                nursery.start_soon(other.cleanup)
                await proxy.wait_until(lambda: proxy.in_flight == 3)
                nursery.start_soon(partial(other._house._edge.stamp, passed=False))
                await proxy.wait_until(lambda: proxy.in_flight == 4)
            await proxy.heal()
    finally:
        engine.dispose()


@pytest.mark.parametrize(("pool_size", "tokens"), [(None, 1), (None, 2), (1, 20), (2, 20), (3, 20)])
async def test_where_there_are_too_few_connections_they_wait_for_one_question(
    proxy: Proxy, pool_size: int | None, tokens: int
) -> None:
    """Then it is their turn, whoever else asks."""
    with made_store(proxy, pool_size) as store:
        async with (
            open_registry(store, max_concurrent=tokens) as registry,
            trio.open_nursery() as nursery,
        ):
            await registry.add_session("s", FakeTransport())
            proxy.reset()
            proxy.fall_silent("answers")
            for number in range(100):
                nursery.start_soon(registry.locate_session, f"elsewhere {number}")
            with trio.fail_after(40):
                await proxy.wait_until(lambda: proxy.in_flight == 1)
                nursery.start_soon(registry.add_session, "t", FakeTransport())
                nursery.start_soon(registry.cleanup)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await proxy.heal()
                await proxy.wait_until(lambda: len(proxy.round_trips) >= 10)
        batch = next(n for n, one in enumerate(proxy.round_trips) if "INSERT" in one)
        refresh = next(n for n, one in enumerate(proxy.round_trips) if "UPDATE" in one)
        assert max(batch, refresh) <= 3
        assert is_question(proxy.round_trips[0])


@pytest.mark.parametrize(("pool_size", "tokens"), [(None, 4), (5, 20)])
async def test_a_question_whose_caller_has_left_reaches_no_thread(
    proxy: Proxy, pool_size: int | None, tokens: int
) -> None:
    """One that a thread is at work on keeps its place until it is answered, so none pile up."""
    with made_store(proxy, pool_size) as store:
        async with (
            open_registry(store, max_concurrent=tokens) as registry,
            trio.open_nursery() as nursery,
        ):
            await registry.add_session("s", FakeTransport())
            proxy.reset()
            proxy.fall_silent("answers")
            with trio.fail_after(40):
                for _ in range(10):
                    async with trio.open_nursery() as askers:
                        for number in range(10):
                            askers.start_soon(registry.locate_session, f"elsewhere {number}")
                        await proxy.wait_until(lambda: proxy.in_flight == 2)
                        await trio.testing.wait_all_tasks_blocked(0.01)
                        askers.cancel_scope.cancel()
                statistics = registry.statistics()
                assert (statistics.operations_running, statistics.operations_waiting) == (2, 0)
                nursery.start_soon(registry.cleanup)
                await proxy.wait_until(lambda: proxy.in_flight == 3)
            await proxy.heal()
            with trio.fail_after(40):
                while registry.statistics().operations_running:
                    await trio.sleep(0.01)
            assert sum(map(is_question, proxy.round_trips)) == 2
            assert registry.statistics().incomplete_passes == 0


def test_a_look_without_news_is_one_question(sqlite_url: sa.URL) -> None:
    """Each worker looks all the time; whose messages there are is asked only if some are new."""
    ours = tables("trio_")
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    asked: list[str] = []
    engine = sa.create_engine(sqlite_url)
    try:
        with engine.begin() as connection:
            ours.metadata.create_all(connection)
            for session_id, incarnation in (("mine", "i"), ("other", "j")):
                connection.exec_driver_sql(
                    "INSERT INTO trio_sessions (session_id, worker_id, incarnation, generation, "
                    "created_at, taken_at, last_accessed) VALUES (?, 'w', ?, 1, 0, 0, 0)",
                    (session_id, incarnation),
                )
                connection.exec_driver_sql(
                    "INSERT INTO trio_messages (session_id, payload, created_at) "
                    "VALUES (?, '1', 0)",
                    (session_id,),
                )
            sa.event.listen(engine, "before_cursor_execute", lambda *event: asked.append(event[2]))
            look = Questions(ours).news
            assert look(connection, worker, 0) == (2, frozenset({"mine"}))
            assert len(asked) == 2
            assert look(connection, worker, 1) == (2, frozenset())
            assert len(asked) == 4
            for seen in (2, 3):  # the file may have been replaced by an older one
                assert look(connection, worker, seen) == (seen, frozenset())
            assert len(asked) == 6
    finally:
        engine.dispose()
