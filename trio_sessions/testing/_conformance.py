"""The contract of `SessionStore` as checks that any store can be put to."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count

import trio
import trio.testing

from trio_sessions.abc import SessionStore, Worker
from trio_sessions.types import Capabilities, Holder, RowClaim, StoredMessage, Undelivered, Wanted

__all__ = ["store_conformance"]

MakeStore = Callable[[], SessionStore]
"""Returns a store on what is shared: the same at each call, or another on the same rows.
What is shared must be empty when a check begins."""

_TTL = 1.0  # seconds; the checks wait for leases that long to expire
_numbers = count(1)


@asynccontextmanager
async def _opened(make_store: MakeStore, name: str) -> AsyncIterator[tuple[SessionStore, Worker]]:
    store = make_store()
    worker = Worker(
        worker_id=name,
        incarnation=f"{name}-{next(_numbers)}",
        limiter=trio.CapacityLimiter(2),
    )
    await store.open(worker)
    try:
        yield store, worker
    finally:
        with trio.CancelScope(shield=True):
            await store.close(worker)


def _claim(session_id: str, generation: int = 1, age: float = 0.0) -> RowClaim:
    return RowClaim(session_id=session_id, generation=generation, age=age)


async def _sweep(
    store: SessionStore,
    worker: Worker,
    *,
    session_ttl: float = _TTL,
    max_gap: float = 3600.0,
    limit: int = 100,
) -> int:
    swept = await store.sweep(
        worker, session_ttl=session_ttl, message_ttl=3600.0, max_gap=max_gap, limit=limit
    )
    return swept.sessions


async def what_was_written_is_held_and_refreshed(make_store: MakeStore) -> None:
    """Written rows are confirmed, also when they are written or refreshed again."""
    async with _opened(make_store, "a") as (store, me):
        for _ in range(2):
            written = await store.write(me, [_claim("s"), _claim("t", 2)])
            assert written.held == {"s", "t"}
            refreshed = await store.refresh(me, ["s", "t"])
            assert refreshed.held == {"s", "t"}
            assert not written.unknown
            assert not refreshed.unknown
        assert await store.locate(me, "s") == Holder(worker_id="a", incarnation=me.incarnation)
        await store.delete_all(me, limit=10)


async def what_is_not_there_is_in_neither_answer(make_store: MakeStore) -> None:
    """Absent from a committed answer is how a store says "gone"."""
    async with _opened(make_store, "a") as (store, me):
        await store.write(me, [_claim("s")])
        answers = await store.refresh(me, ["s", "nobody"])
        assert answers.held == {"s"}
        assert not answers.unknown
        assert await store.locate(me, "nobody") is None
        await store.delete_all(me, limit=10)


async def nothing_asked_is_nothing_done(make_store: MakeStore) -> None:
    """Empty sequences are fine."""
    async with _opened(make_store, "a") as (store, me):
        assert not (await store.write(me, [])).held
        assert not (await store.refresh(me, [])).held
        await store.delete(me, [], up_to=1)
        assert await store.delete_all(me, limit=10) == 0


async def a_row_belongs_to_one_incarnation(make_store: MakeStore) -> None:
    """Neither another worker nor a restart under the same name refreshes or deletes it."""
    async with (
        _opened(make_store, "a") as (store, me),
        _opened(make_store, "a") as (other, restart),
    ):
        await store.write(me, [_claim("s")])
        assert not (await other.refresh(restart, ["s"])).held
        await other.delete(restart, ["s"], up_to=1_000)
        assert await other.delete_all(restart, limit=10) == 0
        assert (await store.refresh(me, ["s"])).held == {"s"}
        await store.delete_all(me, limit=10)


async def the_newest_claim_takes_over(make_store: MakeStore) -> None:
    """The older holder then finds its row gone."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        await store.write(me, [_claim("s")])
        await trio.sleep(0.02)
        assert (await other.write(they, [_claim("s")])).held == {"s"}
        assert not (await store.refresh(me, ["s"])).held
        assert await store.locate(me, "s") == Holder(worker_id="b", incarnation=they.incarnation)
        await other.delete_all(they, limit=10)


