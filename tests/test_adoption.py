"""Sessions that are taken from a worker that is dead: one winner, and it wins all of a session."""

from typing import Any

import pytest
import trio
from conftest import Shared
from gates import GatedStore
from readers import read

from trio_sessions import (
    InvalidSessionId,
    Limits,
    RegistryDraining,
    RemovalReason,
    SessionRegistry,
    SessionRevoked,
    TooManySessions,
)
from trio_sessions.testing import FakeTransport

pytestmark = pytest.mark.usefixtures("nothing_in_between")

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
        for no_worker in ("w\0", "w\ud800"):
            with pytest.raises(ValueError, match="from_worker"):
                await registry.adopt_session("s", transport, from_worker=no_worker)
        with pytest.raises(TypeError, match="transport"):
            await registry.adopt_session("s", wrong, from_worker="w")
