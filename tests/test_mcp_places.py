"""Where a session is, where the database does not answer, or names an earlier life of the asker."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

pytest.importorskip("mcp")

from mcp_fleet import HEADERS, URL, at, begin, open_fleet, raw

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.errors import StoreUnavailable, TooManySessions
from trio_sessions.limits import Limits
from trio_sessions.mcp._held import HeldSession
from trio_sessions.mcp._places import Place, Places
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

DATA: Mapping[str, Any] = {"initialize": {"id": 0}}


class Sdk:
    """The SDK's sessions: a dormant session needs none."""

    server = "test"

    async def end(self, alias: str) -> None:
        """End no session."""
        await trio.lowlevel.checkpoint()


class Asker:
    """A worker that asks where sessions are."""

    def __init__(self, registry: SessionRegistry, store: FaultyStore) -> None:
        sdk: Any = Sdk()
        self.registry = registry
        self.store = store
        self.places = Places(registry, sdk, idle_timeout=None)


@asynccontextmanager
async def asker(store: MemoryStore, name: str, **settings: Any) -> AsyncIterator[Asker]:
    faulty = FaultyStore(store)
    async with open_registry(faulty, worker_id=name, **settings) as registry:
        yield Asker(registry, faulty)


@asynccontextmanager
async def after_a_death(*, dies: str = "red") -> AsyncIterator[MemoryStore]:
    """Give a store in which a dead worker has the session s, which nobody has noticed yet."""
    store = MemoryStore()
    async with asker(store, dies) as dead:
        await dead.registry.add_session("s", FakeTransport(), data=DATA, owner="alice")
        dead.store.fail()
    yield store


async def test_a_session_that_was_won_unheard_is_had_by_the_next_request(
    autojump_clock: MockClock,
) -> None:
    """The database has done it, and the answer was lost: a pass between them does not matter."""
    async with after_a_death() as store, asker(store, "blue") as blue:
        await trio.sleep(60)
        blue.store.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
        with pytest.raises(StoreUnavailable):
            await blue.places.find("s")
        assert blue.store.faults["Claim"] == 1
        await blue.registry.cleanup()
        held = await blue.places.find("s")
        assert isinstance(held, HeldSession)
        assert (held.owner, held.data) == ("alice", DATA)
        for _ in range(3):
            await blue.registry.cleanup()
        assert await blue.places.find("s") is held


async def test_whoever_waits_for_an_adoption_that_is_lost_is_not_told_that_there_is_none(
    autojump_clock: MockClock,
) -> None:
    """Of two that ask at once, one adopts, and the other one does when that was in vain."""
    async with after_a_death() as store, asker(store, "blue") as blue:
        await trio.sleep(60)
        blue.store.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
        found: list[object] = []

        async def ask() -> None:
            try:
                found.append(await blue.places.find("s"))
            except StoreUnavailable as exc:
                found.append(exc)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert {type(one) for one in found} == {StoreUnavailable, HeldSession}


async def test_an_adoption_that_was_not_done_is_left_to_whoever_did_it(
    autojump_clock: MockClock,
) -> None:
    """What was refused, and then done by another worker, is not asked for again."""
    async with (
        after_a_death() as store,
        asker(store, "blue", limits=Limits(max_sessions=1)) as blue,
        asker(store, "green") as green,
    ):
        await trio.sleep(60)
        blue.store.fail(Fault.FAILS, "Claim", times=1)
        with pytest.raises(StoreUnavailable):
            await blue.places.find("s")
        await blue.registry.add_session("full", FakeTransport())
        with pytest.raises(TooManySessions):
            await blue.places.find("s")
        assert isinstance(await green.places.find("s"), HeldSession)
        place = await blue.places.find("s")
        assert isinstance(place, Place)
        assert place.owner == "alice"


async def test_an_earlier_life_of_this_worker_is_waited_for(autojump_clock: MockClock) -> None:
    """Under the same id: until that one is late, nobody says that there is no such session."""
    async with after_a_death() as store, asker(store, "red") as red:
        with pytest.raises(StoreUnavailable):
            await red.places.find("s")
        await trio.sleep(60)
        assert isinstance(await red.places.find("s"), HeldSession)


async def test_a_session_that_has_ended_is_no_more(autojump_clock: MockClock) -> None:
    """Though its adoption is still remembered as one whose answer was lost."""
    async with after_a_death() as store, asker(store, "blue") as blue:
        await trio.sleep(60)
        blue.store.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
        with pytest.raises(StoreUnavailable):
            await blue.places.find("s")
        await blue.registry.cleanup()
        await blue.registry.cleanup()
        assert await blue.places.find("s") is None
        assert await blue.places.settled("s") is None
        assert blue.places._unsure == {}


async def test_adoptions_without_an_answer_do_not_fill_the_memory(
    autojump_clock: MockClock,
) -> None:
    """However long the database is away; the latest are remembered."""
    async with asker(MemoryStore(), "blue") as blue:
        blue.store.fail(Fault.FAILS, "Claim")

        async def ask(session_id: str) -> None:
            with pytest.raises(StoreUnavailable):
                await blue.places.adopt(session_id, DATA, owner=None, from_worker="red")

        async with trio.open_nursery() as nursery:
            for i in range(1100):
                nursery.start_soon(ask, f"s{i}")
        assert blue.store.faults["Claim"]
        assert len(blue.places._unsure) == 1000
        blue.store.heal()


async def test_a_session_is_taken_over_by_its_own_server_only(autojump_clock: MockClock) -> None:
    """Two servers on one database: to the other one there is no such session, and it stays."""
    store = MemoryStore()
    async with open_fleet("trio", lambda: store, size=3) as fleet, raw(fleet) as http:
        other = fleet.workers[2]
        other.server.session_manager.app.name = "another"
        session_id = await begin(fleet, http, 0)
        await fleet.workers.pop(0).vanish()
        await other.sees_the_death(session_id)
        headers = {**HEADERS, "mcp-session-id": session_id}
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        told = {}
        for worker in (1, 0):
            at(fleet, worker)
            told[worker] = (await http.post(URL, json=ping, headers=headers)).status_code
        assert told == {1: 404, 0: 200}
        assert [worker.ids() for worker in fleet.workers] == [[session_id], []]
