"""The fakes do what they are told, and refuse words that they do not know."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.writes import Batch, Claim, Send

CLAIM = Batch(writes=[Claim(session_id="s", generation=1, age=0.0)])


# ---- FakeTransport ----


@pytest.mark.parametrize(
    "make",
    [
        lambda: FakeTransport("conected"),  # type: ignore[arg-type]
        lambda: FakeTransport(on_disconnect="close"),  # type: ignore[arg-type]
        lambda: setattr(FakeTransport(), "state", "close"),
        lambda: setattr(FakeTransport(), "on_disconnect", None),
    ],
)
async def test_a_transport_refuses_a_word_that_it_does_not_know(make: Callable[[], Any]) -> None:
    """It names the parameter, and the words that there are."""
    with pytest.raises(ValueError, match=r"(state|on_disconnect) must be one of .*'raises'"):
        make()


async def test_a_transport_refuses_an_attribute_that_it_does_not_have() -> None:
    """A typing error would let a test pass."""
    with pytest.raises(AttributeError):
        FakeTransport().stat = "closed"  # type: ignore[attr-defined]


async def test_a_transport_records_what_is_sent() -> None:
    """In that order; what could not be sent is not among it."""
    transport = FakeTransport()
    await transport.send({"a": 1})
    await transport.send(None)
    transport.state = "raises"
    with pytest.raises(OSError, match="broken"):
        await transport.send("lost")
    transport.state = "hangs"
    with trio.move_on_after(0.01) as scope:
        await transport.send("lost")
    assert scope.cancelled_caught
    transport.state = "closed"
    with pytest.raises(trio.BrokenResourceError):
        await transport.send("lost")
    transport.state = "connected"
    await transport.disconnect()
    with pytest.raises(trio.ClosedResourceError):
        await transport.send("lost")
    assert transport.sent == [{"a": 1}, None]


async def test_a_message_reaches_the_fake() -> None:
    """What a handler sends is there to be looked at."""
    transport = FakeTransport()

    async def handle(message: object, _: object) -> None:
        await transport.send(message)

    async with open_registry() as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", transport)
        nursery.start_soon(registry.respond, "s", handle)
        await registry.broadcast("s", [1])
        await registry.broadcast("s", [2])
        await trio.testing.wait_all_tasks_blocked()
        assert transport.sent == [[1], [2]]
        nursery.cancel_scope.cancel()


# ---- FaultyStore ----


async def opened() -> tuple[FaultyStore, Worker]:
    store = FaultyStore(MemoryStore())
    worker = Worker(worker_id="w", incarnation="1", limiter=trio.CapacityLimiter(1))
    await store.open(worker)
    return store, worker


async def test_a_store_fails_the_next_operations() -> None:
    """So many of the named ones, and then it is healed; others are let through."""
    store, worker = await opened()
    store.fail(Fault.FAILS, "commit", times=2)
    for _ in range(2):
        assert await store.locate(worker, "s") is None
        with pytest.raises(StoreUnavailable):
            await store.commit(worker, CLAIM)
    assert (store.fault, store.remaining) == (Fault.NONE, None)
    await store.commit(worker, CLAIM)
    assert await store.locate(worker, "s") is not None
    assert store.faults == {"commit": 2, "Claim": 2}
    store.fail(times=1)
    with pytest.raises(StoreUnavailable):
        await store.locate(worker, "s")
    assert await store.locate(worker, "s") is not None


async def test_a_store_loses_one_answer() -> None:
    """It is done, and nobody is told; the next one is told."""
    store, worker = await opened()
    store.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
    with pytest.raises(StoreUnavailable):
        await store.commit(worker, CLAIM)
    assert await store.locate(worker, "s") is not None
    await store.commit(worker, CLAIM)
    assert store.faults == {"commit": 1, "Claim": 1}


@pytest.mark.parametrize(
    ("fault", "is_there_at_once"), [(Fault.BEGINS_LATE, False), (Fault.ANSWERS_LATE, True)]
)
async def test_a_store_is_late(
    autojump_clock: MockClock,
    fault: Fault,
    is_there_at_once: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """One operation, by so many seconds: it begins late, or its answer comes late."""
    store, worker = await opened()
    store.fail(fault, "commit", times=1, seconds=7.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.commit, worker, CLAIM)
        await trio.testing.wait_all_tasks_blocked()
        assert (await store.locate(worker, "s") is not None) is is_there_at_once
    assert trio.current_time() == 7.0
    assert await store.locate(worker, "s") is not None
    await store.commit(worker, CLAIM)
    assert trio.current_time() == 7.0


async def test_a_paused_worker_stands_still() -> None:
    """Neither does anything begin, nor is an answer heard, nor the bell; then all goes on."""
    store, worker = await opened()
    await store.commit(worker, CLAIM)
    store.fail(Fault.ANSWERS_LATE, "fetch", seconds=0.0)
    heard: list[str] = []

    async def listen() -> None:
        async with store.open_bell(worker) as bell:
            await bell.wait()
            heard.append("bell")

    async def ask() -> None:
        await store.locate(worker, "s")
        heard.append("answer")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        store.pause()
        store.pause()
        assert store.is_paused
        nursery.start_soon(ask)
        other = store._store  # another worker's way to the same rows
        await other.commit(worker, Batch(writes=[Send(session_id="s", payload="1")]))
        await trio.testing.wait_all_tasks_blocked()
        assert heard == []
        store.resume()
        store.resume()
        assert not store.is_paused
    assert sorted(heard) == ["answer", "bell"]


@pytest.mark.parametrize(
    ("arguments", "details", "error", "message"),
    [
        (["fails"], {}, TypeError, "fault must be one of"),
        ([Fault.FAILS, "wirte"], {}, ValueError, "operations must be"),
        ([Fault.FAILS], {"times": 0}, ValueError, "times must be at least 1"),
        ([Fault.FAILS], {"seconds": 1.0}, ValueError, "seconds must be given for"),
        ([Fault.BEGINS_LATE], {}, ValueError, "seconds must be given for"),
        ([Fault.ANSWERS_LATE], {"seconds": -1.0}, ValueError, "at least 0"),
        ([Fault.ANSWERS_LATE], {"seconds": float("nan")}, ValueError, "finite"),
    ],
)
async def test_a_store_refuses_what_it_cannot_do(
    arguments: list[Any], details: dict[str, Any], error: type[Exception], message: str
) -> None:
    """And goes on as before."""
    store = FaultyStore(MemoryStore())
    with pytest.raises(error, match=message):
        store.fail(*arguments, **details)
    assert store.fault is Fault.NONE
