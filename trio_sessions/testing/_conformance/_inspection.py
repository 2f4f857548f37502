"""Checks of `InspectionStore`: what operators are told."""

from datetime import timedelta
from typing import cast

import trio

from trio_sessions.abc import InspectionStore
from trio_sessions.errors import StoreUnavailable
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo, WorkerState
from trio_sessions.testing._conformance._fleet import LONG, TTL, begin, claim, commit, eventually
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Presence
from trio_sessions.writes import Send, SetOwner

__all__ = ["inspection_checks"]

EVERYTHING = Selection()


def _inspected(client: Client) -> InspectionStore:
    return cast("InspectionStore", client.store)


async def _workers(client: Client) -> dict[str, WorkerInfo]:
    listed = await _inspected(client).list_workers(client.worker)
    return {one.worker_id: one for one in listed}


async def _page(
    client: Client, selection: Selection = EVERYTHING, *, after: str = "", limit: int = 100
) -> list[str]:
    page = await _inspected(client).list_sessions(
        client.worker, selection, after=after, limit=limit
    )
    return [one.session_id for one in page]


async def _describe(client: Client, session_id: str) -> SessionInfo:
    info = await _inspected(client).describe(client.worker, session_id)
    assert info is not None
    assert info.session_id == session_id
    return info


async def every_worker_with_a_row_is_listed(make_store: MakeStore) -> None:
    """With what it says of itself, and the number of its rows, the oldest first."""
    async with opened(make_store, "a", "b", "without a row") as (a, b, other):
        await begin(a, session_ttl=1000.0, cleanup_interval=100.0)
        await trio.sleep(TICK)
        known = await begin(b)
        await commit(b, known, claim("s"), claim("t"))
        await other.claim("u")
        listed = await _inspected(other).list_workers(other.worker)
        assert [one.worker_id for one in listed] == ["a", "b"]
        first, second = listed
        assert first.incarnation == a.worker.incarnation
        assert (first.session_ttl, first.cleanup_interval) == (1000.0, 100.0)
        assert (first.sessions, second.sessions) == (0, 2)
        assert (first.version, dict(first.data), first.draining) == ("0", {}, False)
        assert first.state is second.state is WorkerState.ALIVE
        assert max(first.started, first.last_stamp) < min(second.started, second.last_stamp)
        assert first.started.utcoffset() == timedelta(0)
        assert 0 <= second.silence < LONG


async def a_worker_that_has_left_is_not_listed(make_store: MakeStore) -> None:
    """Its row has gone with its sessions."""
    async with opened(make_store, "a", "b") as (a, b):
        await begin(a)
        await begin(b)
        while (await a.store.delete_all(a.worker, limit=10)).more:
            pass
        assert list(await _workers(b)) == ["b"]


async def what_a_worker_announces_is_listed(make_store: MakeStore) -> None:
    """In place of what it said before; and a history that it begins brings what it says then."""
    async with opened(make_store, "a", "b") as (a, b):
        assert not await _inspected(a).announce(a.worker, data='{"port": 1}', draining=False)
        known = await begin(a)
        await begin(b)
        assert await _inspected(a).announce(a.worker, data='{"port": 2}', draining=True)
        workers = await _workers(b)
        assert (dict(workers["a"].data), workers["a"].draining) == ({"port": 2}, True)
        assert (dict(workers["b"].data), workers["b"].draining) == ({}, False)
        assert (await commit(a, known)).stamp is not None, "what is announced is no stamp"
        presence = Presence(
            session_ttl=LONG,
            cleanup_interval=1.0,
            stamp_interval=1.0,
            version="0",
            data='{"port": 3}',
            draining=True,
        )
        await a.store.begin(a.worker, "another history", presence, after=known.history)
        workers = await _workers(b)
        assert (dict(workers["a"].data), workers["a"].draining) == ({"port": 3}, True)


async def a_worker_without_stamps_is_late_and_then_gone(make_store: MakeStore) -> None:
    """Late after three of its intervals; gone when a sweep would take its rows."""
    async with opened(make_store, "a", "b") as (a, b):
        await begin(a, session_ttl=2 * TTL, cleanup_interval=TTL / 10)
        stamp = await begin(b)
        seen: list[WorkerState] = []

        async def is_gone() -> bool:
            await b.store.stamp(b.worker, stamp, passed=True)
            workers = await _workers(b)
            assert workers["b"].state is WorkerState.ALIVE
            silence = workers["a"].silence
            state = workers["a"].state
            assert state is not WorkerState.GONE or silence > 2 * TTL - TICK
            assert state is not WorkerState.ALIVE or silence < TTL / 2
            seen.append(state)
            return state is WorkerState.GONE

        await eventually(is_gone, "a worker that has stopped is never gone")
        assert seen == sorted(seen, key=list(WorkerState).index), "it goes one way only"


