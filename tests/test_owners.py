"""Owners and capabilities: shared by all workers, and never stale."""

import contextlib
import copy
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Shared
from gates import Gate, GatedStore
from trio.testing import MockClock

from trio_sessions import (
    InvalidSessionId,
    MessageTooLarge,
    RegistryClosed,
    SessionNotFound,
    StoreUnavailable,
    Transport,
    open_registry,
)
from trio_sessions._pending import Pending
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Capabilities
from trio_sessions.writes import Claim

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def test_an_owner_is_known_to_every_worker(everywhere: Shared) -> None:
    """Set by any of them, changed by any of them, and taken away."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        assert await b.get_session_owner("s") is None
        await a.set_session_owner("s", "alice")
        assert await b.get_session_owner("s") == "alice"
        await b.set_session_owner("s", "bob")
        assert await a.get_session_owner("s") == "bob"
        await a.set_session_owner("s", None)
        assert await b.get_session_owner("s") is None


async def test_removal_ends_an_owner_also_for_other_workers(everywhere: Shared) -> None:
    """Older fault: another worker went on to answer the owner of a session long removed."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await a.set_session_owner("s", "alice")
        assert await b.get_session_owner("s") == "alice"
        await a.remove_session("s")
        assert await b.get_session_owner("s") is None
        await b.add_session("s", FakeTransport())
        assert await a.get_session_owner("s") is None


async def test_a_takeover_keeps_owner_and_capabilities(everywhere: Shared) -> None:
    """Here and on another worker."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await a.set_session_owner("s", "alice")
        await a.store_client_capabilities("s", {"roots": {}})
        for registry in (a, b):
            await registry.add_session("s", FakeTransport())
            assert await registry.get_session_owner("s") == "alice"
            assert await registry.get_client_capabilities("s") == {"roots": {}}


async def test_the_first_claim_wins_across_the_fleet(everywhere: Shared) -> None:
    """However many claim at once, all of them are told the same owner."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        told: list[Any] = []

        async def claim(registry: Any, owner: str) -> None:
            told.append(await registry.claim_session_owner("s", owner))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(claim, (a, b)[number % 2], f"owner{number}")
        assert len(set(told)) == 1
        assert told[0] == await b.get_session_owner("s")
        assert await a.claim_session_owner("s", "late") == told[0]


async def test_a_claim_that_cannot_be_verified_is_none(everywhere: Shared) -> None:
    """The database is away, or knows no such session; nothing is claimed then."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        assert await registry.claim_session_owner("nobody", "alice") is None
        await registry.add_session("s", FakeTransport())
        store.fail()
        assert await registry.claim_session_owner("s", "alice") is None
        store.heal()
        assert await registry.get_session_owner("s") is None
        assert await registry.claim_session_owner("s", "bob") == "bob"


async def test_what_is_said_of_an_unwritten_session_is_written_with_its_row(
    everywhere: Shared,
) -> None:
    """The database was away when it was added, and when its owner was set."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        store.fail()
        await a.add_session("s", FakeTransport())
        await a.set_session_owner("s", "alice")
        await a.store_client_capabilities("s", {"elicitation": {}})
        assert await a.get_session_owner("s") == "alice"
        assert await a.get_client_capabilities("s") == {"elicitation": {}}
        assert await a.claim_session_owner("s", "bob") is None
        store.heal()
        assert (await a.cleanup()).restored == ("s",)
        assert await b.get_session_owner("s") == "alice"
        assert await b.get_client_capabilities("s") == {"elicitation": {}}
        assert await b.get_elicitation_capable_sessions() == ["s"]


async def test_a_claim_writes_the_row_that_was_still_missing(everywhere: Shared) -> None:
    """So that it can be verified."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        store.fail(Fault.FAILS, "Claim")
        await a.add_session("s", FakeTransport())
        store.heal()
        assert await a.claim_session_owner("s", "alice") == "alice"
        assert await b.get_session_owner("s") == "alice"


async def test_what_is_said_of_an_unwritten_session_is_known_while_it_is(
    everywhere: Shared,
) -> None:
    """Also when the database answers that it has no row yet."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        store.fail(Fault.FAILS, "Claim")
        await registry.add_session("s", FakeTransport())
        assert await registry.get_session_owner("s") is None
        assert await registry.get_client_capabilities("s") is None
        await registry.set_session_owner("s", "alice")
        await registry.store_client_capabilities("s", {"roots": {}})
        assert await registry.get_session_owner("s") == "alice"
        assert await registry.get_client_capabilities("s") == {"roots": {}}
        store.heal()


