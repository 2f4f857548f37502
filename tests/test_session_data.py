"""The data of sessions: shared by all workers, changed in part, and never a later session's."""

import contextlib
import copy
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from gates import GatedStore

from trio_sessions import (
    InvalidSessionId,
    MessageTooLarge,
    NotSupported,
    RegistryClosed,
    SessionNotFound,
    StoreUnavailable,
    open_registry,
)
from trio_sessions._pending import Pending
from trio_sessions.abc import Part
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Holder
from trio_sessions.writes import Claim

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def test_data_is_written_with_the_row(everywhere: Shared) -> None:
    """And so is the owner: any worker reads both as soon as the session is added."""
    async with everywhere.open() as a, everywhere.open() as b:
        given = {"client": {"name": "x"}, "list": [1, 2.5, None, "é"]}
        await a.add_session("s", FakeTransport(), owner="alice", data=given)
        await a.add_session("bare", FakeTransport())
        for registry in (a, b):
            assert await registry.get_session_data("s") == given
            assert await registry.get_session_owner("s") == "alice"
            assert await registry.get_session_data("bare") is None
            assert await registry.get_session_data("nobody") is None
        told = await b.describe_session("s")
        assert told is not None
        assert (told.data, told.owner) == (given, "alice")
        bare = await a.describe_session("bare")
        assert bare is not None
        assert bare.data is None


async def test_data_is_replaced_by_any_worker(everywhere: Shared) -> None:
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport(), data={"n": 1, "kept": True})
        await b.set_session_data("s", {"n": 2})
        assert await a.get_session_data("s") == {"n": 2}
        await a.set_session_data("s", {})
        assert await b.get_session_data("s") == {}
        with pytest.raises(SessionNotFound):
            await a.set_session_data("nobody", {})


async def test_named_members_are_replaced_and_the_others_stay(everywhere: Shared) -> None:
    """By its holder, who knows what is there, and by another worker, who does not."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport(), data={"n": 1, "deep": {"x": 1}, "kept": True})
        await a.set_session_data("s", {"n": 2}, merge=True)
        await b.set_session_data("s", {"deep": {"y": 2}, "null": None}, merge=True)
        await a.set_session_data("s", {"last": "\0"}, merge=True)
        expected = {"n": 2, "deep": {"y": 2}, "kept": True, "null": None, "last": "\0"}
        assert await a.get_session_data("s") == await b.get_session_data("s") == expected
        await a.add_session("bare", FakeTransport())
        await b.set_session_data("bare", {"x": 1}, merge=True)
        await a.set_session_data("bare", {"y": 1}, merge=True)
        assert await a.get_session_data("bare") == {"x": 1, "y": 1}
        for registry in (a, b):
            with pytest.raises(SessionNotFound):
                await registry.set_session_data("nobody", {}, merge=True)


async def test_of_many_merges_at_once_none_is_lost(everywhere: Shared) -> None:
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        async with trio.open_nursery() as nursery:
            for number in range(12):

                async def merge(number: int = number) -> None:
                    registry = (a, b)[number % 2]
                    await registry.set_session_data("s", {str(number): number}, merge=True)

                nursery.start_soon(merge)
        assert await b.get_session_data("s") == {str(number): number for number in range(12)}


async def test_a_takeover_keeps_data_or_brings_other(everywhere: Shared) -> None:
    """Here and on another worker."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        for registry in (a, b):
            await registry.add_session("s", FakeTransport())
            assert await registry.get_session_data("s") == {"n": 1}
        await a.add_session("s", FakeTransport(), data={"n": 2})
        assert await b.get_session_data("s") == {"n": 2}
        await a.add_session("s", FakeTransport(), data={})
        assert await b.get_session_data("s") == {}


