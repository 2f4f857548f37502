"""Messages while writes and deletions of their session are under way."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Shared
from gates import GatedStore
from readers import Consumer, read, reading
from trio.testing import MockClock

from trio_sessions import (
    SessionNotFound,
    open_registry,
)
from trio_sessions._messages._fetching import MOST
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import StoredMessage, Wanted
from trio_sessions.writes import Batch, Committed, Send


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
    everywhere: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this worker sent to the older holder comes before what it has in memory."""
    # However busy the machine is, the store does not count as silent.
    monkeypatch.setattr("trio_sessions._messages._fetching.PATIENCE", 60.0)
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


@pytest.mark.usefixtures("nothing_in_between")
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


class CountsSends(FaultyStore):
    """Notes how many messages each batch has."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.sends: list[int] = []

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        self.sends.append(len(list(batch.of(Send))))
        return committed


async def test_senders_wait_outside_while_much_waits(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded, however many send while the store is slow; all arrive, in order."""
    monkeypatch.setattr("trio_sessions._writer._ROOM", (2, 1_000_000))
    store = CountsSends(MemoryStore())
    async with open_registry(store) as registry, reading(registry, "s") as reader:
        store.pause()
        async with trio.open_nursery() as nursery:
            for number in range(7):
                nursery.start_soon(partial(registry.broadcast, "s", number, durable=True))
                await trio.testing.wait_all_tasks_blocked()
            store.resume()
        assert sum(store.sends) == 7
        assert max(store.sends) <= 2
        await reader.until(7)
        assert reader.received == {"s": list(range(7))}
