"""Messages while something else happens: nothing is lost, doubled, or read by the wrong one."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Shared
from gates import GatedStore
from readers import read
from trio.testing import MockClock

from trio_sessions import (
    RowUnavailable,
    SessionNotFound,
    SessionRegistry,
    StoreUnavailable,
    open_registry,
)
from trio_sessions._messages._fetching import MOST
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import StoredMessage, Wanted
from trio_sessions.writes import Batch, Claim, Committed


class SlowTransport(FakeTransport):
    """Disconnects when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.is_ending, self.may_end = trio.Event(), trio.Event()

    async def disconnect(self, reason: object = None) -> None:
        self.is_ending.set()
        await self.may_end.wait()


class Consumer:
    """Reads a session's messages, as long as there are any."""

    def __init__(self, registry: SessionRegistry, session_id: str) -> None:
        self.received: list[Any] = []
        self._registry = registry
        self._session_id = session_id
        self.may_go_on = trio.Event()
        self.may_go_on.set()

    async def run(self) -> None:
        async with self._registry.open_inbox(self._session_id) as inbox:
            async for message in inbox:
                self.received.append(message)
                await self.may_go_on.wait()

    async def until(self, count: int) -> list[Any]:
        with trio.fail_after(40):
            while len(self.received) < count:
                await trio.sleep(0.005)
        return self.received


# ---- adding again, and removing ----


async def test_a_fetch_that_is_under_way_is_for_the_transport_that_takes_over(
    everywhere: Shared,
) -> None:
    """Its answer comes when the session has been added again."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        old = Consumer(registry, "s")
        nursery.start_soon(old.run)
        await registry.broadcast("s", 0, durable=True)
        await old.until(1)
        gate = store.hold_answer("fetch")
        await registry.broadcast("s", 1, durable=True)
        await gate.reached.wait()
        await registry.add_session("s", FakeTransport())
        gate.open()
        assert await read(registry, "s", 1) == [1]
        assert old.received == [0]
        assert registry.statistics().messages_in_memory == 0


async def test_a_fetch_that_is_under_way_when_the_session_is_removed_is_for_nobody(
    everywhere: Shared,
) -> None:
    """It does not stay in memory."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        consumer = Consumer(registry, "s")
        nursery.start_soon(consumer.run)
        await registry.broadcast("s", 0, durable=True)
        await consumer.until(1)
        gate = store.hold_answer("fetch")
        await registry.broadcast("s", 1, durable=True)
        await gate.reached.wait()
        await registry.remove_session("s")
        gate.open()
        await everywhere.settle()
        assert registry.statistics().messages_in_memory == 0
        assert consumer.received == [0]
        assert registry.statistics().messages_dropped == 1


async def test_the_same_transport_again_goes_on_with_its_consumer(everywhere: Shared) -> None:
    """The session has not been removed; only its row is written again."""
    transport = FakeTransport()
    async with everywhere.open() as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", transport)
        consumer = Consumer(registry, "s")
        nursery.start_soon(consumer.run)
        await registry.broadcast("s", 1)
        await consumer.until(1)
        await registry.add_session("s", transport)
        await registry.broadcast("s", 2)
        await registry.broadcast("s", 3, durable=True)
        assert await consumer.until(3) == [1, 2, 3]
        assert transport.disconnects == 0
        await registry.remove_session("s")