async def test_nothing_of_a_removed_session_is_seen_by_a_later_one(everywhere: Shared) -> None:
    """Of the same id, at this worker or another; also where the row could not be deleted."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport(), data={"old": 1})
        await a.remove_session("s")
        assert await a.get_session_data("s") is None
        assert await b.get_session_data("s") is None
        await b.add_session("s", FakeTransport())
        assert await a.get_session_data("s") is None
        await b.remove_session("s")
        await a.add_session("s", FakeTransport(), data={"old": 2})
        store.fail(Fault.FAILS, "Delete")
        await a.remove_session("s")
        assert store.faults["Delete"]
        assert await a.get_session_data("s") is None, "the row is only left over"
        with pytest.raises(SessionNotFound):
            await a.set_session_data("s", {"late": 1})
        with pytest.raises(SessionNotFound):
            await a.set_session_data("s", {"late": 1}, merge=True)
        await a.add_session("s", FakeTransport())
        assert await a.get_session_data("s") is None
        assert await b.get_session_data("s") is None


async def test_data_of_an_unwritten_session_is_written_with_its_row(everywhere: Shared) -> None:
    """The database was away when it was added, and when its data was set."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        store.fail()
        await a.add_session("with", FakeTransport(), data={"n": 1}, owner="alice")
        await a.add_session("without", FakeTransport())
        assert await a.get_session_data("with") == {"n": 1}
        await a.set_session_data("with", {"m": 2}, merge=True)
        assert await a.get_session_data("with") == {"n": 1, "m": 2}
        with pytest.raises(StoreUnavailable, match="could not be written yet"):
            await a.set_session_data("without", {"m": 2}, merge=True)
        await a.set_session_data("without", {"n": 3})
        await a.set_session_data("without", {"m": 4}, merge=True)
        store.heal()
        assert set((await a.cleanup()).restored) == {"with", "without"}
        assert await b.get_session_data("with") == {"n": 1, "m": 2}
        assert await b.get_session_owner("with") == "alice"
        assert await b.get_session_data("without") == {"n": 3, "m": 4}


async def test_without_the_database_nothing_is_said(everywhere: Shared) -> None:
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        store.fail()
        with pytest.raises(StoreUnavailable):
            await a.get_session_data("s")
        for merge in (False, True):
            with pytest.raises(StoreUnavailable):
                await a.set_session_data("s", {"n": 2}, merge=merge)
        store.heal()
        assert await a.get_session_data("s") == {"n": 1}


async def test_a_rewind_keeps_data_as_its_holder_knows_it(shared: Shared) -> None:
    """Brought by the claim, replaced, merged, or set by another before the session came here."""
    async with shared.open() as a, shared.open() as b:
        await b.add_session("taken", FakeTransport(), data={"by": "b"})
        await a.add_session("taken", FakeTransport())
        for one in ("brought", "replaced", "merged", "emptied"):
            await a.add_session(one, FakeTransport(), data={"old": 1})
        old = shared.backdoor.copy()
        await a.set_session_data("replaced", {"n": 1})
        await a.set_session_data("merged", {"n": 1}, merge=True)
        await a.set_session_data("emptied", {})
        await a.add_session("new", FakeTransport(), data={"new": 1})
        shared.backdoor.go_back(old)
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        await a.cleanup()
        assert {one: await a.get_session_data(one) for one in await a.get_all_session_ids()} == {
            "taken": {"by": "b"},
            "brought": {"old": 1},
            "replaced": {"n": 1},
            "merged": {"old": 1, "n": 1},
            "emptied": {},
            "new": {"new": 1},
        }


async def test_a_rewind_keeps_what_its_holder_has_read(shared: Shared) -> None:
    """Another worker has said it, and the database has it yet: it is not replaced by older."""
    async with shared.open() as a, shared.open() as b:
        await a.add_session("s", FakeTransport(), owner="alice", data={"n": 1})
        await a.store_client_capabilities("s", {"n": 1})
        await b.set_session_data("s", {"n": 2})
        await b.set_session_owner("s", "bob")
        await b.store_client_capabilities("s", {"n": 2})
        assert await a.get_session_data("s") == {"n": 2}
        assert await a.get_session_owner("s") == "bob"
        assert await a.get_client_capabilities("s") == {"n": 2}
        copy = shared.backdoor.copy()
        await a.add_session("t", FakeTransport())
        shared.backdoor.go_back(copy)
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        await a.cleanup()
        assert await b.get_session_data("s") == {"n": 2}
        assert await b.get_session_owner("s") == "bob"
        assert await b.get_client_capabilities("s") == {"n": 2}


