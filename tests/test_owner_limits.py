"""`Limits.max_sessions_per_owner`: of the whole fleet, and no more than that, however many ask."""

from typing import Any

import pytest
import trio
from conftest import Shared
from gates import GatedStore
from proxy import Proxy

from trio_sessions import (
    Limits,
    NotSupported,
    TooManySessions,
    open_registry,
)
from trio_sessions.abc import Part
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore

pytestmark = pytest.mark.usefixtures("nothing_in_between")

TWO = Limits(max_sessions_per_owner=2)


async def test_of_fifty_at_once_as_many_as_may_come_in(everywhere: Shared) -> None:
    """To two workers, for one owner; the others' transports are left alone, and nothing is held."""
    limits = Limits(max_sessions_per_owner=5)
    async with everywhere.open(limits=limits) as a, everywhere.open(limits=limits) as b:
        transports = [FakeTransport() for _ in range(50)]
        refused: dict[int, str] = {}

        async def add(number: int) -> None:
            registry = (a, b)[number % 2]
            try:
                await registry.add_session(f"s{number}", transports[number], owner="alice")
            except TooManySessions as exc:
                refused[number] = str(exc)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(add, number)
        assert len(refused) == 45
        [message] = set(refused.values())
        assert "max_sessions_per_owner (5)" in message
        assert "alice" not in message
        held = [*await a.get_all_session_ids(), *await b.get_all_session_ids()]
        assert set(held) == {f"s{one}" for one in range(50) if one not in refused}
        assert set(everywhere.backdoor.rows()) == set(held)
        await everywhere.settle()
        assert {one.disconnects for one in transports} == {0}
        reports = [await one.cleanup() for one in (a, b)]
        assert sum(one.refreshed for one in reports) == 5
        assert {one.missing for one in reports} == {()}


async def test_whoever_leaves_makes_room(everywhere: Shared) -> None:
    """And other owners, or nobody, have places of their own."""
    async with everywhere.open(limits=TWO) as a, everywhere.open(limits=TWO) as b:
        await a.add_session("1", FakeTransport(), owner="alice")
        await b.add_session("2", FakeTransport(), owner="alice")
        with pytest.raises(TooManySessions):
            await a.add_session("3", FakeTransport(), owner="alice", data={"n": 1})
        assert a.get_session_sync("3") is None
        assert await b.locate_session("3") is None
        await a.add_session("bob's", FakeTransport(), owner="bob")
        await a.add_session("nobody's", FakeTransport())
        await b.remove_session("2")
        await a.add_session("3", FakeTransport(), owner="alice")
        assert await b.get_session_data("3") is None
        assert await b.get_session_owner("3") == "alice"


async def test_what_it_has_already_may_be_added_again(everywhere: Shared) -> None:
    """Here, or at another worker: the newest transport wins as ever."""
    async with everywhere.open(limits=TWO) as a, everywhere.open(limits=TWO) as b:
        for session_id in ("1", "2"):
            await a.add_session(session_id, FakeTransport(), owner="alice")
        again, elsewhere = FakeTransport(), FakeTransport()
        await a.add_session("1", again, owner="alice")
        assert a.get_session_sync("1") is again
        await b.add_session("2", elsewhere, owner="alice")
        assert b.get_session_sync("2") is elsewhere
        assert (await a.cleanup()).taken_over == ("2",)


async def test_an_owner_that_is_set_later_is_not_refused(everywhere: Shared) -> None:
    """And counts from then."""
    async with everywhere.open(limits=TWO) as a:
        for session_id in ("1", "2", "3"):
            await a.add_session(session_id, FakeTransport())
            await a.set_session_owner(session_id, "alice")
        with pytest.raises(TooManySessions):
            await a.add_session("4", FakeTransport(), owner="alice")
        assert (await a.cleanup()).refreshed == 3


async def test_a_session_that_is_adopted_is_not_refused(everywhere: Shared) -> None:
    """It is no further one: its owner has as many as before."""
    async with everywhere.open() as a, everywhere.open(limits=TWO) as b:
        for session_id in ("s", "t", "u"):
            await a.add_session(session_id, FakeTransport(), owner="alice")
        for session_id in ("s", "t", "u"):
            assert await b.adopt_session(session_id, FakeTransport(), from_worker=a.worker_id)
        with pytest.raises(TooManySessions):
            await b.add_session("v", FakeTransport(), owner="alice")
        assert len(await b.get_all_session_ids()) == 3


