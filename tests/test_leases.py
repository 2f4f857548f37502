"""Whose lease has run out, in every store: what conformance would have to wait for."""

from datetime import timedelta

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor, MemoryBackdoor
from conftest import Shared
from witnesses import open_witnessed

from trio_sessions.abc import Worker
from trio_sessions.inspection import WorkerState
from trio_sessions.stores.memory._workers import Workers
from trio_sessions.types import Presence
from trio_sessions.writes import Verdict


async def test_a_row_is_kept_as_long_as_its_holder_is_alive(shared: Shared) -> None:
    """However old it is: it may be locked. Nor does it go while it is refreshed."""
    async with (
        open_witnessed(shared.make_store, "a") as a,
        open_witnessed(shared.make_store, "b") as b,
    ):
        await a.sweep()
        await b.claim("s")
        shared.backdoor.age(700.0)
        assert (await a.sweep()).sessions == 0
        shared.backdoor.age(-700.0)
        shared.backdoor.age_workers(700.0, "b")
        assert (await a.sweep()).sessions == 0
        assert shared.backdoor.workers().keys() == {"a", "b"}
        shared.backdoor.age(700.0)
        assert (await a.sweep()).sessions == 1
        assert shared.backdoor.rows() == {}
        assert shared.backdoor.workers().keys() == {"a"}
        assert not await b.stamp()
        assert await b.begin(rewound=True), "its lease was lost"
        assert not await b.begin(rewound=True)


async def test_a_worker_that_only_paused_goes_on(shared: Shared) -> None:
    """Its stamps are as they were, unless somebody has swept its row meanwhile."""
    async with open_witnessed(shared.make_store, "a") as a:
        await a.claim("s")
        shared.backdoor.age_workers(700.0)
        shared.backdoor.age(700.0)
        assert (await a.sweep()).sessions == 0
        assert await a.stamp(passed=True)
        assert shared.backdoor.rows() == {"s": "a"}


async def test_without_a_row_of_its_holder_the_longest_ttl_counts(shared: Shared) -> None:
    """That may be the sweeper's own, or of any worker that is known."""
    async with (
        open_witnessed(shared.make_store, "a", session_ttl=600.0) as a,
        open_witnessed(shared.make_store, "b", session_ttl=1200.0) as b,
    ):
        await a.sweep()
        shared.backdoor.insert("s", "of an earlier version", age=1100.0)
        for one in (a, b):
            assert (await one.sweep()).sessions == 0
        shared.backdoor.age(200.0)
        assert (await a.sweep()).sessions == 1


async def test_a_short_ttl_is_not_made_longer_by_those_of_others(shared: Shared) -> None:
    """What its holder has said of itself counts, whoever sweeps."""
    async with (
        open_witnessed(shared.make_store, "a", session_ttl=6000.0) as a,
        open_witnessed(shared.make_store, "b", session_ttl=60.0) as b,
    ):
        await a.sweep()
        await b.claim("s")
        for seconds, swept in ((50.0, 0), (50.0, 1)):
            shared.backdoor.age(seconds)
            shared.backdoor.age_workers(seconds, "b")
            assert (await a.sweep()).sessions == swept


@pytest.mark.parametrize(("silence", "swept"), [(1000.0, 1), (3000.0, 0)])
async def test_a_gap_is_a_share_of_the_longest_ttl_known(
    shared: Shared, silence: float, swept: int
) -> None:
    """So the short one of a visitor breaks nothing, and a stamp vouches as a sweep does."""
    async with (
        open_witnessed(shared.make_store, "a", session_ttl=60.0) as a,
        open_witnessed(shared.make_store, "b", session_ttl=6000.0) as b,
    ):
        await a.sweep()
        await b.claim("s")
        shared.backdoor.age(7000.0)
        shared.backdoor.age_workers(7000.0, "b")
        shared.backdoor.age_fleet(silence)
        assert await a.stamp()
        assert (await a.sweep()).sessions == swept


async def test_a_sweep_of_a_visitor_breaks_nothing(shared: Shared) -> None:
    """What is a gap is told by the longest ttl known, also where a sweep alone vouches."""
    async with (
        open_witnessed(shared.make_store, "a", session_ttl=60.0) as a,
        open_witnessed(shared.make_store, "b", session_ttl=6000.0) as b,
    ):
        await a.sweep()
        await b.claim("s")
        shared.backdoor.age(7000.0)
        shared.backdoor.age_workers(7000.0, "b")
        shared.backdoor.age_fleet(1000.0)
        assert (await a.sweep()).sessions == 1


def move_series(shared: Shared, seconds: float) -> None:
    """Let the series of vouchings begin so many seconds from now."""
    if isinstance(shared.backdoor, MemoryBackdoor):
        workers = shared.backdoor._store._workers
        workers._unbroken_since = trio.current_time() + seconds
        return
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    fleet = shared.backdoor.fleet
    [(vouched_at,)] = shared.backdoor.execute(sa.select(fleet.c.vouched_at))
    begins = vouched_at + timedelta(seconds=seconds)
    shared.backdoor.execute(sa.update(fleet).values(unbroken_since=begins))