async def test_what_is_read_of_an_older_copy_is_not_believed(shared: Shared) -> None:
    """Nobody has noticed yet that the database went back: the holder knows better."""
    async with shared.open() as a:
        await a.add_session("s", FakeTransport(), owner="alice", data={"n": 1})
        await a.store_client_capabilities("s", {"n": 1})
        copy = shared.backdoor.copy()
        await a.set_session_data("s", {"n": 2})
        await a.set_session_owner("s", "bob")
        await a.store_client_capabilities("s", {"n": 2})
        shared.backdoor.go_back(copy)
        assert await a.get_session_data("s") == {"n": 1}, "it is not noticed by a question"
        assert await a.get_session_owner("s") in {"alice", "bob"}
        assert await a.get_client_capabilities("s") in ({"n": 1}, {"n": 2})
        await a.cleanup()
        await a.cleanup()
        assert await a.get_session_data("s") == {"n": 2}
        assert await a.get_session_owner("s") == "bob"
        assert await a.get_client_capabilities("s") == {"n": 2}


async def test_what_was_read_before_it_was_replaced_here_is_not_believed(shared: Shared) -> None:
    """The answer comes late: after a rewind the data is what was said last."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        await b.set_session_data("s", {"n": 2})
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                held = store.hold_answer("get_data")
                nursery.start_soon(a.get_session_data, "s")
                await held.reached.wait()
                await a.set_session_data("s", {"n": 3})
                held.open()
        copy = shared.backdoor.copy()
        await a.add_session("t", FakeTransport())
        shared.backdoor.go_back(copy)
        await a.cleanup()
        await a.cleanup()
        assert await a.get_session_data("s") == {"n": 3}


@pytest.mark.parametrize("merge", [False, True])
async def test_what_is_said_while_a_rewind_is_noticed_stays(shared: Shared, *, merge: bool) -> None:
    """In the first batch of the new history; all rows are noted to be written anew meanwhile."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store) as a:
        await a.add_session("s", FakeTransport(), data={"oldest": 1})
        old = shared.backdoor.copy()
        await a.set_session_data("s", {"known": 1})
        shared.backdoor.go_back(old)
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                begun = store.hold_answer("begin")

                async def say() -> None:
                    await a.set_session_data("s", {"new": 1}, merge=merge)

                nursery.start_soon(say)
                await begun.reached.wait()
                said = store.hold_answer("SetData")
                begun.open()
                await said.reached.wait()
                nursery.start_soon(a.cleanup)
                await shared.settle()
                said.open()
        await a.cleanup()
        expected = {"known": 1, "new": 1} if merge else {"new": 1}
        assert await a.get_session_data("s") == expected
        assert a.statistics().database_rewinds == 1


async def test_a_session_that_is_added_again_meanwhile_gets_it_all_the_same(
    shared: Shared,
) -> None:
    """A merge that finds no row asks again, behind the claim that writes it."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store) as a:
        await a.add_session("s", FakeTransport(), data={"n": 1})
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                held = store.hold("SetData")

                async def merge() -> None:
                    await a.set_session_data("s", {"m": 2}, merge=True)

                nursery.start_soon(merge)
                await held.reached.wait()
                shared.backdoor.delete("s")
                nursery.start_soon(a.add_session, "s", FakeTransport())
                await shared.settle()
                held.open()
        assert await a.get_session_data("s") == {"m": 2}


# ---- what is taken ----


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, TypeError),
        ([], TypeError),
        ("{}", TypeError),
        ({1: 2}, TypeError),
        ({"x": object()}, TypeError),
        ({"x": float("nan")}, ValueError),
        ({"x": "y" * 65_536}, MessageTooLarge),
    ],
)
async def test_what_is_no_json_object_is_refused(shared: Shared, data: Any, error: Any) -> None:
    """Before anything is written, and the name of the argument is told."""
    async with shared.open() as registry:
        for merge in (False, True):
            with pytest.raises(error, match="data"):
                await registry.set_session_data("s", data, merge=merge)
        if data is not None:
            with pytest.raises(error, match="data"):
                await registry.add_session("s", FakeTransport(), data=data)
        assert shared.backdoor.rows() == {}
        assert await registry.get_all_session_ids() == []


async def test_what_comes_of_a_merge_is_bounded_too(everywhere: Shared) -> None:
    """Nothing is done then; so it is where the row is still to be written."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        half = {"half": "x" * 40_000}
        await a.add_session("s", FakeTransport(), data=half)
        for registry in (a, b):
            with pytest.raises(MessageTooLarge, match="merged"):
                await registry.set_session_data("s", {"more": "x" * 40_000}, merge=True)
        await a.set_session_data("s", {"half": ""}, merge=True)
        assert await b.get_session_data("s") == {"half": ""}
        store.fail()
        await a.add_session("t", FakeTransport(), data=half)
        with pytest.raises(MessageTooLarge, match="merged"):
            await a.set_session_data("t", {"more": "x" * 40_000}, merge=True)
        store.heal()
        assert await a.get_session_data("t") == half