async def an_outage_makes_nobody_gone(make_store: MakeStore) -> None:
    """Nobody has stamped for longer than the leases: all are late, and no sweep takes a row."""
    async with opened(make_store, "a", "b") as (a, b):
        await begin(a, session_ttl=TTL, cleanup_interval=TTL / 10)
        stamp = await begin(b, session_ttl=TTL, cleanup_interval=TTL / 10)
        await commit(b, stamp, claim("s"))
        await b.store.stamp(b.worker, stamp, passed=True)
        await trio.sleep(1.5 * TTL)
        assert {one.state for one in (await _workers(b)).values()} == {WorkerState.LATE}
        assert (await _describe(b, "s")).worker_state is WorkerState.LATE
        await b.store.stamp(b.worker, stamp, passed=True)
        workers = await _workers(b)
        assert workers["a"].state is WorkerState.LATE
        assert workers["b"].state is WorkerState.ALIVE


async def sessions_are_listed_by_id_page_by_page(make_store: MakeStore) -> None:
    """Each once, whoever holds it."""
    async with opened(make_store, "a", "b") as (a, b):
        for session_id in ("s4", "s2", "s0"):
            await a.claim(session_id)
        for session_id in ("s3", "s1"):
            await b.claim(session_id)
        assert await _page(a) == ["s0", "s1", "s2", "s3", "s4"]
        assert await _page(a, limit=2) == ["s0", "s1"]
        assert await _page(a, after="s1", limit=2) == ["s2", "s3"]
        assert await _page(a, after="s15", limit=2) == ["s2", "s3"]
        assert await _page(a, after="s4", limit=2) == []


async def a_selection_leaves_the_others_out(make_store: MakeStore) -> None:
    """By owner, by the name of the worker, by age; all that is said must be true."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("old")
        await b.claim("owned")
        await b.write(SetOwner(session_id="owned", owner="alice"))
        assert await _page(a, Selection(owner="alice")) == ["owned"]
        assert await _page(a, Selection(owner="nobody")) == []
        assert await _page(a, Selection(worker_id="a")) == ["old"]
        assert await _page(a, Selection(owner="alice", worker_id="a")) == []
        assert await _page(a, Selection(older_than=LONG)) == []
        await trio.sleep(20 * TICK)
        await b.claim("young")
        age = (await _describe(b, "old")).age
        await trio.sleep(TICK)
        found = await _page(a, Selection(older_than=age))
        assert "old" in found
        assert "young" not in found or (await _describe(b, "young")).age > age


async def a_session_is_described_in_one_answer(make_store: MakeStore) -> None:
    """Who holds it, whether that worker lives, its owner, its age and what waits for it."""
    async with opened(make_store, "a", "b") as (a, b):
        known = await begin(a)
        await commit(a, known, claim("s"))
        fresh = await _describe(b, "s")
        assert (fresh.worker_id, fresh.incarnation) == ("a", a.worker.incarnation)
        assert (fresh.worker_state, fresh.worker_alive) == (WorkerState.ALIVE, True)
        assert (fresh.owner, fresh.waiting) == (None, 0)
        assert fresh.created <= fresh.last_accessed
        await b.write(SetOwner(session_id="s", owner="alice"))
        for payload in ("1", "2"):
            await b.write(Send(session_id="s", payload=payload))
        await trio.sleep(TICK)
        await a.store.refresh(a.worker, ["s"])
        later = await _describe(a, "s")
        assert (later.owner, later.waiting) == ("alice", 2)
        assert later.created == fresh.created
        assert later.last_accessed > fresh.last_accessed
        assert later.age > fresh.age
        assert later.idle < later.age
        [listed] = await _inspected(b).list_sessions(b.worker, EVERYTHING, after="", limit=1)
        assert (listed.owner, listed.waiting, listed.worker_alive) == ("alice", 2, True)
        await b.claim("s")
        assert (await _describe(a, "s")).created == fresh.created


async def a_holder_without_a_row_is_unknown(make_store: MakeStore) -> None:
    """It may be a worker of an earlier version: nobody can say whether it lives."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        info = await _describe(b, "s")
        assert (info.worker_id, info.worker_state, info.worker_alive) == ("a", None, False)


async def who_is_in_doubt_describes_nothing_as_absent(make_store: MakeStore) -> None:
    """What is not there may have been forgotten; what is there is described."""
    async with opened(make_store, "a") as (a,):
        await begin(a)
        await a.claim("s")
        assert await _inspected(a).describe(a.worker, "nobody") is None
        await begin(a, cleanup_interval=LONG, rewound=True)
        assert (await _describe(a, "s")).worker_id == "a"
        try:
            found = await _inspected(a).describe(a.worker, "nobody")
        except StoreUnavailable:
            return
        raise AssertionError(f"in doubt, and it says {found}")


inspection_checks: tuple[Check, ...] = (
    every_worker_with_a_row_is_listed,
    a_worker_that_has_left_is_not_listed,
    what_a_worker_announces_is_listed,
    a_worker_without_stamps_is_late_and_then_gone,
    an_outage_makes_nobody_gone,
    sessions_are_listed_by_id_page_by_page,
    a_selection_leaves_the_others_out,
    a_session_is_described_in_one_answer,
    a_holder_without_a_row_is_unknown,
    who_is_in_doubt_describes_nothing_as_absent,
)
