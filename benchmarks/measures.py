"""What `before` compares: each function measures one thing, by the public surface alone.

A program of its own, run with two trees on ``PYTHONPATH`` in turn, so it must work with both:
it imports nothing of `benchmarks`. It prints what was taken, and whose code that was.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import trio
import uvloop

import trio_sessions
from trio_sessions import aio, open_registry

__all__ = ["MEASURES", "Taken"]

Sleep = Callable[[float], Awaitable[object]]

Taken = tuple[float, float]
"""The seconds of a call: the median by the clock, and the mean of the processor's."""

_SETTINGS: Any = {"session_ttl": 7200.0, "cleanup_interval": 3600.0}


class _Connection:
    """Answers at once, or after a moment."""

    def __init__(self, sleep: Sleep | None = None) -> None:
        self._sleep = sleep

    async def is_connected(self) -> bool:
        if self._sleep is not None:
            await self._sleep(0.001)
        return True

    async def disconnect(self) -> None:
        pass


async def _each(count: int, call: Callable[[int], Awaitable[object]]) -> Taken:
    """Make so many calls, one after the other."""
    seconds, began = [], time.process_time()
    for number in range(count):
        start = time.perf_counter()
        await call(number)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), (time.process_time() - began) / count


async def _call(registry: Any, scale: float) -> Taken:
    return await _each(int(2000 * scale), lambda _: registry.locate_session("nobody"))


async def _add_all(registry: Any, sessions: int, sleep: Sleep | None = None) -> None:
    """Add so many sessions at once, as it is quicker."""
    adds = [partial(registry.add_session, f"s{n}", _Connection(sleep)) for n in range(sessions)]
    if isinstance(registry, aio.SessionRegistry):
        await asyncio.gather(*(add() for add in adds))
        return
    async with trio.open_nursery() as nursery:
        for add in adds:
            nursery.start_soon(add)


async def _pass(registry: Any, sessions: int, sleep: Sleep | None) -> Taken:
    await _add_all(registry, sessions, sleep)
    await registry.cleanup()

    async def clean_up(_: int) -> None:
        report = await registry.cleanup()
        assert report.refreshed == sessions, report.refreshed

    return await _each(3, clean_up)


async def _pass_at_once(registry: Any, scale: float) -> Taken:
    return await _pass(registry, int(10_000 * scale), None)


async def _pass_that_waits(registry: Any, scale: float) -> Taken:
    sleep = asyncio.sleep if isinstance(registry, aio.SessionRegistry) else trio.sleep
    return await _pass(registry, int(1000 * scale), sleep)


async def _add(registry: Any, scale: float) -> Taken:
    add = lambda number: registry.add_session(f"s{number}", _Connection())  # noqa: E731
    return await _each(int(1000 * scale), add)


async def _remove(registry: Any, scale: float) -> Taken:
    await _add_all(registry, int(1000 * scale))
    return await _each(int(1000 * scale), lambda number: registry.remove_session(f"s{number}"))


async def _message(registry: Any, scale: float) -> Taken:
    await registry.add_session("s", _Connection())
    async with registry.open_inbox("s") as inbox:

        async def send_and_read(number: int) -> None:
            await registry.broadcast("s", number)
            assert await anext(inbox) == number

        return await _each(int(3000 * scale), send_and_read)


Measure = Callable[[Any, float], Coroutine[Any, Any, Taken]]


def _on_trio(measure: Measure) -> Callable[[float], Taken]:
    async def main(scale: float) -> Taken:
        async with open_registry(**_SETTINGS) as registry:
            return await measure(registry, scale)

    return lambda scale: trio.run(main, scale)


def _on(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], measure: Measure
) -> Callable[[float], Taken]:
    async def main(scale: float) -> Taken:
        async with aio.SessionRegistry(**_SETTINGS) as registry:
            return await measure(registry, scale)

    def run(scale: float) -> Taken:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main(scale))

    return run


_ASYNCIO, _UVLOOP = asyncio.SelectorEventLoop, uvloop.new_event_loop

MEASURES: dict[str, Callable[[float], Taken]] = {
    "a call that crosses, asyncio": _on(_ASYNCIO, _call),
    "a call that crosses, uvloop": _on(_UVLOOP, _call),
    "a pass over 10,000 at once, asyncio": _on(_ASYNCIO, _pass_at_once),
    "a pass over 10,000 at once, Trio": _on_trio(_pass_at_once),
    "a pass over 1,000 that wait, asyncio": _on(_ASYNCIO, _pass_that_waits),
    "a pass over 1,000 that wait, uvloop": _on(_UVLOOP, _pass_that_waits),
    "a pass over 1,000 that wait, Trio": _on_trio(_pass_that_waits),
    "add_session, asyncio": _on(_ASYNCIO, _add),
    "add_session, Trio": _on_trio(_add),
    "remove_session, asyncio": _on(_ASYNCIO, _remove),
    "a local message, sent and read, asyncio": _on(_ASYNCIO, _message),
    "a local message, sent and read, Trio": _on_trio(_message),
}
"""What is measured, by its name; each takes the share of the full size."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measures", choices=MEASURES, nargs="+")
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the full size")
    arguments = parser.parse_args()
    taken = [MEASURES[name](arguments.scale) for name in arguments.measures]
    print(json.dumps({"taken": taken, "code": trio_sessions.__file__}))


if __name__ == "__main__":
    main()