async def an_older_claim_does_not_take_over(make_store: MakeStore) -> None:
    """A worker that comes late, after an outage, leaves the newer holder alone."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        await other.write(they, [_claim("s")])
        await trio.sleep(0.02)
        late = await store.write(me, [_claim("s", age=10.0), _claim("t", age=10.0)])
        assert late.held == {"t"}
        assert not late.unknown
        assert (await other.refresh(they, ["s"])).held == {"s"}
        await store.delete_all(me, limit=10)
        await other.delete_all(they, limit=10)


async def an_earlier_generation_changes_nothing(make_store: MakeStore) -> None:
    """A write or deletion that comes late spares the session added again meanwhile."""
    async with _opened(make_store, "a") as (store, me):
        await store.write(me, [_claim("s", 5)])
        assert (await store.write(me, [_claim("s", 3, age=1.0)])).held == {"s"}
        await store.delete(me, ["s"], up_to=4)
        assert (await store.refresh(me, ["s"])).held == {"s"}
        await store.delete(me, ["s"], up_to=5)
        assert await store.locate(me, "s") is None


async def deleting_is_bounded_and_may_be_repeated(make_store: MakeStore) -> None:
    """`delete_all` says how many went, so that the caller knows when it is done."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        await store.write(me, [_claim(f"s{number}") for number in range(5)])
        await other.write(they, [_claim("other")])
        await store.delete(me, ["s0", "s0 again", "other"], up_to=9)
        assert [await store.delete_all(me, limit=3) for _ in range(3)] == [3, 1, 0]
        assert (await other.refresh(they, ["other"])).held == {"other"}
        await other.delete_all(they, limit=10)


async def expired_rows_of_others_are_swept(make_store: MakeStore) -> None:
    """Not those refreshed in time, not the sweeper's own, and no more than the limit."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        assert await _sweep(store, me) == 0
        await other.write(they, [_claim(f"dead{number}") for number in range(3)])
        await other.write(they, [_claim("alive")])
        await store.write(me, [_claim("own")])
        assert await _sweep(store, me) == 0
        await trio.sleep(_TTL * 1.1)
        await other.refresh(they, ["alive"])
        assert await _sweep(store, me, limit=0) == 0
        assert await _sweep(store, me, limit=2) == 2
        assert await _sweep(store, me, limit=2) == 1
        assert await _sweep(store, me, limit=2) == 0
        assert (await other.refresh(they, ["alive", "dead0"])).held == {"alive"}
        assert (await store.refresh(me, ["own"])).held == {"own"}
        await store.delete_all(me, limit=10)
        await other.delete_all(they, limit=10)


async def a_gap_in_the_vouching_opens_a_grace(make_store: MakeStore) -> None:
    """After a silence of the whole fleet nobody expires for one ``session_ttl``."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        assert await _sweep(store, me) == 0
        await other.write(they, [_claim("s")])
        await trio.sleep(_TTL * 1.1)
        assert await _sweep(store, me, max_gap=_TTL) == 0  # the gap is noticed
        assert await _sweep(store, me, max_gap=_TTL) == 0
        assert (await other.refresh(they, ["s"])).held == {"s"}
        for _ in range(5):
            await trio.sleep(_TTL * 0.25)
            await _sweep(store, me, max_gap=_TTL)
        assert await store.locate(me, "s") is None


async def one_worker_leaves_and_the_others_stay(make_store: MakeStore) -> None:
    """Closing is for one worker, and closing without opening is harmless."""
    async with _opened(make_store, "a") as (store, me):
        async with _opened(make_store, "b") as (other, they):
            await other.write(they, [_claim("s")])
        await other.close(they)
        assert (await store.locate(me, "s")) is not None
        assert (await store.write(me, [_claim("t")])).held == {"t"}
        await store.write(me, [_claim("s")])
        await store.delete_all(me, limit=10)