@pytest.mark.parametrize("removed", [False, True])
async def test_what_was_said_in_an_outage_gives_way_to_what_others_say_after_it(
    everywhere: Shared,
    removed: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """The row is written before it is asked for: the next pass may be far."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        store.fail(Fault.FAILS, "Claim")
        await a.add_session("s", FakeTransport())
        await a.set_session_owner("s", "alice")
        await a.store_client_capabilities("s", {"elicitation": {}})
        assert await a.get_elicitation_capable_sessions() == ["s"]
        store.heal()
        await trio.sleep(0.3)  # the database's clock must move: the newest wins
        await b.add_session("s", FakeTransport())
        await b.set_session_owner("s", "bob")
        await b.store_client_capabilities("s", {"roots": {}})
        if removed:
            assert await a.get_session_owner("s") == "bob"
            await b.remove_session("s")
            assert await a.get_session_owner("s") is None
            assert await a.get_client_capabilities("s") is None
            assert await a.get_elicitation_capable_sessions() == []
        else:
            assert await a.get_elicitation_capable_sessions() == []
            assert await a.get_client_capabilities("s") == {"roots": {}}
            assert await a.get_session_owner("s") == "bob"


async def test_what_is_answered_from_memory_can_be_cancelled() -> None:
    """Also then each question is a checkpoint."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        store.fail()
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "alice")
        await registry.store_client_capabilities("s", {})
        for question in (
            registry.get_session_owner,
            registry.get_client_capabilities,
            registry.has_elicitation_capability,
        ):
            with trio.testing.assert_checkpoints():
                await question("s")
            with trio.CancelScope() as scope:
                scope.cancel()
                await question("s")
            assert scope.cancelled_caught


async def test_questions_in_an_outage_share_one_attempt(autojump_clock: MockClock) -> None:
    """However many ask at once, each waits for one timeout at most, or for less if it likes."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, store_timeout=10.0) as registry:
        store.fail()
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "alice")
        store.fail(Fault.HANGS)
        start = trio.current_time()
        answers: list[str | None] = []

        async def ask() -> None:
            answers.append(await registry.get_session_owner("s"))

        writes = store.calls["Claim"]
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            with trio.move_on_after(1) as scope:
                await registry.get_session_owner("s")
            assert scope.cancelled_caught
            assert trio.current_time() - start == 1
        assert answers == ["alice"] * 20
        assert trio.current_time() - start == 10
        assert store.calls["Claim"] == writes + 1
        store.heal()


@pytest.mark.parametrize("ends", ["session", "registry"])
async def test_a_question_brings_no_row_back(everywhere: Shared, ends: str) -> None:
    """The session is removed, or the registry closed, while its row is being written for it."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open() as b, trio.open_nursery() as nursery:
        async with everywhere.open(store=store) as a:
            store.fail()
            await a.add_session("s", FakeTransport())
            await a.set_session_owner("s", "alice")
            store.heal()
            gate = store.hold("Claim")

            async def ask() -> None:
                with contextlib.suppress(RegistryClosed):
                    await a.get_session_owner("s")

            nursery.start_soon(ask)
            await gate.reached.wait()
            if ends == "session":
                nursery.start_soon(a.remove_session, "s")
                await everywhere.settle()
                gate.open()
                with trio.fail_after(40):
                    while a.statistics().leftover_rows or await b.locate_session("s"):
                        await trio.sleep(0.005)
            else:
                nursery.start_soon(open_when_closing, gate, a)
        assert everywhere.backdoor.rows() == {}


