"""One id lives several times: what is left of one life is no harm to the next, nor to a namesake.

Each promise here was broken once without any test of then noticing it.
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from conftest import Shared
from gates import Gate, GatedStore
from piles import pile_up
from readers import finish_writing, read
from witnesses import open_witnessed

from trio_sessions import SessionRegistry, StoreUnavailable, _departures
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.writes import Batch, Claim, Claimed, Committed, Delete, Outcome

pytestmark = pytest.mark.usefixtures("nothing_in_between")


class Recorder(FaultyStore):
    """Keeps the batches that have a write of a kind, and who has sent them."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.sent: list[tuple[Worker, Batch]] = []

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        self.sent.append((worker, batch))
        return await super().commit(worker, batch)

    def last(self, kind: type[Any]) -> tuple[Worker, Batch, Any]:
        """Return the last write of a kind, its batch and its sender."""
        found = [(w, b, one) for w, b in self.sent for _, one in b.of(kind)]
        return found[-1]

    async def land_again(self, kind: type[Any]) -> Any:
        """Let the last write of a kind be executed once more, however late; return its answer."""
        worker, _, write = self.last(kind)
        return (await self.commit(worker, Batch(writes=[write]))).answers[0]


async def test_an_id_is_added_again_while_its_deletion_goes_piece_by_piece(shared: Shared) -> None:
    """The new session has a row, and nothing but what was sent to it."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "the former")
        pile_up(shared, "s", 2500)
        first_piece = store.hold_answer("Delete")
        new = FakeTransport()
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registry.remove_session, "s")
                await first_piece.reached.wait()
                assert len(shared.backdoor.messages()) == 1500, "one piece has gone"
                nursery.start_soon(registry.add_session, "s", new)
                await trio.testing.wait_all_tasks_blocked()
                first_piece.open()
            await finish_writing(registry)
        assert shared.backdoor.rows() == {"s": "w"}
        assert shared.backdoor.owners() == {"s": None}
        assert shared.backdoor.messages() == []
        assert registry.statistics().messages_dropped == 2500
        await registry.broadcast("s", "for the new one", durable=True)
        assert await read(registry, "s", 1) == ["for the new one"]
        report = await registry.cleanup()
        assert (report.refreshed, report.missing) == (1, ())
        assert (new.disconnects, registry.get_session_sync("s")) == (0, new)


async def test_a_deletion_that_lands_late_spares_the_next_life(shared: Shared) -> None:
    """It names the life that has ended, and goes no further than that."""
    store = Recorder(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        await registry.add_session("s", FakeTransport())
        await registry.remove_session("s")
        await registry.add_session("s", FakeTransport())
        up_to, generation = store.last(Delete)[2].up_to, store.last(Claim)[2].generation
        assert 0 < up_to < generation
        assert await store.land_again(Delete) == 0
        assert shared.backdoor.rows() == {"s": "w"}
        await registry.remove_session("s")
        assert store.last(Delete)[2].up_to == generation
        assert shared.backdoor.rows() == {}


async def test_a_deletion_goes_as_far_as_it_says_and_no_further(shared: Shared) -> None:
    """In the store: the row of that very life goes, that of a later one stays."""
    store = Recorder(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        await registry.add_session("r", FakeTransport())
        await registry.add_session("s", FakeTransport())
        worker, _, claim = store.last(Claim)
        for up_to, rows in (
            (claim.generation - 1, {"r": "w", "s": "w"}),
            (claim.generation, {"r": "w"}),
        ):
            await store.commit(worker, Batch(writes=[Delete(session_id="s", up_to=up_to)]))
            assert shared.backdoor.rows() == rows


async def test_of_two_registries_with_one_worker_id_one_closes(shared: Shared) -> None:
    """A worker_id is a name: sessions, messages and the lease of its namesake stay."""
    async with shared.open(worker_id="w") as stays:
        transport = FakeTransport()
        async with shared.open(worker_id="w") as closes:
            await stays.add_session("stays", transport)
            await closes.add_session("goes", FakeTransport())
            await closes.remove_session("stays")
            await stays.broadcast("stays", "hello", durable=True)
        assert shared.backdoor.rows() == {"stays": "w"}
        assert shared.backdoor.workers().keys() == {"w"}
        report = await stays.cleanup()
        assert (report.refreshed, report.missing, report.restored) == (1, (), ())
        assert stays.statistics().database_rewinds == 0
        assert await read(stays, "stays", 1) == ["hello"]
        assert transport.disconnects == 0


async def test_namesakes_take_sessions_over_as_others_do(shared: Shared) -> None:
    """The older connection ends at its worker's next pass; that worker deletes nothing."""
    async with shared.open(worker_id="w") as one, shared.open(worker_id="w") as two:
        former, newer = FakeTransport(), FakeTransport()
        await one.add_session("s", former)
        await two.add_session("s", newer)
        assert (await one.cleanup()).taken_over == ("s",)
        assert (former.disconnects, newer.disconnects) == (1, 0)
        assert (await two.cleanup()).refreshed == 1
        assert shared.backdoor.rows() == {"s": "w"}


