"""Who gets no message, how many wait, and the loop that responds."""

import datetime as dt
import enum
import math
import types
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from conftest import Shared
from readers import no_row_is_left, read

from trio_sessions import (
    InvalidSessionId,
    MessageTooLarge,
    RegistryClosed,
    SessionNotFound,
    StoreUnavailable,
    open_registry,
)
from trio_sessions._messages._fetching import MOST
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore


class Kind(enum.Enum):
    ONE = 1


# ---- who gets none ----


async def test_a_session_that_nobody_holds_is_not_found(everywhere: Shared) -> None:
    """Confirmed by the database; also one that has been removed here."""
    async with everywhere.open() as registry:
        with pytest.raises(SessionNotFound):
            await registry.broadcast("nobody", 1)
        await registry.add_session("s", FakeTransport())
        await registry.remove_session("s")
        for durable in (False, True):
            with pytest.raises(SessionNotFound):
                await registry.broadcast("s", 1, durable=durable)
        assert everywhere.backdoor.messages() == []
        with pytest.raises(SessionNotFound):
            await read(registry, "s", 1)


async def test_a_session_removed_here_is_not_found_by_the_row_it_left(
    everywhere: Shared,
) -> None:
    """The database was away when it was removed."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail(Fault.FAILS, "Delete")
        await registry.remove_session("s")
        store.heal()
        assert set(everywhere.backdoor.rows()) == {"s"}
        with pytest.raises(SessionNotFound):
            await registry.broadcast("s", 1)
        await registry.cleanup()
        assert everywhere.backdoor.messages() == []


async def test_without_the_database_it_cannot_be_said(everywhere: Shared) -> None:
    """For a session elsewhere; one that is held here gets its messages."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail()
        with pytest.raises(StoreUnavailable):
            await registry.broadcast("elsewhere", 1)
        with pytest.raises(StoreUnavailable):
            await registry.broadcast("s", "durable", durable=True)
        store.heal()
        await registry.broadcast("s", 2)
        assert await read(registry, "s", 1) == [2]


async def test_what_json_cannot_carry_is_refused_by_broadcast(everywhere: Shared) -> None:
    """And so is what is too large, or no session id; nothing is sent."""
    async with everywhere.open(max_message_bytes=1000) as registry:
        await registry.add_session("s", FakeTransport())
        bad: list[tuple[Any, type[Exception]]] = [
            (object(), TypeError),
            ({1, 2}, TypeError),
            (b"bytes", TypeError),
            ({1: 2}, TypeError),
            (uuid.UUID(int=7), TypeError),
            ([Kind.ONE], TypeError),
            (dt.datetime.now(dt.UTC), TypeError),
            ("\ud800", TypeError),
            (math.nan, ValueError),
            ([{"a": math.inf}], ValueError),
            ((-math.inf, None), ValueError),
            ("x" * 999, MessageTooLarge),
        ]
        for target in ("s", "elsewhere"):
            for message, error in bad:
                with pytest.raises(error):
                    await registry.broadcast(target, message)
        with pytest.raises(InvalidSessionId):
            await registry.broadcast("", 1)
        await registry.broadcast("s", "x" * 998)
        await registry.broadcast("s", [None])
        assert await read(registry, "s", 2) == ["x" * 998, [None]]


async def test_a_closed_registry_sends_and_reads_nothing() -> None:
    """The iteration of an inbox ends when the registry is closed."""
    received: list[Any] = []
    async with trio.open_nursery() as nursery, open_registry() as registry:
        await registry.add_session("s", FakeTransport())
        begun = trio.Event()

        async def consume() -> None:
            async with registry.open_inbox("s") as inbox:
                begun.set()
                async for message in inbox:
                    received.append(message)

        nursery.start_soon(consume)
        await begun.wait()
        await registry.broadcast("s", 1)
        await trio.testing.wait_all_tasks_blocked()
    assert received == [1]
    with pytest.raises(RegistryClosed):
        await registry.broadcast("s", 1)
    with pytest.raises(RegistryClosed):
        await read(registry, "s", 1)


