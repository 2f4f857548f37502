"""Messages to a session from any worker: delivered, in order, at least once; on every store."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from conftest import Shared
from readers import no_row_is_left, read
from trio.testing import MockClock

from trio_sessions import (
    SessionNotFound,
    open_registry,
)
from trio_sessions.abc import Bell, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5,
    "",
    "ü🦑\0",
    [],
    {},
    {"a": [1, {"b": None}]},
    "x" * 10_000,
    [1 << 64, -(1 << 70), {"n": (1 << 63) - 1}, 10**18, 1.5e300],
]

# ---- delivery ----


async def test_a_local_message_goes_straight_to_the_inbox(everywhere: Shared) -> None:
    """Any JSON value, in order, and without a row."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        for value in VALUES:
            await registry.broadcast("s", value)
        assert registry.statistics().messages_in_memory == len(VALUES)
        assert await read(registry, "s", len(VALUES)) == VALUES
        assert store.calls["Send"] == store.calls["Acknowledge"] == 0
        assert registry.statistics().messages_in_memory == 0


async def test_a_message_reaches_a_session_of_another_worker(everywhere: Shared) -> None:
    """While its inbox is open, and also before; rows go when they are acknowledged."""
    async with everywhere.open(worker_id="a") as a, everywhere.open(worker_id="b") as b:
        await a.add_session("s", FakeTransport())
        for value in VALUES:
            await b.broadcast("s", value)
        assert everywhere.backdoor.messages() == ["s"] * len(VALUES)
        assert await read(a, "s", len(VALUES)) == VALUES
        await no_row_is_left(everywhere)
        received = []
        with trio.fail_after(40):
            async with a.open_inbox("s") as inbox:
                for number in range(5):
                    await b.broadcast("s", number)
                    received.append(await anext(inbox))
        assert received == [0, 1, 2, 3, 4]
        await no_row_is_left(everywhere)


async def test_a_durable_message_has_a_row_also_here(everywhere: Shared) -> None:
    """And it stays in order with those that have none."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1)
        await registry.broadcast("s", 2, durable=True)
        await registry.broadcast("s", 3)
        assert "s" in everywhere.backdoor.messages()
        assert await read(registry, "s", 3) == [1, 2, 3]
        await no_row_is_left(everywhere)
        await registry.broadcast("s", 4)
        assert await read(registry, "s", 1) == [4]


async def test_identical_messages_are_as_many_messages(everywhere: Shared) -> None:
    """Older fault: messages were acknowledged by their text."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        for registry in (a, b, a, b):
            await registry.broadcast("s", "same")
        assert await read(a, "s", 4) == ["same"] * 4
        await no_row_is_left(everywhere)


async def test_no_session_gets_the_message_of_another(everywhere: Shared) -> None:
    """Older fault: one slot for all messages."""
    async with everywhere.open() as a, everywhere.open() as b:
        ids = [f"s{number}" for number in range(10)]
        for session_id in ids:
            await a.add_session(session_id, FakeTransport())
        for number in range(30):
            for session_id in ids:
                sender = a if number % 2 else b
                await sender.broadcast(session_id, [session_id, number])
        for session_id in ids:
            received = await read(a, session_id, 30)
            assert {name for name, _ in received} == {session_id}
            for parity in (0, 1):  # in order of each sender
                numbers = [number for _, number in received if number % 2 == parity]
                assert numbers == list(range(parity, 30, 2))
        await no_row_is_left(everywhere)


async def test_each_delivery_is_a_fresh_value(everywhere: Shared) -> None:
    """Whoever gets it may change it, and the sender may go on with its own."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        message = {"list": [1]}
        await registry.broadcast("s", message)
        message["list"].append(2)
        with pytest.raises(KeyError):
            async with registry.open_inbox("s") as inbox:
                received: Any = await anext(inbox)
                received["list"].clear()
                raise KeyError
        assert await read(registry, "s", 1) == [{"list": [1]}]


# ---- acknowledging ----


@pytest.mark.parametrize("durable", [False, True])
async def test_a_message_that_was_not_finished_is_delivered_again(
    everywhere: Shared,
    durable: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """The block was left by an exception or cancelled: the next inbox begins with it."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        for number in range(3):
            await registry.broadcast("s", number, durable=durable)
        with pytest.raises(KeyError):
            async with registry.open_inbox("s") as inbox:
                assert await anext(inbox) == 0
                assert await anext(inbox) == 1
                raise KeyError
        with trio.CancelScope() as scope:
            async with registry.open_inbox("s") as inbox:
                assert await anext(inbox) == 1
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert await read(registry, "s", 2) == [1, 2]
        await no_row_is_left(everywhere)


