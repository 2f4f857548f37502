"""Adding, getting, locating and removing sessions, on every store."""

import pytest
import trio
from conftest import Shared
from readers import finish_writing
from trio.testing import MockClock

from trio_sessions import InvalidSessionId, RegistryClosed, StoreUnavailable, open_registry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

BAD_IDS = ["", "x" * 256, "a\0b", "\ud800", None, 7, b"bytes"]


async def test_an_added_session_is_found_here_and_by_every_worker(everywhere: Shared) -> None:
    """Both workers know where it is; only the one that holds it has the transport."""
    transport = FakeTransport()
    async with everywhere.open(worker_id="a") as a, everywhere.open(worker_id="b") as b:
        await a.add_session("s", transport)
        assert await a.get_session("s") is transport
        assert a.get_session_sync("s") is transport
        assert await b.get_session("s") is None
        assert await a.session_exists("s") is True
        assert await b.session_exists("s") is True
        assert await a.locate_session("s") == "a"
        assert await b.locate_session("s") == "a"
        assert await a.get_all_session_ids() == ["s"]
        assert await b.get_all_session_ids() == []


async def test_a_session_nobody_holds_is_confirmed_not_to_exist(everywhere: Shared) -> None:
    """The answer is a plain False, not None."""
    async with everywhere.open() as registry:
        assert await registry.session_exists("nobody") is False
        assert await registry.locate_session("nobody") is None


