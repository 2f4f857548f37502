"""Adoption while the database is away, or one is cancelled or closes."""

import pytest
import trio
from conftest import Shared
from gates import GatedStore
from readers import read

from trio_sessions import (
    Limits,
    RegistryClosed,
    StoreUnavailable,
)
from trio_sessions.errors import RowDoubtful
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

pytestmark = pytest.mark.usefixtures("nothing_in_between")

# ---- the database ----


async def test_an_outage_adopts_nobody(everywhere: Shared) -> None:
    """The transport is left alone, and it may be asked for again."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open() as a, everywhere.open(store=store) as b:
        await a.add_session("s", FakeTransport())
        transport = FakeTransport()
        store.fail()
        with pytest.raises(StoreUnavailable):
            await b.adopt_session("s", transport, from_worker=a.worker_id)
        assert (b.get_session_sync("s"), transport.disconnects) == (None, 0)
        store.heal()
        await b.cleanup()
        assert everywhere.backdoor.rows() == {"s": a.worker_id}
        assert await b.adopt_session("s", transport, from_worker=a.worker_id)


async def test_an_adoption_whose_answer_was_lost_may_be_asked_for_again(
    everywhere: Shared,
) -> None:
    """The row says that it was won, and all of the session is there."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open() as a, everywhere.open(store=store) as b, everywhere.open() as c:
        await a.add_session("s", FakeTransport(), owner="alice", data={"n": 1})
        await a.broadcast("s", "m", durable=True)
        store.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
        with pytest.raises(StoreUnavailable):
            await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        assert store.faults["Claim"] == 1
        assert everywhere.backdoor.rows() == {"s": b.worker_id}
        assert not await c.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        transport = FakeTransport()
        assert await b.adopt_session("s", transport, from_worker=a.worker_id)
        assert b.get_session_sync("s") is transport
        assert await b.get_session_owner("s") == "alice"
        assert await b.get_session_data("s") == {"n": 1}
        assert await read(b, "s", 1) == ["m"]
        assert (await b.cleanup()).refreshed == 1


@pytest.mark.parametrize("between", ["refused", "withdrawn"])
async def test_an_attempt_that_decides_nothing_does_not_forget_it(
    everywhere: Shared, between: str
) -> None:
    """It was won unheard, then asked for without an answer: it is still ours."""
    faulty = FaultyStore(everywhere.make_store())
    store = GatedStore(faulty)
    async with everywhere.open() as a, everywhere.open(store=store) as b:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        await b.add_session("other", FakeTransport())
        faulty.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
        with pytest.raises(StoreUnavailable):
            await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        assert everywhere.backdoor.rows()["s"] == b.worker_id
        if between == "refused":
            unheard, faulty.error = faulty.error, RowDoubtful("who holds it is unknown")
            faulty.fail(Fault.FAILS, "Claim", times=1)
            with pytest.raises(StoreUnavailable):
                await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
            faulty.error = unheard
        else:
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    held = store.hold("SetOwner")
                    nursery.start_soon(b.set_session_owner, "other", "x")
                    await held.reached.wait()
                    with trio.move_on_after(0.05) as scope:
                        await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
                    assert scope.cancelled_caught
                    held.open()
        transport = FakeTransport()
        assert await b.adopt_session("s", transport, from_worker=a.worker_id)
        assert b.get_session_sync("s") is transport
        await b.cleanup()
        assert everywhere.backdoor.rows()["s"] == b.worker_id
        assert await b.get_session_data("s") == {"n": 1}


async def test_a_pass_between_two_attempts_deletes_nothing(everywhere: Shared) -> None:
    """Found by the fleet: whoever asked again and again lost a session that it had won unheard."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open() as a, everywhere.open(store=store) as b:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        for fault in (Fault.COMMITS_THEN_FAILS, Fault.FAILS, Fault.COMMITS_THEN_FAILS):
            store.fail(fault, "Claim", times=1)
            with pytest.raises(StoreUnavailable):
                await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
            await b.cleanup()
            assert everywhere.backdoor.rows() == {"s": b.worker_id}
        assert await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        assert await b.get_session_data("s") == {"n": 1}
        await b.cleanup()
        await b.cleanup()
        assert everywhere.backdoor.rows() == {"s": b.worker_id}


async def test_what_was_won_unheard_is_deleted_by_the_second_pass(everywhere: Shared) -> None:
    """Nobody has asked for it again: no row stays that no session has."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open() as a, everywhere.open(store=store) as b:
        await a.add_session("s", FakeTransport())
        store.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
        with pytest.raises(StoreUnavailable):
            await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        for _ in range(2):
            assert everywhere.backdoor.rows() == {"s": b.worker_id}
            await b.cleanup()
        assert everywhere.backdoor.rows() == {}
        assert not await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        await b.add_session("s", FakeTransport())
        await b.cleanup()
        assert everywhere.backdoor.rows() == {"s": b.worker_id}