@pytest.mark.parametrize("durable", [False, True])
async def test_an_unfinished_message_of_a_removed_session_is_not_for_the_next_one(
    everywhere: Shared,
    durable: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """Although that has the same id."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", "of the removed one", durable=durable)
        with pytest.raises(KeyError):
            async with registry.open_inbox("s") as inbox:
                await anext(inbox)
                await registry.remove_session("s")
                await registry.add_session("s", FakeTransport())
                raise KeyError
        await registry.broadcast("s", "of the next one")
        assert await read(registry, "s", 1) == ["of the next one"]


async def test_ids_that_are_held_do_not_pile_up_over_reconnections() -> None:
    """A message that is being handled when its session is added again is let go of later."""
    async with open_registry() as registry:
        await registry.add_session("s", FakeTransport())
        for number in range(5):
            await registry.broadcast("s", number, durable=True)
            async with registry.open_inbox("s") as inbox:
                assert await anext(inbox) == number
                await registry.add_session("s", FakeTransport())
        await trio.testing.wait_all_tasks_blocked()
        kept = registry._house.messages._inboxes.get("s")
        assert kept is not None
        assert len(kept.held) == 0


# ---- taking over ----


async def test_what_waits_is_fetched_when_the_row_is_this_workers(everywhere: Shared) -> None:
    """An inbox may be opened before: the session is usable at once."""
    store = GatedStore(everywhere.make_store())
    async with (
        everywhere.open() as a,
        everywhere.open(store=store) as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "waits", durable=True)
        gate = store.hold("Claim")
        nursery.start_soon(b.add_session, "s", FakeTransport())
        await gate.reached.wait()
        consumer = Consumer(b, "s")
        nursery.start_soon(consumer.run)
        await trio.sleep(0.1)
        assert consumer.received == []
        gate.open()
        assert await consumer.until(1) == ["waits"]
        nursery.cancel_scope.cancel()


async def test_a_session_added_while_a_message_is_sent_to_it_is_found(everywhere: Shared) -> None:
    """The row was another worker's when the sending began."""
    store = GatedStore(everywhere.make_store())
    async with (
        everywhere.open() as a,
        everywhere.open(store=store) as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        gate = store.hold("Send")
        nursery.start_soon(b.broadcast, "s", 1)
        await gate.reached.wait()
        nursery.start_soon(b.add_session, "s", FakeTransport())
        while await b.get_session("s") is None:
            await trio.lowlevel.checkpoint()
        gate.open()
        assert await read(b, "s", 1) == [1]


async def test_what_the_older_holder_sends_on_is_not_overtaken(everywhere: Shared) -> None:
    """By what it sends while the session is leaving."""
    store = GatedStore(everywhere.make_store())
    async with (
        everywhere.open(store=store) as a,
        everywhere.open() as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        for number in range(3):
            await a.broadcast("s", number)
        await b.add_session("s", FakeTransport())
        gate = store.hold("Send")
        nursery.start_soon(a.cleanup)
        await gate.reached.wait()
        nursery.start_soon(a.broadcast, "s", 3)
        await everywhere.settle()
        assert everywhere.backdoor.messages() == []
        gate.open()
        assert await read(b, "s", 4) == [0, 1, 2, 3]


# ---- a full memory ----


async def test_a_bell_that_rings_while_memory_is_full_is_not_forgotten(
    everywhere: Shared,
) -> None:
    """What it rang for is fetched when there is room."""
    async with everywhere.open() as a, everywhere.open() as b, trio.open_nursery() as nursery:
        await a.add_session("s", FakeTransport())
        consumer = Consumer(a, "s")
        consumer.may_go_on = trio.Event()
        nursery.start_soon(consumer.run)
        for number in range(MOST + 1):
            await a.broadcast("s", number)
            await consumer.until(1)  # the first one is out of the inbox
        assert a.statistics().messages_in_memory == MOST
        await b.broadcast("s", "from elsewhere")
        await trio.sleep(0.2)  # the bell rings
        consumer.may_go_on.set()
        received = await consumer.until(MOST + 2)
        assert "from elsewhere" in received
        assert [one for one in received if one != "from elsewhere"] == list(range(MOST + 1))
        nursery.cancel_scope.cancel()


# ---- a store that is away, silent, or refuses ----


async def test_a_silent_database_does_not_hold_back_what_is_in_memory() -> None:
    """Older messages might be in it, so it is waited for, but not for long."""
    shared = MemoryStore()
    store = FaultyStore(shared)
    async with open_registry(store) as a, open_registry(shared) as b:
        await a.add_session("s", FakeTransport())
        await b.broadcast("s", "row")
        await a.broadcast("s", "memory")
        store.fail(Fault.HANGS)
        with trio.fail_after(40):
            async with a.open_inbox("s") as inbox:
                assert await anext(inbox) == "memory"
                await a.broadcast("s", "more")
                assert await anext(inbox) == "more"
        assert store.calls["fetch"] + store.calls["waiting"] > 0
        store.heal()


async def test_a_refused_message_does_not_hold_back_others(everywhere: Shared) -> None:
    """One that the database would not take: those in memory need no database."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail()
        with pytest.raises(StoreUnavailable):
            await registry.broadcast("s", "durable", durable=True)
        await registry.broadcast("s", "memory")
        assert await read(registry, "s", 1) == ["memory"]


@pytest.mark.parametrize("reads", [False, True])
async def test_what_follows_a_message_that_is_being_stored_does_not_overtake_it(
    everywhere: Shared,
    reads: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """It goes behind it, through the store; what was in memory before goes out all the same."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        consumer = Consumer(registry, "s")
        if reads:
            nursery.start_soon(consumer.run)
            await registry.broadcast("s", 0)
            await consumer.until(1)
        await registry.broadcast("s", 1)
        gate = store.hold("Send")
        nursery.start_soon(partial(registry.broadcast, "s", 2, durable=True))
        await gate.reached.wait()
        nursery.start_soon(registry.broadcast, "s", 3)
        await everywhere.settle()
        if reads:
            assert await consumer.until(2) == [0, 1]
        else:
            nursery.start_soon(consumer.run)
            await everywhere.settle()
        gate.open()
        assert (await consumer.until(3 + reads))[-3:] == [1, 2, 3]
        nursery.cancel_scope.cancel()


async def test_what_follows_a_message_that_is_being_stored_when_its_session_comes_here(
    everywhere: Shared,
) -> None:
    """It was sent to another worker's session."""
    store = GatedStore(everywhere.make_store())
    async with (
        everywhere.open() as a,
        everywhere.open(store=store) as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        gate = store.hold("Send")
        nursery.start_soon(b.broadcast, "s", 1)
        await gate.reached.wait()
        nursery.start_soon(b.add_session, "s", FakeTransport())
        await everywhere.settle()
        nursery.start_soon(b.broadcast, "s", 2)
        await everywhere.settle()
        gate.open()
        assert await read(b, "s", 2) == [1, 2]


async def test_a_sender_that_leaves_while_there_is_no_room_leaves_nothing_behind(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows goes to memory again."""
    monkeypatch.setattr("trio_sessions._writer._ROOM", (1, 1000))
    store = GatedStore(MemoryStore())
    async with open_registry(store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        fetching = store.hold_answer("fetch")
        async with registry.open_inbox("s"):
            await fetching.reached.wait()
            await registry.broadcast("s", 1)
            with trio.move_on_after(1) as scope:  # its row might be found before its id is known
                async with trio.open_nursery() as senders:
                    senders.start_soon(partial(registry.broadcast, "s", 2, durable=True))
                    await trio.testing.wait_all_tasks_blocked()
                    storing = store.hold("Send")
                    for _ in range(2):
                        nursery.start_soon(registry.broadcast, "elsewhere", 0)
                        await trio.testing.wait_all_tasks_blocked()
                    fetching.open()
            assert scope.cancelled_caught
            assert storing.reached.is_set()
            nursery.cancel_scope.cancel()
            storing.open()
        with trio.CancelScope(shield=True):
            await trio.testing.wait_all_tasks_blocked()
            assert registry._house.messages.accept("s", "3")


async def test_a_message_whose_row_is_found_before_its_id_is_known_stays_in_order(
    everywhere: Shared,
) -> None:
    """An inbox that is opened meanwhile takes it for one that was there before those in memory."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1)
        gate = store.hold_answer("Send")
        nursery.start_soon(partial(registry.broadcast, "s", 2, durable=True))
        await gate.reached.wait()
        consumer = Consumer(registry, "s")
        nursery.start_soon(consumer.run)
        with trio.fail_after(40):
            while not store.calls["fetch"]:
                await trio.sleep(0.005)
        await everywhere.settle()
        gate.open()
        assert await consumer.until(2) == [1, 2]
        nursery.cancel_scope.cancel()


class RefusesOne(MemoryStore):
    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        claims = [one for _, one in batch.of(Claim)]
        if self.operation == "Claim" and any(one.session_id == "bad" for one in claims):
            raise RowUnavailable("refused by a trigger")
        return await super().commit(worker, batch)

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        if self.operation == "fetch" and any(one.session_id == "bad" for one in wanted):
            raise StoreUnavailable("statement timeout")
        return await super().fetch(worker, wanted)


@pytest.mark.parametrize("operation", ["fetch", "Claim"])
async def test_one_session_that_the_store_refuses_does_not_starve_the_others(
    autojump_clock: MockClock, operation: str
) -> None:
    """Its messages cannot be fetched, or its row cannot be written: they are fetched without it."""
    store = RefusesOne(operation)
    async with (
        open_registry(store) as a,
        open_registry(store) as b,
        trio.open_nursery() as nursery,
    ):
        consumers = {}
        for name in ("bad", *(f"good {number}" for number in range(50))):
            await a.add_session(name, FakeTransport())
            consumers[name] = Consumer(a, name)
            nursery.start_soon(consumers[name].run)
        await trio.sleep(60)
        for name in consumers:
            with contextlib.suppress(SessionNotFound):  # the one without a row
                await b.broadcast(name, name)
        await trio.sleep(15)
        assert [name for name in consumers if not consumers[name].received] == ["bad"]
        nursery.cancel_scope.cancel()


# ---- what is counted ----


async def test_an_expired_message_with_a_row_is_counted_once(autojump_clock: MockClock) -> None:
    """The sweep counts the row; its copy in memory is no other message."""
    store = MemoryStore()
    async with open_registry(store, message_ttl=10.0) as a, open_registry(store) as b:
        await a.add_session("s", FakeTransport())
        async with a.open_inbox("s"):
            for number in range(3):
                await b.broadcast("s", number)
            await trio.sleep(1)
            assert a.statistics().messages_in_memory == 3
            await trio.sleep(10)
            await a.cleanup()
            assert a.statistics().messages_in_memory == 0
            assert a.statistics().messages_dropped == 3
            await a.cleanup()
            assert a.statistics().messages_dropped == 3
        inbox = a._house.messages._inboxes.get("s")
        assert inbox is not None
        assert len(inbox.held) == 0


async def test_what_is_dropped_between_two_passes_is_logged_by_the_next(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """Once."""
    async with shared.open() as registry:
        await registry.add_session("s", FakeTransport())
        for number in range(3):
            await registry.broadcast("s", number, durable=number == 0)
        await registry.remove_session("s")
        for _ in range(2):
            await registry.cleanup()
        assert caplog.text.count("3 messages were dropped") == 1


async def test_a_worker_that_reads_nothing_keeps_nothing_of_removed_sessions() -> None:
    """It only sends: no loop empties what is wanted."""
    async with open_registry() as registry:
        for number in range(20):
            await registry.add_session(f"s{number}", FakeTransport())
            await registry.broadcast(f"s{number}", 1, durable=True)
            await registry.remove_session(f"s{number}")
        assert not registry._house.messages._reading._wanted
        with pytest.raises(SessionNotFound):
            await registry.broadcast("s0", 1)


# ---- older rows and memory ----


@pytest.mark.parametrize(("rows", "memory"), [(200, 150), (5, 100), (60, 60)])
async def test_what_was_sent_before_a_takeover_comes_first(
    everywhere: Shared, rows: int, memory: int
) -> None:
    """The sender has become the holder: its rows are older than what it has in memory."""
    async with everywhere.open() as a, everywhere.open() as b:
        await b.add_session("s", FakeTransport())
        for number in range(rows):
            await a.broadcast("s", number)
        await a.add_session("s", FakeTransport())
        for number in range(rows, rows + memory):
            await a.broadcast("s", number)
        assert await read(a, "s", rows + memory) == list(range(rows + memory))


class TakesItsTime(MemoryStore):
    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        await trio.sleep(0.7)
        return await super().fetch(worker, wanted)


async def test_a_slow_consumer_does_not_make_memory_overtake_rows(
    autojump_clock: MockClock,
) -> None:
    """Patience is for a store that is silent, and not for a consumer that is busy."""
    store = TakesItsTime()
    async with open_registry(store) as a, open_registry(store) as b:
        await b.add_session("s", FakeTransport())
        for number in range(300):
            await a.broadcast("s", number)
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", 300)
        received: list[Any] = []
        async with a.open_inbox("s") as inbox:
            async for message in inbox:
                received.append(message)
                await trio.sleep(1.2)
                if len(received) == 301:
                    break
        assert received == list(range(301))


async def test_looking_for_older_rows_is_bounded(everywhere: Shared) -> None:
    """Also when memory is full of younger ones."""
    async with everywhere.open(max_message_bytes=1000) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        for _ in range(2):
            await a.broadcast("s", "y" * 600)
        for _ in range(20):
            await b.broadcast("s", "x" * 900)
        async with a.open_inbox("s"):
            await trio.sleep(0.3)
            assert a.statistics().messages_in_memory <= 4


async def test_no_busy_loop_while_something_is_being_stored(everywhere: Shared) -> None:
    """What is found cannot be placed yet: it is asked for once."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1)
        await registry.broadcast("s", 2, durable=True)
        gate = store.hold_answer("Send")
        nursery.start_soon(partial(registry.broadcast, "s", 3, durable=True))
        await gate.reached.wait()
        consumer = Consumer(registry, "s")
        nursery.start_soon(consumer.run)
        await trio.sleep(0.3)
        assert store.calls["fetch"] <= 2
        gate.open()
        assert await consumer.until(3) == [1, 2, 3]
        nursery.cancel_scope.cancel()


# ---- the next session of the same id ----


@pytest.mark.parametrize("hindrance", ["the delete fails", "the transport is slow"])
async def test_nothing_of_a_removed_session_is_the_next_ones(
    everywhere: Shared, hindrance: str
) -> None:
    """Neither messages, nor the owner, nor capabilities; although its row is still there."""
    store = FaultyStore(everywhere.make_store())
    transport = SlowTransport()
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", transport)
        await registry.set_session_owner("s", "alice")
        await registry.store_client_capabilities("s", {"elicitation": {}})
        await registry.broadcast("s", "of the removed one", durable=True)
        if hindrance == "the delete fails":
            transport.may_end.set()
            store.fail(Fault.FAILS, "Delete")
            await registry.remove_session("s")
            assert store.faults["Delete"] == 1
            store.heal()
        else:
            nursery.start_soon(registry.remove_session, "s")
            await transport.is_ending.wait()
        with pytest.raises(SessionNotFound):
            await registry.broadcast("s", "between the two")
        store.fail(Fault.FAILS, "Claim", "Delete")
        await registry.add_session("s", FakeTransport())
        assert store.faults["Claim"] >= 1
        with trio.move_on_after(0.2):
            async with registry.open_inbox("s") as inbox:
                raise AssertionError(f"it read {await anext(inbox)}")
        store.heal()
        assert await registry.get_session_owner("s") is None
        assert await registry.get_client_capabilities("s") is None
        assert await registry.get_elicitation_capable_sessions() == []
        assert await registry.claim_session_owner("s", "bob") == "bob"
        transport.may_end.set()
        await registry.broadcast("s", "of the next one")
        assert await read(registry, "s", 1) == ["of the next one"]
        assert registry.statistics().messages_dropped == 1
        await registry.cleanup()
        assert await registry.get_session_owner("s") == "bob"


# ---- there and back ----


async def test_a_client_that_comes_back_gets_nothing_twice(everywhere: Shared) -> None:
    """From a to b, and to a again before a has noticed: b has handled what a had fetched."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        async with a.open_inbox("s"):
            for number in range(3):
                await b.broadcast("s", number)
            with trio.fail_after(40):
                while a.statistics().messages_in_memory < 3:
                    await trio.sleep(0.005)
        await b.add_session("s", FakeTransport())
        assert await read(b, "s", 3) == [0, 1, 2]
        with trio.fail_after(40):
            while everywhere.backdoor.messages():
                await trio.sleep(0.005)
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", 3)
        assert await read(a, "s", 1) == [3]


async def test_the_older_holder_takes_nothing_away_from_the_next(everywhere: Shared) -> None:
    """It has fetched rows, and goes on with them for a transport that is gone."""
    async with everywhere.open() as a, everywhere.open() as b, trio.open_nursery() as nursery:
        await a.add_session("s", FakeTransport())
        old = Consumer(a, "s")
        old.may_go_on = trio.Event()
        nursery.start_soon(old.run)
        for number in range(5):
            await b.broadcast("s", number)
        await old.until(1)
        await b.add_session("s", FakeTransport())
        old.may_go_on.set()
        await trio.sleep(0.1)
        assert await read(b, "s", 5) == [0, 1, 2, 3, 4]
        nursery.cancel_scope.cancel()


async def test_a_row_that_is_still_unwritten_is_written_for_its_reader(
    everywhere: Shared,
) -> None:
    """The database was away when the session was added; the next pass may be far."""
    store = FaultyStore(everywhere.make_store())
    async with (
        everywhere.open() as a,
        everywhere.open(store=store) as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", 1, durable=True)
        store.fail(Fault.FAILS, "Claim")
        await b.add_session("s", FakeTransport())
        await b.broadcast("s", 2)
        consumer = Consumer(b, "s")
        nursery.start_soon(consumer.run)
        assert await consumer.until(1) == [2]  # what is in memory does not wait
        store.heal()
        assert await consumer.until(2) == [2, 1]
        await a.broadcast("s", 3, durable=True)
        assert await consumer.until(3) == [2, 1, 3]
        nursery.cancel_scope.cancel()


async def test_a_message_whose_handler_removes_the_session_was_handled(
    everywhere: Shared,
) -> None:
    """It does not count as dropped."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", "bye", durable=True)
        async with registry.open_inbox("s") as inbox:
            assert await anext(inbox) == "bye"
            await registry.remove_session("s")
        assert registry.statistics().messages_dropped == 0


async def test_a_message_whose_handler_fails_after_the_removal_was_dropped(
    everywhere: Shared,
) -> None:
    """It was acknowledged with the session, and nobody will deliver it once more."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", "bye", durable=True)
        with pytest.raises(ZeroDivisionError):
            async with registry.open_inbox("s") as inbox:
                assert await anext(inbox) == "bye"
                await registry.remove_session("s")
                raise ZeroDivisionError
        assert registry.statistics().messages_dropped == 1


# ---- writes and deletions under way ----


async def test_deletions_that_overlap_are_both_counted(everywhere: Shared) -> None:
    """The messages of one removed session, and of another one."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        for session_id in ("a", "b"):
            await registry.add_session(session_id, FakeTransport())
            await registry.broadcast(session_id, 1, durable=True)
        gate = store.hold_answer("Delete")
        nursery.start_soon(registry.remove_session, "a")
        await gate.reached.wait()
        nursery.start_soon(registry.remove_session, "b")
        await everywhere.settle()
        gate.open()
        with trio.fail_after(40):
            while registry.statistics().messages_dropped < 2:
                await trio.sleep(0.005)


async def test_a_row_that_a_removed_session_is_still_writing_is_not_the_next_ones(
    everywhere: Shared,
) -> None:
    """It lands when the id has been added again, with the owner of the removed one."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        store.fail(Fault.FAILS, "Claim")
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "alice")
        store.heal()
        gate = store.hold("Claim")
        nursery.start_soon(registry.cleanup)
        await gate.reached.wait()
        nursery.start_soon(registry.remove_session, "s")
        while await registry.get_session("s") is not None:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(registry.add_session, "s", FakeTransport())
        await everywhere.settle()
        gate.open()
        with trio.fail_after(40):
            while registry.statistics().unconfirmed or not registry.statistics().sessions:
                await trio.sleep(0.005)
        assert await registry.get_session_owner("s") is None
        assert registry.statistics().sessions == 1
        assert (await registry.cleanup()).missing == ()


async def test_an_owner_set_for_a_session_that_has_moved_is_not_kept_here(
    everywhere: Shared,
) -> None:
    """The row was still unwritten when another worker took the session over."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        store.fail(Fault.FAILS, "Claim")
        await a.add_session("s", FakeTransport())
        store.heal()
        await trio.sleep(0.3)  # far more than a busy machine needs to send a claim off
        await b.add_session("s", FakeTransport())
        await a.set_session_owner("s", "alice")
        assert await b.get_session_owner("s") == "alice"
        await b.set_session_owner("s", "bob")
        assert await a.get_session_owner("s") == "bob"
        await a.add_session("s", FakeTransport())
        assert await a.get_session_owner("s") == "bob"


async def test_a_message_that_is_stored_while_its_session_is_removed_is_not_the_next_ones(
    everywhere: Shared,
) -> None:
    """It was sent to the one that was removed, and goes with that one's row."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        gate = store.hold("Send")

        async def send() -> None:
            with pytest.raises(SessionNotFound):
                await registry.broadcast("s", 1, durable=True)

        nursery.start_soon(send)
        await gate.reached.wait()
        nursery.start_soon(registry.remove_session, "s")
        while await registry.get_session("s") is not None:
            await trio.lowlevel.checkpoint()
        await everywhere.settle()
        gate.open()
        with pytest.raises(SessionNotFound):
            await registry.broadcast("s", 3)
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 4)
        assert await read(registry, "s", 1) == [4]
        assert registry.statistics().messages_dropped == 1


async def test_a_reader_that_opens_before_the_takeover_is_written_keeps_the_order(
    everywhere: Shared,
) -> None:
    """What this worker sent to the older holder comes before what it has in memory."""
    store = GatedStore(everywhere.make_store())
    async with (
        everywhere.open(store=store) as a,
        everywhere.open() as b,
        trio.open_nursery() as nursery,
    ):
        await b.add_session("s", FakeTransport())
        for number in (1, 2):
            await a.broadcast("s", number)
        gate = store.hold("Claim")
        nursery.start_soon(a.add_session, "s", FakeTransport())
        await gate.reached.wait()
        consumer = Consumer(a, "s")
        nursery.start_soon(consumer.run)
        await a.broadcast("s", 3)
        await trio.sleep(0.1)
        gate.open()
        assert await consumer.until(3) == [1, 2, 3]
        nursery.cancel_scope.cancel()


async def test_what_could_not_be_sent_on_is_sent_on_by_closing(everywhere: Shared) -> None:
    """The database was away during the pass that noticed the move."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open() as b:
        async with everywhere.open(store=store) as a:
            await a.add_session("s", FakeTransport())
            await a.broadcast("s", 1)
            await b.add_session("s", FakeTransport())
            store.fail(Fault.FAILS, "Send")
            await a.cleanup()
            store.heal()
        assert await read(b, "s", 1) == [1]


async def test_a_local_message_is_not_starved_by_those_of_others(autojump_clock: MockClock) -> None:
    """Rows that come later do not go before it for ever."""
    store = MemoryStore()
    async with (
        open_registry(store) as a,
        open_registry(store) as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        received: list[tuple[float, Any]] = []

        async def consume() -> None:
            async with a.open_inbox("s") as inbox:
                async for message in inbox:
                    received.append((trio.current_time(), message))
                    await trio.sleep(0.1)

        async def flood() -> None:
            while True:
                await b.broadcast("s", "flood")
                await trio.sleep(0.095)

        nursery.start_soon(consume)
        nursery.start_soon(flood)
        await trio.sleep(30)
        start = trio.current_time()
        await a.broadcast("s", "local")
        await trio.sleep(30)
        [moment] = [moment for moment, message in received if message == "local"]
        assert moment - start < 10
        nursery.cancel_scope.cancel()


async def test_a_local_message_is_not_starved_by_a_backlog_that_grows(
    autojump_clock: MockClock,
) -> None:
    """Its reader never catches up; what was stored before the message goes first, no more."""
    store = MemoryStore()
    async with (
        open_registry(store) as a,
        open_registry(store) as b,
        trio.open_nursery() as nursery,
    ):
        await b.add_session("s", FakeTransport())
        for number in range(300):
            await a.broadcast("s", number)
        await a.add_session("s", FakeTransport())
        received: list[Any] = []

        async def consume() -> None:
            async with a.open_inbox("s") as inbox:
                async for message in inbox:
                    received.append(message)
                    await trio.sleep(0.1)

        async def flood() -> None:
            while True:
                await b.broadcast("s", "flood")
                await trio.sleep(0.05)

        nursery.start_soon(consume)
        nursery.start_soon(flood)
        await trio.sleep(12)
        assert a.statistics().messages_in_memory < 100, "it would become a row"
        await a.broadcast("s", 300)
        await a.broadcast("s", 301)
        start = trio.current_time()
        await trio.sleep(120)
        assert received.count("flood") > 300, "the reader has caught up"
        assert [one for one in received if one != "flood"] == list(range(302))
        behind = received.index(300)
        assert behind < 300 + (start + 1) / 0.05
        nursery.cancel_scope.cancel()


async def test_what_was_fetched_for_the_older_transport_comes_before_what_is_sent_later(
    everywhere: Shared,
) -> None:
    """It is fetched again for the next one, whose inbox is not open yet."""
    async with everywhere.open() as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        old = Consumer(registry, "s")
        old.may_go_on = trio.Event()
        nursery.start_soon(old.run)
        for number in range(2):
            await registry.broadcast("s", number, durable=True)
        await old.until(1)
        with trio.fail_after(40):
            while registry.statistics().messages_in_memory < 1:
                await trio.sleep(0.005)
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 2)
        assert await read(registry, "s", 2) == [1, 2]
        old.may_go_on.set()


async def test_a_removal_and_an_addition_in_an_outage_drop_what_others_send_meanwhile(
    everywhere: Shared,
) -> None:
    """The row that they send it to is still that of the removed session."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "memory")
        await b.broadcast("s", "row")
        store.fail()
        await a.remove_session("s")
        await a.add_session("s", FakeTransport())
        await b.broadcast("s", "meanwhile")
        store.heal()
        await a.cleanup()
        await b.broadcast("s", "new")
        assert await read(a, "s", 1) == ["new"]
        assert a.statistics().messages_dropped == 3
        assert a.statistics().messages_in_memory == 0


class SlowFetch(FaultyStore):
    """Takes half a second for each fetch."""

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        await trio.sleep(0.5)
        return await super().fetch(worker, wanted)


async def test_what_waits_at_the_door_is_not_overtaken(autojump_clock: MockClock) -> None:
    """A message that may not go to the store yet is called earlier all the same."""
    store = SlowFetch(MemoryStore())
    async with open_registry(store) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 0)  # before the inbox is open: early
        got: list[object] = []

        async def read_all() -> None:
            async with registry.open_inbox("s") as inbox:
                async for message in inbox:
                    got.append(message)

        nursery.start_soon(read_all)
        await trio.sleep(0.1)  # it is being fetched
        nursery.start_soon(partial(registry.broadcast, "s", 1, durable=True))
        await trio.testing.wait_all_tasks_blocked()
        await registry.broadcast("s", 2)
        await trio.sleep(5)
        assert got == [0, 1, 2]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [1, 600])
async def test_a_full_memory_does_not_keep_a_copy_from_being_looked_at_again(
    autojump_clock: MockClock, size: int
) -> None:
    """A row whose session may have moved is fetched once more before it goes out."""
    shared = MemoryStore()
    store = FaultyStore(shared)
    async with (
        open_registry(store, max_message_bytes=1000) as a,
        open_registry(shared) as b,
        trio.open_nursery() as nursery,
    ):
        transport = FakeTransport()
        await a.add_session("s", transport)
        for row in ("r1", "r2"):
            await b.broadcast("s", row)
        for _ in range(2 if size > 1 else MOST):
            await a.broadcast("s", "m" * size)
        got: list[object] = []

        async def read_all() -> None:
            async with a.open_inbox("s") as inbox:
                async for message in inbox:
                    got.append(message)
                    if message == "r1":
                        await trio.sleep(5)

        nursery.start_soon(read_all)
        await trio.sleep(2)
        assert got == ["r1"]
        store.fail(Fault.FAILS, "Claim")
        await a.add_session("s", transport)
        assert store.faults["Claim"] == 1
        store.heal()
        assert (await a.cleanup()).restored == ("s",)
        await trio.sleep(10)
        assert got[:3] == ["r1", "r2", "m" * size]
        assert a.statistics().messages_in_memory == 0
        nursery.cancel_scope.cancel()