async def test_with_the_database_away_the_answer_is_unknown(everywhere: Shared) -> None:
    """`session_exists` answers None, `locate_session` raises; local sessions are known."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("here", FakeTransport())
        store.fail()
        assert await registry.session_exists("elsewhere") is None
        with pytest.raises(StoreUnavailable):
            await registry.locate_session("elsewhere")
        assert await registry.session_exists("here") is True
        assert await registry.locate_session("here") == registry.worker_id
        assert store.faults["locate"] == 2
        store.heal()


async def test_removing_disconnects_and_deletes_the_row(everywhere: Shared) -> None:
    """And removing it again, or what was never there, is no error."""
    transport = FakeTransport()
    async with everywhere.open() as registry:
        await registry.add_session("s", transport)
        await registry.remove_session("s")
        assert transport.disconnects == 1
        assert await registry.get_session("s") is None
        assert await registry.session_exists("s") is False
        assert everywhere.backdoor.rows() == {}
        await registry.remove_session("s")
        await registry.remove_session("never there")
        assert transport.disconnects == 1


async def test_removing_here_never_deletes_the_row_of_another_worker(everywhere: Shared) -> None:
    """The older holder may still remove its own transport after a takeover."""
    old, new = FakeTransport(), FakeTransport()
    async with everywhere.open(worker_id="a") as a, everywhere.open(worker_id="b") as b:
        await a.add_session("s", old)
        await b.add_session("s", new)
        await a.remove_session("s")
        assert everywhere.backdoor.rows() == {"s": "b"}
        assert (old.disconnects, new.disconnects) == (1, 0)
        assert await b.get_session("s") is new


async def test_adding_again_here_takes_over_and_keeps_the_owner(everywhere: Shared) -> None:
    """The newest transport wins, the older one is disconnected."""
    old, new = FakeTransport(), FakeTransport()
    async with everywhere.open() as registry:
        await registry.add_session("s", old)
        everywhere.backdoor.set_owner("s", "alice")
        await registry.add_session("s", new)
        assert await registry.get_session("s") is new
        assert (old.disconnects, new.disconnects) == (1, 0)
        assert everywhere.backdoor.owners() == {"s": "alice"}


async def test_adding_again_on_another_worker_takes_over(everywhere: Shared) -> None:
    """The older holder learns of it in its next pass, and leaves the row alone."""
    old, new = FakeTransport(), FakeTransport()
    async with everywhere.open(worker_id="a") as a, everywhere.open(worker_id="b") as b:
        await a.add_session("s", old)
        everywhere.backdoor.set_owner("s", "alice")
        await b.add_session("s", new)
        report = await a.cleanup()
        assert report.missing == ("s",)
        assert old.disconnects == 1
        assert await a.get_session("s") is None
        assert await a.locate_session("s") == "b"
        assert everywhere.backdoor.rows() == {"s": "b"}
        assert everywhere.backdoor.owners() == {"s": "alice"}
        assert (await b.cleanup()).refreshed == 1
        assert new.disconnects == 0


async def test_adding_the_same_transport_again_does_not_disconnect_it(everywhere: Shared) -> None:
    """It is held as before."""
    transport = FakeTransport()
    async with everywhere.open() as registry:
        await registry.add_session("s", transport)
        await registry.add_session("s", transport)
        assert transport.disconnects == 0
        assert (await registry.cleanup()).refreshed == 1


async def test_a_session_is_usable_while_its_row_is_being_written(everywhere: Shared) -> None:
    """`get_session` answers before `add_session` has returned."""
    store = FaultyStore(everywhere.make_store())
    transport = FakeTransport()
    async with everywhere.open(store=store, store_timeout=1.0) as registry:
        store.fail(Fault.HANGS, "Claim")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.add_session, "s", transport)
            while not store.faults["Claim"]:
                await trio.lowlevel.checkpoint()
            assert await registry.get_session("s") is transport
            assert await registry.session_exists("s") is True
        store.heal()
        assert (await registry.cleanup()).restored == ("s",)


async def test_removing_with_a_transport_spares_its_successor(everywhere: Shared) -> None:
    """A handler that ends removes its own session, in one step, or nothing."""
    old, new = FakeTransport(), FakeTransport()
    async with everywhere.open() as registry:
        await registry.add_session("s", old)
        await registry.add_session("s", new)
        await registry.remove_session("s", transport=old)
        assert await registry.get_session("s") is new
        assert new.disconnects == 0
        assert everywhere.backdoor.rows() == {"s": registry.worker_id}
        await registry.remove_session("s", transport=new)
        assert await registry.get_session("s") is None
        assert new.disconnects == 1
        assert everywhere.backdoor.rows() == {}
        await registry.remove_session("s", transport=new)


async def test_a_cancelled_add_leaves_the_session_and_its_row(everywhere: Shared) -> None:
    """The caller is gone, the session is not half there."""
    transport = FakeTransport()
    async with everywhere.open() as registry:
        with trio.CancelScope() as scope:
            scope.cancel()
            await registry.add_session("s", transport)
        assert scope.cancelled_caught
        assert await registry.get_session("s") is transport
        await finish_writing(registry)
        assert (await registry.cleanup()).refreshed == 1
        assert everywhere.backdoor.rows() == {"s": registry.worker_id}


async def test_who_is_removed_at_once_leaves_together() -> None:
    """One job for all of a turn of the loop, and no more tasks where no transport has to wait."""

    class Spawned(trio.abc.Instrument):
        tasks = 0

        def task_spawned(self, task: trio.lowlevel.Task) -> None:
            self.tasks += 1

    class AtOnce:
        disconnects = 0

        async def is_connected(self) -> bool:
            return True

        async def disconnect(self) -> None:
            self.disconnects += 1

    async with open_registry(session_ttl=3600.0) as registry:
        transports = {f"s{number}": AtOnce() for number in range(100)}
        for session_id, transport in transports.items():
            await registry.add_session(session_id, transport)
        spawned = Spawned()
        trio.lowlevel.add_instrument(spawned)
        async with trio.open_nursery() as nursery:
            for session_id in transports:
                nursery.start_soon(registry.remove_session, session_id)
        trio.lowlevel.remove_instrument(spawned)
        assert [one.disconnects for one in transports.values()] == [1] * 100
        assert spawned.tasks == 100 + 2, "the callers; the job, and whoever calls the transports"


async def test_who_is_removed_at_once_waits_for_nobody(autojump_clock: MockClock) -> None:
    """A transport that hangs holds up its own removal only."""
    store = MemoryStore()
    async with open_registry(store, disconnect_timeout=5.0) as registry:
        for number in range(10):
            hangs = "hangs" if number % 2 else "closes"
            transport = FakeTransport(on_disconnect=hangs)  # type: ignore[arg-type]
            await registry.add_session(f"s{number}", transport)
        took = dict[int, float]()

        async def remove(number: int) -> None:
            start = trio.current_time()
            await registry.remove_session(f"s{number}")
            assert f"s{number}" not in store._rows
            took[number] = trio.current_time() - start

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(remove, number)
        assert all(took[number] < 0.1 for number in range(0, 10, 2))
        assert all(5.0 <= took[number] < 5.2 for number in range(1, 10, 2))


async def test_a_cancelled_remove_goes_on_without_its_caller(everywhere: Shared) -> None:
    """The transport is disconnected and the row deleted all the same."""
    transport = FakeTransport()
    async with everywhere.open() as registry:
        await registry.add_session("s", transport)
        with trio.CancelScope() as scope:
            scope.cancel()
            await registry.remove_session("s")
        assert scope.cancelled_caught
        await finish_writing(registry)
        assert transport.disconnects == 1
        assert everywhere.backdoor.rows() == {}


@pytest.mark.parametrize("session_id", BAD_IDS)
async def test_what_cannot_be_an_id_is_refused_by_the_call_that_brings_it(
    session_id: str,
) -> None:
    """It never reaches a batch, and the message does not repeat it."""
    async with open_registry() as registry:
        with pytest.raises(InvalidSessionId, match="session_id") as caught:
            await registry.add_session(session_id, FakeTransport())
        assert isinstance(caught.value, ValueError)
        for call in (
            registry.get_session,
            registry.remove_session,
            registry.session_exists,
            registry.locate_session,
        ):
            with pytest.raises(InvalidSessionId):
                await call(session_id)
        with pytest.raises(InvalidSessionId):
            registry.get_session_sync(session_id)
        assert registry.statistics().sessions == 0


@pytest.mark.parametrize("session_id", ["x" * 255, "ü🦑" * 100, "a'b\"c\\d,{}%s\n", " "])
async def test_every_other_text_is_an_id(everywhere: Shared, session_id: str) -> None:
    """Quotes, braces, new lines and all."""
    async with everywhere.open(worker_id="w") as registry:
        await registry.add_session(session_id, FakeTransport())
        assert everywhere.backdoor.rows() == {session_id: "w"}
        assert (await registry.cleanup()).refreshed == 1
        everywhere.backdoor.delete(session_id)
        assert (await registry.cleanup()).missing == (session_id,)


async def test_a_thing_that_is_no_transport_is_refused() -> None:
    """The message names what it lacks."""

    class Half:
        async def is_connected(self) -> bool:
            return True

    async with open_registry() as registry:
        with pytest.raises(TypeError, match=r"disconnect\(\); Half"):
            await registry.add_session("s", Half())  # type: ignore[arg-type]  # the mistake under test
        assert registry.statistics().sessions == 0


async def test_a_closed_registry_changes_nothing_more() -> None:
    """Changing calls raise, asking calls answer that nothing is here."""
    async with open_registry() as registry:
        await registry.add_session("s", FakeTransport())
    for call in (
        registry.add_session("t", FakeTransport()),
        registry.remove_session("s"),
        registry.cleanup(),
        registry.locate_session("s"),
    ):
        with pytest.raises(RegistryClosed, match="open_registry"):
            await call
    assert await registry.get_session("s") is None
    assert await registry.session_exists("s") is None
    assert await registry.get_all_session_ids() == []
    assert registry.statistics().closed
