"""Checks of `WorkerStore`: the witness, and the lease."""

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from trio_sessions.testing._conformance._fleet import (
    LONG,
    PATIENCE,
    TTL,
    begin,
    claim,
    commit,
    seen,
    sweep,
)
from trio_sessions.testing._conformance._tools import Check, MakeStore, opened
from trio_sessions.types import Presence, Stamp
from trio_sessions.writes import (
    Claimed,
    Outcome,
    Verdict,
)

__all__ = ["worker_checks"]

# ---- the witness ----


async def each_batch_and_each_stamp_counts_one_beat(make_store: MakeStore) -> None:
    """The store counts, whatever the worker has been told: it may have lost answers."""
    async with opened(make_store, "a") as (a,):
        known = await begin(a)
        assert await seen(a) == known
        for beat in (2, 3):
            committed = await commit(a, known, claim(f"s{beat}"))
            assert committed.verdict is Verdict.DONE
            assert committed.stamp == Stamp(history=known.history, beat=beat)
            [claimed] = committed.answers
            assert isinstance(claimed, Claimed)
            assert claimed.outcome is Outcome.INSERTED
        assert (await commit(a, known)).stamp == Stamp(history=known.history, beat=4)
        stamped = await a.store.stamp(a.worker, known, passed=False)
        assert stamped.stamp == Stamp(history=known.history, beat=5)
        swept = (await sweep(a, stamp=known)).stamped
        assert swept is not None
        assert swept.stamp == Stamp(history=known.history, beat=6)
        assert await seen(a) == swept.stamp


async def what_the_store_does_not_know_does_nothing(make_store: MakeStore) -> None:
    """Another history, a beat that it has not counted, a worker that it has no row of."""
    async with opened(make_store, "a", "b") as (a, b):
        known = await begin(a)
        await commit(a, known, claim("s"))
        for client, stamp in (
            (a, Stamp(history="another", beat=1)),
            (a, Stamp(history=known.history, beat=3)),
            (b, Stamp(history=known.history, beat=1)),
        ):
            committed = await commit(client, stamp, claim("t"))
            assert committed.verdict is Verdict.FORGOTTEN
            assert not committed.answers
            assert committed.stamp is None
            assert (await client.store.stamp(client.worker, stamp, passed=True)).stamp is None
            swept = await sweep(client, stamp=stamp)
            assert swept.stamped is not None
            assert swept.stamped.stamp is None
        assert await a.store.locate(a.worker, "t") is None
        assert await seen(a) == Stamp(history=known.history, beat=2)
        assert await seen(b) is None


async def a_refresh_reads_the_stamp_and_sets_none(make_store: MakeStore) -> None:
    """It comes with the rows, and so vouches for what is said of them."""
    async with opened(make_store, "a") as (a,):
        known = await begin(a)
        await commit(a, known, claim("s"))
        for _ in range(2):
            for asked in (["s"], ["s", "nobody"], ["nobody"]):
                answers = await a.store.refresh(a.worker, asked)
                assert answers.held == {"s"} & set(asked)
                assert answers.stamp == Stamp(history=known.history, beat=2)


async def a_new_history_ends_the_one_before(make_store: MakeStore) -> None:
    """What was sent in the old one does nothing any more."""
    async with opened(make_store, "a") as (a,):
        old = await begin(a)
        new = await begin(a)
        assert await seen(a) == new
        assert (await commit(a, old, claim("s"))).verdict is Verdict.FORGOTTEN
        assert (await commit(a, new, claim("s"))).verdict is Verdict.DONE


async def stamps_at_once_have_each_a_beat_of_their_own(make_store: MakeStore) -> None:
    """A batch and a stamp may be under way at the same time."""
    async with opened(make_store, "a") as (a,):
        known = await begin(a)
        beats: list[int] = []

        async def claim_one(session_id: str) -> None:
            stamp = (await commit(a, known, claim(session_id))).stamp
            assert stamp is not None
            beats.append(stamp.beat)

        async def stamp() -> None:
            stamped = await a.store.stamp(a.worker, known, passed=True)
            assert stamped.stamp is not None
            beats.append(stamped.stamp.beat)

        for number in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(claim_one, f"s{number}")
                nursery.start_soon(stamp)
        assert sorted(beats) == list(range(2, 12))


