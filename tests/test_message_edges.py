"""Messages at their edges: of whom they are, and what goes first, where little time tells it."""

import pytest
import trio
from conftest import Shared
from readers import read
from trio.testing import MockClock

from trio_sessions import open_registry
from trio_sessions._messages._inbox import Inbox, Message
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import StoredMessage

pytestmark = pytest.mark.usefixtures("nothing_in_between")


def make_inbox() -> Inbox:
    """Return an inbox that is read, and has nothing."""
    inbox = Inbox("s", size=1000, message_ttl=60.0, storing={})
    inbox.open("reader", 0.0)
    return inbox


def stored(row: int) -> StoredMessage:
    return StoredMessage(id=row, payload=f'"row {row}"', age=0.0)


def take(inbox: Inbox, now: float) -> str | None:
    """Take the next message, and finish it."""
    message = inbox.take("reader", now)
    if message is None:
        return None
    inbox.finish("reader")
    return message.payload


def test_what_is_stored_during_a_fetch_that_finds_nothing_still_waits() -> None:
    """What is accepted afterwards follows it, by the way of the store."""
    inbox = make_inbox()
    asked = inbox.ask(1000, 0.0)
    assert asked is not None
    inbox.note_row(5)
    inbox.answer(asked, [], 0.1)
    assert not inbox.accept('"later"', 0.2)
    assert inbox.should_fetch
    asked = inbox.ask(1000, 0.3)
    assert asked is not None
    inbox.answer(asked, [stored(5)], 0.4)
    assert inbox.accept('"later"', 0.5)
    assert [take(inbox, 0.6), take(inbox, 0.6), take(inbox, 0.6)] == ['"row 5"', '"later"', None]


def test_a_row_of_ones_own_that_was_fetched_waits_no_more() -> None:
    """However much of others still does: what is sent here needs no store."""
    inbox = make_inbox()
    inbox.note_row(5)
    asked = inbox.ask(10, 0.0)
    assert asked is not None
    assert not inbox.accept('"follows its row"', 0.1)
    inbox.answer(asked, [stored(4), stored(5)], 0.2)
    assert inbox.should_fetch, "there may be more"
    assert inbox.accept('"here"', 0.3)


@pytest.mark.parametrize("is_other", [True, False])
def test_what_was_in_hand_waits_for_the_claim(*, is_other: bool) -> None:
    """The session is added again while its reader has the only message: of whom is it?"""
    inbox = make_inbox()
    asked = inbox.ask(1000, 0.0)
    assert asked is not None
    inbox.answer(asked, [stored(5)], 0.1)
    message = inbox.take("reader", 0.2)
    assert isinstance(message, Message)
    inbox.add_again(detach=True, seal=True, until=10.0)
    assert inbox.put_back("reader") == 0
    inbox.open("reader", 0.3)
    assert take(inbox, 0.4) is None
    dropped = inbox.claimed(is_other=is_other, has_moved=False, now=0.5)
    assert (dropped == [message]) == is_other
    assert take(inbox, 5.0) == (None if is_other else message.payload)


async def test_what_was_in_memory_of_a_session_without_a_row_is_not_the_next_ones(
    shared: Shared,
) -> None:
    """Removed and added again in an outage: no birth tells the two apart, but whose row it is."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        store.fail()
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", "for the former")
        await registry.remove_session("s")
        await registry.add_session("s", FakeTransport())
        store.heal()
        for _ in range(2):
            await registry.cleanup()
        assert registry.statistics().messages_dropped == 1
        assert shared.backdoor.messages() == []
        await registry.broadcast("s", "for the new one")
        assert await read(registry, "s", 1) == ["for the new one"]


async def test_what_was_handled_elsewhere_is_not_delivered_where_the_session_comes_back(
    shared: Shared,
) -> None:
    """Also if the answer to the claim that has brought it back was lost."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as one, shared.open() as other:
        await one.add_session("s", FakeTransport())
        await other.broadcast("s", "1")
        with trio.fail_after(20):
            async with one.open_inbox("s"):
                while not one.statistics().messages_in_memory:
                    await trio.sleep(0.01)
        await other.add_session("s", FakeTransport())
        assert await read(other, "s", 1) == ["1"]
        with trio.fail_after(20):
            while shared.backdoor.messages():
                await trio.sleep(0.01)
        store.fail(Fault.COMMITS_THEN_FAILS, "Claim")
        await one.add_session("s", FakeTransport())
        assert store.faults["Claim"] == 1
        store.heal()
        assert (await one.cleanup()).restored == ("s",)
        await one.broadcast("s", "2")
        assert await read(one, "s", 1) == ["2"]


async def test_what_is_too_old_is_not_fetched_again_before_it_is_swept(
    autojump_clock: MockClock,
) -> None:
    """However many passes that takes; then it is counted, once."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, message_ttl=60.0) as registry:
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s"):
            for number in range(3):
                await registry.broadcast("s", number, durable=True)
            await trio.sleep(1)
            assert registry.statistics().messages_in_memory == 3
            await trio.sleep(60)
            store.fail(Fault.FAILS, "sweep")
            for _ in range(3):
                await registry.cleanup()
                await trio.sleep(1)
                assert registry.statistics().messages_in_memory == 0
            store.heal()
            await registry.cleanup()
        assert registry.statistics().messages_dropped == 3


async def test_what_is_sent_on_is_as_old_as_it_was(autojump_clock: MockClock) -> None:
    """``message_ttl`` counts from when it was accepted, wherever its session goes."""
    store = MemoryStore()
    async with (
        open_registry(store, message_ttl=100.0) as one,
        open_registry(store, message_ttl=100.0) as other,
    ):
        await one.add_session("s", FakeTransport())
        await one.broadcast("s", "old")
        await trio.sleep(90)
        await other.add_session("s", FakeTransport())
        assert (await one.cleanup()).taken_over == ("s",)
        [message] = store._rows["s"].messages.values()
        assert trio.current_time() - message.stored_at == pytest.approx(90)
        await trio.sleep(20)
        await other.cleanup()
        assert store._rows["s"].messages == {}
        assert other.statistics().messages_dropped == 1


async def test_a_fetch_that_failed_is_repeated(shared: Shared) -> None:
    """Nobody rings for the message once more, and the next pass is far."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as one, shared.open() as other:
        await one.add_session("s", FakeTransport())
        store.fail(Fault.FAILS, "fetch")
        with trio.fail_after(20):
            async with one.open_inbox("s") as inbox:
                await other.broadcast("s", 1)
                while not one.statistics().messages_in_memory and store.faults["fetch"] < 3:
                    await trio.sleep(0.01)
                store.heal()
                assert await anext(inbox) == 1
