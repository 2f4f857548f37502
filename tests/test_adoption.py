"""Sessions that are taken from a worker that is dead: one winner, and it wins all of a session."""

from collections import Counter
from typing import Any

import pytest
import trio
from conftest import Shared
from gates import GatedStore
from trio.testing import MockClock

from trio_sessions import (
    InvalidSessionId,
    Limits,
    RegistryClosed,
    RegistryDraining,
    RemovalReason,
    SessionRegistry,
    SessionRevoked,
    StoreUnavailable,
    TooManySessions,
    open_registry,
)
from trio_sessions.errors import RowDoubtful
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def read(registry: SessionRegistry, session_id: str, number: int) -> list[Any]:
    messages: list[Any] = []
    with trio.fail_after(30):
        async with registry.open_inbox(session_id) as inbox:
            async for message in inbox:
                messages.append(message)
                if len(messages) == number:
                    break
    return messages


# ---- who wins, and what ----


@pytest.mark.parametrize("named", ["worker_id", "incarnation"])
async def test_all_of_a_session_comes_along(everywhere: Shared, named: str) -> None:
    """Owner, capabilities, data, and the messages that nobody has read; the transport holds it."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport(), owner="alice", data={"n": 1})
        await a.store_client_capabilities("s", {"elicitation": {}})
        for number in range(3):
            await a.broadcast("s", number, durable=True)
        told = await b.describe_session("s")
        assert told is not None
        transport = FakeTransport()
        assert await b.adopt_session("s", transport, from_worker=getattr(told, named)) is True
        assert b.get_session_sync("s") is transport
        assert await b.get_session_owner("s") == await a.get_session_owner("s") == "alice"
        assert await b.get_session_data("s") == {"n": 1}
        assert await b.get_client_capabilities("s") == {"elicitation": {}}
        assert await read(b, "s", 3) == [0, 1, 2]
        now = await a.describe_session("s")
        assert now is not None
        assert (now.worker_id, now.created) == (b.worker_id, told.created)
        assert transport.disconnects == 0


async def test_the_older_holder_learns_it_at_its_next_pass(everywhere: Shared) -> None:
    """If it lives all the same: its transport is disconnected, and told why."""
    async with everywhere.open() as a, everywhere.open() as b:
        older, newer = FakeTransport(), FakeTransport()
        await a.add_session("s", older)
        assert await b.adopt_session("s", newer, from_worker=a.worker_id)
        report = await a.cleanup()
        assert (report.missing, report.taken_over) == (("s",), ("s",))
        await everywhere.settle()
        reason = None if everywhere.host else RemovalReason.TAKEN_OVER  # its view takes none
        assert older.reasons == [reason]
        assert await a.get_all_session_ids() == []
        report = await b.cleanup()
        assert (report.refreshed, report.missing, newer.disconnects) == (1, (), 0)
        assert everywhere.backdoor.rows() == {"s": b.worker_id}


async def test_a_session_of_a_worker_that_has_died_is_adopted(everywhere: Shared) -> None:
    """Its row is all that is left of it."""
    async with everywhere.open() as b:
        everywhere.backdoor.insert("s", "dead")
        assert await b.adopt_session("s", FakeTransport(), from_worker="dead")
        assert everywhere.backdoor.rows() == {"s": b.worker_id}
        assert (await b.cleanup()).refreshed == 1
        await b.remove_session("s")
        assert everywhere.backdoor.rows() == {}


async def test_of_two_who_adopt_at_once_one_wins(everywhere: Shared) -> None:
    """The loser's transport is left alone, and it finds the winner."""
    async with everywhere.open() as a, everywhere.open() as b, everywhere.open() as c:
        for number in range(5):
            session_id = f"s{number}"
            await a.add_session(session_id, FakeTransport(), data={"n": number})
            won: dict[str, bool] = {}
            transports = {one.worker_id: FakeTransport() for one in (b, c)}

            async def adopt(
                registry: SessionRegistry,
                session_id: str = session_id,
                won: dict[str, bool] = won,
                transports: dict[str, FakeTransport] = transports,
            ) -> None:
                mine = registry.worker_id
                won[mine] = await registry.adopt_session(
                    session_id, transports[mine], from_worker=a.worker_id
                )

            async with trio.open_nursery() as nursery:
                nursery.start_soon(adopt, b)
                nursery.start_soon(adopt, c)
            assert sorted(won.values()) == [False, True]
            winner, loser = (b, c) if won[b.worker_id] else (c, b)
            assert winner.get_session_sync(session_id) is transports[winner.worker_id]
            assert loser.get_session_sync(session_id) is None
            assert await loser.locate_session(session_id) == winner.worker_id
            assert await loser.get_session_data(session_id) == {"n": number}
            assert {one.disconnects for one in transports.values()} == {0}


