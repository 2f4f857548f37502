"""Checks of `Store`: what holds for every method, and for every word that it is given."""

import itertools
from collections.abc import Awaitable, Callable, Iterator

import trio

from trio_sessions.abc import Part, Worker
from trio_sessions.testing._conformance._fleet import PATIENCE
from trio_sessions.testing._conformance._tools import Check, Client, MakeStore, opened, wanted
from trio_sessions.types import Presence, Stamp
from trio_sessions.writes import Batch, Claim, Outcome, Send

__all__ = ["manner_checks"]

Operation = Callable[[], Awaitable[object]]
_PRESENCE = Presence(session_ttl=3600.0, cleanup_interval=1.0, stamp_interval=1.0, version="0")
_CLAIM = Batch(writes=[Claim(session_id="s", generation=1, age=0.0)])
_LONGEST = "\U0001f511" * 255  # of four bytes each, and so a KiB
_OWNER = "\U0001f511" * 320


def _operations(client: Client) -> Iterator[Operation]:
    store, me = client.store, client.worker

    async def open_bell() -> None:
        async with store.open_bell(me):
            pass

    yield lambda: store.begin(me, "history", _PRESENCE, after=None)
    yield lambda: store.commit(me, _CLAIM)
    yield lambda: store.refresh(me, ["s"])
    yield lambda: store.stamp(me, Stamp(history="history", beat=1), passed=True)
    yield lambda: store.locate(me, "s")
    yield lambda: store.own_rows(me, after="", limit=10)
    yield lambda: store.get_capabilities(me, "s")
    yield lambda: store.elicitation_capable(me)
    yield lambda: store.waiting(me)
    yield lambda: store.fetch(me, [wanted("s")])
    yield open_bell
    yield lambda: store.sweep(me, session_ttl=3600.0, message_ttl=60.0, max_gap=60.0, limit=10)
    yield lambda: store.delete_all(me, limit=10)


async def a_store_says_what_it_is(make_store: MakeStore) -> None:
    """Which parts of the contract it has, and when it gives up, by itself."""
    store = make_store()
    assert store.parts
    assert all(isinstance(part, Part) for part in store.parts)
    assert isinstance(store.may_outlast_cancellation, bool)
    assert store.gives_up_after is None or store.gives_up_after > 0
    await trio.lowlevel.checkpoint()


async def one_store_serves_several_workers(make_store: MakeStore) -> None:
    """The same object, opened by each; closed by one, it stays open for the others."""
    store = make_store()
    async with opened(lambda: store, "a", "b") as (a, b):
        await a.claim("s")
        await b.claim("t")
        assert await a.holds("s")
        assert await b.holds("t")
        await a.store.delete_all(a.worker, limit=10)
        await a.store.close(a.worker)
        assert await b.holds("t")
        await a.store.open(a.worker)
        assert (await a.claim("s")).outcome is Outcome.INSERTED


async def closing_without_opening_is_harmless(make_store: MakeStore) -> None:
    """Nobody else is closed by it."""
    async with opened(make_store, "a") as (a,):
        await a.claim("s")
        stranger = Worker(
            worker_id="stranger", incarnation="never opened", limiter=trio.CapacityLimiter(1)
        )
        await a.store.close(stranger)
        await make_store().close(stranger)
        assert await a.holds("s")


async def what_is_cancelled_has_happened_or_not(make_store: MakeStore) -> None:
    """Whichever operation is cut off, the next one is answered."""
    async with opened(make_store, "a") as (a,):
        for operation in _operations(a):
            with trio.CancelScope() as scope:
                scope.cancel()
                await operation()
            with trio.move_on_after(PATIENCE) as scope:
                assert (await a.claim("s")).outcome in {Outcome.INSERTED, Outcome.KEPT}
                assert await a.holds("s")
            assert not scope.cancelled_caught, "what was cancelled is in the way of the next"


async def every_thread_has_the_worker_s_limiter(make_store: MakeStore) -> None:
    """So ``max_concurrent`` bounds them, and others' threads are in nobody's way."""
    theirs = trio.to_thread.current_default_thread_limiter()
    async with opened(make_store, "a") as (a,):
        mine = a.worker.limiter
        places = [object() for _ in range(int(theirs.available_tokens))]
        for place in places:
            theirs.acquire_on_behalf_of_nowait(place)
        try:
            for operation in _operations(a):
                is_done = False
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_watch, theirs, nursery.cancel_scope)
                    await operation()
                    is_done = True
                    nursery.cancel_scope.cancel()
                assert is_done, "a thread is started without the worker's limiter"
                assert mine.borrowed_tokens == 0, "a token of the limiter was not given back"
        finally:
            for place in places:
                theirs.release_on_behalf_of(place)


async def _watch(theirs: trio.CapacityLimiter, scope: trio.CancelScope) -> None:
    """Give up as soon as somebody waits for a thread of the default limiter."""
    for pause in itertools.chain([0.0] * 5, itertools.repeat(0.005)):
        await trio.sleep(pause)
        if theirs.statistics().tasks_waiting:
            scope.cancel()


async def words_that_are_alike_are_not_one(make_store: MakeStore) -> None:
    """Letters and their capitals, accents in two spellings, spaces at an end: an id is exact."""
    async with opened(make_store, "a") as (a,):
        ids = ["s", "S", "s ", " s", "\u00e9", "e\u0301", "\u00df", "ss", "%", "_", "1", "01"]
        for number, session_id in enumerate(ids):
            claimed = await a.write(
                Claim(session_id=session_id, generation=1, age=0.0, owner=str(number))
            )
            assert claimed.outcome is Outcome.INSERTED
        assert await a.holds(*ids)
        for number, session_id in enumerate(ids):
            holder = await a.store.locate(a.worker, session_id)
            assert holder is not None
            assert holder.owner == str(number)


async def the_longest_words_come_back_as_they_were(make_store: MakeStore) -> None:
    """Ids of 255 characters, owners of 320, messages of a megabyte, in any alphabet."""
    async with opened(make_store, "a", "b") as (a, b):
        claimed = await a.write(Claim(session_id=_LONGEST, generation=1, age=0.0, owner=_OWNER))
        assert claimed.holder.owner == _OWNER
        assert await a.holds(_LONGEST)
        payloads = [f'"{"x" * 1_000_000}"', '"\\u0000\\ud800"', '"\U0001f511"', "[]"]
        for payload in payloads:
            assert await b.write(Send(session_id=_LONGEST, payload=payload)) is not None
        found = await a.store.fetch(a.worker, [wanted(_LONGEST, size=10_000_000)])
        assert [one.payload for one in found[_LONGEST]] == payloads
        # Bytes are counted, not characters: this one has six, and so no other comes with it.
        [first, second, third, _] = found[_LONGEST]
        few = await a.store.fetch(a.worker, [wanted(_LONGEST, first.id, second.id, size=5)])
        assert [one.id for one in few[_LONGEST]] == [third.id]


manner_checks: tuple[Check, ...] = (
    a_store_says_what_it_is,
    one_store_serves_several_workers,
    closing_without_opening_is_harmless,
    what_is_cancelled_has_happened_or_not,
    every_thread_has_the_worker_s_limiter,
    words_that_are_alike_are_not_one,
    the_longest_words_come_back_as_they_were,
)