async def an_owner_is_claimed_once(make_store: MakeStore) -> None:
    """It may be set and claimed by any worker; a takeover keeps it, a deletion ends it."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        assert await other.claim_owner(they, "s", "alice") is None
        assert not await other.set_owner(they, "s", "alice")
        await store.write(me, [_claim("s")])
        assert await other.claim_owner(they, "s", "alice") == "alice"
        assert await store.claim_owner(me, "s", "bob") == "alice"
        assert await store.set_owner(me, "s", None)
        assert await other.claim_owner(they, "s", "bob") == "bob"
        await trio.sleep(0.02)
        await other.write(they, [_claim("s")])
        holder = await store.locate(me, "s")
        assert holder is not None
        assert (holder.worker_id, holder.owner) == ("b", "bob")
        await other.write(they, [RowClaim(session_id="s", generation=2, age=0.0, owner="carol")])
        holder = await store.locate(me, "s")
        assert holder is not None
        assert holder.owner == "carol"
        await other.delete_all(they, limit=10)


async def capabilities_are_replaced(make_store: MakeStore) -> None:
    """By any worker, and listed by their key ``elicitation``."""
    asked = Capabilities(encoded='{"elicitation":{}}', elicitation=True)
    other_one = Capabilities(encoded='{"roots":{}}', elicitation=False)
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        assert not await store.set_capabilities(me, "s", asked)
        await store.write(
            me, [_claim("s"), RowClaim(session_id="t", generation=1, age=0.0, capabilities=asked)]
        )
        assert await other.get_capabilities(they, "s") is None
        assert await other.get_capabilities(they, "nobody") is None
        assert await other.get_capabilities(they, "t") == asked.encoded
        assert await other.set_capabilities(they, "s", asked)
        assert sorted(await store.elicitation_capable(me)) == ["s", "t"]
        assert await store.set_capabilities(me, "s", other_one)
        assert await other.get_capabilities(they, "s") == other_one.encoded
        assert await store.elicitation_capable(me) == ["t"]
        await store.write(me, [_claim("t", 2)])
        assert await store.elicitation_capable(me) == ["t"]
        await store.delete_all(me, limit=10)


def _wanted(session_id: str, *held: int, count: int = 100, size: int = 1_000_000) -> Wanted:
    return Wanted(session_id=session_id, held=frozenset(held), count=count, size=size)


async def messages_wait_until_they_are_acknowledged(make_store: MakeStore) -> None:
    """In order, within the bounds that were asked for, and for the holder alone."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        assert await other.send(they, "s", "1") is None
        await store.write(me, [_claim("s"), _claim("t")])
        sent = [await other.send(they, "s", payload) for payload in ('"ü"', '"ü"', "[1]", "2")]
        first, second, third, fourth = [one.id for one in sent if one is not None]
        assert first < second < third < fourth
        assert sent[0] is not None
        assert sent[0].holder.worker_id == "a"
        assert await store.waiting(me) == ["s"]
        assert await other.waiting(they) == []
        assert not (await other.fetch(they, [_wanted("s")])).get("s")
        found = await store.fetch(me, [_wanted("s"), _wanted("t"), _wanted("nobody")])
        assert [one.payload for one in found["s"]] == ['"ü"', '"ü"', "[1]", "2"]
        assert [one.id for one in found["s"]] == [first, second, third, fourth]
        assert all(0 <= one.age < 60 for one in found["s"])
        assert not found.get("t")
        assert not found.get("nobody")
        few = (await store.fetch(me, [_wanted("s", first, count=2)]))["s"]
        assert [one.id for one in few] == [second, third]
        small = (await store.fetch(me, [_wanted("s", size=1)]))["s"]
        assert [one.id for one in small] == [first]
        await other.acknowledge(they, [second])  # it is not for that worker to say so
        await store.acknowledge(me, [10**9])
        assert len((await store.fetch(me, [_wanted("s")]))["s"]) == 4
        await store.acknowledge(me, [second, 10**9])
        await store.acknowledge(me, [second])
        await store.acknowledge(me, [])
        rest = (await store.fetch(me, [_wanted("s")]))["s"]
        assert [one.id for one in rest] == [first, third, fourth]
        assert await store.delete(me, ["s"], up_to=9) == 3
        assert await store.waiting(me) == []
        await store.delete_all(me, limit=10)


