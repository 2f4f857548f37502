"""Checks of `RowStore.sweep` and `WorkerStore`: whose lease runs out, and what is an outage."""

from collections.abc import Awaitable, Callable

import trio

from trio_sessions.testing._conformance._fleet import (
    LONG,
    PATIENCE,
    begin,
    claim,
    commit,
    eventually,
    seen,
    sweep,
)
from trio_sessions.testing._conformance._tools import Check, Client, MakeStore, opened
from trio_sessions.types import Capabilities, Stamp
from trio_sessions.writes import Claim, ClaimOwner, Outcome, Send, SetCapabilities, SetOwner

__all__ = ["lease_checks"]

TTL = 0.5  # seconds; the checks wait for leases that long to expire
GAP = 0.4 * TTL
PAST = 1.2 * TTL  # after so long a lease has run out
INSTANT = TTL / 32  # seconds: exact in floating point, as TTL is
_NONE = Capabilities(encoded="{}", elicitation=False)


async def _expires(sweeper: Client, session_id: str) -> bool:
    """Sweep; say whether the session is gone."""
    await sweep(sweeper, session_ttl=TTL, max_gap=LONG)
    return await sweeper.store.locate(sweeper.worker, session_id) is None


async def _outlives(
    renew: Callable[[], Awaitable[bool]], is_over: Callable[[], Awaitable[bool]], otherwise: str
) -> None:
    """Renew a lease until another one has run out, which nobody has renewed.

    A machine may stop for longer than a lease lasts: then nothing is wrong with the store.

    Args:
        renew: renews it, or takes it anew, and says whether it was still there.
        is_over: sweeps, and says whether the other one has run out.
        otherwise: what is wrong with the store if the renewed one runs out.
    """
    deadline = trio.current_time() + PATIENCE
    asked_at = trio.current_time()
    await renew()
    while True:
        await trio.sleep(TTL * 0.1)
        over = await is_over()
        last, asked_at = asked_at, trio.current_time()
        assert await renew() or trio.current_time() - last > TTL, otherwise
        if over:
            return
        assert asked_at < deadline, "a row that nobody renews does not expire"


# ---- what renews a row ----


async def a_claim_renews_the_row(make_store: MakeStore) -> None:
    """Whether it is kept, of an earlier generation, or taken over: it counts as refreshed now."""
    async with opened(make_store, "a", "b", "c") as (a, b, c):
        await sweep(a, session_ttl=TTL, limit=0)
        generation = 10

        async def renew(*claims: tuple[Client, Claim]) -> bool:
            outcomes = [(await client.write(one)).outcome for client, one in claims]
            return Outcome.INSERTED not in outcomes

        async def add_again() -> bool:
            nonlocal generation
            generation += 1
            return await renew((b, claim("kept", generation)))

        async def come_late() -> bool:
            was_there = await renew((b, claim("newer", 1)))
            if not was_there:
                await b.claim("newer", 9)
            return was_there

        async def take_over() -> bool:
            nonlocal generation
            generation += 1
            taker = (b, c)[generation % 2]
            return await renew((taker, claim("moves", generation)))

        for how, renewing in (("kept", add_again), ("newer", come_late), ("moves", take_over)):
            await b.claim(f"beside {how}")
            await _outlives(
                renewing,
                lambda how=how: _expires(a, f"beside {how}"),  # type: ignore[misc]
                f"a claim has not renewed the row: {how}",
            )


async def only_its_holder_renews_a_row(make_store: MakeStore) -> None:
    """Not who opens the store, asks for it, speaks of it, sends to it, or claims it and loses."""
    async with opened(make_store, "a", "b") as (a, b):
        await sweep(a, session_ttl=TTL, limit=0)
        await b.claim("s")

        async def is_gone() -> bool:
            async with opened(make_store, "other"):
                pass
            await a.store.refresh(a.worker, ["s"])
            await a.store.locate(a.worker, "s")
            lost = await a.claim("s", age=LONG)
            await a.commit(SetOwner(session_id="s", owner="x"))
            await a.commit(ClaimOwner(session_id="s", owner="y"))
            await a.commit(SetCapabilities(session_id="s", capabilities=_NONE))
            await a.commit(Send(session_id="s", payload="1"))
            await sweep(a, session_ttl=TTL, max_gap=LONG)
            return lost.outcome is Outcome.INSERTED  # it was gone by then

        await eventually(is_gone, "somebody else has renewed the row")