async def test_an_inbox_has_one_consumer(everywhere: Shared) -> None:
    """Two would get the messages out of order."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s"):
            with pytest.raises(RuntimeError, match="open already"):
                async with registry.open_inbox("s"):
                    raise AssertionError("not reached")
        async with registry.open_inbox("s"):
            pass


# ---- back-pressure ----


async def test_what_does_not_fit_waits_in_the_database_in_order(everywhere: Shared) -> None:
    """Memory is bounded; nothing is lost, and nothing overtakes."""
    amount = MOST * 2 + 50
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        for number in range(amount):
            await registry.broadcast("s", number)
        assert registry.statistics().messages_in_memory == MOST
        assert len(everywhere.backdoor.messages()) == amount - MOST
        received = []
        with trio.fail_after(40):
            async with registry.open_inbox("s") as inbox:
                async for message in inbox:
                    received.append(message)
                    if message == 10:
                        await registry.broadcast("s", amount)  # it must not overtake either
                    if message == amount:
                        break
                    assert registry.statistics().messages_in_memory <= 2 * MOST
        assert received == list(range(amount + 1))
        await no_row_is_left(everywhere)
        await registry.broadcast("s", "memory again")
        assert registry.statistics().messages_in_memory == 1


async def test_large_messages_fill_the_memory_sooner(everywhere: Shared) -> None:
    """It is bounded in bytes as well; one that is as large as may be always fits."""
    async with everywhere.open(max_message_bytes=10_000) as registry:
        await registry.add_session("s", FakeTransport())
        large = "x" * 4_000
        for number in range(10):
            await registry.broadcast("s", [number, large])
        assert registry.statistics().messages_in_memory == 3
        received = await read(registry, "s", 10)
        assert [number for number, _ in received] == list(range(10))
        await registry.broadcast("s", "x" * 9_998)
        assert await read(registry, "s", 1) == ["x" * 9_998]


async def test_what_a_full_memory_cannot_take_is_refused_without_the_database(
    everywhere: Shared,
) -> None:
    """The sender learns of it."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        for number in range(MOST):
            await registry.broadcast("s", number)
        store.fail()
        with pytest.raises(StoreUnavailable):
            await registry.broadcast("s", MOST)
        store.heal()
        assert await read(registry, "s", MOST) == list(range(MOST))


# ---- responding ----


async def test_respond_hands_each_message_with_its_transport(everywhere: Shared) -> None:
    """Until the session is removed."""
    transport = FakeTransport()
    async with everywhere.open() as registry, everywhere.open() as other:
        await registry.add_session("s", transport)
        handled: list[Any] = []

        async def handle(message: Any, its_transport: Any) -> None:
            assert its_transport is transport
            handled.append(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.respond, "s", handle)
            await registry.broadcast("s", 1)
            await other.broadcast("s", 2)
            with trio.fail_after(40):
                while len(handled) < 2:
                    await trio.sleep(0.005)
            await registry.remove_session("s")
        assert sorted(handled) == [1, 2]
        if everywhere.host:  # asyncio's ends quietly
            await registry.respond("s", handle)
        else:
            with pytest.raises(SessionNotFound):
                await registry.respond("s", handle)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_message_whose_handler_raises_counts_as_handled(
    everywhere: Shared,
    durable: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """Delivered again, it would be poison for ever. What was raised comes out, or is logged."""
    handled: list[Any] = []
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())

        async def handle(message: Any, transport: Any) -> None:
            handled.append(message)
            if message < 2:
                raise KeyError(message)
            await registry.remove_session("s")

        for number in range(3):
            await registry.broadcast("s", number, durable=durable)
        for number in range(0 if everywhere.host else 2):
            with pytest.raises(KeyError) as caught:
                await registry.respond("s", handle)
            assert caught.value.args == (number,)
        with trio.fail_after(40):
            await registry.respond("s", handle)
        assert handled == [0, 1, 2]
        await no_row_is_left(everywhere)


async def test_what_is_no_handler_is_refused() -> None:
    """At once if it cannot be called, and by name if what it returns cannot be awaited."""

    def handle(message: Any, transport: Any) -> None: ...

    async with open_registry() as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1)
        with pytest.raises(TypeError, match="handler must be an async function, not NoneType"):
            await registry.respond("s", None)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"async function, but it returned NoneType"):
            await registry.respond("s", handle)  # type: ignore[arg-type]
        await registry.broadcast("s", 2)
        handled: list[Any] = []

        @types.coroutine
        def generator(message: Any, transport: Any) -> Any:
            handled.append(message)
            yield from registry.remove_session("s").__await__()

        await registry.respond("s", generator)
        assert handled == [2]
        await registry.add_session("s", FakeTransport())
        inbox = registry.open_inbox("s")
        with pytest.raises(RuntimeError, match=r"async with registry\.open_inbox"):
            await anext(inbox)


async def cancel_in_a_nursery(begun: trio.Event) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        begun.set()


async def cancel_plainly(begun: trio.Event) -> None:
    begun.set()
    await trio.sleep_forever()


@pytest.mark.parametrize("wait", [cancel_plainly, cancel_in_a_nursery])
async def test_a_handler_that_is_cancelled_has_not_handled(
    everywhere: Shared, wait: Callable[[trio.Event], Awaitable[None]]
) -> None:
    """Its message is delivered to the next inbox."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1, durable=True)
        begun = trio.Event()

        async def handle(message: Any, transport: Any) -> None:
            await wait(begun)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.respond, "s", handle)
            await begun.wait()
            nursery.cancel_scope.cancel()
        assert await read(registry, "s", 1) == [1]


async def test_messages_of_sessions_nobody_reads_cost_no_loop() -> None:
    """A program that reads no inbox has no reader."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1)
        await registry.cleanup()
        assert store.calls["open_bell"] == store.calls["waiting"] == store.calls["fetch"] == 0