async def test_each_answer_is_a_fresh_value(everywhere: Shared) -> None:
    """And what was given may be changed afterwards."""
    async with everywhere.open() as registry:
        given: dict[str, Any] = {"list": [1]}
        await registry.add_session("s", FakeTransport(), data=given)
        before = copy.deepcopy(given)
        given["list"].append(2)
        first = await registry.get_session_data("s")
        assert first is not None
        first["list"].append(3)
        assert await registry.get_session_data("s") == before


async def test_other_arguments_are_checked(everywhere: Shared) -> None:
    async with everywhere.open() as registry:
        with pytest.raises(InvalidSessionId):
            await registry.set_session_data("", {})
        with pytest.raises(InvalidSessionId):
            await registry.get_session_data("\0")
        merge: Any = "yes"
        with pytest.raises(TypeError, match="merge"):
            await registry.set_session_data("s", {}, merge=merge)


async def test_a_closed_registry_says_so(shared: Shared) -> None:
    async with shared.open() as registry:
        pass
    with pytest.raises(RegistryClosed):
        await registry.get_session_data("s")
    with pytest.raises(RegistryClosed):
        await registry.set_session_data("s", {})


async def test_a_store_without_data_says_so_and_holds_nothing() -> None:
    class Bare(MemoryStore):
        @property
        def parts(self) -> frozenset[Part]:
            return super().parts - {Part.DATA}

    async with open_registry(Bare()) as registry:
        with pytest.raises(NotSupported, match="DataStore"):
            await registry.add_session("s", FakeTransport(), data={})
        assert await registry.get_all_session_ids() == []
        await registry.add_session("s", FakeTransport())
        for call in (
            registry.get_session_data("s"),
            registry.set_session_data("s", {}),
            registry.set_session_data("s", {}, merge=True),
            registry.adopt_session("t", FakeTransport(), from_worker="w"),
        ):
            with pytest.raises(NotSupported, match="DataStore"):
                await call


async def test_a_cancelled_call_that_has_not_left_changes_nothing(everywhere: Shared) -> None:
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport(), data={"n": 1})
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                held = store.hold("SetOwner")
                nursery.start_soon(registry.set_session_owner, "s", "alice")
                await held.reached.wait()
                for merge in (False, True):
                    with trio.move_on_after(0.05):
                        await registry.set_session_data("s", {"n": 2}, merge=merge)
                held.open()
        assert await registry.get_session_data("s") == {"n": 1}


# ---- what it costs ----


