"""Checks of `RowStore`: refreshing, leaving, sweeping."""

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from trio_sessions.testing._conformance._fleet import PATIENCE
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Swept
from trio_sessions.writes import Batch, Claim, Delete, Outcome

__all__ = ["row_checks"]

NOTHING = Swept(sessions=0, messages=0, more=False)
_TTL = 1.0  # seconds; the checks wait for leases that long to expire


async def _sweep(
    client: Client, *, session_ttl: float = _TTL, max_gap: float = 3600.0, limit: int = 100
) -> int:
    swept = await client.store.sweep(
        client.worker, session_ttl=session_ttl, message_ttl=3600.0, max_gap=max_gap, limit=limit
    )
    return swept.sessions


async def what_was_written_is_held_and_refreshed(make_store: MakeStore) -> None:
    """Written rows are confirmed, also when they are written or refreshed again."""
    async with opened(make_store, "a") as (a,):
        for outcome in (Outcome.INSERTED, Outcome.KEPT):
            for session_id, generation in (("s", 1), ("t", 2)):
                assert (await a.claim(session_id, generation)).outcome is outcome
            assert await a.holds("s", "t")


async def what_is_not_there_is_in_no_field(make_store: MakeStore) -> None:
    """Absent from a committed answer is how a store says "gone", and not "taken over"."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await b.claim("theirs")
        answers = await a.store.refresh(a.worker, ["s", "nobody", "theirs"])
        assert answers.held == {"s"}
        assert answers.taken_over == {"theirs"}
        assert not answers.unknown
        assert await a.store.locate(a.worker, "nobody") is None


async def nothing_asked_is_nothing_done(make_store: MakeStore) -> None:
    """Empty sequences are fine."""
    async with opened(make_store, "a") as (a,):
        assert not (await a.store.commit(a.worker, Batch(writes=()))).answers
        assert not (await a.store.refresh(a.worker, [])).held
        assert await a.store.delete_all(a.worker, limit=10) == NOTHING


async def a_row_belongs_to_one_incarnation(make_store: MakeStore) -> None:
    """Neither another worker nor a restart under the same name refreshes or deletes it."""
    async with opened(make_store, "a", "a") as (a, restarted):
        await a.claim("s")
        answers = await restarted.store.refresh(restarted.worker, ["s"])
        assert not answers.held
        assert answers.taken_over == {"s"}
        assert await restarted.write(Delete(session_id="s", up_to=1_000)) == 0
        assert await restarted.store.delete_all(restarted.worker, limit=10) == NOTHING
        assert await a.holds("s")


async def leaving_is_bounded_and_may_be_repeated(make_store: MakeStore) -> None:
    """`delete_all` says whether there is more, so that the caller knows when it is done."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.commit(*(Claim(session_id=f"s{n}", generation=1, age=0.0) for n in range(5)))
        await b.claim("other")
        for session_id in ("s0", "s0", "other"):
            assert await a.write(Delete(session_id=session_id, up_to=9)) == 0
        left = [await a.store.delete_all(a.worker, limit=3) for _ in range(3)]
        assert [one.sessions for one in left] == [3, 1, 0]
        assert [one.more for one in left] == [True, False, False]
        assert await b.holds("other")


async def expired_rows_of_others_are_swept(make_store: MakeStore) -> None:
    """Not those refreshed in time, not the sweeper's own, and no more than the limit."""
    async with opened(make_store, "a", "b") as (a, b):
        assert await _sweep(a) == 0
        deadline = trio.current_time() + PATIENCE
        while True:
            for session_id in ("dead0", "dead1", "dead2", "alive"):
                await b.claim(session_id)
            await a.claim("own")
            await trio.sleep(TICK)
            assert await _sweep(a) == 0
            await trio.sleep(_TTL * 1.1)
            asked_at = trio.current_time()
            await b.store.refresh(b.worker, ["alive"])
            assert await _sweep(a, limit=0) == 0
            swept = [await _sweep(a, limit=2) for _ in range(3)]
            answers = await b.store.refresh(b.worker, ["alive", "dead0"])
            if trio.current_time() - asked_at < _TTL:
                break
            assert trio.current_time() < deadline, "this machine is too slow for the check"
        assert swept == [2, 1, 0]
        assert answers.held == {"alive"}
        assert await a.holds("own")


async def a_gap_in_the_vouching_opens_a_grace(make_store: MakeStore) -> None:
    """After a silence of the whole fleet nobody expires for one ``session_ttl``."""
    async with opened(make_store, "a", "b") as (a, b):
        assert await _sweep(a) == 0
        await b.claim("s")
        await trio.sleep(_TTL * 1.1)
        assert await _sweep(a, max_gap=_TTL) == 0  # the gap is noticed
        assert await _sweep(a, max_gap=_TTL) == 0
        assert await b.holds("s")
        for _ in range(5):
            await trio.sleep(_TTL * 0.25)
            await _sweep(a, max_gap=_TTL)
        assert await b.store.locate(b.worker, "s") is None


async def one_worker_leaves_and_the_others_stay(make_store: MakeStore) -> None:
    """Closing is for one worker, and closing without opening is harmless."""
    async with opened(make_store, "a") as (a,):
        async with opened(make_store, "b") as (b,):
            await b.claim("s")
            await b.store.close(b.worker)
            assert (await a.store.locate(a.worker, "s")) is not None
            await b.store.open(b.worker)
        await b.store.close(b.worker)
        assert (await a.claim("t")).outcome is Outcome.INSERTED


async def every_operation_is_a_checkpoint(make_store: MakeStore) -> None:
    """Also when there is nothing to do."""
    async with opened(make_store, "a") as (a,):
        store, me = a.store, a.worker
        operations: list[Callable[[], Awaitable[object]]] = [
            lambda: store.commit(me, Batch(writes=())),
            lambda: a.claim("s"),
            lambda: store.refresh(me, []),
            lambda: store.refresh(me, ["s"]),
            lambda: store.locate(me, "s"),
            lambda: store.get_capabilities(me, "s"),
            lambda: store.elicitation_capable(me),
            lambda: store.delete_all(me, limit=1),
            lambda: _sweep(a),
        ]
        for operation in operations:
            with trio.testing.assert_checkpoints():
                await operation()


row_checks: tuple[Check, ...] = (
    what_was_written_is_held_and_refreshed,
    what_is_not_there_is_in_no_field,
    nothing_asked_is_nothing_done,
    a_row_belongs_to_one_incarnation,
    leaving_is_bounded_and_may_be_repeated,
    expired_rows_of_others_are_swept,
    a_gap_in_the_vouching_opens_a_grace,
    one_worker_leaves_and_the_others_stay,
    every_operation_is_a_checkpoint,
)
