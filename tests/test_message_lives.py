"""Messages of a session and of the next one of its id; rows, memory, and their order."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Shared
from gates import GatedStore
from readers import Consumer, read
from trio.testing import MockClock

from trio_sessions import (
    SessionNotFound,
    open_registry,
)
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import StoredMessage, Wanted


class SlowTransport(FakeTransport):
    """Disconnects when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.is_ending, self.may_end = trio.Event(), trio.Event()

    async def disconnect(self, reason: object = None) -> None:
        self.is_ending.set()
        await self.may_end.wait()


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