async def test_what_is_put_back_is_counted_and_expires_like_all_others(
    autojump_clock: MockClock,
) -> None:
    """Also if a pass has found nothing in memory while its reader had it in hand."""
    async with open_registry(MemoryStore(), message_ttl=50.0) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1)
        with pytest.raises(KeyError):
            async with registry.open_inbox("s") as inbox:
                assert await anext(inbox) == 1
                await registry.cleanup()
                assert registry.statistics().messages_in_memory == 0
                raise KeyError
        assert registry.statistics().messages_in_memory == 1
        await trio.sleep(51.0)
        await registry.cleanup()
        statistics = registry.statistics()
        assert (statistics.messages_in_memory, statistics.messages_dropped) == (0, 1)


async def test_leaving_the_loop_acknowledges(everywhere: Shared) -> None:
    """`break` leaves the block normally."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        for number in range(3):
            await registry.broadcast("s", number, durable=True)
        async with registry.open_inbox("s") as inbox:
            async for message in inbox:
                if message == 1:
                    break
        assert await read(registry, "s", 1) == [2]
        await no_row_is_left(everywhere)


async def test_an_acknowledgement_that_fails_is_repeated(everywhere: Shared) -> None:
    """The message is not delivered again meanwhile."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1, durable=True)
        store.fail(Fault.FAILS, "Acknowledge")
        assert await read(registry, "s", 1) == [1]
        with trio.fail_after(40):
            while not store.faults["Acknowledge"]:
                await trio.sleep(0.01)
        await registry.broadcast("s", 2)
        assert await read(registry, "s", 1) == [2]
        store.heal()
        await no_row_is_left(everywhere)


async def test_when_a_worker_dies_the_next_holder_gets_what_was_not_acknowledged(
    everywhere: Shared,
) -> None:
    """Rows wait for it, read or not; what was only in the memory of the dead is gone."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open() as b:
        async with everywhere.open(store=store) as a:
            await a.add_session("s", FakeTransport())
            await b.broadcast("s", "row")
            await a.broadcast("s", "durable", durable=True)
            with trio.CancelScope() as scope:
                async with a.open_inbox("s") as inbox:
                    assert await anext(inbox) == "row"
                    store.fail()  # it dies: no acknowledgement, no farewell
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
        await b.add_session("s", FakeTransport())
        assert await read(b, "s", 2) == ["row", "durable"]
        await no_row_is_left(everywhere)


async def test_messages_go_on_to_the_transport_that_takes_over(everywhere: Shared) -> None:
    """Here those in memory too; the older consumer's iteration ends."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        old: list[Any] = []

        async def consume() -> None:
            async with registry.open_inbox("s") as inbox:
                async for message in inbox:
                    old.append(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            await registry.broadcast("s", 1)
            with trio.fail_after(40):
                while not old:
                    await trio.lowlevel.checkpoint()
            await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 2)
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 3)
        assert old == [1]
        assert await read(registry, "s", 2) == [2, 3]


async def test_what_the_older_holder_had_in_memory_follows_the_session(
    everywhere: Shared,
) -> None:
    """However it ends there: it is the session that has moved."""
    for ending in ("its pass", "its pass, disconnected", "removal", "closing"):
        async with everywhere.open() as b, AsyncExitStack() as closing:
            a = await closing.enter_async_context(everywhere.open())
            old = FakeTransport()
            await a.add_session("s", old)
            for number in range(3):
                await a.broadcast("s", number)
            await b.add_session("s", FakeTransport())
            await a.broadcast("s", 3)
            if ending == "removal":
                await a.remove_session("s")
            elif ending == "closing":
                await closing.aclose()
            else:
                old.state = "closed" if ending.endswith("disconnected") else "connected"
                await a.cleanup()
            assert a.statistics().messages_dropped == 0
            assert await read(b, "s", 4) == [0, 1, 2, 3]
            await no_row_is_left(everywhere)