async def test_a_refused_session_takes_nothing_with_it(everywhere: Shared) -> None:
    """What another session of the id has left here stays due, and is deleted by a pass."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(limits=TWO, store=store) as a:
        await a.add_session("left", FakeTransport(), owner="bob", data={"old": 1})
        for session_id in ("1", "2"):
            await a.add_session(session_id, FakeTransport(), owner="alice")
        store.fail()
        await a.remove_session("left")
        store.heal()
        with pytest.raises(TooManySessions):
            await a.add_session("left", FakeTransport(), owner="alice")
        assert await a.get_session_data("left") is None
        await a.cleanup()
        assert set(everywhere.backdoor.rows()) == {"1", "2"}
        await a.remove_session("2")
        await a.add_session("left", FakeTransport(), owner="alice")
        assert await a.get_session_data("left") is None


async def test_in_an_outage_sessions_are_let_in_and_stay(everywhere: Shared) -> None:
    """Nobody can be counted; who is in is not turned away when the database is there again."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(limits=TWO, store=store) as a:
        store.fail()
        for number in range(4):
            await a.add_session(f"{number}", FakeTransport(), owner="alice")
        store.heal()
        assert len((await a.cleanup()).restored) == 4
        assert len(await a.get_all_session_ids()) == 4
        with pytest.raises(TooManySessions):
            await a.add_session("5", FakeTransport(), owner="alice")


async def test_who_is_added_again_while_it_is_counted_is_counted_too(shared: Shared) -> None:
    """The first claim is under way: the second one of the id does not slip in behind it."""
    store = GatedStore(shared.make_store())
    async with shared.open(limits=TWO, store=store) as a:
        for session_id in ("1", "2"):
            await a.add_session(session_id, FakeTransport(), owner="alice")
        told: list[Any] = []

        async def add(transport: FakeTransport) -> None:
            try:
                await a.add_session("3", transport, owner="alice")
            except TooManySessions:
                told.append(transport)

        first, second = FakeTransport(), FakeTransport()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                held = store.hold("Claim")
                nursery.start_soon(add, first)
                await held.reached.wait()
                nursery.start_soon(add, second)
                await shared.settle()
                held.open()
        assert told == [first, second]
        assert a.get_session_sync("3") is None
        assert set(shared.backdoor.rows()) == {"1", "2"}


async def test_a_rewind_turns_nobody_away(shared: Shared) -> None:
    """Rows are written anew with their owners, whatever there is meanwhile."""
    async with shared.open(limits=TWO) as a:
        await a.add_session("1", FakeTransport(), owner="alice")
        old = shared.backdoor.copy()
        await a.add_session("2", FakeTransport(), owner="alice")
        await a.add_session("3", FakeTransport())
        await a.set_session_owner("3", "alice")
        shared.backdoor.go_back(old)
        await a.cleanup()
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        assert shared.backdoor.owners() == {"1": "alice", "2": "alice", "3": "alice"}


async def test_a_store_that_cannot_count_is_refused_when_opening() -> None:
    class Bare(MemoryStore):
        @property
        def parts(self) -> frozenset[Part]:
            return super().parts - {Part.LIMITS}

    with pytest.raises(NotSupported, match="LimitStore"):
        async with open_registry(Bare(), limits=TWO):
            pass
    async with open_registry(Bare()) as registry:
        await registry.add_session("s", FakeTransport(), owner="alice")


async def test_it_costs_no_further_round_trip(proxy: Proxy) -> None:
    """Let in or refused; and who has no limit, or names no owner, sends no word of it."""
    store = DatabaseStore(proxy.url)
    async with open_registry(store, limits=Limits(max_sessions_per_owner=1)) as registry:

        async def cost(session_id: str, **settings: Any) -> int:
            proxy.reset()
            try:
                await registry.add_session(session_id, FakeTransport(), **settings)
            except TooManySessions:
                assert session_id == "refused"
            return len(proxy.round_trips)

        for _ in range(3):
            await cost("s", owner="alice")
            await cost("refused", owner="alice")
            await cost("plain")
            for session_id in ("s", "plain"):
                await registry.remove_session(session_id)
        assert await cost("s", owner="alice") == 1
        assert "advisory" in proxy.round_trips[0]
        assert await cost("refused", owner="alice") == 1
        assert await cost("plain") == 1
        assert "advisory" not in proxy.round_trips[0]
        assert "claim_many" not in proxy.round_trips[0]
