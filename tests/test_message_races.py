"""Messages while something else happens: nothing is lost, doubled, or read by the wrong one."""

import pytest
import trio
import trio.testing
from conftest import Shared
from gates import GatedStore
from readers import Consumer, read

from trio_sessions import (
    open_registry,
)
from trio_sessions.testing import FakeTransport

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