async def test_what_cannot_follow_a_session_is_dropped_and_counted(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For nobody holds it any more, or the store cannot say who does."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b:
        gone = FakeTransport()
        for session_id in ("removed", "gone", "moved"):
            await a.add_session(session_id, gone if session_id == "gone" else FakeTransport())
            for number in range(3):
                await a.broadcast(session_id, number)
        await a.remove_session("removed")
        assert a.statistics().messages_dropped == 3
        gone.state = "closed"
        await a.cleanup()
        assert a.statistics().messages_dropped == 6
        await b.add_session("moved", FakeTransport())
        store.fail(Fault.FAILS, "Send")
        await a.cleanup()
        assert shared.backdoor.messages() == []
        store.heal()
        await a.cleanup()  # once more
        assert await read(b, "moved", 3) == [0, 1, 2]
        assert a.statistics().messages_dropped == 6
        monkeypatch.setattr("trio_sessions._messages._forwarding._UNSENT", 5)
        store.fail(Fault.FAILS, "Send")
        for number in range(6):
            await a.add_session("s", FakeTransport())
            await a.broadcast("s", number)
            await a.remove_session("s")
        assert a.statistics().messages_dropped == 7  # only so many are kept
        store.heal()


async def test_what_closing_cannot_send_on_is_counted() -> None:
    """The store takes no messages any more: who looks afterwards knows how many were lost."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        for session_id in ("s", "t"):
            await registry.add_session(session_id, FakeTransport())
            await registry.broadcast(session_id, "for nobody")
        store.fail(Fault.FAILS, "Send")
    assert store.faults["Send"] > 0
    assert registry.statistics().messages_dropped == 2


async def test_many_dead_sessions_cost_one_statement(shared: Shared) -> None:
    """Older fault: sessions were removed one by one."""
    store = FaultyStore(shared.make_store())
    transport = FakeTransport()
    async with shared.open(store=store) as registry:
        for number in range(200):
            await registry.add_session(f"s{number}", transport)
            await registry.broadcast(f"s{number}", 1)
        transport.state = "closed"
        assert len((await registry.cleanup()).disconnected) == 200
        assert store.calls["Send"] == store.calls["Delete"] == 1


async def test_what_was_handled_does_not_count_as_dropped(everywhere: Shared) -> None:
    """Although its row was still there when the session was removed."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        for number in range(3):
            await registry.add_session("s", FakeTransport())
            await registry.broadcast("s", number, durable=True)
            assert await read(registry, "s", 1) == [number]
            await registry.remove_session("s")
        assert registry.statistics().messages_dropped == 0


# ---- dropping ----


async def test_messages_are_dropped_with_their_session(everywhere: Shared) -> None:
    """Those in memory and those in rows, and they are counted."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "memory")
        await b.broadcast("s", "row")
        await a.remove_session("s")
        assert everywhere.backdoor.messages() == []
        assert a.statistics().messages_dropped == 2
        assert a.statistics().messages_in_memory == 0


async def test_messages_are_dropped_with_their_worker(
    everywhere: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """It closes its registry, and so its sessions have ended."""
    async with everywhere.open() as b:
        async with everywhere.open() as a:
            await a.add_session("s", FakeTransport())
            await a.broadcast("s", "memory")
            await b.broadcast("s", "row")
            await a.broadcast("s", "durable", durable=True)
        assert a.statistics().messages_dropped == 3
        assert caplog.text.count("3 messages were dropped") == 1
        assert everywhere.backdoor.messages() == []
        with pytest.raises(SessionNotFound):
            await b.broadcast("s", 1)


async def test_a_message_in_memory_that_is_too_old_is_not_handed_out(everywhere: Shared) -> None:
    """Nor is it kept: it goes when it would be handed out, or at the next pass."""
    async with everywhere.open(message_ttl=1.5) as registry:
        for session_id in ("read", "passed"):
            await registry.add_session(session_id, FakeTransport())
            await registry.broadcast(session_id, "old")
        await trio.sleep(1.6)
        await registry.broadcast("read", "young")
        assert await read(registry, "read", 1) == ["young"]
        assert registry.statistics().messages_dropped == 1
        await registry.cleanup()
        assert registry.statistics().messages_dropped == 2
        assert registry.statistics().messages_in_memory == 0


async def test_a_message_that_is_being_handled_is_not_taken_away_by_its_ttl(
    everywhere: Shared,
) -> None:
    """Only its row goes; not finished, one in memory is too old to be delivered again."""
    async with everywhere.open(message_ttl=1.5) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await b.broadcast("s", "row")
        with pytest.raises(KeyError):
            async with a.open_inbox("s") as inbox:
                with trio.fail_after(40):
                    assert await anext(inbox) == "row"
                    await trio.sleep(1.6)
                    await a.cleanup()
                    assert everywhere.backdoor.messages() == []
                    await a.broadcast("s", "memory")
                    assert await anext(inbox) == "memory"
                    await trio.sleep(1.6)
                raise KeyError
        await a.broadcast("s", "young")
        assert await read(a, "s", 1) == ["young"]


async def test_messages_older_than_their_ttl_are_dropped(
    everywhere: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """Older fault: `message_ttl` was never enforced. They are counted, and logged once a pass."""
    async with everywhere.open(message_ttl=60.0, batch_size=2) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        for number in range(5):
            await b.broadcast("s", number)
        everywhere.backdoor.age_messages(50.0)
        await a.cleanup()
        assert len(everywhere.backdoor.messages()) == 5
        everywhere.backdoor.age_messages(11.0)
        await b.broadcast("s", "young")
        await a.cleanup()
        assert everywhere.backdoor.messages() == ["s"]
        assert a.statistics().messages_dropped == 5
        assert caplog.text.count("5 messages were dropped") == 1
        assert await read(a, "s", 1) == ["young"]


async def test_messages_in_memory_are_dropped_by_their_ttl_too(autojump_clock: MockClock) -> None:
    """At the next pass, or when they would be handed out."""
    async with open_registry(message_ttl=10.0, session_ttl=1000.0, cleanup_interval=100.0) as r:
        await r.add_session("s", FakeTransport())
        await r.broadcast("s", "old")
        await r.broadcast("s", "old durable", durable=True)
        await trio.sleep(9)
        await r.broadcast("s", "young")
        await trio.sleep(2)
        assert await read(r, "s", 1) == ["young"]
        assert r.statistics().messages_dropped >= 1
        await r.broadcast("s", "old")
        await trio.sleep(120)
        assert r.statistics().messages_in_memory == 0
        assert r.statistics().messages_dropped == 3


async def test_expired_sessions_take_their_messages_with_them(everywhere: Shared) -> None:
    """Older fault: one undelivered message of an expired session made every sweep fail."""
    async with everywhere.open(session_ttl=60.0) as registry:
        everywhere.backdoor.insert("dead", "gone", age=61.0)
        await registry.broadcast("dead", 1)
        assert (await registry.cleanup()).expired == 1
        assert everywhere.backdoor.messages() == []
        assert everywhere.backdoor.rows() == {}


# ---- outages ----


async def test_the_reader_survives_every_outage_and_catches_up(everywhere: Shared) -> None:
    """Older fault: the loop ended for ever on the first error of the database."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        received: list[Any] = []

        async def consume() -> None:
            async with a.open_inbox("s") as inbox:
                async for message in inbox:
                    received.append(message)

        async def until(count: int) -> None:
            with trio.fail_after(40):
                while len(received) < count:
                    await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            await b.broadcast("s", 0)
            await until(1)
            for round_ in range(1, 3):
                store.fail(Fault.FAILS)
                await b.broadcast("s", round_)
                with trio.fail_after(40):
                    while not store.faults["fetch"] + store.faults["waiting"]:
                        await a.broadcast("s", "local")
                        await trio.sleep(0.02)
                store.heal()
                store.faults.clear()
                with trio.fail_after(40):
                    while round_ not in received:
                        await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert [m for m in received if m != "local"] == [0, 1, 2]


class DeafStore(FaultyStore):
    """Its bells never ring, as when each of them was lost."""

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        await trio.lowlevel.checkpoint()
        yield self

    async def wait(self) -> None:
        await trio.sleep_forever()


async def test_what_no_bell_rang_for_is_found_by_the_next_pass(everywhere: Shared) -> None:
    """The row is the truth, and the bell only a hint."""
    store = DeafStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        async with a.open_inbox("s") as inbox:
            with trio.fail_after(40):
                while not (store.calls["fetch"] and store.calls["waiting"]):
                    await trio.sleep(0.005)
            await trio.sleep(0.2)  # nothing tells that it looks no more
            for number in range(3):
                await b.broadcast("s", number)
            await trio.sleep(0.1)
            assert a.statistics().messages_in_memory == 0
            await a.cleanup()
            with trio.fail_after(40):
                assert [await anext(inbox) for _ in range(3)] == [0, 1, 2]


async def test_an_inbox_opened_in_an_outage_gives_what_is_in_memory() -> None:
    """And the rows when the database is back."""
    shared = MemoryStore()
    store = FaultyStore(shared)
    async with open_registry(store) as a, open_registry(shared) as b:
        await a.add_session("s", FakeTransport())
        await b.broadcast("s", "row")
        await a.broadcast("s", "memory")
        store.fail()
        with trio.fail_after(40):
            async with a.open_inbox("s") as inbox:
                assert await anext(inbox) == "memory"
                assert store.faults["fetch"] + store.faults["waiting"] > 0
                store.heal()
                assert await anext(inbox) == "row"