async def test_what_was_said_in_an_outage_belongs_to_the_session_added_again_in_it(
    shared: Shared,
) -> None:
    """The transport is another one, the session the same: owner and capabilities are written."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        store.fail()
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "alice")
        await registry.store_client_capabilities("s", {"elicitation": {}})
        await registry.add_session("s", FakeTransport())
        assert store.faults["Claim"] >= 2
        assert shared.backdoor.rows() == {}
        store.heal()
        assert (await registry.cleanup()).restored == ("s",)
        assert shared.backdoor.owners() == {"s": "alice"}
        assert await registry.get_session_owner("s") == "alice"
        assert await registry.get_client_capabilities("s") == {"elicitation": {}}
        await registry.set_session_owner("s", "bob")
        await registry.add_session("s", FakeTransport())
        assert shared.backdoor.owners() == {"s": "bob"}, "it is written once"


async def test_what_is_said_of_a_row_whose_claim_was_not_answered_is_written(
    shared: Shared,
) -> None:
    """The row is there, of this very life, and is claimed once more with what was said."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        store.fail(Fault.COMMITS_THEN_FAILS, "Claim")
        await registry.add_session("s", FakeTransport())
        assert shared.backdoor.rows() == {"s": "w"}
        store.fail()
        await registry.set_session_owner("s", "alice")
        await registry.store_client_capabilities("s", {"elicitation": {}})
        store.heal()
        assert (await registry.cleanup()).restored == ("s",)
        assert shared.backdoor.owners() == {"s": "alice"}
        assert await registry.get_client_capabilities("s") == {"elicitation": {}}


async def test_closing_deletes_more_strays_than_a_batch_has(shared: Shared) -> None:
    """Rows of this incarnation that no session has, in however many pieces."""
    async with shared.open(worker_id="w", batch_size=3) as registry:
        await registry.add_session("s", FakeTransport())
        for number in range(10):
            shared.backdoor.insert_late(f"stray {number}", "s")
        shared.backdoor.insert("another's", "another")
        assert len(shared.backdoor.rows()) == 12
    assert shared.backdoor.rows() == {"another's": "another"}
    assert shared.backdoor.workers() == {}


async def test_a_pass_finds_more_strays_than_a_batch_has(shared: Shared) -> None:
    """Page by page, and each once; sessions that are held stay."""
    async with shared.open(worker_id="w", batch_size=3) as registry:
        for number in range(4):
            await registry.add_session(f"s{number}", FakeTransport())
        for number in (7, 2, 9, 0, 3, 1, 8, 5, 6, 4):
            shared.backdoor.insert_late(f"stray {number}", "s0")
        await registry.cleanup()
        assert shared.backdoor.rows() == dict.fromkeys(("s0", "s1", "s2", "s3"), "w")
        assert (await registry.cleanup()).refreshed == 4


# ---- what is asked of one life, and answered in the next ----