async def test_after_a_rewind_nobody_is_adopted_for_a_while(shared: Shared) -> None:
    """The row may be an older copy: who holds the session is unknown."""
    async with shared.open() as a, shared.open() as b:
        await a.add_session("s", FakeTransport())
        old = shared.backdoor.copy()
        await a.add_session("t", FakeTransport())
        shared.backdoor.go_back(old)
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        for session_id in ("s", "nobody"):
            with pytest.raises(StoreUnavailable, match="restored, replaced or failed over"):
                await b.adopt_session(session_id, FakeTransport(), from_worker=a.worker_id)
        assert set(shared.backdoor.rows().values()) == {a.worker_id}


async def test_a_rewind_keeps_what_was_adopted(shared: Shared) -> None:
    """The database shows the older holder: the session is this worker's all the same, and whole."""
    async with shared.open() as a, shared.open() as b:
        await a.add_session("s", FakeTransport(), owner="alice", data={"n": 1})
        await b.add_session("other", FakeTransport())
        old = shared.backdoor.copy()
        await b.set_session_owner("other", "x")
        await trio.sleep(0.01)
        assert await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        shared.backdoor.go_back(old)
        await b.cleanup()
        await b.cleanup()
        assert b.statistics().database_rewinds == 1
        assert shared.backdoor.rows() == {"s": b.worker_id, "other": b.worker_id}
        assert await b.get_session_data("s") == {"n": 1}
        assert await b.get_session_owner("s") == "alice"


# ---- the end, and cancellation ----


async def test_a_closed_registry_says_so(shared: Shared) -> None:
    async with shared.open() as registry:
        pass
    with pytest.raises(RegistryClosed):
        await registry.adopt_session("s", FakeTransport(), from_worker="w")


@pytest.mark.parametrize("held_at", ["before", "after"])
async def test_what_is_under_way_at_the_end_leaves_nothing(shared: Shared, held_at: str) -> None:
    store = GatedStore(shared.make_store())
    async with shared.open() as a:
        await a.add_session("s", FakeTransport())
        transport, told = FakeTransport(), list[type[Exception]]()
        async with trio.open_nursery() as nursery:  # noqa: SIM117 -- it goes on after the end
            async with shared.open(store=store) as b:
                held = store.hold("Claim") if held_at == "before" else store.hold_answer("Claim")

                async def adopt() -> None:
                    try:
                        await b.adopt_session("s", transport, from_worker=a.worker_id)
                    except (RegistryClosed, StoreUnavailable) as exc:
                        told.append(type(exc))

                nursery.start_soon(adopt)
                await held.reached.wait()

                async def open_later() -> None:
                    while not b.statistics().closed:
                        await trio.sleep(0.01)
                    held.open()

                nursery.start_soon(open_later)
        assert told == [RegistryClosed]
        assert transport.disconnects == 0
        assert b.statistics().sessions == 0
        assert shared.backdoor.rows() == {}, "the closed worker had won it, and deletes its rows"


async def test_a_caller_that_leaves_early_has_asked_nothing(everywhere: Shared) -> None:
    """It is withdrawn, and its place is free again."""
    store = GatedStore(everywhere.make_store())
    limits = Limits(max_sessions=2)
    async with everywhere.open() as a, everywhere.open(store=store, limits=limits) as b:
        await a.add_session("s", FakeTransport())
        await b.add_session("other", FakeTransport())
        transport = FakeTransport()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                held = store.hold("SetOwner")
                nursery.start_soon(b.set_session_owner, "other", "x")
                await held.reached.wait()
                with trio.move_on_after(0.05) as scope:
                    await b.adopt_session("s", transport, from_worker=a.worker_id)
                assert scope.cancelled_caught
                held.open()
        await b.cleanup()
        assert everywhere.backdoor.rows() == {"s": a.worker_id, "other": b.worker_id}
        assert await b.adopt_session("s", transport, from_worker=a.worker_id)


async def test_a_caller_that_leaves_late_may_find_it_held(everywhere: Shared) -> None:
    """No row is ever without its session; whoever does not want it removes it by its transport."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open() as a, everywhere.open(store=store) as b:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        transport = FakeTransport()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                held = store.hold_answer("Claim")

                async def leave() -> None:
                    await held.reached.wait()
                    scope.cancel()
                    held.open()

                nursery.start_soon(leave)
                with trio.CancelScope() as scope:
                    await b.adopt_session("s", transport, from_worker=a.worker_id)
        await everywhere.settle()
        with trio.fail_after(30):
            while b.get_session_sync("s") is None:
                await trio.sleep(0.01)
        assert b.get_session_sync("s") is transport
        assert (await b.cleanup()).refreshed == 1
        assert await b.get_session_data("s") == {"n": 1}
        await b.remove_session("s", transport=transport)
        assert everywhere.backdoor.rows() == {}
