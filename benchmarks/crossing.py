"""What it costs that the program is asyncio's: a call that must cross, and a whole pass."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import sqlalchemy as sa
import trio
import trio_asyncio
import uvloop

from benchmarks._portal import open_portal
from benchmarks._tables import Table, median, ms, ratio
from trio_sessions import aio, open_registry
from trio_sessions.testing import FakeTransport

__all__ = ["run"]

_HOUR = 3600.0
_NATIVE = "Trio itself"
_SETTINGS = {"session_ttl": 2 * _HOUR, "cleanup_interval": _HOUR}

Measured = tuple[float, float | None]
"""The seconds of a call and of a pass."""


class _Connection:
    """A transport of asyncio that answers at once."""

    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        pass


async def _time_calls(call: Callable[[], Awaitable[object]], calls: int) -> float:
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


async def _native(sessions: int, calls: int) -> Measured:
    async with open_registry(**_SETTINGS) as registry:  # type: ignore[arg-type]
        call = await _time_calls(lambda: registry.locate_session("nobody"), calls)
        async with trio.open_nursery() as nursery:
            for number in range(sessions):
                nursery.start_soon(registry.add_session, f"s{number}", FakeTransport())
        await registry.cleanup()
        report = await registry.cleanup()
        assert report.refreshed == sessions
        return call, report.duration


async def _facade(sessions: int, calls: int) -> Measured:
    async with aio.SessionRegistry(**_SETTINGS) as registry:  # type: ignore[arg-type]
        call = await _time_calls(lambda: registry.locate_session("nobody"), calls)
        await asyncio.gather(
            *(registry.add_session(f"s{number}", _Connection()) for number in range(sessions))
        )
        await registry.cleanup()
        report = await registry.cleanup()
        assert report.refreshed == sessions
        return call, report.duration


async def _portal(sessions: int, calls: int) -> Measured:
    async with open_portal() as portal:
        registry = portal.registry
        assert registry is not None
        call = await _time_calls(lambda: portal.call(registry.locate_session, "nobody"), calls)
        return call, None


def _on(loop_factory: Callable[[], asyncio.AbstractEventLoop], measure: Any) -> Any:
    def run(*sizes: int) -> Measured:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            measured: Measured = runner.run(measure(*sizes))
            return measured

    return run


async def _under_trio_asyncio(*sizes: int) -> Measured:
    async with trio_asyncio.open_loop():
        measured: Measured = await trio_asyncio.aio_as_trio(_facade)(*sizes)
        return measured


_WAYS: dict[str, Callable[..., Measured]] = {
    _NATIVE: lambda *sizes: trio.run(_native, *sizes),
    "guest of asyncio": _on(asyncio.SelectorEventLoop, _facade),
    "guest of uvloop": _on(uvloop.new_event_loop, _facade),
    "under trio-asyncio": lambda *sizes: trio.run(_under_trio_asyncio, *sizes),
    "a thread and a portal, asyncio": _on(asyncio.SelectorEventLoop, _portal),
}


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    sessions, calls, rounds = (20, 20, 1) if quick else (10_000, 2_000, 5)
    measured: dict[str, list[Measured]] = {name: [] for name in _WAYS}
    for _ in range(rounds):
        for name, way in _WAYS.items():
            measured[name].append(way(sessions, calls))
    call = {name: median([one[0] for one in taken]) for name, taken in measured.items()}
    passes = {
        name: median([one[1] for one in taken if one[1] is not None])
        for name, taken in measured.items()
        if taken[0][1] is not None
    }
    rows = [
        (
            name,
            f"{call[name] * 1e6:,.0f} µs",
            f"{(call[name] - call[_NATIVE]) * 1e6:+,.0f} µs",
            ms(passes[name]) if name in passes else "-",
            ratio(passes[name], passes[_NATIVE]) if name in passes else "-",
        )
        for name in _WAYS
    ]
    return [
        Table(
            title=f"crossing: a call, and a pass over {sessions:,} sessions, on the memory store",
            columns=("", "call", "to Trio", "pass", "to Trio itself"),
            rows=rows,
            notes=(
                "call: locate_session of a session that nobody holds, one after the other",
                "pass: transports that answer at once, of asyncio but in the first row",
                f"medians of {rounds} interleaved rounds",
                "target: a call at most +150 µs, a pass at most 1.50x",
            ),
        )
    ]