@asynccontextmanager
async def replaced_during(
    shared: Shared, operation: str
) -> AsyncIterator[tuple[SessionRegistry, GatedStore]]:
    """Hold a session with an owner and capabilities; let it be replaced when it is asked for.

    The question is under way when the session is removed and added again in an outage.
    """
    store = GatedStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "the former")
        await registry.store_client_capabilities("s", {"elicitation": {}})
        async with trio.open_nursery() as nursery:

            async def replace(gate: Gate) -> None:
                await gate.reached.wait()
                store.fail(Fault.FAILS, "Delete", "Claim")
                await registry.remove_session("s")
                await registry.add_session("s", FakeTransport())
                gate.open()

            nursery.start_soon(replace, store.hold(operation))
            yield registry, store
        store.heal()


async def test_an_owner_is_asked_for_while_its_session_is_replaced(shared: Shared) -> None:
    """What the former one has left is not the new one's."""
    async with replaced_during(shared, "locate") as (registry, store):
        assert await registry.get_session_owner("s") is None
        assert store.calls["locate"] == 2
        assert shared.backdoor.owners() == {"s": "the former"}, "it has left its row"


async def test_capabilities_are_asked_for_while_their_session_is_replaced(shared: Shared) -> None:
    """The same."""
    async with replaced_during(shared, "get_capabilities") as (registry, _):
        assert await registry.get_client_capabilities("s") is None


async def test_who_can_be_asked_is_asked_for_while_a_session_is_replaced(shared: Shared) -> None:
    """The same."""
    async with replaced_during(shared, "elicitation_capable") as (registry, _):
        assert await registry.get_elicitation_capable_sessions() == []


async def test_an_answer_about_one_life_teaches_the_next_one_nothing(shared: Shared) -> None:
    """An owner that was read before the removal is not written with the next life's row."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "the former")
        answer = store.hold_answer("locate")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.get_session_owner, "s")
            await answer.reached.wait()
            await registry.remove_session("s")
            await registry.add_session("s", FakeTransport())
            answer.open()
        shared.backdoor.go_back(None)
        await registry.cleanup()
        await registry.cleanup()
        assert registry.statistics().database_rewinds == 1
        assert shared.backdoor.owners() == {"s": None}


@pytest.mark.parametrize("last", ["owner", "capabilities", "question"])
async def test_all_that_was_said_of_a_session_outlives_a_rewind(shared: Shared, last: str) -> None:
    """Whichever was said, or asked for, last."""
    async with shared.open(worker_id="w") as registry:
        await registry.add_session("s", FakeTransport())
        if last != "capabilities":
            await registry.store_client_capabilities("s", {"elicitation": {}})
        await registry.set_session_owner("s", "alice")
        if last == "capabilities":
            await registry.store_client_capabilities("s", {"elicitation": {}})
        if last == "question":
            assert await registry.get_session_owner("s") == "alice"
        shared.backdoor.go_back(None)
        await registry.cleanup()
        await registry.cleanup()
        assert registry.statistics().database_rewinds == 1
        assert shared.backdoor.owners() == {"s": "alice"}
        assert await registry.get_client_capabilities("s") == {"elicitation": {}}
        assert await registry.has_elicitation_capability("s")


async def test_what_was_said_last_outlives_a_rewind(shared: Shared) -> None:
    """Also if it was said in an outage, and only what was said before had been written."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "old")
        await registry.store_client_capabilities("s", {"old": {}})
        store.fail()
        await registry.add_session("s", FakeTransport())
        for say in (
            registry.set_session_owner("s", "new"),
            registry.store_client_capabilities("s", {"new": {}}),
        ):
            with contextlib.suppress(StoreUnavailable):
                await say
        shared.backdoor.go_back(None)
        store.heal()
        await registry.cleanup()
        assert registry.statistics().database_rewinds == 1
        assert shared.backdoor.owners() == {"s": "new"}
        assert await registry.get_client_capabilities("s") == {"new": {}}