async def test_the_row_is_written_in_one_batch_with_owner_and_data() -> None:
    """And nothing more is asked of the store than without; nor to describe or to replace it."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        store.calls.clear()
        await registry.add_session("s", FakeTransport(), owner="alice", data={"n": 1})
        assert store.calls == {"commit": 1, "Claim": 1}
        store.calls.clear()
        await registry.set_session_data("s", {"n": 2})
        await registry.set_session_data("s", {"m": 2}, merge=True)
        assert store.calls == {"commit": 2, "SetData": 2}
        store.calls.clear()
        await registry.get_session_data("s")
        assert store.calls == {"get_data": 1}


async def test_whoever_holds_it_elsewhere_costs_a_merge_one_more_question() -> None:
    """For what is there is not known."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store._store) as holder, open_registry(store) as other:
        await holder.add_session("s", FakeTransport(), data={"n": 1})
        store.calls.clear()
        await other.set_session_data("s", {"m": 1}, merge=True)
        assert store.calls == {"commit": 2, "SetData": 2}
        assert await holder.get_session_data("s") == {"n": 1, "m": 1}


async def test_what_another_has_said_costs_its_holder_one_more_question() -> None:
    """The first time that it is read: whether the database has forgotten something."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as holder, open_registry(store._store) as other:
        await holder.add_session("s", FakeTransport(), data={"n": 1})
        await other.set_session_data("s", {"n": 2})
        store.calls.clear()
        assert await holder.get_session_data("s") == {"n": 2}
        assert store.calls == {"get_data": 1, "refresh": 1}
        assert await holder.get_session_data("s") == {"n": 2}
        assert store.calls == {"get_data": 2, "refresh": 1}


async def test_rows_are_compared_by_the_database(database: Shared) -> None:
    """Somebody who writes by hand is not overwritten by a merge."""
    assert isinstance(database.backdoor, DatabaseBackdoor)
    sessions = database.backdoor.sessions
    async with database.open() as registry:
        await registry.add_session("s", FakeTransport(), data={"n": 1})
        database.backdoor.execute(sa.update(sessions).values(data='{"by": "hand"}'))
        await registry.set_session_data("s", {"m": 1}, merge=True)
        assert await registry.get_session_data("s") == {"by": "hand", "m": 1}


async def test_data_that_is_no_object_is_the_databases_fault(database: Shared) -> None:
    assert isinstance(database.backdoor, DatabaseBackdoor)
    async with database.open() as registry:
        await registry.add_session("s", FakeTransport())
        for text in ("[1]", '{"n":', "", "}"):
            database.backdoor.execute(sa.update(database.backdoor.sessions).values(data=text))
            for ask in (
                registry.describe_session("s"),
                registry.get_session_data("s"),
                registry.set_session_data("s", {"n": 1}, merge=True),
            ):
                with pytest.raises(StoreUnavailable, match="where a JSON object must be"):
                    await ask
        await registry.set_session_data("s", {"n": 1})
        assert await registry.get_session_data("s") == {"n": 1}


# ---- what waits for a row ----


def test_what_is_noted_is_written_until_a_claim_has_brought_it() -> None:
    pending, holder = Pending(), Holder(worker_id="w", incarnation="i")
    assert pending.is_empty
    pending.note_data("{}")
    assert (pending.data, pending.size, pending.is_empty) == ("{}", 2, False)
    claim = Claim(session_id="s", generation=1, age=0.0, data="{}")
    pending.note_data('{"n":1}')
    pending.forget(claim)
    assert pending.data == '{"n":1}', "it was said meanwhile"
    pending.forget(Claim(session_id="s", generation=1, age=0.0, data='{"n":1}'))
    assert pending.is_empty
    pending.note_again(holder, None, "{}")
    pending.note_again(holder, None, "[]")
    assert pending.data == "{}"
    pending.supersede_data('{"n":2}')
    assert pending.data == '{"n":2}'
    pending.supersede_data('{"n":3}')
    assert pending.data == '{"n":2}', "that was said, and is not only noted once more"


async def test_a_lost_answer_leaves_data_as_it_was_said(everywhere: Shared) -> None:
    """The claim was carried out, and is repeated: it says the same."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        store.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
        await a.add_session("s", FakeTransport(), data={"n": 1})
        assert store.faults["Claim"] == 1
        await b.set_session_data("s", {"n": 2})
        with contextlib.suppress(StoreUnavailable):
            await a.set_session_data("s", {"n": 3})
        assert await b.get_session_data("s") == {"n": 3}