async def a_late_batch_does_nothing(make_store: MakeStore) -> None:
    """It says what the clock is, so that whoever still waits can ask again."""
    async with opened(make_store, "a") as (a,):
        known = await begin(a)
        clock = (await commit(a, known)).clock
        assert clock is not None
        stamped = await a.store.stamp(a.worker, known, passed=False)
        assert 0 <= stamped.clock - clock < 10
        late = await commit(a, known, claim("s"), not_after=clock - 0.1)
        assert late.verdict is Verdict.LATE
        assert late.clock is not None
        assert 0 <= late.clock - clock < 10
        assert not late.answers
        assert late.stamp is None
        assert await seen(a) == stamped.stamp, "what does nothing stamps nothing"
        assert await a.store.locate(a.worker, "s") is None
        in_time = await commit(a, known, claim("s"), not_after=late.clock + 60.0)
        assert in_time.verdict is Verdict.DONE
        assert len(in_time.answers) == 1


async def the_rows_of_an_incarnation_can_be_counted_and_listed(make_store: MakeStore) -> None:
    """Piece by piece; neither those of others nor of an earlier incarnation."""
    async with opened(make_store, "a", "a") as (a, other):
        known = await begin(a)
        await commit(a, known, *(claim(f"s{n}") for n in range(5)))
        await other.claim("theirs")
        assert (await a.store.stamp(a.worker, known, passed=True)).rows == 5
        swept = await sweep(a, session_ttl=LONG, limit=0, stamp=known)
        assert swept.stamped is not None
        assert swept.stamped.rows == 5
        found = await a.store.own_rows(a.worker, after="", limit=3)
        assert len(found) == 3
        found += await a.store.own_rows(a.worker, after=found[-1][0], limit=3)
        assert found == [(f"s{n}", 1) for n in range(5)]


async def a_worker_that_leaves_takes_its_row_along(make_store: MakeStore) -> None:
    """With its last session, and not before."""
    async with opened(make_store, "a") as (a,):
        known = await begin(a)
        await commit(a, known, *(claim(f"s{n}") for n in range(3)))
        assert (await a.store.delete_all(a.worker, limit=2)).more
        assert await seen(a) is not None
        assert not (await a.store.delete_all(a.worker, limit=2)).more
        assert await seen(a) is None


async def a_history_may_be_begun_twice(make_store: MakeStore) -> None:
    """The answer to the first attempt may have been lost."""
    async with opened(make_store, "a") as (a,):
        for _ in range(2):
            begun = await a.store.begin(a.worker, "once", _presence(), after=None)
            assert (begun.was_swept, begun.doubt) == (False, 0.0)
            assert await seen(a) == Stamp(history="once", beat=1)
        stamp = (await commit(a, Stamp(history="once", beat=1), claim("s"))).stamp
        assert stamp == Stamp(history="once", beat=2)


async def whoever_begins_is_told_the_clock(make_store: MakeStore) -> None:
    """Else a first batch that is held up for long would have no last moment."""
    async with opened(make_store, "a") as (a,):
        begun = await a.store.begin(a.worker, "first", _presence(), after=None)
        assert begun.clock is not None, "it names no clock"
        clock = (await commit(a, Stamp(history="first", beat=1))).clock
        assert clock is not None
        assert 0 <= clock - begun.clock < 10
        for after in ("first", "another"):
            begun = await a.store.begin(a.worker, f"after {after}", _presence(), after=after)
            assert begun.clock is not None, "it names no clock"
            assert 0 <= begun.clock - clock < 10


async def a_restart_has_a_witness_of_its_own(make_store: MakeStore) -> None:
    """The row of a worker is that of its incarnation, whatever it is called."""
    async with opened(make_store, "a", "a") as (a, restarted):
        old = await begin(a)
        assert await seen(restarted) is None
        new = await begin(restarted)
        assert (await commit(a, old, claim("s"))).verdict is Verdict.DONE
        assert (await commit(restarted, old, claim("t"))).verdict is Verdict.FORGOTTEN
        assert await seen(a) == Stamp(history=old.history, beat=2)
        assert await seen(restarted) == new
        assert not (await restarted.store.delete_all(restarted.worker, limit=10)).more
        assert await seen(restarted) is None
        assert await seen(a) == Stamp(history=old.history, beat=2)