async def test_what_was_said_outlives_a_rewind_that_is_noticed_by_adding_again(
    shared: Shared,
) -> None:
    """Clients come back at once after a fail-over, before any stamp: it is the same session."""
    async with shared.open() as registry, shared.open() as other:
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "alice")
        await registry.store_client_capabilities("s", {"elicitation": {}})
        await registry.broadcast("s", "in memory")
        shared.backdoor.go_back(None)
        await registry.add_session("s", FakeTransport())
        assert registry.statistics().database_rewinds == 1
        assert shared.backdoor.owners() == {"s": "alice"}
        assert await registry.get_client_capabilities("s") == {"elicitation": {}}
        assert await other.claim_session_owner("s", "thief") in {"alice", None}
        assert await read(registry, "s", 1) == ["in memory"]
        assert registry.statistics().messages_dropped == 0


async def test_what_was_said_does_not_outlive_a_lease_that_was_lost(shared: Shared) -> None:
    """The session had ended when its row was swept; who is added then is another one."""
    async with shared.open() as registry, shared.open() as other:
        await other.cleanup()
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "alice")
        shared.backdoor.age(4000.0)
        shared.backdoor.age_workers(4000.0, registry.worker_id)
        assert (await other.cleanup()).expired == 1
        await registry.add_session("s", FakeTransport())
        assert registry.statistics().database_rewinds == 0
        assert shared.backdoor.owners() == {"s": None}


async def test_messages_of_a_session_that_is_added_again_while_it_is_restored(
    shared: Shared,
) -> None:
    """The database went back, and gives ids to others that the inbox knows as its own."""
    store, transport = FaultyStore(shared.make_store()), FakeTransport()
    async with shared.open(store=store) as one, shared.open() as other:
        await one.add_session("s", transport)
        empty = shared.backdoor.copy()
        async with one.open_inbox("s") as inbox:
            for number in range(3):
                await other.broadcast("s", f"old {number}")
            assert await anext(inbox) == "old 0"
            with trio.fail_after(40):
                while one.statistics().messages_in_memory < 2:
                    await trio.sleep(0.01)
            await one.add_session("stamped", FakeTransport())  # so that a stamp is lost
            shared.backdoor.go_back(empty)
            shared.backdoor.number_messages_anew()
            store.fail(Fault.FAILS, "Claim")
            await one.cleanup()
            assert one.statistics().database_rewinds == 1
            await one.add_session("s", transport)
            store.heal()
            assert sorted((await one.cleanup()).restored) == ["s", "stamped"]
            await other.cleanup()
            for number in range(3):
                await other.broadcast("s", f"new {number}")
            await one.cleanup()  # the bell of a file goes by ids, and these are no higher
            with trio.fail_after(40):
                received = [await anext(inbox) for _ in range(5)]
        assert received == ["old 1", "old 2", "new 0", "new 1", "new 2"]


async def test_a_claim_that_is_repeated_makes_its_session_no_older(shared: Shared) -> None:
    """Whoever comes with a connection from between the two has lost."""
    async with (
        open_witnessed(shared.make_store, "one") as one,
        open_witnessed(shared.make_store, "other") as other,
    ):
        for age in (0.0, 30.0):
            await one.commit(Claim(session_id="s", generation=1, age=age))
        [claimed] = (await other.commit(Claim(session_id="s", generation=1, age=10.0))).answers
        assert isinstance(claimed, Claimed)
        assert claimed.outcome is Outcome.LOST
        assert shared.backdoor.rows() == {"s": "one"}


async def test_however_many_end_in_an_outage_nothing_is_inherited(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than are kept: what is forgotten of them counts all the same when they come again."""
    monkeypatch.setattr(_departures, "MOST", 1)
    store = FaultyStore(shared.make_store())
    ids = ("a", "b", "c")
    async with shared.open(store=store) as registry:
        for session_id in ids:
            await registry.add_session(session_id, FakeTransport(), owner="the former")
            await registry.broadcast(session_id, "of the former", durable=True)
        store.fail(Fault.FAILS)
        for session_id in ids:
            await registry.remove_session(session_id)
        for session_id in ids:
            await registry.add_session(session_id, FakeTransport())
        store.heal()
        await registry.cleanup()
        for session_id in ids:
            assert await registry.get_session_owner(session_id) is None
            await registry.broadcast(session_id, "of this one")
            assert await read(registry, session_id, 1) == ["of this one"]
