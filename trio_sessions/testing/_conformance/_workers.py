"""Checks of `WorkerStore`: the witness, the lease, and the doubt."""

from itertools import count

import trio

from trio_sessions.errors import RowDoubtful, StoreUnavailable
from trio_sessions.testing._conformance._tools import Check, Client, MakeStore, opened
from trio_sessions.types import Presence, Stamp, Swept
from trio_sessions.writes import (
    Answer,
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Committed,
    Outcome,
    Send,
    SetOwner,
    Verdict,
    Write,
)

__all__ = ["worker_checks"]

_TTL = 1.0  # seconds; the checks wait for leases that long to expire
_LONG = 3600.0
_PATIENCE = 30.0  # seconds for what is only a question of time
_words = count(1)


async def _begin(
    client: Client,
    *,
    session_ttl: float = _LONG,
    cleanup_interval: float = 0.5,
    rewound: bool = False,
) -> Stamp:
    """Begin a history; return what the worker knows to be acknowledged then."""
    history = f"{client.worker.incarnation}-{next(_words)}"
    presence = Presence(
        session_ttl=session_ttl,
        cleanup_interval=cleanup_interval,
        stamp_interval=min(5.0, cleanup_interval),
        version="0",
    )
    after = f"before {history}" if rewound else None
    await client.store.begin(client.worker, history, presence, after=after)
    return Stamp(history=history, beat=1)


async def _commit(
    client: Client, stamp: Stamp, *writes: Write[object], not_after: float | None = None
) -> Committed:
    batch = Batch(writes=writes, stamp=stamp, not_after=not_after)
    return await client.store.commit(client.worker, batch)


async def _seen(client: Client) -> Stamp | None:
    return (await client.store.refresh(client.worker, ["nobody"])).stamp


async def _sweep(
    client: Client, *, session_ttl: float = _TTL, limit: int = 100, stamp: Stamp | None = None
) -> Swept:
    return await client.store.sweep(
        client.worker,
        session_ttl=session_ttl,
        message_ttl=_LONG,
        max_gap=session_ttl,
        limit=limit,
        stamp=stamp,
    )


def _claim(session_id: str) -> Claim:
    return Claim(session_id=session_id, generation=1, age=0.0)


# ---- the witness ----


async def each_batch_and_each_stamp_counts_one_beat(make_store: MakeStore) -> None:
    """The store counts, whatever the worker has been told: it may have lost answers."""
    async with opened(make_store, "a") as (a,):
        known = await _begin(a)
        assert await _seen(a) == known
        for beat in (2, 3):
            committed = await _commit(a, known, _claim(f"s{beat}"))
            assert committed.verdict is Verdict.DONE
            assert committed.stamp == Stamp(history=known.history, beat=beat)
            [claimed] = committed.answers
            assert isinstance(claimed, Claimed)
            assert claimed.outcome is Outcome.INSERTED
        assert (await _commit(a, known)).stamp == Stamp(history=known.history, beat=4)
        stamped = await a.store.stamp(a.worker, known, passed=False)
        assert stamped.stamp == Stamp(history=known.history, beat=5)
        swept = (await _sweep(a, stamp=known)).stamped
        assert swept is not None
        assert swept.stamp == Stamp(history=known.history, beat=6)
        assert await _seen(a) == swept.stamp


async def what_the_store_does_not_know_does_nothing(make_store: MakeStore) -> None:
    """Another history, a beat that it has not counted, a worker that it has no row of."""
    async with opened(make_store, "a", "b") as (a, b):
        known = await _begin(a)
        await _commit(a, known, _claim("s"))
        for client, stamp in (
            (a, Stamp(history="another", beat=1)),
            (a, Stamp(history=known.history, beat=3)),
            (b, Stamp(history=known.history, beat=1)),
        ):
            committed = await _commit(client, stamp, _claim("t"))
            assert committed.verdict is Verdict.FORGOTTEN
            assert not committed.answers
            assert committed.stamp is None
            assert (await client.store.stamp(client.worker, stamp, passed=True)).stamp is None
            swept = await _sweep(client, stamp=stamp)
            assert swept.stamped is not None
            assert swept.stamped.stamp is None
        assert await a.store.locate(a.worker, "t") is None
        assert await _seen(a) == Stamp(history=known.history, beat=2)
        assert await _seen(b) is None


async def a_refresh_reads_the_stamp_and_sets_none(make_store: MakeStore) -> None:
    """It comes with the rows, and so vouches for what is said of them."""
    async with opened(make_store, "a") as (a,):
        known = await _begin(a)
        await _commit(a, known, _claim("s"))
        for _ in range(2):
            for asked in (["s"], ["s", "nobody"], ["nobody"]):
                answers = await a.store.refresh(a.worker, asked)
                assert answers.held == {"s"} & set(asked)
                assert answers.stamp == Stamp(history=known.history, beat=2)