async def every_operation_of_a_worker_is_a_checkpoint(make_store: MakeStore) -> None:
    """Opening and closing, too."""
    async with opened(make_store, "a") as (a,):
        known = await begin(a)
        store, me = a.store, a.worker
        operations: list[Callable[[], Awaitable[object]]] = [
            lambda: store.begin(me, "next", _presence(), after=None),
            lambda: store.stamp(me, known, passed=True),
            lambda: store.own_rows(me, after="", limit=1),
            lambda: store.close(me),
            lambda: store.open(me),
        ]
        for operation in operations:
            with trio.testing.assert_checkpoints():
                await operation()


# ---- the lease ----


async def stamps_keep_rows_that_are_not_refreshed(make_store: MakeStore) -> None:
    """As long as passes end: a row may be locked for longer than its lease."""
    async with opened(make_store, "a", "b") as (a, b):
        mine = await begin(a)  # with a long lease, so that no pause here is a gap
        known = await begin(b, session_ttl=2 * TTL)
        await commit(b, known, claim("s"))
        for _ in range(7):
            swept = await sweep(a, stamp=mine)
            assert swept.sessions == 0, "a session of a live worker was swept"
            await trio.sleep(TTL * 0.4)
            await b.store.stamp(b.worker, known, passed=True)
        with trio.fail_after(PATIENCE):  # as soon as no pass has ended for so long
            while (await sweep(a, stamp=mine)).sessions == 0:
                await trio.sleep(TTL * 0.2)
                await b.store.stamp(b.worker, known, passed=False)
        for _ in range(2):  # its answer may be lost
            begun = await b.store.begin(b.worker, "woken", _presence(), after=known.history)
            assert (begun.was_swept, begun.doubt) == (True, 0.0)
        assert await a.store.locate(a.worker, "s") is None, "a lost lease is no reason for doubt"
        begun = await b.store.begin(b.worker, "later", _presence(), after="woken")
        assert not begun.was_swept, "it is not this history that was swept"
        assert begun.doubt > TTL


def _presence() -> Presence:
    return Presence(session_ttl=TTL, cleanup_interval=TTL, stamp_interval=TTL, version="0")


async def a_lease_is_as_long_as_its_holder_says(make_store: MakeStore) -> None:
    """Neither a visitor with a short one ends it, nor does one with a long one keep it."""
    async with opened(make_store, "a", "long", "short") as (a, long, short):
        mine = await begin(a, session_ttl=TTL)
        await commit(long, await begin(long, session_ttl=LONG), claim("long"))
        await commit(short, await begin(short, session_ttl=TTL), claim("short"))
        for _ in range(4):
            await sweep(a, limit=0, stamp=mine)
            await trio.sleep(TTL * 0.3)
        for session_ttl in (TTL / 4, LONG):
            assert (await sweep(a, session_ttl=session_ttl, stamp=mine)).sessions in {0, 1}
        assert await a.store.locate(a.worker, "long") is not None
        assert await a.store.locate(a.worker, "short") is None


async def a_worker_s_row_goes_after_its_sessions(make_store: MakeStore) -> None:
    """So a row that is left over is never taken for one of a worker that has none."""
    async with opened(make_store, "a", "b") as (a, b):
        mine = await begin(a)
        known = await begin(b, session_ttl=TTL)
        await commit(b, known, *(claim(f"s{n}") for n in range(3)))
        for _ in range(4):
            await sweep(a, limit=0, stamp=mine)
            await trio.sleep(TTL * 0.3)
        assert (await sweep(a, limit=2, stamp=mine)).sessions == 2
        assert await seen(b) is not None
        for _ in range(2):
            await sweep(a, limit=2, stamp=mine)
        assert await seen(b) is None
        assert await seen(a) is not None


worker_checks: tuple[Check, ...] = (
    each_batch_and_each_stamp_counts_one_beat,
    what_the_store_does_not_know_does_nothing,
    a_refresh_reads_the_stamp_and_sets_none,
    a_new_history_ends_the_one_before,
    stamps_at_once_have_each_a_beat_of_their_own,
    a_late_batch_does_nothing,
    the_rows_of_an_incarnation_can_be_counted_and_listed,
    a_worker_that_leaves_takes_its_row_along,
    a_history_may_be_begun_twice,
    whoever_begins_is_told_the_clock,
    a_restart_has_a_witness_of_its_own,
    every_operation_of_a_worker_is_a_checkpoint,
    stamps_keep_rows_that_are_not_refreshed,
    a_lease_is_as_long_as_its_holder_says,
    a_worker_s_row_goes_after_its_sessions,
)
