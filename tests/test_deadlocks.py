"""A deadlock of two transactions is the fault of neither: each caller gets its row in the end."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared

from trio_sessions import RowLocked, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.writes import Batch, Claim

pytestmark = pytest.mark.usefixtures("nothing_in_between")

INSERT = "INSERT INTO trio_sessions (session_id, worker_id) VALUES ('{}', 'another')"
WAITS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database()"""


def victim(shared: Shared, lock_timeout: float, deadlock_timeout: str) -> DatabaseStore:
    """Return a store whose transactions are the ones that a deadlock ends.

    Each looks for one once, when it has waited for so long; the other one only after a second.
    """
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    url = shared.backdoor.engine.url
    options = f"{url.query['options']} -c deadlock_timeout={deadlock_timeout}"
    url = url.update_query_dict({"options": options})
    return DatabaseStore(url, lock_timeout=lock_timeout, operation_timeout=20.0, listen=False)


@contextmanager
def another(shared: Shared) -> Iterator[sa.Connection]:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    with shared.backdoor.engine.connect() as connection:
        yield connection
        connection.rollback()


async def cross(shared: Shared, connection: sa.Connection) -> None:
    """Insert, in a transaction that has inserted "b", what waits for "b" has inserted."""
    with another(shared) as watcher, trio.fail_after(40):
        while not watcher.exec_driver_sql(WAITS).scalar_one():
            await trio.sleep(0.001)
            watcher.rollback()
    await trio.to_thread.run_sync(connection.exec_driver_sql, INSERT.format("a"))


async def test_a_deadlock_is_told_as_what_it_is(postgresql: Shared) -> None:
    """Nothing was done, and the same may be asked again."""
    store = victim(postgresql, 3.0, "600ms")
    worker = Worker(worker_id="w", incarnation="w", limiter=trio.CapacityLimiter(2))
    await store.open(worker)
    batch = Batch(writes=[Claim(session_id=one, generation=1, age=0.0) for one in "ab"])
    with another(postgresql) as connection:
        connection.exec_driver_sql(INSERT.format("b"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cross, postgresql, connection)
            with pytest.raises(RowLocked, match="DeadlockDetected"):
                await store.commit(worker, batch)
    assert postgresql.backdoor.rows() == {}
    await store.commit(worker, batch)
    assert set(postgresql.backdoor.rows()) == {"a", "b"}
    await store.close(worker)


async def test_each_caller_gets_its_row_after_a_deadlock(postgresql: Shared) -> None:
    """Also where the other transaction goes on for longer than a lock is waited for."""
    store = FaultyStore(victim(postgresql, 0.3, "20ms"))
    async with open_registry(store, session_ttl=3600.0, cleanup_interval=1800.0) as registry:
        store.fail(Fault.FAILS, "Claim")
        for session_id in "ab":  # so that they make one batch later
            await registry.add_session(session_id, FakeTransport())
        store.heal()
        with another(postgresql) as connection:
            connection.exec_driver_sql(INSERT.format("b"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registry.cleanup)
                await cross(postgresql, connection)
                await trio.sleep(0.4)
                connection.rollback()
        report = registry.statistics().last_report
        assert report is not None
        assert sorted(report.restored) == ["a", "b"]
        assert registry.statistics().unconfirmed == 0
        assert postgresql.backdoor.rows() == dict.fromkeys("ab", registry.worker_id)


async def test_two_that_sweep_do_not_wait_for_each_other(postgresql: Shared) -> None:
    """Each has a dead session, and old messages of the other's."""
    backdoor = postgresql.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    async with postgresql.open() as a, postgresql.open() as b:
        for turn in range(1, 6):
            await a.cleanup()
            for session_id in "st":
                backdoor.insert(session_id, "another worker", age=7200.0)
            backdoor.execute(sa.text("UPDATE trio_fleet SET unbroken_since = NULL"))
            backdoor.execute(
                sa.text(
                    "INSERT INTO trio_messages (session_id, payload, created_at) "
                    "SELECT CASE WHEN i % 2 = 0 THEN 's' ELSE 't' END, '0', "
                    "now() - interval '1 hour' FROM generate_series(1, 3000) AS i"
                )
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.cleanup)
                nursery.start_soon(b.cleanup)
            assert {one.statistics().incomplete_passes for one in (a, b)} == {0}
            await a.cleanup()  # what one of them passed over, for the other had it locked
            assert sum(one.statistics().expired for one in (a, b)) == 2 * turn
            assert backdoor.messages() == []