async def a_new_history_ends_the_one_before(make_store: MakeStore) -> None:
    """What was sent in the old one does nothing any more."""
    async with opened(make_store, "a") as (a,):
        old = await _begin(a)
        new = await _begin(a)
        assert await _seen(a) == new
        assert (await _commit(a, old, _claim("s"))).verdict is Verdict.FORGOTTEN
        assert (await _commit(a, new, _claim("s"))).verdict is Verdict.DONE


async def stamps_at_once_have_each_a_beat_of_their_own(make_store: MakeStore) -> None:
    """A batch and a stamp may be under way at the same time."""
    async with opened(make_store, "a") as (a,):
        known = await _begin(a)
        beats: list[int] = []

        async def commit(session_id: str) -> None:
            stamp = (await _commit(a, known, _claim(session_id))).stamp
            assert stamp is not None
            beats.append(stamp.beat)

        async def stamp() -> None:
            stamped = await a.store.stamp(a.worker, known, passed=True)
            assert stamped.stamp is not None
            beats.append(stamped.stamp.beat)

        for number in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(commit, f"s{number}")
                nursery.start_soon(stamp)
        assert sorted(beats) == list(range(2, 12))


async def a_late_batch_does_nothing(make_store: MakeStore) -> None:
    """It says what the clock is, so that whoever still waits can ask again."""
    async with opened(make_store, "a") as (a,):
        known = await _begin(a)
        clock = (await _commit(a, known)).clock
        assert clock is not None
        stamped = await a.store.stamp(a.worker, known, passed=False)
        assert 0 <= stamped.clock - clock < 10
        late = await _commit(a, known, _claim("s"), not_after=clock - 0.1)
        assert late.verdict is Verdict.LATE
        assert late.clock is not None
        assert 0 <= late.clock - clock < 10
        assert not late.answers
        assert await a.store.locate(a.worker, "s") is None
        in_time = await _commit(a, known, _claim("s"), not_after=late.clock + 60.0)
        assert in_time.verdict is Verdict.DONE
        assert len(in_time.answers) == 1


async def the_rows_of_an_incarnation_can_be_counted_and_listed(make_store: MakeStore) -> None:
    """Piece by piece; neither those of others nor of an earlier incarnation."""
    async with opened(make_store, "a", "a") as (a, other):
        known = await _begin(a)
        await _commit(a, known, *(_claim(f"s{n}") for n in range(5)))
        await other.claim("theirs")
        assert (await a.store.stamp(a.worker, known, passed=True)).rows == 5
        found = await a.store.own_rows(a.worker, after="", limit=3)
        found += await a.store.own_rows(a.worker, after=found[-1][0], limit=3)
        assert found == [(f"s{n}", 1) for n in range(5)]


async def a_worker_that_leaves_takes_its_row_along(make_store: MakeStore) -> None:
    """With its last session, and not before."""
    async with opened(make_store, "a") as (a,):
        known = await _begin(a)
        await _commit(a, known, *(_claim(f"s{n}") for n in range(3)))
        assert (await a.store.delete_all(a.worker, limit=2)).more
        assert await _seen(a) is not None
        assert not (await a.store.delete_all(a.worker, limit=2)).more
        assert await _seen(a) is None


# ---- the lease ----


async def stamps_keep_rows_that_are_not_refreshed(make_store: MakeStore) -> None:
    """As long as passes end: a row may be locked for longer than its lease."""
    async with opened(make_store, "a", "b") as (a, b):
        mine = await _begin(a)  # with a long lease, so that no pause here is a gap
        known = await _begin(b, session_ttl=2 * _TTL)
        await _commit(b, known, _claim("s"))
        for _ in range(6):
            assert (await _sweep(a, stamp=mine)).sessions == 0
            await trio.sleep(_TTL * 0.4)
            await b.store.stamp(b.worker, known, passed=True)
        with trio.fail_after(_PATIENCE):  # as soon as no pass has ended for so long
            while (await _sweep(a, stamp=mine)).sessions == 0:
                await trio.sleep(_TTL * 0.2)
                await b.store.stamp(b.worker, known, passed=False)
        for _ in range(2):  # its answer may be lost
            begun = await b.store.begin(b.worker, "woken", _presence(), after=known.history)
            assert (begun.was_swept, begun.doubt) == (True, 0.0)
        assert await a.store.locate(a.worker, "s") is None, "a lost lease is no reason for doubt"
        begun = await b.store.begin(b.worker, "later", _presence(), after="woken")
        assert not begun.was_swept, "it is not this history that was swept"
        assert begun.doubt > _TTL


