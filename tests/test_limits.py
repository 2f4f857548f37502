"""What is refused at the door, and what ends by itself."""

import asyncio
import math
from typing import Any

import pytest
import trio
from conftest import Shared
from trio.testing import MockClock

from trio_sessions import (
    Limits,
    RemovalReason,
    SessionsError,
    TooManySessions,
    open_registry,
)
from trio_sessions.aio import SessionRegistry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore

MANUAL: dict[str, Any] = {"session_ttl": 36000.0, "cleanup_interval": 18000.0}


@pytest.mark.parametrize(
    ("limits", "error", "name"),
    [
        ({"max_sessions": 0}, ValueError, "limits.max_sessions"),
        ({"max_sessions": 2.5}, TypeError, "limits.max_sessions"),
        ({"idle_timeout": -1}, ValueError, "limits.idle_timeout"),
        ({"max_age": "1 h"}, TypeError, "limits.max_age"),
        ({"revocation_ttl": None}, TypeError, "limits.revocation_ttl"),
        ({"log_ttl": float("inf")}, ValueError, "limits.log_ttl"),
        ({"max_sessions_per_owner": 0}, ValueError, "limits.max_sessions_per_owner"),
    ],
)
def test_a_limit_that_is_none_is_refused_by_name(
    limits: dict[str, Any], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        Limits(**limits)


def test_limits_are_limits() -> None:
    with pytest.raises(TypeError, match="limits must be trio_sessions"):
        open_registry(limits={"max_sessions": 3})  # type: ignore[arg-type]


# ---- max_sessions ----


async def test_one_more_is_refused_before_anything_is_written(shared: Shared) -> None:
    """One that is held may be added again; who leaves makes room."""
    async with shared.open(limits=Limits(max_sessions=2)) as registry:
        for name in ("a", "b"):
            await registry.add_session(name, FakeTransport())
        refused = FakeTransport()
        with pytest.raises(TooManySessions, match=r"limits\.max_sessions is 2") as raised:
            await registry.add_session("c", refused)
        assert isinstance(raised.value, SessionsError)
        assert (refused.checks, refused.disconnects) == (0, 0), "it is still its caller's"
        assert await registry.get_session("c") is None
        assert set(shared.backdoor.rows()) == {"a", "b"}
        await registry.add_session("b", FakeTransport())
        await registry.remove_session("a")
        await registry.add_session("c", FakeTransport())
        assert await registry.get_all_session_ids() == ["b", "c"]


async def test_many_at_once_do_not_slip_in() -> None:
    async with open_registry(limits=Limits(max_sessions=5), **MANUAL) as registry:
        refused = 0

        async def add(number: int) -> None:
            nonlocal refused
            try:
                await registry.add_session(f"s{number}", FakeTransport())
            except TooManySessions:
                refused += 1

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(add, number)
        assert (refused, len(await registry.get_all_session_ids())) == (15, 5)


def test_asyncio_is_limited_too() -> None:
    async def main() -> None:
        class Connection:
            async def is_connected(self) -> bool:
                return True

            async def disconnect(self) -> None: ...

        limits = Limits(max_sessions=1, idle_timeout=0.001)
        async with SessionRegistry(limits=limits, **MANUAL) as registry:
            await registry.add_session("a", Connection())
            with pytest.raises(TooManySessions):
                await registry.add_session("b", Connection())
            await asyncio.sleep(0.01)
            registry.touch("nobody")
            assert (await registry.cleanup()).idle == ("a",)

    asyncio.run(main())


# ---- idle_timeout, max_age ----


async def test_silence_ends_a_session(autojump_clock: MockClock) -> None:
    """Counted from the last sign of life; the pass that ends it says so."""
    limits = Limits(idle_timeout=10.0)
    async with open_registry(limits=limits, **MANUAL) as registry:
        silent, heard = FakeTransport(), FakeTransport()
        await registry.add_session("silent", silent)
        await registry.add_session("heard", heard)
        await trio.sleep(9.0)
        registry.touch("heard")
        registry.touch("nobody")
        assert (await registry.cleanup()).idle == ()
        await trio.sleep(1.5)
        report = await registry.cleanup()
        assert (report.idle, report.disconnected, report.missing) == (("silent",), (), ())
        assert silent.reasons == [RemovalReason.IDLE]
        assert silent.checks == 1, "it is not asked any more"
        await trio.sleep(9.0)
        assert (await registry.cleanup()).idle == ("heard",)


async def test_a_message_that_was_handled_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    """And while it is being handled, the session is not idle, however long that takes."""
    handling, may_end = trio.Event(), trio.Event()

    async def handler(message: Any, transport: Any) -> None:
        handling.set()
        await may_end.wait()

    limits = Limits(idle_timeout=10.0)
    async with open_registry(limits=limits, **MANUAL) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        nursery.start_soon(registry.respond, "s", handler)
        await registry.broadcast("s", "work")
        await handling.wait()
        await trio.sleep(100.0)
        assert (await registry.cleanup()).idle == ()
        may_end.set()
        await trio.sleep(9.0)
        assert (await registry.cleanup()).idle == ()
        await trio.sleep(2.0)
        assert (await registry.cleanup()).idle == ("s",), "`respond` alone keeps nobody"


async def test_an_open_stream_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    """The end of it counts as the last one."""
    limits = Limits(idle_timeout=10.0)
    async with open_registry(limits=limits, **MANUAL) as registry:
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s"):
            await trio.sleep(100.0)
            assert (await registry.cleanup()).idle == ()
        await trio.sleep(9.0)
        assert (await registry.cleanup()).idle == ()
        await trio.sleep(2.0)
        assert (await registry.cleanup()).idle == ("s",)


async def test_a_client_that_comes_to_another_worker_is_alive(autojump_clock: MockClock) -> None:
    """It has just come, so its time begins anew there."""
    limits = Limits(idle_timeout=10.0)
    store = MemoryStore()
    async with (
        open_registry(store, limits=limits, **MANUAL) as a,
        open_registry(store, limits=limits, **MANUAL) as b,
    ):
        await a.add_session("s", FakeTransport())
        await trio.sleep(9.0)
        await b.add_session("s", FakeTransport())
        await trio.sleep(9.0)
        assert (await b.cleanup()).idle == ()
        await trio.sleep(2.0)
        assert (await b.cleanup()).idle == ("s",)


@pytest.mark.parametrize("idle", [0, 0.0, 4, 9.5])
async def test_an_adopted_session_has_been_silent_for_as_long_as_is_said(
    autojump_clock: MockClock, idle: float
) -> None:
    """Else one whose client is gone would live on by moving from worker to worker."""
    limits = Limits(idle_timeout=10.0)
    store = MemoryStore()
    async with (
        open_registry(store, limits=limits, **MANUAL) as a,
        open_registry(store, limits=limits, **MANUAL) as b,
    ):
        await a.add_session("s", FakeTransport())
        transport = FakeTransport()
        assert await b.adopt_session("s", transport, from_worker=a.worker_id, idle=idle)
        await trio.sleep(9.9 - idle)
        assert (await b.cleanup()).idle == ()
        await trio.sleep(0.2)
        assert (await b.cleanup()).idle == ("s",)
        assert transport.reasons == [RemovalReason.IDLE]


@pytest.mark.parametrize(
    ("idle", "error"),
    [(-1, ValueError), (math.inf, ValueError), (math.nan, ValueError), ("1", TypeError)],
)
async def test_a_silence_that_cannot_be_one_is_refused(idle: Any, error: type[Exception]) -> None:
    """At the door, and by its name."""
    async with open_registry(**MANUAL) as registry:
        for wrong in (idle, True, False):
            kind = TypeError if isinstance(wrong, bool) else error
            with pytest.raises(kind, match="idle"):
                await registry.adopt_session("s", FakeTransport(), from_worker="w", idle=wrong)


async def test_age_ends_a_session_whatever_it_does(autojump_clock: MockClock) -> None:
    """Adding it again makes it no younger; after its removal another one of its id begins anew."""
    limits = Limits(max_age=10.0, idle_timeout=50.0)
    async with open_registry(limits=limits, **MANUAL) as registry:
        await registry.add_session("s", FakeTransport())
        await trio.sleep(6.0)
        await registry.add_session("s", FakeTransport())
        registry.touch("s")
        assert (await registry.cleanup()).aged == ()
        await trio.sleep(5.0)
        report = await registry.cleanup()
        assert (report.aged, report.idle) == (("s",), ())
        await registry.add_session("s", FakeTransport())
        await trio.sleep(6.0)
        assert (await registry.cleanup()).aged == ()


async def test_an_outage_does_not_stop_limits(shared: Shared) -> None:
    """They are the worker's own: the row goes when the database is back."""
    store = FaultyStore(shared.make_store())
    async with open_registry(store, limits=Limits(max_age=0.001), **MANUAL) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail()
        await trio.sleep(0.01)
        assert (await registry.cleanup()).aged == ("s",)
        assert await registry.get_session("s") is None
        assert registry.statistics().leftover_rows == 1
        store.heal()
        await registry.cleanup()
        assert shared.backdoor.rows() == {}
