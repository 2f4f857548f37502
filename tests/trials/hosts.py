"""Where trials run: four loops, and asyncio without any of ours, to compare with."""

import asyncio
import sys
from collections.abc import Awaitable, Callable

import trio
import uvloop

from trials.sides import AsyncioSide, Side, TrioSide

__all__ = ["EAGER", "HOSTS", "PLAIN", "HalfClosed", "run_on"]

EAGER = "asyncio, eager tasks"
PLAIN = "plain asyncio"
HOSTS = ["Trio", "asyncio", "uvloop", EAGER]

Main = Callable[[Side], Awaitable[None]]


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
    EAGER: _eager_loop,
    PLAIN: asyncio.SelectorEventLoop,
}


class HalfClosed(Exception):
    """A press has hit the loop in its own code, and it cannot be closed any more."""


def run_on(host: str, main: Main) -> None:
    """Run a function on a new loop, and close the loop.

    Raises:
        HalfClosed: it could not be closed.
    """
    if host == "Trio":

        @trio.lowlevel.enable_ki_protection
        async def on_trio() -> None:
            async with trio.open_nursery() as nursery:
                await main(TrioSide(nursery))

        trio.run(on_trio)
        return

    async def on_asyncio() -> None:
        await main(AsyncioSide())

    runner = asyncio.Runner(loop_factory=_LOOPS[host])
    loop = runner.get_loop()
    try:
        with runner:
            runner.run(on_asyncio())
    finally:  # a second press may come where the Runner closes it
        if not loop.is_closed():
            _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.close()
    # It believes that it runs, or parts of it are gone.
    except (RuntimeError, ValueError, OSError, AttributeError) as exc:
        raise HalfClosed from exc
