"""Checks of `RevocationStore`: sessions that are ended for good."""

from typing import cast

import trio

from trio_sessions.abc import RevocationStore
from trio_sessions.inspection import Selection
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Sent
from trio_sessions.writes import Claimed, Outcome, Send, SetOwner

__all__ = ["revocation_checks"]

_LONG = 1000.0


def _revoker(client: Client) -> RevocationStore:
    return cast("RevocationStore", client.store)


async def _revoke(client: Client, *session_ids: str, ttl: float = _LONG) -> Revoked:
    revocation = Revocation(session_ids=session_ids, ttl=ttl)
    return await _revoker(client).revoke(client.worker, revocation, limit=100)


async def _select(client: Client, selection: Selection, *, limit: int = 100) -> Revoked:
    revocation = Revocation(selection=selection, ttl=_LONG)
    return await _revoker(client).revoke(client.worker, revocation, limit=limit)


async def _marks(client: Client, within: float = _LONG) -> dict[str, Mark]:
    marks = await _revoker(client).revocations(client.worker, within=within)
    return {one.session_id: one for one in marks}


async def the_row_of_a_revoked_session_goes(make_store: MakeStore) -> None:
    """Whoever holds it, in the same step, and the answer counts the rows that there were."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await a.claim("kept")
        assert await _revoke(b, "s", "nobody's") == Revoked(sessions=1)
        assert not await a.holds("s")
        assert await a.holds("kept")
        assert await b.store.locate(b.worker, "s") is None
        assert await _revoke(b, "s") == Revoked(sessions=0)


async def what_belongs_to_a_revoked_session_goes_with_it(make_store: MakeStore) -> None:
    """Its messages, its owner: a session that is added after the mark has none of it."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await a.write(SetOwner(session_id="s", owner="alice"))
        assert isinstance(await b.write(Send(session_id="s", payload='"old"')), Sent)
        await _revoke(b, "s", ttl=TICK)
        assert await b.write(Send(session_id="s", payload='"late"')) is None
        await trio.sleep(3 * TICK)
        claimed = await a.claim("s", generation=2)
        assert (claimed.outcome, claimed.holder.owner) == (Outcome.INSERTED, None)
        assert await a.payloads("s") == []


async def no_claim_brings_a_revoked_session_back(make_store: MakeStore) -> None:
    """Neither its holder's nor another worker's, and neither an older nor a newer one."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await trio.sleep(TICK)
        await _revoke(b, "s", "nobody's")
        refused: list[Claimed] = [
            await a.claim("s"),
            await a.claim("s", generation=2),
            await b.claim("s"),
            await b.claim("s", age=3 * TICK),
            await b.claim("nobody's"),
        ]
        assert [one.outcome for one in refused] == [Outcome.REVOKED] * 5
        assert await b.store.locate(b.worker, "s") is None
        assert (await a.claim("other")).outcome is Outcome.INSERTED


async def a_mark_ends_with_its_time(make_store: MakeStore) -> None:
    """And is shown for a while afterwards, as over; the longer one of two counts."""
    async with opened(make_store, "a", "b") as (a, b):
        await _revoke(a, "short", "long", ttl=TICK)
        await _revoke(a, "long")
        await _revoke(b, "long", ttl=TICK)
        await trio.sleep(3 * TICK)
        assert (await b.claim("short")).outcome is Outcome.INSERTED
        assert (await b.claim("long")).outcome is Outcome.REVOKED
        marks = await _marks(b)
        assert {name: mark.is_over for name, mark in marks.items()} == {
            "short": True,
            "long": False,
        }


async def marks_are_shown_by_their_age(make_store: MakeStore) -> None:
    """Those that were made so many seconds ago, or later."""
    async with opened(make_store, "a", "b") as (a, b):
        await _revoke(a, "old")
        await trio.sleep(6 * TICK)
        await _revoke(a, "new")
        assert set(await _marks(b)) == {"old", "new"}
        assert set(await _marks(b, within=3 * TICK)) == {"new"}
        marks = await _marks(b)
        assert 6 * TICK <= marks["old"].age < _LONG
        assert 0 <= marks["new"].age < marks["old"].age - 5 * TICK


async def a_selection_is_revoked_piece_by_piece(make_store: MakeStore) -> None:
    """Those that fit all of it, and no others; it says whether there may be more."""
    async with opened(make_store, "a", "b") as (a, b):
        for name, client in (("a1", a), ("a2", a), ("a3", a), ("b1", b)):
            await client.claim(name)
            await client.write(SetOwner(session_id=name, owner="mallory"))
        await a.claim("alice's")
        selection = Selection(owner="mallory", worker_id="a")
        first = await _select(b, selection, limit=2)
        assert first == Revoked(sessions=2, more=True)
        second = await _select(b, selection, limit=2)
        assert second.sessions == 1
        assert await _select(b, Selection(older_than=_LONG)) == Revoked(sessions=0)
        assert await a.holds("alice's")
        assert await b.holds("b1")
        assert set(await _marks(b)) == {"a1", "a2", "a3"}


revocation_checks: tuple[Check, ...] = (
    the_row_of_a_revoked_session_goes,
    what_belongs_to_a_revoked_session_goes_with_it,
    no_claim_brings_a_revoked_session_back,
    a_mark_ends_with_its_time,
    marks_are_shown_by_their_age,
    a_selection_is_revoked_piece_by_piece,
)