async def messages_go_with_their_session_or_their_ttl(make_store: MakeStore) -> None:
    """A sweep says how many; a takeover leaves them to the new holder."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        await store.write(me, [_claim("s")])
        await store.send(me, "s", "1")
        await trio.sleep(0.02)
        await other.write(they, [_claim("s")])
        assert len((await other.fetch(they, [_wanted("s")]))["s"]) == 1
        assert not (await store.fetch(me, [_wanted("s")])).get("s")
        await trio.sleep(0.05)
        swept = await store.sweep(
            me, session_ttl=3600.0, message_ttl=0.01, max_gap=3600.0, limit=10
        )
        assert (swept.sessions, swept.messages) == (0, 1)
        assert await other.waiting(they) == []
        await other.delete_all(they, limit=10)


async def messages_are_sent_on_to_the_next_holder(make_store: MakeStore) -> None:
    """In order, with their ages, and only to another incarnation; its bell rings."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        await store.write(me, [_claim("moved"), _claim("mine")])
        await trio.sleep(0.02)
        await other.write(they, [_claim("moved")])
        assert await store.send_on(me, []) == 0
        unread = [
            Undelivered(session_id=session_id, payload=str(number), age=1000.0)
            for number in range(20)
            for session_id in ("moved", "mine", "nobody's")
        ]
        with trio.fail_after(20):
            async with other.open_bell(they) as bell:
                assert await store.send_on(me, unread) == 20
                rung = await bell.wait()
                assert rung is None or "moved" in rung
        found = (await other.fetch(they, [_wanted("moved")]))["moved"]
        assert [one.payload for one in found] == [str(number) for number in range(20)]
        assert all(1000 <= one.age < 1060 for one in found)
        assert await store.waiting(me) == []
        for worker_store, worker in ((store, me), (other, they)):
            await worker_store.delete_all(worker, limit=10)


async def the_bell_rings_for_the_holder(make_store: MakeStore) -> None:
    """From the moment when it is open, no message goes unnoticed."""
    async with _opened(make_store, "a") as (store, me), _opened(make_store, "b") as (other, they):
        await store.write(me, [_claim("s")])
        with trio.fail_after(30):
            async with store.open_bell(me) as bell:
                for _ in range(3):
                    sent = await other.send(they, "s", "1")
                    assert sent is not None
                    found: Sequence[StoredMessage] = ()
                    while sent.id not in {one.id for one in found}:
                        rung = await bell.wait()
                        assert rung is None or "s" in rung
                        found = (await store.fetch(me, [_wanted("s")])).get("s", ())
        await store.delete_all(me, limit=10)


async def every_operation_is_a_checkpoint(make_store: MakeStore) -> None:
    """Also when there is nothing to do."""
    async with _opened(make_store, "a") as (store, me):
        operations: list[Callable[[], Awaitable[object]]] = [
            lambda: store.write(me, []),
            lambda: store.write(me, [_claim("s")]),
            lambda: store.refresh(me, []),
            lambda: store.refresh(me, ["s"]),
            lambda: store.locate(me, "s"),
            lambda: store.set_owner(me, "s", "o"),
            lambda: store.claim_owner(me, "s", "o"),
            lambda: store.set_capabilities(me, "s", Capabilities(encoded="{}", elicitation=False)),
            lambda: store.get_capabilities(me, "s"),
            lambda: store.elicitation_capable(me),
            lambda: store.send(me, "s", "1"),
            lambda: store.send_on(me, []),
            lambda: store.waiting(me),
            lambda: store.fetch(me, []),
            lambda: store.fetch(me, [_wanted("s")]),
            lambda: store.acknowledge(me, []),
            lambda: store.delete(me, ["s"], up_to=1),
            lambda: store.delete_all(me, limit=1),
            lambda: _sweep(store, me),
        ]
        for operation in operations:
            with trio.testing.assert_checkpoints():
                await operation()


store_conformance: tuple[Callable[[MakeStore], Awaitable[None]], ...] = (
    what_was_written_is_held_and_refreshed,
    what_is_not_there_is_in_neither_answer,
    nothing_asked_is_nothing_done,
    a_row_belongs_to_one_incarnation,
    the_newest_claim_takes_over,
    an_older_claim_does_not_take_over,
    an_earlier_generation_changes_nothing,
    deleting_is_bounded_and_may_be_repeated,
    expired_rows_of_others_are_swept,
    a_gap_in_the_vouching_opens_a_grace,
    one_worker_leaves_and_the_others_stay,
    an_owner_is_claimed_once,
    capabilities_are_replaced,
    messages_wait_until_they_are_acknowledged,
    messages_go_with_their_session_or_their_ttl,
    messages_are_sent_on_to_the_next_holder,
    the_bell_rings_for_the_holder,
    every_operation_is_a_checkpoint,
)
"""The contract, one check a rule. Each is called with a function that makes a store::

    @pytest.mark.parametrize("check", store_conformance, ids=lambda check: check.__name__)
    async def test_my_store_keeps_the_contract(check):
        await check(MyStore)
"""