async def a_refreshed_row_outlives_its_lease(make_store: MakeStore) -> None:
    """Expired is what neither its worker nor anybody has touched for a ``session_ttl``."""
    async with opened(make_store, "a", "b") as (a, b):
        await sweep(a, session_ttl=TTL, limit=0)
        known = await begin(b, session_ttl=TTL)
        await commit(b, known, claim("kept"), claim("other"))

        async def renew() -> bool:
            held = (await b.store.refresh(b.worker, ["kept"])).held
            if not held:
                await b.claim("kept")
            return bool(held)

        await _outlives(
            renew, lambda: _expires(a, "other"), "a row was swept that was refreshed in time"
        )


async def a_visitor_judges_by_the_holder_s_lease(make_store: MakeStore) -> None:
    """After an outage the series must be as old as the holder's ttl, not as the sweeper's."""
    async with opened(make_store, "visitor", "long") as (visitor, long):
        await sweep(visitor, session_ttl=TTL, limit=0)
        await begin(visitor, session_ttl=TTL)
        await commit(long, await begin(long, session_ttl=3 * TTL), claim("s"))
        await trio.sleep(3.5 * TTL)
        start = trio.current_time()
        while trio.current_time() < start + 1.5 * TTL:
            swept = await sweep(visitor, session_ttl=TTL, max_gap=GAP)
            assert not swept.sessions or trio.current_time() - start >= 3 * TTL
            await trio.sleep(GAP * 0.25)


async def a_row_is_kept_as_long_as_its_worker_lives(make_store: MakeStore) -> None:
    """However long ago it was refreshed: the stamps of its holder keep it."""
    async with opened(make_store, "a", "b") as (a, b):
        await sweep(a, session_ttl=TTL, limit=0)
        deadline = trio.current_time() + PATIENCE
        known = await begin(b, session_ttl=TTL)
        await commit(b, known, claim("s"))
        began_at = asked_at = trio.current_time()
        while trio.current_time() < began_at + 5 * TTL:
            await trio.sleep(TTL * 0.1)
            gone = await _expires(a, "s")
            last, asked_at = asked_at, trio.current_time()
            if gone:
                assert asked_at - last > TTL, "a row was swept though its worker lives"
                assert asked_at < deadline, "this machine is too slow for the check"
                known = await begin(b, session_ttl=TTL)
                await commit(b, known, claim("s"))
                began_at = trio.current_time()
            else:
                await b.store.stamp(b.worker, known, passed=True)


async def many_rows_are_refreshed_at_once(make_store: MakeStore) -> None:
    """Each of them counts as refreshed now."""
    names = [f"s{n}" for n in range(50)]
    async with opened(make_store, "a", "b") as (a, b):
        await sweep(a, session_ttl=TTL, limit=0)
        deadline = trio.current_time() + PATIENCE
        while True:
            await b.commit(*map(claim, names))
            await trio.sleep(PAST)
            asked_at = trio.current_time()
            assert await b.holds(*names)
            swept = await sweep(a, session_ttl=TTL, max_gap=LONG)
            if trio.current_time() - asked_at < TTL:
                break
            assert trio.current_time() < deadline, "this machine is too slow for the check"
        assert swept.sessions == 0