async def test_who_does_not_hold_it_loses_nothing(everywhere: Shared) -> None:
    """Nobody, another one, an earlier opening of it, and what is held here already."""
    async with everywhere.open(worker_id="a") as a, everywhere.open(worker_id="b") as b:
        mine, transport = FakeTransport(), FakeTransport()
        await a.add_session("a's", FakeTransport())
        await b.add_session("b's", mine)
        told = await b.describe_session("a's")
        assert told is not None
        for session_id, from_worker in (
            ("nobody's", "a"),
            ("a's", "c"),
            ("a's", "b"),
            ("a's", told.incarnation[:-1]),
            ("b's", "a"),
            ("b's", "b"),
        ):
            assert not await b.adopt_session(session_id, transport, from_worker=from_worker)
        assert everywhere.backdoor.rows() == {"a's": "a", "b's": "b"}
        assert b.get_session_sync("b's") is mine
        assert (await a.cleanup()).refreshed == (await b.cleanup()).refreshed == 1
        assert (mine.disconnects, transport.disconnects) == (0, 0)


async def test_a_worker_that_has_begun_again_is_another_incarnation(shared: Shared) -> None:
    """Its earlier row may be adopted by itself, by its own worker id."""
    async with shared.open(worker_id="w") as again:
        shared.backdoor.insert("s", "w")
        assert not await again.adopt_session("s", FakeTransport(), from_worker="x")
        assert await again.adopt_session("s", FakeTransport(), from_worker="w")
        assert not await again.adopt_session("s", FakeTransport(), from_worker="w")


# ---- others here, meanwhile ----


async def test_of_two_here_who_adopt_at_once_one_wins(everywhere: Shared) -> None:
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        transports = [FakeTransport() for _ in range(3)]
        won: list[int] = []

        async def adopt(number: int) -> None:
            if await b.adopt_session("s", transports[number], from_worker=a.worker_id):
                won.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(adopt, number)
        [winner] = won
        assert b.get_session_sync("s") is transports[winner]
        assert [one.disconnects for one in transports] == [0, 0, 0]


