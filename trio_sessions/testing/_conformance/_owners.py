"""Checks of `Store.commit` and `RowStore`: owners and capabilities."""

import trio

from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Capabilities
from trio_sessions.writes import Claim, ClaimOwner, SetCapabilities, SetOwner

__all__ = ["owner_checks"]


async def _claim_owner(client: Client, owner: str) -> str | None:
    holder = await client.write(ClaimOwner(session_id="s", owner=owner))
    return None if holder is None else holder.owner


async def an_owner_is_claimed_once(make_store: MakeStore) -> None:
    """It may be set and claimed by any worker; a takeover keeps it, a deletion ends it."""
    async with opened(make_store, "a", "b") as (a, b):
        assert await _claim_owner(b, "alice") is None
        assert await b.write(SetOwner(session_id="s", owner="alice")) is None
        await a.claim("s")
        assert await _claim_owner(b, "alice") == "alice"
        assert await _claim_owner(a, "bob") == "alice"
        nobodys = await a.write(SetOwner(session_id="s", owner=None))
        assert nobodys is not None
        assert (nobodys.worker_id, nobodys.owner) == ("a", None)
        assert await _claim_owner(b, "bob") == "bob"
        for owner in ("carol", "carol", "dave"):
            holder = await b.write(SetOwner(session_id="s", owner=owner))
            assert holder is not None
            assert (holder.worker_id, holder.owner) == ("a", owner)
        await trio.sleep(TICK)
        assert (await b.claim("s")).holder.owner == "dave"
        holder = await a.store.locate(a.worker, "s")
        assert holder is not None
        assert (holder.worker_id, holder.owner) == ("b", "dave")


async def of_many_claims_of_an_owner_one_wins(make_store: MakeStore) -> None:
    """And all are told the same owner."""
    async with opened(make_store, "a", "b", "c") as clients:
        await clients[0].claim("s")
        effective: list[str | None] = []

        async def claim(client: Client) -> None:
            effective.append(await _claim_owner(client, client.worker.worker_id))

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(claim, client)
        assert len(effective) == 3
        assert len(set(effective)) == 1
        assert effective[0] in ("a", "b", "c")


async def capabilities_are_replaced(make_store: MakeStore) -> None:
    """By any worker, and listed by their key ``elicitation``."""
    asked = Capabilities(encoded='{"elicitation":{}}', elicitation=True)
    other_one = Capabilities(encoded='{"roots":{}}', elicitation=False)
    async with opened(make_store, "a", "b") as (a, b):
        assert await a.write(SetCapabilities(session_id="s", capabilities=asked)) is None
        await a.claim("s")
        await a.write(Claim(session_id="t", generation=1, age=0.0, capabilities=asked))
        assert await b.store.get_capabilities(b.worker, "s") is None
        assert await b.store.get_capabilities(b.worker, "nobody") is None
        assert await b.store.get_capabilities(b.worker, "t") == asked.encoded
        holder = await b.write(SetCapabilities(session_id="s", capabilities=asked))
        assert holder is not None
        assert holder.worker_id == "a"
        assert sorted(await a.store.elicitation_capable(a.worker)) == ["s", "t"]
        await a.write(SetCapabilities(session_id="s", capabilities=other_one))
        assert await b.store.get_capabilities(b.worker, "s") == other_one.encoded
        assert await a.store.elicitation_capable(a.worker) == ["t"]
        assert (await a.claim("t", 2)).capabilities == asked
        assert await a.store.elicitation_capable(a.worker) == ["t"]
        await a.write(Claim(session_id="t", generation=3, age=0.0, capabilities=other_one))
        assert await a.store.elicitation_capable(a.worker) == []


owner_checks: tuple[Check, ...] = (
    an_owner_is_claimed_once,
    of_many_claims_of_an_owner_one_wins,
    capabilities_are_replaced,
)