@pytest.mark.parametrize("operation", ["Claim", "locate"])
async def test_who_asks_while_it_closes_is_told_that_it_is_closed(
    everywhere: Shared, operation: str
) -> None:
    """Before the store is asked, or while it is: not that the store is away."""
    store = GatedStore(everywhere.make_store())
    asked = []
    async with trio.open_nursery() as nursery:
        async with everywhere.open(store=store) as registry:
            store.fail()
            await registry.add_session("s", FakeTransport())
            await registry.set_session_owner("s", "alice")
            store.heal()
            gate = store.hold(operation)

            async def ask() -> None:
                try:
                    asked.append(await registry.get_session_owner("s"))
                except RegistryClosed:
                    asked.append("closed")

            nursery.start_soon(ask)
            await gate.reached.wait()
            if operation == "Claim":
                nursery.start_soon(open_when_closing, gate, registry)
        gate.open()
    assert asked in (["alice"], [None], ["closed"])
    assert operation == "Claim" or asked == ["closed"]


async def open_when_closing(gate: Gate, registry: Any) -> None:
    while not registry.statistics().closed:
        await trio.sleep(0.005)
    gate.open()


async def test_who_is_asked_is_listed_while_its_row_is_being_written() -> None:
    """Neither the store nor what is unwritten has it just then."""
    store = GatedStore(MemoryStore())
    async with open_registry(store) as registry, trio.open_nursery() as nursery:
        store.fail()
        for session_id in ("a", "b"):
            await registry.add_session(session_id, FakeTransport())
            await registry.store_client_capabilities(session_id, {"elicitation": {}})
        store.heal()
        gate = store.hold("Claim")
        nursery.start_soon(registry.get_client_capabilities, "b")
        await gate.reached.wait()
        listed: list[str] = []

        async def ask() -> None:
            listed.extend(await registry.get_elicitation_capable_sessions())

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        store.fail(Fault.FAILS, "Claim")
        gate.open()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(listed) == ["a", "b"]


class SlowTransport:
    """Disconnects when it is let."""

    def __init__(self) -> None:
        self.may_end = trio.Event()

    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        await self.may_end.wait()


@pytest.mark.parametrize("held", ["hold", "hold_answer"])
async def test_what_is_said_while_the_row_is_being_written_is_not_lost(
    everywhere: Shared, held: str
) -> None:
    """The row that is on its way does not say it."""
    store = GatedStore(everywhere.make_store())
    gate = getattr(store, held)("Claim")
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        nursery.start_soon(registry.add_session, "s", FakeTransport())
        await gate.reached.wait()
        nursery.start_soon(registry.set_session_owner, "s", "alice")
        nursery.start_soon(registry.store_client_capabilities, "s", {"roots": {}})
        await everywhere.settle()
        gate.open()
        with trio.fail_after(40):
            while await registry.get_session_owner("s") is None:
                await trio.sleep(0.005)
            while await registry.get_client_capabilities("s") is None:
                await trio.sleep(0.005)
        await registry.cleanup()
        assert await registry.get_client_capabilities("s") == {"roots": {}}
        assert await registry.claim_session_owner("s", "mallory") == "alice"


@pytest.mark.parametrize("first", ["superseded", "fails"])
@pytest.mark.parametrize("says", ["owner", "claim", "capabilities"])
async def test_what_is_said_before_a_session_is_added_again_finds_it(
    everywhere: Shared, first: str, says: str
) -> None:
    """It leaves between the two claims, the first of which writes nothing."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        gate = store.hold("Claim")
        if first == "superseded":
            nursery.start_soon(registry.add_session, "other", FakeTransport())
            await gate.reached.wait()
        nursery.start_soon(registry.add_session, "s", FakeTransport())
        await gate.reached.wait()
        await everywhere.settle()
        told: list[Any] = []

        async def say() -> None:
            if says == "owner":
                await registry.set_session_owner("s", "alice")
                told.append(await registry.get_session_owner("s"))
            elif says == "claim":
                told.append(await registry.claim_session_owner("s", "alice"))
            else:
                await registry.store_client_capabilities("s", {"roots": {}})
                told.append(await registry.get_client_capabilities("s"))

        nursery.start_soon(say)
        await everywhere.settle()
        nursery.start_soon(registry.add_session, "s", FakeTransport())
        await everywhere.settle()
        kind = {"owner": "SetOwner", "claim": "ClaimOwner"}.get(says, "SetCapabilities")
        said = store.hold(kind)
        if first == "fails":
            store.fail(Fault.FAILS, "Claim")
        gate.open()
        with trio.fail_after(40):
            await said.reached.wait()
            assert (store.faults["Claim"] > 0) is (first == "fails")
            store.heal()
            said.open()
            while not told:
                await trio.sleep(0.005)
        assert told == [{"roots": {}} if says == "capabilities" else "alice"]


async def test_what_was_said_of_a_removed_session_is_not_noted_for_the_next(
    everywhere: Shared,
) -> None:
    """It leaves when the next one is held already, and not yet written (invariant 14)."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        gate = store.hold("Claim")
        nursery.start_soon(registry.add_session, "other", FakeTransport())
        await gate.reached.wait()
        nursery.start_soon(registry.add_session, "s", FakeTransport())
        await everywhere.settle()
        refused = trio.Event()

        async def say() -> None:
            with pytest.raises(SessionNotFound):
                await registry.set_session_owner("s", "alice")
            refused.set()

        nursery.start_soon(say)
        await everywhere.settle()
        nursery.start_soon(registry.remove_session, "s")
        await everywhere.settle()
        nursery.start_soon(registry.add_session, "s", FakeTransport())
        await everywhere.settle()
        gate.open()
        with trio.fail_after(40):
            await refused.wait()
        await everywhere.settle()
        assert await registry.get_session_owner("s") is None