@pytest.mark.parametrize("is_removed", [False, True])
@pytest.mark.parametrize("moment", ["before it leaves", "while it is under way", "unheard"])
async def test_who_adds_the_id_here_meanwhile_has_it(
    everywhere: Shared, moment: str, *, is_removed: bool
) -> None:
    """It is newer; and if it is removed at once, nothing is left of the session anywhere."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open() as a, everywhere.open(store=store) as b:
        await a.add_session("s", FakeTransport(), owner="alice", data={"n": 1})
        await b.add_session("other", FakeTransport())
        adopted, added = FakeTransport(), FakeTransport()
        outcomes: list[bool] = []

        async def adopt() -> None:
            outcomes.append(await b.adopt_session("s", adopted, from_worker=a.worker_id))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                if moment == "before it leaves":
                    held = store.hold("SetOwner")
                    nursery.start_soon(b.set_session_owner, "other", "x")
                else:
                    held = (
                        store.hold("Claim")
                        if moment == "while it is under way"
                        else store.hold_answer("Claim")
                    )
                    nursery.start_soon(adopt)
                await held.reached.wait()
                if moment == "before it leaves":
                    nursery.start_soon(adopt)
                    await everywhere.settle()
                nursery.start_soon(b.add_session, "s", added)
                await everywhere.settle()
                assert b.get_session_sync("s") is added
                if is_removed:
                    nursery.start_soon(b.remove_session, "s")
                    await everywhere.settle()
                held.open()
        if is_removed and moment == "before it leaves":
            return  # it is adopted, for it is all over by then; or it has come before the end
        assert outcomes == [False]
        assert adopted.disconnects == 0
        await b.cleanup()
        if is_removed:
            assert b.get_session_sync("s") is None
            assert set(everywhere.backdoor.rows()) == {"other"}
            assert await b.get_session_data("s") is None
        else:
            assert b.get_session_sync("s") is added
            assert await b.get_session_owner("s") == "alice"
            assert await b.get_session_data("s") == {"n": 1}
            assert (await b.cleanup()).refreshed == 2


async def test_a_pass_leaves_a_row_alone_whose_adoption_is_under_way(everywhere: Shared) -> None:
    """It is there before the session is: it looks like one that a late statement has written."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open() as a, everywhere.open(store=store) as b:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        outcomes: list[bool] = []

        async def adopt() -> None:
            outcomes.append(await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                held = store.hold_answer("Claim")
                nursery.start_soon(adopt)
                await held.reached.wait()
                assert everywhere.backdoor.rows() == {"s": b.worker_id}
                await b._house.passes._strays.delete(1)
                held.open()
        assert outcomes == [True]
        await b.cleanup()
        assert everywhere.backdoor.rows() == {"s": b.worker_id}
        assert await b.get_session_data("s") == {"n": 1}


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


# ---- who may not ----


async def test_a_revoked_id_is_refused(everywhere: Shared) -> None:
    """Its transport is left to whoever has brought it."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await a.revoke("s")
        transport = FakeTransport()
        with pytest.raises(SessionRevoked, match="was not adopted") as raised:
            await b.adopt_session("s", transport, from_worker=a.worker_id)
        assert "'s'" not in str(raised.value)
        assert (b.get_session_sync("s"), transport.disconnects) == (None, 0)


async def test_a_worker_that_is_drained_adopts_nobody(shared: Shared) -> None:
    store = GatedStore(shared.make_store())
    async with shared.open() as a, shared.open(store=store) as b:
        await a.add_session("s", FakeTransport())
        await b.add_session("other", FakeTransport())
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                held = store.hold("SetOwner")
                nursery.start_soon(b.set_session_owner, "other", "x")
                await held.reached.wait()

                async def adopt_too_late() -> None:
                    with pytest.raises(RegistryDraining):
                        await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)

                nursery.start_soon(adopt_too_late)
                await shared.settle()
                nursery.start_soon(b.drain, 0)
                await shared.settle()
                held.open()
        with pytest.raises(RegistryDraining):
            await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        assert shared.backdoor.rows()["s"] == a.worker_id
        assert await a.adopt_session("s", FakeTransport(), from_worker="x") is False


async def test_a_limit_counts_those_that_are_being_adopted(everywhere: Shared) -> None:
    """And gives the place back where it came to nothing."""
    async with everywhere.open() as a, everywhere.open(limits=Limits(max_sessions=1)) as b:
        for session_id in ("s", "t"):
            await a.add_session(session_id, FakeTransport())
        outcomes: list[object] = []

        async def adopt(session_id: str) -> None:
            try:
                adopted = await b.adopt_session(
                    session_id, FakeTransport(), from_worker=a.worker_id
                )
            except TooManySessions as exc:
                outcomes.append(type(exc))
            else:
                outcomes.append(adopted)

        assert not await b.adopt_session("nobody", FakeTransport(), from_worker=a.worker_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(adopt, "s")
            nursery.start_soon(adopt, "t")
        assert sorted(outcomes, key=str) == [TooManySessions, True]
        [mine] = await b.get_all_session_ids()
        assert not await b.adopt_session(mine, FakeTransport(), from_worker=a.worker_id)
        await b.remove_session(mine)
        [left] = {"s", "t"} - {mine}
        assert await b.adopt_session(left, FakeTransport(), from_worker=a.worker_id)


async def test_arguments_are_checked(everywhere: Shared) -> None:
    async with everywhere.open() as registry:
        transport: Any = FakeTransport()
        with pytest.raises(InvalidSessionId):
            await registry.adopt_session("", transport, from_worker="w")
        wrong: Any = None
        with pytest.raises(TypeError, match="from_worker"):
            await registry.adopt_session("s", transport, from_worker=wrong)
        with pytest.raises(TypeError, match="transport"):
            await registry.adopt_session("s", wrong, from_worker="w")


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


# ---- what it costs, and who is told ----


async def test_an_adoption_is_one_batch() -> None:
    """And the letter to the older holder another, for which nobody waits."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store._store) as a, open_registry(store) as b:
        await a.add_session("s", FakeTransport())
        store.calls.clear()
        assert await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        assert not await b.adopt_session("t", FakeTransport(), from_worker=a.worker_id)
        letter = Counter({"commit": 1, "Post": 1})
        assert store.calls - letter == {"commit": 2, "Claim": 2}


async def test_whoever_tells_the_older_holder_is_told(shared: Shared) -> None:
    """Of the session and of whom it was taken from, when it is held here; not of what is lost."""
    async with shared.open() as a, shared.open() as b:
        told: list[object] = []
        b._house.adopting.notify(
            lambda session_id, from_worker: told.append(
                (session_id, from_worker, b.get_session_sync(session_id) is not None)
            )
        )
        await a.add_session("s", FakeTransport())
        await b.adopt_session("nobody", FakeTransport(), from_worker=a.worker_id)
        await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        assert told == [("s", a.worker_id, True)]


# ---- the older holder ----


async def test_a_holder_that_lives_is_told_at_once(shared: Shared) -> None:
    """By a letter, if it hears the bell: it asks, and need not wait for its next pass."""
    async with shared.open() as a, shared.open() as b, a.topics.subscribe("news"):
        transport, kept = FakeTransport(), FakeTransport()
        await a.add_session("s", transport)
        await a.add_session("kept", kept)
        assert await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        with trio.fail_after(20):
            while a.get_session_sync("s") is not None or not transport.reasons:
                await trio.sleep(0.02)
        assert transport.reasons == [RemovalReason.TAKEN_OVER]
        assert (kept.disconnects, a.get_session_sync("kept")) == (0, kept)


async def test_a_letter_about_a_move_is_no_evidence(shared: Shared) -> None:
    """The row says who holds a session; and what is not held is not looked for."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b, a.topics.subscribe("news"):
        transport = FakeTransport()
        await a.add_session("s", transport)
        asked = store.calls["refresh"]
        for session_id in ("nobody", "s"):
            b._house._mail.tell_moved(session_id, a.worker_id)
        with trio.fail_after(20):
            while store.calls["refresh"] == asked:
                await trio.sleep(0.02)
        await shared.settle()
        assert (transport.disconnects, a.get_session_sync("s")) == (0, transport)
        assert store.calls["refresh"] == asked + 1


async def test_a_look_that_a_letter_has_caused_is_no_pass(shared: Shared) -> None:
    """What the brake holds stays held, no transport is asked, and nothing is swept."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b, a.topics.subscribe("news"):
        transports = {f"s{number:02}": FakeTransport() for number in range(21)}
        for session_id, transport in transports.items():
            await a.add_session(session_id, transport)
        deleted = sorted(transports)[:15]
        shared.backdoor.delete(*deleted)
        assert sorted((await a.cleanup()).held) == deleted
        before, store_before = a.statistics(), store.calls.copy()
        checks = {one.checks for one in transports.values()}
        b._house._mail.tell_moved(deleted[0], a.worker_id)  # its row is gone, which is the pass's
        assert await b.adopt_session("s20", FakeTransport(), from_worker=a.worker_id)
        with trio.fail_after(20):
            while a.get_session_sync("s20") is not None:
                await trio.sleep(0.02)
        await shared.settle()
        assert sorted(await a.get_all_session_ids()) == sorted(transports)[:20]
        assert a.statistics().passes == before.passes
        assert store.calls["sweep"] == store_before["sweep"]
        assert {one.checks for one in transports.values()} == checks
        assert transports["s20"].reasons == [RemovalReason.TAKEN_OVER]
        report = await a.cleanup()
        assert sorted(report.missing) == deleted, "this one is the next pass"


async def test_an_outage_keeps_what_a_letter_names(shared: Shared) -> None:
    """The pass sees to it, once the database answers."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b, a.topics.subscribe("news"):
        transport = FakeTransport()
        await a.add_session("s", transport)
        store.fail(Fault.FAILS, "refresh", times=1)
        assert await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        with trio.fail_after(20):
            while not store.faults["refresh"]:
                await trio.sleep(0.02)
        await shared.settle()
        assert a.get_session_sync("s") is transport
        assert (await a.cleanup()).taken_over == ("s",)


async def test_an_older_copy_lets_nobody_go_whom_a_letter_names(shared: Shared) -> None:
    """It shows the holder of before: the database went back, and that decides nothing."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b, a.topics.subscribe("news"):
        transport = FakeTransport()
        await b.add_session("s", FakeTransport())
        copy = shared.backdoor.copy()
        await a.add_session("s", transport)
        asked = store.calls["refresh"]
        shared.backdoor.go_back(copy)
        assert shared.backdoor.rows() == {"s": b.worker_id}
        b._house._mail.tell_moved("s", a.worker_id)
        with trio.fail_after(20):
            while store.calls["refresh"] == asked:
                await trio.sleep(0.02)
        await shared.settle()
        assert (transport.disconnects, a.get_session_sync("s")) == (0, transport)
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        assert shared.backdoor.rows() == {"s": a.worker_id}


async def test_letters_about_moves_are_looked_into_once_a_second(
    autojump_clock: MockClock,
) -> None:
    """However many come: all that were named meanwhile are asked for at once."""
    store = FaultyStore(MemoryStore())
    async with (
        open_registry(store) as a,
        open_registry(store._store) as b,
        a.topics.subscribe("news"),
    ):
        for number in range(30):
            await a.add_session(f"s{number}", FakeTransport())
        asked = store.calls["refresh"]
        for number in range(30):
            for _ in range(2):
                b._house._mail.tell_moved(f"s{number}", a.worker_id)
            await trio.sleep(0.1)
        await trio.sleep(2)
        assert 3 <= store.calls["refresh"] - asked <= 5
        assert a.statistics().sessions == 30


@pytest.mark.parametrize("named", ["worker_id", "incarnation"])
async def test_who_adopts_from_its_own_predecessor_tells_nobody(shared: Shared, named: str) -> None:
    """A letter to its own name would come to itself."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as again, again.topics.subscribe("news"):
        shared.backdoor.insert("s", "w")
        row = await again.describe_session("s")
        assert row is not None
        before = store.calls["refresh"], store.calls["Post"]
        assert await again.adopt_session("s", FakeTransport(), from_worker=getattr(row, named))
        await shared.settle()
        posts = 0 if named == "worker_id" else 1  # whose incarnation it was, is not known
        assert (store.calls["refresh"], store.calls["Post"]) == (before[0], before[1] + posts)
