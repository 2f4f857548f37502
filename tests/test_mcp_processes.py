"""Workers as processes of their own, under uvicorn, on SQLite; and a fleet on SQLite in one."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
import sqlalchemy as sa

pytest.importorskip("mcp")
pytest.importorskip("uvicorn")

from mcp_fleet import BACKENDS, HEADERS, INITIALIZE, client, open_fleet, run

import trio_sessions
from trio_sessions.stores.database import DatabaseStore

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")

SERVER = """
import sys

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from trio_sessions.aio import SessionRegistry
from trio_sessions.mcp import RegistrySubscriptionBus, SessionEventStore, SessionRouter, handlers

registry = SessionRegistry(sys.argv[2], handlers=handlers())
bus = RegistrySubscriptionBus(registry)
server = MCPServer("test", subscriptions=bus)
heard = []
bus.subscribe(heard.append)


@server.tool()
async def change(uri: str, ctx: Context) -> str:
    await ctx.notify_resource_updated(uri)
    return registry.worker_id


@server.tool()
async def listened() -> list[str]:
    return [one.uri for one in heard] + [registry.worker_id]


store = SessionEventStore(registry)
app = SessionRouter(server.streamable_http_app(event_store=store), registry)
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", timeout_graceful_shutdown=10)
"""
START = 60.0  # seconds for a process to listen, on a busy machine


class Process:
    """One worker."""

    def __init__(self, url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        root = Path(trio_sessions.__file__).parent.parent
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(self.port), url],
            env={**os.environ, "PYTHONPATH": str(root)},
        )

    def wait(self) -> None:
        """Return when it listens."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "it has not started"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("it does not listen")

    def say(self, method: str, body: Any, session_id: str = "") -> httpx2.Response:
        """Make a request."""
        headers = {**HEADERS, "mcp-session-id": session_id} if session_id else HEADERS
        url = f"http://127.0.0.1:{self.port}/mcp"
        return httpx2.request(method, url, json=body, headers=headers, timeout=30.0)

    def call(self, session_id: str, number: int, name: str, **arguments: Any) -> Any:
        """Call a tool, and return what it says."""
        params = {"name": name, "arguments": arguments}
        body = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
        answer = self.say("POST", body, session_id)
        assert answer.status_code == 200, answer.text
        lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        return json.loads(lines[-1])["result"]["structuredContent"]["result"]

    def end(self, number: int) -> None:
        """End it, if it has not ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(30)


@contextmanager
def two(url: str) -> Iterator[list[Process]]:
    """Start two workers."""
    processes = [Process(url)]
    try:
        processes[0].wait()
        processes.append(Process(url))
        processes[1].wait()
        yield processes
    finally:
        for one in processes:
            one.end(signal.SIGKILL)


def test_two_processes_share_sessions_and_events(sqlite_url: sa.URL) -> None:
    """Either answers, a change at one is heard at both, and a session outlives SIGTERM."""
    with two(str(sqlite_url)) as (here, other):
        session_id = here.say("POST", INITIALIZE).headers["mcp-session-id"]
        ready = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert other.say("POST", ready, session_id).status_code == 202
        second = other.say("POST", INITIALIZE).headers["mcp-session-id"]
        assert other.say("POST", ready, second).status_code == 202
        holder = here.call(session_id, 1, "change", uri="file:///0")
        assert other.call(session_id, 2, "change", uri="file:///0") == holder
        deadline = time.monotonic() + 30
        for number in range(10, 1000):  # the other one listens after a moment
            uri = f"file:///{number}"
            here.call(session_id, number, "change", uri=uri)
            *heard, worker = other.call(second, number, "listened")
            assert worker != holder
            heard = [one for one in heard if one != "file:///0"]
            if heard or time.monotonic() > deadline:
                break
        assert len(heard) == len(set(heard)) > 0
        here.end(signal.SIGTERM)
        assert other.call(session_id, 2000, "change", uri="file:///0") == worker
        for one in (session_id, second):
            assert other.say("DELETE", None, one).status_code == 200
            assert other.say("DELETE", None, one).status_code == 404
        assert sqlite_url.database is not None
        with closing(sqlite3.connect(sqlite_url.database)) as database:
            for table in ("sessions", "logs"):
                (count,) = database.execute(f"SELECT count(*) FROM trio_{table}").fetchone()
                assert count == 0, table


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_on_sqlite_outlives_its_worker(backend: str, sqlite_url: sa.URL) -> None:
    """Calls, questions to the client, a move and a death, as on the store in memory."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, lambda: DatabaseStore(sqlite_url), size=3) as fleet,
            client(fleet) as session,
        ):
            for end in ("stop", "vanish", ""):
                for n in range(4):
                    answer = await session.call_tool("add", {"n": n})
                    assert answer.structured_content == {"result": n + 1}
                asked = await session.call_tool("ask", {})
                assert not asked.is_error
                if end:
                    worker = fleet.holder()
                    fleet.workers.remove(worker)
                    with anyio.fail_after(30):
                        await (worker.stop() if end == "stop" else worker.vanish())
            assert {status for _, _, status in fleet.seen} <= {200, 202}

    run(backend, scenario)
