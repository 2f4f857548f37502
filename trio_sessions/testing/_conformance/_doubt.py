"""Checks of `WorkerStore`: the doubt, when what is not there is unknown."""

import trio

from trio_sessions.errors import RowDoubtful, StoreUnavailable
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
from trio_sessions.testing._conformance._tools import Check, Client, MakeStore, opened
from trio_sessions.types import Capabilities, Holder, Presence
from trio_sessions.writes import (
    Answer,
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Outcome,
    Send,
    SetCapabilities,
    SetOwner,
    Write,
)

__all__ = ["doubt_checks"]


async def after_a_rewind_what_is_not_there_is_unknown(make_store: MakeStore) -> None:
    """For a while; what is there is known all the same."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await begin(b)
        await b.write(SetOwner(session_id="s", owner=None))
        await begin(a, rewound=True, cleanup_interval=2.0)
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
        with trio.fail_after(PATIENCE):  # two intervals, and a little
            while not await _is_known(b, "nobody"):  # noqa: ASYNC110 -- no store has an event for it
                await trio.sleep(0.1)
        assert await _only_answer(b, Send(session_id="nobody", payload="1")) is None


async def doubt_lasts_for_two_intervals_of_the_slowest(make_store: MakeStore) -> None:
    """For so long others may still have to find out, and to write their rows anew."""
    async with opened(make_store, "a", "slow") as (a, slow):
        await begin(slow, cleanup_interval=40.0)
        presence = Presence(
            session_ttl=LONG, cleanup_interval=10.0, stamp_interval=5.0, version="0"
        )
        begun = await a.store.begin(a.worker, "new", presence, after="old")
        assert not begun.was_swept
        assert 79.0 < begun.doubt <= 80.5


async def doubt_concerns_neither_claims_nor_refreshes(make_store: MakeStore) -> None:
    """Rows are written anew meanwhile, and a worker has a witness of its own."""
    async with opened(make_store, "a", "b") as (a, b):
        known = await begin(b)
        await a.write(Claim(session_id="owned", generation=1, age=0.0, owner="alice"))
        await begin(a, rewound=True, cleanup_interval=LONG)
        await _assert_unknown(lambda: b.store.locate(b.worker, "s"))
        committed = await commit(b, known, claim("s"))
        [claimed] = committed.answers
        assert isinstance(claimed, Claimed)
        assert claimed.outcome is Outcome.INSERTED
        answers = await b.store.refresh(b.worker, ["s", "owned", "nobody"])
        assert answers.held == {"s"}
        assert answers.taken_over == {"owned"}
        assert not answers.unknown
        assert answers.stamp == committed.stamp
        # What is there is there, and whoever has an owner has it.
        there = SetCapabilities(session_id="owned", capabilities=_NONE)
        assert isinstance(await _only_answer(b, there), Holder)
        owned = await _only_answer(b, ClaimOwner(session_id="owned", owner="bob"))
        assert isinstance(owned, Holder)
        assert owned.owner == "alice"
        not_there = SetCapabilities(session_id="nobody", capabilities=_NONE)
        assert isinstance(await _only_answer(b, not_there), RowDoubtful)


async def a_worker_without_a_row_is_in_doubt(make_store: MakeStore) -> None:
    """If it has begun and does not leave: was it swept, or is this another, emptied store?

    So its questions are; its batches name a stamp, and do nothing.
    """
    async with opened(make_store, "a", "b") as (a, b):
        mine = await begin(a)
        assert await _is_known(b, "nobody"), "it has not begun yet"
        await begin(b, session_ttl=TTL)
        with trio.fail_after(PATIENCE):
            while await seen(b) is not None:
                await sweep(a, stamp=mine)
                await trio.sleep(TTL * 0.3)
        await _assert_unknown(lambda: b.store.locate(b.worker, "nobody"))
        assert await _is_known(a, "nobody"), "it is the doubt of one worker"
        await begin(b)
        assert await _is_known(b, "nobody")
        assert not (await b.store.delete_all(b.worker, limit=1)).more
        assert await _is_known(b, "nobody"), "it leaves"


_NONE = Capabilities(encoded="{}", elicitation=False)


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


doubt_checks: tuple[Check, ...] = (
    after_a_rewind_what_is_not_there_is_unknown,
    doubt_lasts_for_two_intervals_of_the_slowest,
    doubt_concerns_neither_claims_nor_refreshes,
    a_worker_without_a_row_is_in_doubt,
)
