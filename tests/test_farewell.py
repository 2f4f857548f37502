"""Why a session has ended: told to its transport, and to whoever follows the removals."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from conftest import Shared

from trio_sessions import (
    RegistryClosed,
    RegistryDraining,
    RemovalReason,
    SessionRevoked,
    open_registry,
)
from trio_sessions._farewell import takes_reason
from trio_sessions.aio import SessionRegistry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport

SLOW: dict[str, Any] = {"cleanup_interval": 300.0, "session_ttl": 3600.0}


class Removals:
    """What was told, and a handler that notes it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, RemovalReason]] = []

    async def __call__(self, session_id: str, reason: RemovalReason) -> None:
        self.told.append((session_id, reason))


# ---- what takes a reason ----


class NoArgument:
    async def disconnect(self) -> None: ...


class Optional:
    async def disconnect(self, why: RemovalReason | None = None) -> None: ...


class Needed:
    async def disconnect(self, why: RemovalReason) -> None: ...


class Named:
    async def disconnect(self, reason: object = "") -> None: ...


class Code:
    async def disconnect(self, code: int = 1000) -> None: ...


class Decorated:
    async def disconnect(self, *args: Any, **kwargs: Any) -> None: ...


class Static:
    @staticmethod
    async def disconnect(why: RemovalReason) -> None: ...


class OfClass:
    @classmethod
    async def disconnect(cls, why: RemovalReason) -> None: ...


class ByKeyword:
    async def disconnect(self, *, reason: object = None) -> None: ...


@pytest.mark.parametrize(
    ("transport", "expected"),
    [
        (NoArgument(), False),
        (Optional(), True),
        (Needed(), True),
        (Named(), True),
        (Code(), False),
        (Decorated(), False),
        (Static(), True),
        (OfClass(), True),
        (ByKeyword(), False),
    ],
)
def test_a_transport_says_by_its_argument_whether_it_is_told(
    transport: Any, *, expected: bool
) -> None:
    """A close code by default is no place for a reason; nor is what a decorator has."""
    assert takes_reason(transport.disconnect) is expected
    assert takes_reason(transport.disconnect) is expected, "the second answer is remembered"


def test_what_has_no_signature_is_told_nothing() -> None:
    """Some functions that are written in C have none."""
    assert takes_reason(dict.update) is False
    assert takes_reason(partial(Needed().disconnect)) is True


# ---- reasons ----


async def _disconnected(registry: Any, transport: FakeTransport, shared: Shared) -> None:
    transport.state = "closed"
    await registry.cleanup()


async def _missing(registry: Any, transport: FakeTransport, shared: Shared) -> None:
    shared.backdoor.delete("s")
    await registry.cleanup()


async def _removed(registry: Any, transport: FakeTransport, shared: Shared) -> None:
    await registry.remove_session("s")


async def _replaced(registry: Any, transport: FakeTransport, shared: Shared) -> None:
    await registry.add_session("s", FakeTransport())


async def _closed(registry: Any, transport: FakeTransport, shared: Shared) -> None:
    """Do nothing: the block ends."""


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (_disconnected, RemovalReason.DISCONNECTED),
        (_missing, RemovalReason.MISSING),
        (_removed, RemovalReason.REMOVED),
        (_closed, RemovalReason.CLOSED),
    ],
)
async def test_whoever_follows_is_told_why(
    end: Callable[..., Any], reason: RemovalReason, shared: Shared
) -> None:
    """The transport by its argument, everybody else by `on_removed`, once for each removal."""
    removals, transport = Removals(), FakeTransport()
    async with shared.open(on_removed=removals) as registry:
        await registry.add_session("s", transport)
        await end(registry, transport, shared)
    assert transport.reasons == [reason]
    assert removals.told == [("s", reason)]


async def test_a_session_that_moves_is_taken_over(shared: Shared) -> None:
    """The worker that has lost it tells its transport so."""
    removals, transport = Removals(), FakeTransport()
    async with (
        shared.open(on_removed=removals) as first,
        shared.open() as second,
    ):
        await first.add_session("s", transport)
        await second.add_session("s", FakeTransport())
        report = await first.cleanup()
        assert report.taken_over == report.missing == ("s",)
    assert transport.reasons == [RemovalReason.TAKEN_OVER]
    assert removals.told == [("s", RemovalReason.TAKEN_OVER)]