async def what_is_exactly_as_old_as_its_ttl_stays(make_store: MakeStore) -> None:
    """A row, with a lease or without one, and a message: more than the ttl must have passed.

    No check can hit the moment on a clock that goes by itself. So only a store is asked that goes
    by Trio's clock, where that is a virtual one; its answers say which moments were hit.
    """
    async with opened(make_store, "a", "b", "c") as (a, b, c):
        await sweep(a, session_ttl=TTL, limit=0)
        a_knows = await begin(a, session_ttl=TTL)
        before = (await a.store.stamp(a.worker, a_knows, passed=True)).clock
        await trio.sleep(INSTANT)
        b_knows = await begin(b, session_ttl=TTL)
        since = (await commit(b, b_knows, claim("leased"))).clock
        if since is None or since - before != INSTANT:
            return
        await commit(a, a_knows, claim("own"))
        await a.commit(Send(session_id="own", payload="1"))
        await c.claim("alone")
        then = (await a.store.stamp(a.worker, a_knows, passed=True)).clock
        await trio.sleep(TTL)
        swept = await sweep(a, session_ttl=TTL, message_ttl=TTL, max_gap=LONG, stamp=a_knows)
        if swept.stamped is None or (then, swept.stamped.clock - then) != (since, TTL):
            return
        assert (swept.sessions, swept.messages) == (0, 0), "equality is not expired"
        await trio.sleep(INSTANT)
        swept = await sweep(a, session_ttl=TTL, message_ttl=TTL, max_gap=LONG)
        assert (swept.sessions, swept.messages) == (2, 1), "a bit later it is"


async def the_end_of_a_pass_renews_the_lease(make_store: MakeStore) -> None:
    """A sweep that brings a stamp says so; a batch does not."""
    async with opened(make_store, "a", "b", "c") as (a, b, c):
        await sweep(a, session_ttl=TTL, limit=0)
        b_knows = await begin(b, session_ttl=TTL)
        await commit(b, b_knows, claim("s"))
        c_knows = await begin(c, session_ttl=TTL)
        await commit(c, c_knows, claim("t"))

        async def renew() -> bool:
            nonlocal b_knows
            await commit(c, c_knows)
            swept = await sweep(b, session_ttl=TTL, max_gap=LONG, limit=0, stamp=b_knows)
            was_there = await b.store.locate(b.worker, "s") is not None
            if not was_there or swept.stamped is None or swept.stamped.stamp is None:
                b_knows = await begin(b, session_ttl=TTL)
                await commit(b, b_knows, claim("s"))
            return was_there

        await _outlives(
            renew, lambda: _expires(a, "t"), "a lease has run out although passes have ended"
        )


async def a_new_history_is_a_new_lease(make_store: MakeStore) -> None:
    """It counts as stamped now, and as if a pass had ended now."""
    async with opened(make_store, "a", "b") as (a, b):
        await sweep(a, session_ttl=TTL, limit=0)
        deadline = trio.current_time() + PATIENCE
        while True:
            await commit(b, await begin(b, session_ttl=TTL), claim("s"))
            await trio.sleep(PAST)
            asked_at = trio.current_time()
            await begin(b, session_ttl=TTL)
            swept = await sweep(a, session_ttl=TTL, max_gap=LONG)
            if trio.current_time() - asked_at < TTL:
                break
            assert trio.current_time() < deadline, "this machine is too slow for the check"
        assert swept.sessions == 0


# ---- whose lease it is ----


async def a_holder_without_a_row_has_the_longest_lease(make_store: MakeStore) -> None:
    """Of those of the workers that are known: it may be an older version, or was forgotten."""
    async with opened(make_store, "a", "long", "none") as (a, long, none):
        await sweep(a, session_ttl=TTL, limit=0)
        await begin(long, session_ttl=LONG)
        await none.claim("s")
        await trio.sleep(PAST)
        assert (await sweep(a, session_ttl=TTL, max_gap=LONG)).sessions == 0
        await long.store.delete_all(long.worker, limit=1)  # it leaves
        await eventually(lambda: _expires(a, "s"), "nobody's lease is so long any more")


async def what_the_store_does_not_know_sweeps_nothing(make_store: MakeStore) -> None:
    """A worker that names another stamp is told so; and who names none has stamped nothing."""
    async with opened(make_store, "a", "b") as (a, b):
        await sweep(a, session_ttl=TTL, limit=0)
        known = await begin(a, session_ttl=TTL)
        await b.claim("s")
        await trio.sleep(PAST)
        for stamp in (
            Stamp(history="another", beat=1),
            Stamp(history=known.history, beat=known.beat + 1),
        ):
            swept = await sweep(a, session_ttl=TTL, max_gap=LONG, stamp=stamp)
            assert (swept.sessions, swept.messages, swept.more) == (0, 0, False)
        assert await b.store.locate(b.worker, "s") is not None
        assert (await sweep(a, session_ttl=TTL, max_gap=LONG)).sessions == 1
        assert await seen(a) == known