async def test_adding_again_does_not_bring_back_what_was_said_before(everywhere: Shared) -> None:
    """Another worker has said something else since the row was written."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        store.fail()
        await a.add_session("s", FakeTransport())
        await a.set_session_owner("s", "alice")
        await a.store_client_capabilities("s", {"roots": {}})
        store.heal()
        assert (await a.cleanup()).restored == ("s",)
        await b.set_session_owner("s", "bob")
        await b.store_client_capabilities("s", {"sampling": {}})
        await a.add_session("s", FakeTransport())
        assert await a.get_session_owner("s") == "bob"
        assert await a.get_client_capabilities("s") == {"sampling": {}}


async def test_adding_again_while_an_owner_is_being_written_keeps_the_last_word(
    everywhere: Shared,
) -> None:
    """The row is written twice, and what another worker says in between stands."""
    store = GatedStore(everywhere.make_store())
    async with (
        everywhere.open(store=store) as a,
        everywhere.open() as b,
        trio.open_nursery() as nursery,
    ):
        store.fail(Fault.FAILS, "Claim")
        await a.add_session("s", FakeTransport())
        await a.set_session_owner("s", "alice")
        store.heal()
        first, second = store.hold_answer("Claim"), None
        nursery.start_soon(a.get_session_owner, "s")
        await first.reached.wait()
        second = store.hold("Claim")
        nursery.start_soon(a.add_session, "s", FakeTransport())
        await everywhere.settle()
        assert await b.get_session_owner("s") == "alice"
        await b.set_session_owner("s", "bob")
        first.open()
        await second.reached.wait()
        second.open()
        await everywhere.settle()
        with trio.fail_after(40):
            while a.statistics().unconfirmed:
                await trio.sleep(0.005)
        assert await a.get_session_owner("s") == "bob"
        assert await b.get_session_owner("s") == "bob"


async def test_nobody_is_an_owner_that_is_written_with_the_row(everywhere: Shared) -> None:
    """A session that was taken over has an owner already."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        await b.add_session("s", FakeTransport())
        await b.set_session_owner("s", "bob")
        store.fail()
        await a.add_session("s", FakeTransport())
        await a.set_session_owner("s", None)
        assert await a.get_session_owner("s") is None
        store.heal()
        assert await b.get_session_owner("s") == "bob"
        assert (await a.cleanup()).restored == ("s",)
        assert await a.get_session_owner("s") is None
        assert await b.get_session_owner("s") is None