async def test_adding_again_tells_the_transport_alone() -> None:
    """The session goes on, so nobody is told that it was removed."""
    removals, transport, newer = Removals(), FakeTransport(), FakeTransport()
    async with open_registry(on_removed=removals, **SLOW) as registry:
        await registry.add_session("s", transport)
        await registry.add_session("s", newer)
        assert transport.reasons == [RemovalReason.TAKEN_OVER]
        assert removals.told == []
    assert removals.told == [("s", RemovalReason.CLOSED)]


async def test_a_handler_that_fails_or_hangs_delays_nobody(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    """It gets its time, and what it raises is logged, without an id."""
    told: list[str] = []

    async def handler(session_id: str, reason: RemovalReason) -> None:
        if session_id == "hangs":
            await trio.sleep_forever()
        if session_id == "raises":
            raise OSError("no such luck")
        told.append(session_id)

    with caplog.at_level(logging.WARNING):
        async with open_registry(on_removed=handler, disconnect_timeout=2.0, **SLOW) as registry:
            for name in ("hangs", "raises", "fine"):
                await registry.add_session(name, FakeTransport())
            start = trio.current_time()
            for name in ("hangs", "raises", "fine"):
                await registry.remove_session(name)
            assert trio.current_time() == start, "a removal does not wait for the handler"
        assert trio.current_time() - start < 2 * 2.0, "nor does closing wait for ever"
    assert told == ["fine"]
    assert sum("on_removed failed" in record.message for record in caplog.records) >= 1
    assert "no such luck" in caplog.text


async def test_what_cannot_be_a_handler_is_refused() -> None:
    """At the door, by name."""
    with pytest.raises(TypeError, match="on_removed must be an async function"):
        open_registry(on_removed=3)  # type: ignore[arg-type]


class Connection:
    def __init__(self) -> None:
        self.reasons: list[RemovalReason | None] = []

    async def is_connected(self) -> bool:
        return True

    async def disconnect(self, reason: RemovalReason | None = None) -> None:
        await asyncio.sleep(0)
        self.reasons.append(reason)


def test_a_handler_of_asyncio_runs_on_its_loop() -> None:
    """And so does a transport that is told why."""

    async def main() -> None:
        told: list[tuple[str, RemovalReason]] = []

        async def handler(session_id: str, reason: RemovalReason) -> None:
            await asyncio.sleep(0)
            told.append((session_id, reason))

        one, other = Connection(), Connection()
        async with SessionRegistry(MemoryStore(), on_removed=handler, **SLOW) as registry:
            await registry.add_session("one", one)
            await registry.add_session("other", other)
            await registry.remove_session("one")
        assert one.reasons == [RemovalReason.REMOVED]
        assert other.reasons == [RemovalReason.CLOSED]
        assert sorted(told) == [
            ("one", RemovalReason.REMOVED),
            ("other", RemovalReason.CLOSED),
        ]

    asyncio.run(main())


def test_asyncio_revokes_and_drains_likewise() -> None:
    """The same words and errors as Trio's; the transports are told on asyncio's side."""

    async def main() -> None:
        store, connections = MemoryStore(), {name: Connection() for name in "abc"}
        async with SessionRegistry(store, **SLOW) as one, SessionRegistry(store, **SLOW) as other:
            for name, connection in connections.items():
                await one.add_session(name, connection)
            assert await other.revoke("a", reason="test") == 1
            async with asyncio.timeout(30):
                while not connections["a"].reasons:
                    await asyncio.sleep(0.02)
            with pytest.raises(SessionRevoked):
                await other.add_session("a", Connection())
            with pytest.raises(ValueError, match="not both, and not neither"):
                await other.revoke()
            report = await one.drain(2.0)
            assert set(report.drained) == {"b", "c"}
            with pytest.raises(RegistryDraining):
                await one.add_session("d", Connection())
            assert {worker.draining for worker in await other.workers.list()} == {True, False}
        assert [one.reasons for one in connections.values()] == [
            [RemovalReason.REVOKED],
            [RemovalReason.DRAINED],
            [RemovalReason.DRAINED],
        ]
        with pytest.raises(RegistryClosed):
            await one.drain(1.0)

    asyncio.run(main())