async def test_a_series_that_begins_in_the_future_begins_now(shared: Shared) -> None:
    """The clock was set back: nobody who is dead is kept until it has caught up."""
    async with (
        open_witnessed(shared.make_store, "a") as a,
        open_witnessed(shared.make_store, "b") as b,
    ):
        await a.sweep()
        await b.claim("s")
        shared.backdoor.age(700.0)
        shared.backdoor.age_workers(700.0, "b")
        move_series(shared, 3600.0)
        assert await a.stamp()
        begins = series(shared)
        assert begins < 600.0
        assert (await a.sweep()).sessions == 0
        move_series(shared, -700.0)
        assert (await a.sweep()).sessions == 1


def series(shared: Shared) -> float:
    """Return in how many seconds after the last vouching the series begins."""
    if isinstance(shared.backdoor, MemoryBackdoor):
        workers = shared.backdoor._store._workers
        assert workers._vouched_at is not None
        return workers._unbroken_since - workers._vouched_at
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    fleet = shared.backdoor.fleet.c
    [(vouched_at, since)] = shared.backdoor.execute(
        sa.select(fleet.vouched_at, fleet.unbroken_since)
    )
    return float((since - vouched_at).total_seconds())


async def test_stamps_in_the_future_are_set_right(shared: Shared) -> None:
    """A worker that died while the clock was ahead expires a ttl later, not an hour later."""
    async with (
        open_witnessed(shared.make_store, "a") as a,
        open_witnessed(shared.make_store, "b") as b,
    ):
        await a.sweep()
        await b.claim("s")
        shared.backdoor.age_workers(-3600.0)
        shared.backdoor.age(700.0)
        assert (await a.sweep()).sessions == 0
        shared.backdoor.age_workers(700.0, "b")
        assert (await a.sweep()).sessions == 1


async def test_who_has_no_row_sweeps_nothing(shared: Shared) -> None:
    """Nor does it vouch for anybody."""
    async with open_witnessed(shared.make_store, "a") as a:
        await a.sweep()
        shared.backdoor.insert("s", "another", age=7000.0)
        shared.backdoor.forget_workers()
        swept = await a.sweep()
        assert swept.stamped is not None
        assert swept.stamped.stamp is None
        assert shared.backdoor.rows() == {"s": "another"}
        assert not await a.stamp()
        assert await a.seen() is None
        assert not await a.begin(rewound=False)
        assert (await a.sweep()).sessions == 1


async def test_who_moves_has_a_whole_lease(shared: Shared) -> None:
    """Its row was old, and the worker that has it now loses its own row soon after."""
    async with open_witnessed(shared.make_store, "a", session_ttl=600.0) as a:
        await a.sweep()
        shared.backdoor.insert("s", "of a worker that has died", age=500.0)
        async with open_witnessed(shared.make_store, "b", session_ttl=600.0) as b:
            await b.claim("s")
            assert shared.backdoor.rows() == {"s": "b"}
            shared.backdoor.forget_workers()
            shared.backdoor.age(200.0)
            assert not await a.begin()
            assert (await a.sweep()).sessions == 0
            shared.backdoor.age(500.0)
            assert (await a.sweep()).sessions == 1


async def test_who_leaves_deletes_its_rows_one_by_one_if_that_is_all_it_may(shared: Shared) -> None:
    """Its own row goes with the last of them: else nobody would look for the others for a TTL."""
    async with open_witnessed(shared.make_store, "a") as a:
        for session_id in ("s", "t", "u"):
            await a.claim(session_id)
        for left in (2, 1, 0):
            assert (await a.store.delete_all(a.worker, limit=1)).more
            assert len(shared.backdoor.rows()) == left
            assert shared.backdoor.workers().keys() == {"a"}
        assert not (await a.store.delete_all(a.worker, limit=1)).more
        assert shared.backdoor.workers() == {}


async def test_a_refused_batch_says_what_the_clock_says(shared: Shared) -> None:
    """Whoever is told that the store went back reckons the time of its next batch by it."""
    async with open_witnessed(shared.make_store, "a") as a:
        before = (await a.claim("s")).clock
        shared.backdoor.forget_workers()
        committed = await a.claim("t")
        assert committed.verdict is Verdict.FORGOTTEN
        assert before is not None
        assert committed.clock is not None
        assert before <= committed.clock < before + 40.0


def test_a_gap_as_long_as_may_be_breaks_no_series() -> None:
    """Two fifths of the longest TTL; a worker that lapsed within the series is gone."""
    presence = Presence(session_ttl=100.0, cleanup_interval=50.0, stamp_interval=5.0, version="1")
    dead, alive = (
        Worker(worker_id=name, incarnation=name, limiter=trio.CapacityLimiter(1))
        for name in ("dead", "alive")
    )
    workers = Workers()
    for one in dead, alive:
        workers.begin(one, "h", presence, 0.0, after=None)
    for moment in (0.0, 40.0, 80.0, 120.0):
        workers.vouch(moment, 100.0, 40.0)
    assert workers.state(dead.incarnation, 160.0) is WorkerState.GONE
    assert workers.state(dead.incarnation, 160.5) is WorkerState.LATE, "who could have stamped?"
