"""The database's clock was an hour ahead, and has been set right: what was stored lies ahead."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor, MemoryBackdoor
from conftest import Shared
from witnesses import open_witnessed

from trio_sessions.testing import FakeTransport

HOUR = 3600.0
SETTINGS: dict[str, Any] = {"session_ttl": 600.0, "cleanup_interval": 300.0}


def put_ahead(shared: Shared, seconds: float = HOUR) -> None:
    """Move every moment that is stored into the future; and back, if it is negative."""
    if isinstance(shared.backdoor, MemoryBackdoor):
        store = shared.backdoor._store
        for row in store._rows.values():
            row.taken_at += seconds
            row.last_accessed += seconds
        workers = store._workers
        workers._unbroken_since += seconds
        if workers._vouched_at is not None:
            workers._vouched_at += seconds
        for worker in workers._rows.values():
            worker.stamped_at += seconds
            worker.passed_at += seconds
        return
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    for table, columns in (
        (shared.backdoor.sessions, ("taken_at", "last_accessed")),
        (shared.backdoor.fleet, ("vouched_at", "unbroken_since")),
        (shared.backdoor.workers_table, ("stamped_at", "passed_at")),
    ):
        [key] = table.primary_key.columns
        for found in shared.backdoor.execute(sa.select(table)):
            moments = {name: getattr(found, name) for name in columns}
            moved = {
                name: moment + timedelta(seconds=seconds)
                for name, moment in moments.items()
                if moment is not None
            }
            update = sa.update(table).where(key == getattr(found, key.name)).values(moved)
            shared.backdoor.execute(update)


def pass_time(shared: Shared, seconds: float) -> None:
    """Let time pass, in which others vouch for the fleet."""
    put_ahead(shared, -seconds)
    shared.backdoor.age_fleet(-seconds)


def ages(shared: Shared) -> tuple[float, float]:
    """Return the seconds since the only row was taken and refreshed, as the store sees it."""
    if isinstance(shared.backdoor, MemoryBackdoor):
        [row] = shared.backdoor._store._rows.values()
        return trio.current_time() - row.taken_at, trio.current_time() - row.last_accessed
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    now, julian = sa.func.clock_timestamp(), shared.name == "sqlite"
    column = shared.backdoor.sessions.c
    each = [
        (sa.func.julianday("now") - sa.func.julianday(moment)) * 86400.0
        if julian
        else sa.cast(sa.extract("epoch", now - moment), sa.Float)
        for moment in (column.taken_at, column.last_accessed)
    ]
    [(taken, refreshed)] = shared.backdoor.execute(sa.select(*each))
    return taken, refreshed


async def test_whoever_comes_after_the_clock_was_set_right_holds_the_session(
    shared: Shared,
) -> None:
    """A died while it was ahead; the client comes to B, and B keeps it."""
    async with shared.open(**SETTINGS) as a, shared.open(**SETTINGS) as b:
        await a.add_session("s", FakeTransport())
        put_ahead(shared)
        await b.add_session("s", FakeTransport())
        assert shared.backdoor.rows() == {"s": b.worker_id}
        for _ in range(2):
            report = await b.cleanup()
            assert (report.refreshed, report.missing) == (1, ())
        taken, refreshed = ages(shared)
        assert 0.0 <= taken < 60.0
        assert 0.0 <= refreshed < 60.0
        await trio.sleep(0.02)
        await a.add_session("s", FakeTransport())
        assert shared.backdoor.rows() == {"s": a.worker_id}


async def test_the_next_refresh_sets_the_moments_right(shared: Shared) -> None:
    """So that they are in the past when that hour is over."""
    async with shared.open(**SETTINGS) as a:
        await a.add_session("s", FakeTransport())
        put_ahead(shared)
        assert min(ages(shared)) < -HOUR / 2
        assert (await a.cleanup()).refreshed == 1
        assert max(map(abs, ages(shared))) < 60.0


async def test_a_late_claim_of_the_holder_itself_sets_them_right_too(shared: Shared) -> None:
    """A claim is not only kept then: it says when the session was taken."""
    async with shared.open(**SETTINGS) as a:
        await a.add_session("s", FakeTransport())
        put_ahead(shared)
        await a.add_session("s", FakeTransport())
        assert max(map(abs, ages(shared))) < 60.0
        assert a.statistics().unconfirmed == 0


async def test_what_a_dead_worker_left_in_the_future_expires(shared: Shared) -> None:
    """A session_ttl after the clock was set right, and not an hour later; not before, either."""
    async with shared.open(**SETTINGS) as a:
        await a.cleanup()
        shared.backdoor.insert("dead", "another worker")
        put_ahead(shared)
        assert (await a.cleanup()).expired == 0
        _, refreshed = ages(shared)
        assert 0.0 <= refreshed < 60.0
        for seconds in (300.0, 290.0):
            pass_time(shared, seconds)
            assert (await a.cleanup()).expired == 0
        pass_time(shared, 11.0)
        assert (await a.cleanup()).expired == 1
        assert shared.backdoor.rows() == {}


@pytest.mark.parametrize("batch_size", [1, 7])
async def test_many_rows_in_the_future_are_set_right_by_one_pass(
    shared: Shared, batch_size: int
) -> None:
    """In as many pieces as it takes: they are in nobody's way then."""
    async with shared.open(**SETTINGS, batch_size=batch_size) as a:
        for number in range(20):
            shared.backdoor.insert(f"dead{number}", "another worker")
        await a.cleanup()
        put_ahead(shared)
        await a.cleanup()
        pass_time(shared, 601.0)
        assert (await a.cleanup()).expired == 20


async def test_each_stamp_sets_the_end_of_the_last_pass_right(shared: Shared) -> None:
    """Else a worker whose passes have stopped would keep its lease: it goes on to stamp."""
    async with (
        open_witnessed(shared.make_store, "one") as one,
        open_witnessed(shared.make_store, "other") as other,
    ):
        await other.sweep()
        await one.claim("s")
        shared.backdoor.age_workers(-HOUR, "one")
        await one.claim("t")
        shared.backdoor.age_workers(700.0, "one")
        shared.backdoor.age(700.0)
        await one.stamp()
        assert (await other.sweep()).sessions == 2
