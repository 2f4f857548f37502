"""Clients: well-behaved ones of the `mcp` package, which are timed, and ones that are not."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Collection
from dataclasses import dataclass, field
from typing import Any

import httpx
import httpx2
import mcp
from mcp.client.sse import sse_client

from gateway_check.common import CALLS, QUICK_CALLS, WORKER_HEADER
from gateway_check.stopwatch import Stopwatch


@dataclass
class Timings:
    """Seconds of each call, by where the request arrived: at the session's worker or not.

    As `Stopwatch` counts them: without the wait for a core.
    """

    same: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    other: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def all(self, call: str) -> list[float]:
        """Return the times of a call wherever it arrived."""
        return [*self.same.get(call, []), *self.other.get(call, [])]

    def enough(self, rounds: int, places: int) -> bool:
        """Say whether each call was measured often enough, in each place if they are two."""
        if places == 1:
            return all(len(self.all(call)) >= rounds for call in CALLS)
        both = (self.same, self.other)
        return all(len(place.get(call, [])) >= rounds for place in both for call in CALLS)


class Watch:
    """Notes which worker holds the session, and which one took each request."""

    def __init__(self) -> None:
        self.session_worker = ""
        self.request_worker: dict[str, str] = {}

    async def note(self, response: Any) -> None:
        """Take a response of the MCP client's HTTP client."""
        worker = response.headers.get(WORKER_HEADER, "")
        if response.request.method == "GET":
            self.session_worker = worker
        else:
            method = json.loads(response.request.content)["method"]
            self.request_worker[method] = worker

    def http_client(self, headers: Any = None, timeout: Any = None, auth: Any = None) -> Any:
        """Return an HTTP client that posts each message over a connection of its own."""
        return httpx2.AsyncClient(
            headers=headers,
            timeout=timeout,
            auth=auth,
            limits=httpx2.Limits(max_keepalive_connections=0),
            event_hooks={"response": [self.note]},
        )


async def one_session(url: str, timings: Timings, pids: Collection[int]) -> None:
    """Initialise, list the tools, call one, disconnect; add the times to ``timings``.

    Args:
        url: of the gateway.
        timings: what is added to.
        pids: the gateway's processes.
    """
    watch = Watch()

    async def timed(call: str, action: Awaitable[Any]) -> Any:
        watch_of_call = Stopwatch(pids)
        result = await action
        seconds = watch_of_call.seconds()
        here = watch.request_worker[call] == watch.session_worker
        (timings.same if here else timings.other)[call].append(seconds)
        return result

    async with (
        sse_client(f"{url}/sse", httpx_client_factory=watch.http_client) as (reading, writing),
        mcp.ClientSession(reading, writing, read_timeout_seconds=20) as session,
    ):
        await timed("initialize", session.initialize())
        tools = await timed("tools/list", session.list_tools())
        assert [tool.name for tool in tools.tools] == ["echo"], tools
        result = await timed("tools/call", session.call_tool("echo", {"text": "hello"}))
        assert "hello" in result.content[0].text, result


async def quick_client(url: str) -> int:
    """Ask again and again without a pause; return how many answers came, of `QUICK_CALLS`."""
    answers = 0
    with contextlib.suppress(ExceptionGroup):
        async with (
            sse_client(f"{url}/sse") as (reading, writing),
            mcp.ClientSession(reading, writing, read_timeout_seconds=10) as session,
        ):
            await session.initialize()
            while answers < QUICK_CALLS:
                await session.send_ping()
                answers += 1
    return answers


async def measure(url: str, rounds: int, places: int, pids: Collection[int]) -> Timings:
    """Run sessions until each call was measured often enough in each place, but not for ever."""
    timings = Timings()
    await one_session(url, Timings(), pids)  # the first one warms the gateway up
    for _ in range(rounds if places == 1 else rounds * 15):
        await one_session(url, timings, pids)
        if timings.enough(rounds, places):
            break
    return timings


async def endpoint_of(lines: AsyncIterator[str]) -> str:
    """Return the address for messages, the first thing that an SSE stream tells.

    The caller keeps ``lines``: when they are collected, HTTPX closes the stream.
    """
    async for line in lines:
        if line.startswith("data: http"):
            return str(line.removeprefix("data: "))
    raise RuntimeError("the stream ended before it named its endpoint")


async def hit_and_run(url: str, number: int) -> None:
    """Be a client that is gone at once: after, or with, its message, or before it has one."""
    arguments = {"name": "echo", "arguments": {"text": "gone"}}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": arguments}
    posting: list[asyncio.Task[httpx.Response]] = []
    with contextlib.suppress(TimeoutError, httpx.TransportError):
        async with httpx.AsyncClient(timeout=20) as client:
            early = number % 3 == 0
            async with asyncio.timeout(0.03 * number if early else 20):
                async with client.stream("GET", f"{url}/sse") as stream:
                    lines = stream.aiter_lines()
                    endpoint = await endpoint_of(lines)
                    posting.append(asyncio.create_task(client.post(endpoint, json=call)))
                    await asyncio.wait(posting, timeout=None if number % 3 == 1 else 0.01)
            await asyncio.gather(*posting, return_exceptions=True)
    await asyncio.gather(*posting, return_exceptions=True)  # cut off: nobody else asks for it


async def hold_idle(url: str, ready: asyncio.Event, leave: asyncio.Event) -> None:
    """Be a client that listens and says nothing until it is told to leave."""
    async with (
        httpx.AsyncClient(timeout=httpx.Timeout(30, read=300)) as client,
        client.stream("GET", f"{url}/sse") as stream,
    ):
        lines = stream.aiter_lines()
        await endpoint_of(lines)
        ready.set()
        await leave.wait()