async def test_a_row_left_behind_answers_nothing(everywhere: Shared) -> None:
    """Of a session removed here while the database was away, or whose transport ends slowly."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:

        async def nothing_is_known() -> None:
            assert await a.get_session_owner("s") is None
            assert await a.claim_session_owner("s", "bob") is None
            assert await a.get_client_capabilities("s") is None
            assert await a.get_elicitation_capable_sessions() == []
            with pytest.raises(SessionNotFound):
                await a.set_session_owner("s", "bob")
            with pytest.raises(SessionNotFound):
                await a.store_client_capabilities("s", {})

        async def add(transport: Transport) -> None:
            await a.add_session("s", transport)
            await a.set_session_owner("s", "alice")
            await a.store_client_capabilities("s", {"elicitation": {}})

        await add(FakeTransport())
        store.fail(Fault.FAILS, "Delete")
        await a.remove_session("s")
        store.heal()
        assert set(everywhere.backdoor.rows()) == {"s"}
        await nothing_is_known()
        transport = SlowTransport()
        await add(transport)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.remove_session, "s")
            await everywhere.settle()
            await nothing_is_known()
            await b.add_session("s", FakeTransport())  # but not of one that another worker holds
            assert await a.get_session_owner("s") == "alice"
            assert await a.claim_session_owner("s", "bob") == "alice"
            assert await a.get_elicitation_capable_sessions() == ["s"]
            transport.may_end.set()


async def test_without_the_database_it_cannot_be_said(everywhere: Shared) -> None:
    """Whoever asks is told so, and whoever sets."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail()
        for call in (
            lambda: registry.get_session_owner("s"),
            lambda: registry.set_session_owner("s", "alice"),
            lambda: registry.get_client_capabilities("s"),
            lambda: registry.store_client_capabilities("s", {}),
            lambda: registry.has_elicitation_capability("s"),
            registry.get_elicitation_capable_sessions,
        ):
            with pytest.raises(StoreUnavailable):
                await call()
        store.heal()


async def test_nothing_can_be_said_of_a_session_that_nobody_holds(everywhere: Shared) -> None:
    """The database has confirmed it."""
    async with everywhere.open() as registry:
        with pytest.raises(SessionNotFound):
            await registry.set_session_owner("nobody", "alice")
        with pytest.raises(SessionNotFound):
            await registry.store_client_capabilities("nobody", {})
        assert await registry.get_session_owner("nobody") is None
        assert await registry.get_client_capabilities("nobody") is None
        assert await registry.has_elicitation_capability("nobody") is False


