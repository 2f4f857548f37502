"""Messages while the store is away, silent, or refuses; and what is counted."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial

import pytest
import trio
import trio.testing
from conftest import Shared
from gates import GatedStore
from readers import Consumer, read
from trio.testing import MockClock

from trio_sessions import (
    RowUnavailable,
    SessionNotFound,
    StoreUnavailable,
    open_registry,
)
from trio_sessions._messages._fetching import MOST
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import StoredMessage, Wanted
from trio_sessions.writes import Batch, Claim, Committed

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


@pytest.mark.usefixtures("nothing_in_between")
@pytest.mark.parametrize("fault", [Fault.FAILS, Fault.COMMITS_THEN_FAILS])
async def test_what_was_in_memory_is_forwarded_once(everywhere: Shared, fault: Fault) -> None:
    """Its answer was lost, twice: the beats say whether it was stored all the same."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "once")
        await b.add_session("s", FakeTransport())
        store.fail(fault, "Send")
        for _ in range(2):
            await a.cleanup()
        assert store.faults["Send"] >= 1
        store.heal()
        for _ in range(2):
            await a.cleanup()
        await b.broadcast("s", "last", durable=True)
        assert await read(b, "s", 2) == ["once", "last"]
        assert a.statistics().messages_dropped == (fault is Fault.COMMITS_THEN_FAILS)
