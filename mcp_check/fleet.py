"""Workers as processes, and the way to them that every client takes."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import mcp_types
from mcp.client import Client
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

CHECKOUT = Path(__file__).resolve().parent.parent
URL = "http://127.0.0.1:1/mcp"  # the port is chosen for each request
OLD_URL = "http://127.0.0.1:1/sse"
START = 60.0  # seconds for a worker to start, on a busy machine


def free_port() -> int:
    """Return a loopback port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Worker:
    """One process."""

    port: int
    process: subprocess.Popen[bytes]


@dataclass
class Fleet:
    """The workers of one case.

    Args:
        url: of the database; empty: the SDK alone.
        server: uvicorn or hypercorn.
        made_with: the SDK or fastmcp.
        folder: for logs, and for what tools have run.
        by_sockets: the workers send letters by sockets.
        collect_after: objects until Python looks for garbage among the youngest; 0: its own number.
    """

    url: str
    server: str
    made_with: str
    folder: Path
    by_sockets: bool = False
    collect_after: int = 0
    workers: list[Worker] = field(default_factory=list)
    log: Path | None = None
    """The database server's, where there is one."""
    killed: int = 0
    """Workers that were ended by SIGKILL, and could tidy up nothing."""

    @property
    def is_alone(self) -> bool:
        """Whether the SDK has no help."""
        return not self.url

    @property
    def ran(self) -> Path:
        """Where tools note that they run."""
        return self.folder / "ran"

    def start(self, port: int | None = None) -> Worker:
        """Start a worker; `wait` follows."""
        port = port or free_port()
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")])
            ),
            "CHECK_DATABASE_URL": self.url,
            "CHECK_SERVER": self.server,
            "CHECK_MADE_WITH": self.made_with,
            "CHECK_RAN": str(self.ran),
            "CHECK_COLLECT_AFTER": str(self.collect_after),
            "CHECK_MAIL_SOCKETS": str(self.folder / "mail") if self.by_sockets else "",
        }
        with (self.folder / "workers.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "mcp_check.worker", str(port)],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        worker = Worker(port, process)
        self.workers.append(worker)
        return worker

    async def wait(self, worker: Worker) -> None:
        """Return when a worker listens."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if worker.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                stream = await anyio.connect_tcp("127.0.0.1", worker.port)
                await stream.aclose()
                return
            await anyio.sleep(0.1)
        raise RuntimeError(f"a worker did not start:\n{self.last_words()}")

    def processor_time(self) -> float:
        """Return the seconds that the workers have used a processor for; 0 where nobody says."""
        ticks = 0
        for worker in self.workers:
            with contextlib.suppress(OSError):
                stat = Path("/proc", str(worker.process.pid), "stat").read_text()
                ticks += sum(map(int, stat.rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    async def ask(self, path: str) -> list[dict[str, Any]]:
        """Return what each worker answers to a question of `mcp_check.tools`."""
        async with httpx2.AsyncClient(timeout=START) as http:
            answers = [
                await http.get(f"http://127.0.0.1:{worker.port}{path}") for worker in self.workers
            ]
        return [answer.raise_for_status().json() for answer in answers]

    def last_words(self) -> str:
        """Return the end of what the workers have logged."""
        text = (self.folder / "workers.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-25:])

    async def end(
        self, worker: Worker, number: int, *, notice: float = 0.0, patience: float = 60.0
    ) -> float:
        """Send a signal to a worker, and wait until it has ended; return the seconds.

        Args:
            worker: which.
            number: of the signal.
            notice: seconds for which it gets no more requests before that, as from a balancer
                that is told of a restart: what connects in the very moment is reset by the kernel.
            patience: seconds until it is killed.
        """
        self.workers.remove(worker)
        self.killed += number == signal.SIGKILL
        await anyio.sleep(notice)
        began = time.monotonic()
        worker.process.send_signal(number)
        while worker.process.poll() is None:
            if time.monotonic() > began + patience:
                worker.process.kill()
                worker.process.wait()
                raise RuntimeError("a worker ignores SIGTERM")
            await anyio.sleep(0.05)
        return time.monotonic() - began

    def close(self) -> None:
        """End every worker that is left."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            try:
                worker.process.wait(30)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self.workers.clear()


class Balancer(httpx2.AsyncBaseTransport):
    """Sends each request to a worker by chance, or to one; one that is not there is passed by."""

    def __init__(self, fleet: Fleet, only: Worker | None = None) -> None:
        self.fleet = fleet
        self.only = only
        # A connection for each request: one that is kept may be closed while it is being used.
        self._inner = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request on."""
        workers = list(self.fleet.workers) if self.only is None else [self.only]
        random.shuffle(workers)
        error: Exception | None = None
        for worker in workers:
            request.url = request.url.copy_with(port=worker.port)
            request.headers["host"] = f"127.0.0.1:{worker.port}"
            try:
                return await self._inner.handle_async_request(request)
            except httpx2.ConnectError as exc:
                error = exc
        raise error or httpx2.ConnectError("no worker")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


@asynccontextmanager
async def raw(
    fleet: Fleet, user: str, only: Worker | None = None
) -> AsyncIterator[tuple[httpx2.AsyncClient, Balancer]]:
    """Open an HTTP client."""
    balancer = Balancer(fleet, only)
    headers = {"authorization": f"Bearer {user}"}
    async with httpx2.AsyncClient(transport=balancer, timeout=60.0, headers=headers) as http:
        yield http, balancer


def _elicits(user: str) -> Any:
    """Return what a client's user answers."""

    async def elicit(context: Any, params: Any) -> mcp_types.ElicitResult:
        return mcp_types.ElicitResult(action="accept", content={"name": user})

    return elicit


@asynccontextmanager
async def connect(
    fleet: Fleet, user: str = "alice", only: Worker | None = None
) -> AsyncIterator[tuple[ClientSession, Balancer]]:
    """Open a client of the SDK's, with a session."""
    async with (
        raw(fleet, user, only) as (http, balancer),
        streamable_http_client(URL, http_client=http) as streams,
        ClientSession(streams[0], streams[1], elicitation_callback=_elicits(user)) as session,
    ):
        await session.initialize()
        yield session, balancer


@asynccontextmanager
async def connect_as_of_old(fleet: Fleet, user: str) -> AsyncIterator[ClientSession]:
    """Open a client of the SDK's, with a session of the SSE transport."""

    def factory(*_: Any, **__: Any) -> httpx2.AsyncClient:
        headers = {"authorization": f"Bearer {user}"}
        return httpx2.AsyncClient(transport=Balancer(fleet), timeout=60.0, headers=headers)

    async with (
        sse_client(OLD_URL, httpx_client_factory=factory) as streams,
        ClientSession(streams[0], streams[1], elicitation_callback=_elicits(user)) as session,
    ):
        await session.initialize()
        yield session


@asynccontextmanager
async def connect_without_session(
    fleet: Fleet, user: str = "alice", only: Worker | None = None
) -> AsyncIterator[Client]:
    """Open a client of the SDK's that speaks the protocol of 2026-07-28, which has no sessions."""
    async with (
        raw(fleet, user, only) as (http, _),
        Client(streamable_http_client(URL, http_client=http), mode="2026-07-28") as client,
    ):
        yield client