# ---- what is an outage ----


async def _is_swept_after(a: Client, vouch: Callable[[], Awaitable[object]]) -> bool:
    """Vouch for longer than a lease; then say whether the sweep has believed in it."""
    until = trio.current_time() + 1.5 * TTL
    while trio.current_time() < until:
        await vouch()
        await trio.sleep(GAP * 0.25)
    await sweep(a, session_ttl=TTL, max_gap=GAP)
    return await a.store.locate(a.worker, "s") is None


async def a_sweep_of_nothing_vouches(make_store: MakeStore) -> None:
    """With ``limit=0`` it deletes nothing, and keeps the series unbroken."""
    async with opened(make_store, "a", "b") as (a, b):
        await b.claim("s")
        await sweep(a, session_ttl=TTL)

        async def vouch() -> None:
            swept = await sweep(a, session_ttl=TTL, max_gap=GAP, limit=0)
            assert (swept.sessions, swept.messages, swept.more) == (0, 0, False)

        await eventually(lambda: _is_swept_after(a, vouch), "a sweep with limit=0 has not vouched")


async def a_stamp_vouches_for_the_fleet(make_store: MakeStore) -> None:
    """As a sweep does: between two passes nobody else would."""
    async with opened(make_store, "a", "b") as (a, b):
        known = await begin(a, session_ttl=TTL)
        await b.claim("s")
        await sweep(a, session_ttl=TTL)
        await eventually(
            lambda: _is_swept_after(a, lambda: a.store.stamp(a.worker, known, passed=False)),
            "a stamp has not vouched",
        )


async def a_gap_is_as_long_as_the_longest_lease_allows(make_store: MakeStore) -> None:
    """A visitor with a short ``session_ttl`` takes no silence of the others for an outage."""
    async with opened(make_store, "a", "b", "long") as (a, b, long):
        await sweep(a, session_ttl=TTL, limit=0)
        await begin(long, session_ttl=LONG)
        await commit(b, await begin(b, session_ttl=TTL), claim("s"))
        await sweep(a, session_ttl=TTL, max_gap=GAP, limit=0)
        await trio.sleep(PAST)
        assert (await sweep(a, session_ttl=TTL, max_gap=GAP)).sessions == 1


async def a_rewind_opens_a_grace(make_store: MakeStore) -> None:
    """What others have stamped may be forgotten, and they may be cut off just now."""
    async with opened(make_store, "a", "b") as (a, b):
        await begin(a)
        await commit(b, await begin(b, session_ttl=TTL), claim("s"))
        for _ in range(6):
            await trio.sleep(PAST / 6)
            await sweep(a, session_ttl=TTL, max_gap=LONG, limit=0)
        start = trio.current_time()
        await begin(a, rewound=True)
        swept = await sweep(a, session_ttl=TTL, max_gap=LONG)
        assert not swept.sessions or trio.current_time() - start >= TTL, "it knows of no rewind"
        await trio.sleep(PAST)
        assert (await sweep(a, session_ttl=TTL, max_gap=LONG)).sessions == 1, "it never ends"


lease_checks: tuple[Check, ...] = (
    a_claim_renews_the_row,
    only_its_holder_renews_a_row,
    a_refreshed_row_outlives_its_lease,
    a_visitor_judges_by_the_holder_s_lease,
    a_row_is_kept_as_long_as_its_worker_lives,
    many_rows_are_refreshed_at_once,
    what_is_exactly_as_old_as_its_ttl_stays,
    the_end_of_a_pass_renews_the_lease,
    a_new_history_is_a_new_lease,
    a_holder_without_a_row_has_the_longest_lease,
    what_the_store_does_not_know_sweeps_nothing,
    a_sweep_of_nothing_vouches,
    a_stamp_vouches_for_the_fleet,
    a_gap_is_as_long_as_the_longest_lease_allows,
    a_rewind_opens_a_grace,
)
