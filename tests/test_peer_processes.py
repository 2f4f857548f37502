"""Calls between two processes, of which one is killed in the middle."""

import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from processes import killed_at_the_end

from trio_sessions import WorkerGone

CALLEE_ON_TRIO = """
import sys, trio
from trio_sessions import open_registry

async def hang(payload):
    print("hangs", flush=True)
    await trio.sleep_forever()

async def count(payload):
    for number in range(payload):
        yield number
    print("counted", flush=True)
    await trio.sleep_forever()

async def main():
    async with open_registry(sys.argv[1], worker_id="callee", cleanup_interval=0.3,
                             handlers={"hang": hang, "count": count}):
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""

CALLEE_ON_ASYNCIO = """
import asyncio, sys
from trio_sessions.aio import SessionRegistry

async def hang(payload):
    print("hangs", flush=True)
    await asyncio.Event().wait()

async def count(payload):
    for number in range(payload):
        yield number
    print("counted", flush=True)
    await asyncio.Event().wait()

async def main():
    async with SessionRegistry(sys.argv[1], worker_id="callee", cleanup_interval=0.3,
                               handlers={"hang": hang, "count": count}):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

CALLER = """
import sys, trio
from trio_sessions import open_registry

async def main():
    async with open_registry(sys.argv[1], cleanup_interval=0.3) as registry:
        async with trio.open_nursery() as nursery:
            async def call():
                await registry.workers.call("callee", "hang", 1, timeout=1000)
            nursery.start_soon(call)
            async with registry.workers.stream("callee", "count", 3, timeout=1000) as items:
                async for item in items:
                    print(item, flush=True)

trio.run(main)
"""


def url_of(shared: Shared) -> str:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    return shared.backdoor.engine.url.render_as_string(hide_password=False)


@pytest.mark.parametrize("program", [CALLEE_ON_TRIO, CALLEE_ON_ASYNCIO], ids=["trio", "aio"])
async def test_a_callee_that_is_killed_is_known_to_be_gone(
    postgresql: Shared, program: str
) -> None:
    """After three of its stamps, not after the timeout; what it had sent has arrived."""
    gone: list[float] = []
    async with (
        postgresql.open() as registry,
        killed_at_the_end([sys.executable, "-c", program, url_of(postgresql)]) as (process, lines),
        trio.open_nursery() as nursery,
    ):
        assert await anext(lines) == "ready"

        async def call() -> None:
            with pytest.raises(WorkerGone, match="'hang' at worker 'callee'"):
                await registry.workers.call("callee", "hang", 1, timeout=1000)
            gone.append(trio.current_time())

        seen: list[Any] = []

        async def stream() -> None:
            with pytest.raises(WorkerGone, match="'count' at worker 'callee'"):
                async with registry.workers.stream("callee", "count", 50, timeout=1000) as items:
                    async for item in items:
                        seen.append(item)
            gone.append(trio.current_time())

        nursery.start_soon(call)
        nursery.start_soon(stream)
        assert sorted([await anext(lines), await anext(lines)]) == ["counted", "hangs"]
        while len(seen) < 50:
            await trio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        killed_at = trio.current_time()
        while len(gone) < 2:
            await trio.sleep(0.01)
        assert seen == list(range(50))
        # Three stamps of 0.3 seconds, and two looks, on a machine that may be busy.
        assert max(gone) - killed_at < 10
        with pytest.raises(WorkerGone):
            await registry.workers.call("callee", "hang", 1, timeout=1000)


async def test_handlers_of_a_caller_that_is_killed_are_cancelled(postgresql: Shared) -> None:
    """Both kinds, although they have a thousand seconds."""
    ended: list[str] = []

    async def hang(payload: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("hang")

    async def count(payload: Any) -> AsyncIterator[int]:
        try:
            for number in range(payload):
                yield number
            await trio.sleep_forever()
        finally:
            ended.append("count")

    async with (
        postgresql.open(worker_id="callee", handlers={"hang": hang, "count": count}),
        killed_at_the_end([sys.executable, "-c", CALLER, url_of(postgresql)]) as (process, lines),
    ):
        assert [await anext(lines) for _ in range(3)] == ["0", "1", "2"]
        assert not ended
        process.send_signal(signal.SIGKILL)
        while len(ended) < 2:
            await trio.sleep(0.01)
    assert sorted(ended) == ["count", "hang"]