async def test_capabilities_are_replaced_as_a_whole(everywhere: Shared) -> None:
    """And a worker that does not hold the session can ask."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        assert await b.get_client_capabilities("s") is None
        await a.store_client_capabilities("s", {"roots": {"listChanged": True}, "sampling": {}})
        assert await b.get_client_capabilities("s") == {
            "roots": {"listChanged": True},
            "sampling": {},
        }
        await b.store_client_capabilities("s", {})
        assert await a.get_client_capabilities("s") == {}


async def test_who_can_be_asked_is_known_to_every_worker(everywhere: Shared) -> None:
    """An empty dict says yes; False, None and nothing say no."""
    said = {"yes": {}, "form": {"form": {}}, "no": False, "null": None}
    async with everywhere.open() as a, everywhere.open() as b:
        for name, value in said.items():
            await a.add_session(name, FakeTransport())
            await a.store_client_capabilities(name, {"elicitation": value})
        await a.add_session("silent", FakeTransport())
        await a.store_client_capabilities("silent", {"sampling": {}})
        await a.add_session("unknown", FakeTransport())
        assert sorted(await b.get_elicitation_capable_sessions()) == ["form", "yes"]
        for name in (*said, "silent", "unknown"):
            assert await b.has_elicitation_capability(name) is (name in ("yes", "form"))
        await a.store_client_capabilities("yes", {})
        assert await b.get_elicitation_capable_sessions() == ["form"]


def test_what_is_said_behind_a_claim_is_not_forgotten_with_it() -> None:
    """The claim has written what was known when it left; what came since is still to be written."""
    pending = Pending()
    first, second = (Capabilities(encoded=one, elicitation=False) for one in ("{}", "[]"))
    pending.note_owner("first")
    pending.note_capabilities(first)
    claim = Claim(session_id="s", generation=1, age=0.0, owner="first", capabilities=first)
    pending.note_owner("second")
    pending.note_capabilities(second)
    pending.forget(claim)
    assert (pending.owner, pending.capabilities) == ("second", second)
    pending.note_owner("first")
    pending.note_capabilities(first)
    pending.forget(claim)
    assert pending.is_empty


async def test_bad_owners_and_capabilities_are_refused_at_the_door() -> None:
    """Each with what is wrong; nothing is set."""
    async with open_registry(max_message_bytes=100) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "ü" * 320)
        owners: list[tuple[Any, type[Exception]]] = [
            (7, TypeError),
            ("", ValueError),
            ("x" * 321, ValueError),
            ("a\0b", ValueError),
            ("\ud800", ValueError),
        ]
        for owner, error in owners:
            with pytest.raises(error, match="owner"):
                await registry.set_session_owner("s", owner)
            with pytest.raises(error, match="owner"):
                await registry.claim_session_owner("s", owner)
        with pytest.raises(TypeError, match="owner"):
            await registry.claim_session_owner("s", None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="capabilities"):
            await registry.store_client_capabilities("s", [1])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="capabilities"):
            await registry.store_client_capabilities("s", {"a": object()})
        with pytest.raises(MessageTooLarge, match="capabilities"):
            await registry.store_client_capabilities("s", {"a": "x" * 100})
        with pytest.raises(InvalidSessionId):
            await registry.get_session_owner("")
        assert await registry.get_session_owner("s") == "ü" * 320
        assert await registry.get_client_capabilities("s") is None
    for call in (
        registry.set_session_owner("s", "a"),
        registry.claim_session_owner("s", "a"),
        registry.get_session_owner("s"),
        registry.store_client_capabilities("s", {}),
        registry.get_client_capabilities("s"),
        registry.has_elicitation_capability("s"),
        registry.get_elicitation_capable_sessions(),
    ):
        with pytest.raises(RegistryClosed):
            await call


async def test_a_row_of_ones_own_that_is_not_ones_own_says_nothing() -> None:
    """A replica that lags shows a session as it was before it moved; or a late statement."""
    store = MemoryStore()
    async with open_registry(store) as a, open_registry(store) as b:
        await a.add_session("s", FakeTransport())
        before = copy.copy(store._rows["s"])
        await b.add_session("s", FakeTransport())
        assert (await a.cleanup()).taken_over == ("s",)
        store._rows["s"], now = before, store._rows["s"]
        assert await a.session_exists("s") is None
        for ask in (a.locate_session, a.get_session_owner):
            with pytest.raises(StoreUnavailable, match="lags behind"):
                await ask("s")
        store._rows["s"] = now
        assert await a.session_exists("s") is True
        assert await a.locate_session("s") == b.worker_id


async def test_what_was_set_in_an_outage_and_lost_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A newer connection elsewhere has won the session: nothing is dropped in silence."""
    shared = MemoryStore()
    store = FaultyStore(shared)
    async with open_registry(store) as a, open_registry(shared) as b:
        store.fail()
        await a.add_session("s", FakeTransport())
        await a.set_session_owner("s", "alice")
        await trio.sleep(0.1)
        await b.add_session("s", FakeTransport())
        store.heal()
        assert (await a.cleanup()).taken_over == ("s",)
        assert await b.get_session_owner("s") is None
    [told] = [one for one in caplog.messages if "say it once more" in one]
    assert "alice" not in told


# ---- an owner that comes with the session ----


async def test_an_owner_is_written_with_the_row(everywhere: Shared) -> None:
    """In the claim itself; None leaves what there is, another one replaces it."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport(), owner="alice")
        assert everywhere.backdoor.owners() == {"s": "alice"}
        await registry.add_session("s", FakeTransport())
        assert await registry.get_session_owner("s") == "alice"
        await registry.add_session("s", FakeTransport(), owner="bob")
        assert await registry.claim_session_owner("s", "mallory") == "bob"


async def test_an_owner_that_cannot_be_one_adds_nothing(everywhere: Shared) -> None:
    async with everywhere.open() as registry:
        for wrong, error in (("", ValueError), ("x" * 321, ValueError), (3, TypeError)):
            with pytest.raises(error, match="owner"):
                await registry.add_session("s", FakeTransport(), owner=wrong)  # type: ignore[arg-type]
        assert registry.get_session_sync("s") is None


async def test_an_owner_of_an_outage_is_written_later(shared: Shared) -> None:
    """With the row, when the database is there again."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        store.fail()
        await registry.add_session("s", FakeTransport(), owner="alice")
        store.heal()
        await registry.cleanup()
        assert shared.backdoor.owners() == {"s": "alice"}