def _presence() -> Presence:
    return Presence(session_ttl=_TTL, cleanup_interval=_TTL, stamp_interval=_TTL, version="0")


async def a_lease_is_as_long_as_its_holder_says(make_store: MakeStore) -> None:
    """Neither a visitor with a short one ends it, nor does one with a long one keep it."""
    async with opened(make_store, "a", "long", "short") as (a, long, short):
        mine = await _begin(a, session_ttl=_TTL)
        await _commit(long, await _begin(long, session_ttl=_LONG), _claim("long"))
        await _commit(short, await _begin(short, session_ttl=_TTL), _claim("short"))
        for _ in range(4):
            await _sweep(a, limit=0, stamp=mine)
            await trio.sleep(_TTL * 0.3)
        for session_ttl in (_TTL / 4, _LONG):
            assert (await _sweep(a, session_ttl=session_ttl, stamp=mine)).sessions in {0, 1}
        assert await a.store.locate(a.worker, "long") is not None
        assert await a.store.locate(a.worker, "short") is None


async def a_worker_s_row_goes_after_its_sessions(make_store: MakeStore) -> None:
    """So a row that is left over is never taken for one of a worker that has none."""
    async with opened(make_store, "a", "b") as (a, b):
        mine = await _begin(a)
        known = await _begin(b, session_ttl=_TTL)
        await _commit(b, known, *(_claim(f"s{n}") for n in range(3)))
        for _ in range(4):
            await _sweep(a, limit=0, stamp=mine)
            await trio.sleep(_TTL * 0.3)
        assert (await _sweep(a, limit=2, stamp=mine)).sessions == 2
        assert await _seen(b) is not None
        for _ in range(2):
            await _sweep(a, limit=2, stamp=mine)
        assert await _seen(b) is None
        assert await _seen(a) is not None


# ---- the doubt ----


async def after_a_rewind_what_is_not_there_is_unknown(make_store: MakeStore) -> None:
    """For a while; what is there is known all the same."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await _begin(b)
        await b.write(SetOwner(session_id="s", owner=None))
        await _begin(a, rewound=True, cleanup_interval=2.0)
        assert await b.store.locate(b.worker, "s") is not None
        for ask in (
            lambda: b.store.locate(b.worker, "nobody"),
            lambda: b.store.get_capabilities(b.worker, "nobody"),
            lambda: b.store.elicitation_capable(b.worker),
        ):
            await _assert_unknown(ask)
        doubtful: list[Write[object]] = [
            SetOwner(session_id="nobody", owner="x"),
            Send(session_id="nobody", payload="1"),
            ClaimOwner(session_id="s", owner="x"),
        ]
        for write in doubtful:
            assert isinstance(await _only_answer(b, write), RowDoubtful)
        assert not isinstance(
            await _only_answer(a, ClaimOwner(session_id="s", owner="x")), RowDoubtful
        ), "it is a's own"
        with trio.fail_after(_PATIENCE):  # two intervals, and a little
            while not await _is_known(b, "nobody"):  # noqa: ASYNC110 -- no store has an event for it
                await trio.sleep(0.1)
        assert await _only_answer(b, Send(session_id="nobody", payload="1")) is None


async def _is_known(client: Client, session_id: str) -> bool:
    """Say whether the store knows that there is no such session."""
    try:
        assert await client.store.locate(client.worker, session_id) is None
    except StoreUnavailable:
        return False
    return True


async def _only_answer(client: Client, write: Write[object]) -> Answer:
    [answer] = (await client.store.commit(client.worker, Batch(writes=[write]))).answers
    return answer


async def _assert_unknown(ask: object) -> None:
    assert callable(ask)
    try:
        answer = await ask()
    except StoreUnavailable:
        return
    raise AssertionError(f"it is in doubt, and says {answer!r}")


worker_checks: tuple[Check, ...] = (
    each_batch_and_each_stamp_counts_one_beat,
    what_the_store_does_not_know_does_nothing,
    a_refresh_reads_the_stamp_and_sets_none,
    a_new_history_ends_the_one_before,
    stamps_at_once_have_each_a_beat_of_their_own,
    a_late_batch_does_nothing,
    the_rows_of_an_incarnation_can_be_counted_and_listed,
    a_worker_that_leaves_takes_its_row_along,
    stamps_keep_rows_that_are_not_refreshed,
    a_lease_is_as_long_as_its_holder_says,
    a_worker_s_row_goes_after_its_sessions,
    after_a_rewind_what_is_not_there_is_unknown,
)
