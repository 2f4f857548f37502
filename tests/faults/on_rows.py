"""Faults of what others do in the same PostgreSQL: locks, a deadlock, row level security."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import sqlalchemy as sa
import trio
from fleets import in_thread, quick_store
from servers import make_role, query, run_sql

from faults.matrix import Database, fault
from faults.world import OPERATION, WITHIN, World, create_tables

PG = Database.POSTGRESQL


@asynccontextmanager
async def _transaction(world: World, *statements: str) -> AsyncIterator[sa.Connection]:
    """Keep a transaction open that has run statements, for the length of the block."""
    engine = sa.create_engine(world.url, poolclass=sa.NullPool)
    connection = await in_thread(engine.connect)
    try:
        for statement in statements:
            await in_thread(connection.exec_driver_sql, statement)
        yield connection
    finally:
        with trio.CancelScope(shield=True):
            await in_thread(connection.close)
    engine.dispose()


@fault(PG)
async def every_other_row_is_locked(world: World) -> AsyncIterator[str]:
    """`SELECT … FOR UPDATE` in a transaction of somebody else, for several passes."""
    async with _transaction(
        world,
        "SELECT FROM trio_sessions WHERE session_id IN (SELECT session_id FROM (SELECT session_id,"
        " row_number() OVER (ORDER BY session_id) AS n FROM trio_sessions) AS s"
        " WHERE mod(n, 2) = 0) FOR UPDATE",
    ):
        for _ in range(2):
            await world.until_passed(lambda report: bool(report.refresh_failures))
        for registry in world.registries:
            report = registry.statistics().last_report
            assert report is not None
            assert "locked by another" in str([*report.refresh_failures.values()])
        yield "in two passes of each worker: the row is locked by another transaction"


@fault(PG)
async def the_table_is_locked(world: World) -> AsyncIterator[str]:
    """`LOCK TABLE … IN ACCESS EXCLUSIVE MODE`, as a migration does that hangs."""
    async with _transaction(world, "LOCK TABLE trio_sessions IN ACCESS EXCLUSIVE MODE"):
        async with world.incomplete_passes():
            pass
        yield "a pass of each worker was incomplete"


INSERT = "INSERT INTO trio_sessions (session_id, worker_id) VALUES ('{}', 'another')"
WAITS = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@contextmanager
def _patient(world: World) -> Iterator[None]:
    world.make_store = partial(quick_store, operation_timeout=8.0, lock_timeout=4.0)
    yield


@fault(PG, arrange=_patient, options={"deadlock_timeout": "2s"})
async def a_deadlock(world: World) -> AsyncIterator[str]:
    """A transaction of somebody else and a batch insert two rows crosswise; the batch is the
    victim."""
    said = "deadlock detected"
    before = world.server.log().count(said)
    for attempt in range(5):
        first, second = (f"crosswise-{before}-{attempt}-{name}" for name in "ab")
        await world.proxies[0].refuse()
        both = [world.crowd.come_as(name, 0) for name in (first, second)]
        while any(one.is_busy for one in both):  # in vain
            await trio.sleep(0.02)
        async with _transaction(world, "SET LOCAL deadlock_timeout = '60s'") as rival:
            await in_thread(rival.exec_driver_sql, INSERT.format(second))
            await world.proxies[0].heal()  # the next pass writes both in one batch
            with trio.fail_after(WITHIN):
                while not await in_thread(query, world.url, WAITS):
                    await trio.sleep(0.02)
            with contextlib.suppress(sa.exc.OperationalError):  # the rival was the victim
                await in_thread(rival.exec_driver_sql, INSERT.format(first))
                if world.server.log().count(said) > before:
                    break
    else:
        raise AssertionError("no batch was the victim of a deadlock")
    yield "the server said: deadlock detected, and it was the batch that it ended"


@contextmanager
def _role(world: World) -> Iterator[None]:
    create_tables(world.url)
    with make_role(world.url) as url:
        run_sql(
            world.url,
            f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {url.username}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {url.username}",
        )
        world.entrance = url
        world.make_store = partial(quick_store, operation_timeout=OPERATION, create_tables=False)
        yield


@fault(PG, arrange=_role)
async def row_level_security_is_enabled(world: World) -> AsyncIterator[str]:
    """`ALTER TABLE … ENABLE ROW LEVEL SECURITY` hides all rows from the workers' role."""
    world.listen()
    async with world.incomplete_passes():
        await in_thread(run_sql, world.url, "ALTER TABLE trio_sessions ENABLE ROW LEVEL SECURITY")
    await world.until_said("row level security")
    async with _transaction(world, f"SET LOCAL ROLE {world.entrance.username}") as role:
        assert role.exec_driver_sql("SELECT count(*) FROM trio_sessions").scalar_one() == 0
    yield "the role saw no row, and a pass of each worker was incomplete"
    await in_thread(run_sql, world.url, "ALTER TABLE trio_sessions DISABLE ROW LEVEL SECURITY")
