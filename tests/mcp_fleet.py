"""Workers that serve MCP, and clients whose requests go to any of them. On either library."""

import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import httpx2
import mcp_types
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context
from pydantic import AnyHttpUrl, BaseModel

from trio_sessions import SessionStore, aio, open_registry
from trio_sessions.mcp import (
    RegistrySubscriptionBus,
    SessionEventStore,
    SessionRouter,
    handlers,
)
from trio_sessions.testing import FaultyStore

__all__ = [
    "BACKENDS",
    "HEADERS",
    "INITIALIZE",
    "URL",
    "Fleet",
    "Worker",
    "as_bytes",
    "at",
    "begin",
    "client",
    "leave_early",
    "make_app",
    "make_server",
    "open_fleet",
    "raw",
    "run",
    "scope_of",
    "text_of",
    "through",
]

BACKENDS = ("trio", "asyncio")
URL = "http://127.0.0.1:8000/mcp"
INITIALIZE: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    },
}
HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
SOON = 60.0  # seconds; nothing here takes as long, but on a machine that is very busy


def run(backend: str, scenario: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run a scenario under one of the two libraries."""

    async def bounded() -> None:
        with anyio.fail_after(SOON):
            await scenario(*args)

    anyio.run(bounded, backend=backend)


class Name(BaseModel):
    """What the server asks for."""

    name: str


class Users:
    """Says who a bearer token is."""

    async def verify_token(self, token: str) -> AccessToken | None:
        if token not in {"alice", "bob"}:
            return None
        return AccessToken(token=token, client_id="app", scopes=[], subject=token)


@dataclass
class Calls:
    """What the tools of a worker have been called for."""

    ran: list[str] = field(default_factory=list)
    gates: dict[str, anyio.Event] = field(default_factory=dict)
    started: dict[str, anyio.Event] = field(default_factory=dict)


def make_server(bus: RegistrySubscriptionBus, calls: Calls, **settings: Any) -> MCPServer:
    """Return a server with a counter, progress, elicitation and a tool that waits."""
    server = MCPServer("test", subscriptions=bus, **settings)
    counts: dict[str, int] = {}

    @server.tool()
    async def add(n: int, ctx: Context) -> int:
        """Count on in this session's worker, with progress."""
        calls.ran.append("add")
        for i in range(n):
            await ctx.report_progress(i, n, f"step {i}")
        counts["n"] = counts.get("n", 0) + n
        return n + 1

    @server.tool()
    async def ask(ctx: Context) -> str:
        """Ask the client's user for a name."""
        answer = await ctx.elicit("name?", Name)
        assert answer.action == "accept"
        return f"hello {answer.data.name}"

    @server.tool()
    async def echo(text: str) -> str:
        """Say it again."""
        return text

    @server.tool()
    async def slow(gate: str) -> str:
        """Wait until the test says so."""
        calls.ran.append(f"slow {gate}")
        calls.started.setdefault(gate, anyio.Event()).set()
        await calls.gates.setdefault(gate, anyio.Event()).wait()
        return f"through {gate}"

    @server.tool()
    async def tell(ctx: Context) -> str:
        """Send a notification that belongs to no request."""
        await ctx.session.send_tool_list_changed()
        return "told"

    @server.tool()
    async def change(uri: str, ctx: Context) -> str:
        """Tell subscribers of a change."""
        await ctx.notify_resource_updated(uri)
        return "changed"

    return server


def make_app(
    registry: Any,
    bus: RegistrySubscriptionBus,
    calls: Calls,
    *,
    authenticates: bool,
    json_response: bool,
) -> tuple[Any, Any]:
    """Return a server, and its application."""
    extra: dict[str, Any] = {}
    if authenticates:
        url = AnyHttpUrl("http://127.0.0.1:8000")
        extra["auth"] = AuthSettings(issuer_url=url, resource_server_url=None, required_scopes=[])
        extra["token_verifier"] = Users()
    server = make_server(bus, calls, **extra)
    store = SessionEventStore(registry)
    return server, server.streamable_http_app(event_store=store, json_response=json_response)


@dataclass
class Worker:
    """One worker."""

    registry: Any
    router: SessionRouter
    server: Any
    store: FaultyStore
    calls: Calls
    bus: RegistrySubscriptionBus
    ends: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)

    @property
    def sdk_sessions(self) -> int:
        return len(self.server.session_manager._server_instances)

    def ids(self) -> list[str]:
        registry = self.registry
        core = registry if not hasattr(registry, "_opened") else registry._opened().core
        return list(core._house.table.ids())

    async def stop(self) -> None:
        """End as a server does when it is told to."""
        await self.router.leave()
        await self.close()

    async def keeps(self, session_id: str) -> None:
        """Wait until all that a session of this worker was told is in its log."""
        held = self.registry.get_session_sync(session_id)
        for one in list(held.conversation.leaving):
            await one.wait()

    async def vanish(self) -> None:
        """End as by kill -9: nobody is told, and the rows stay."""
        self.store.fail()
        await self.close()

    async def sees_the_death(self, session_id: str) -> None:
        """Wait until the worker of a session is known to be dead: after three missed stamps."""
        while True:
            info = await self.registry.describe_session(session_id)
            if info is None or not info.worker_alive:
                return
            await anyio.sleep(0.05)

    async def close(self) -> None:
        self.ends.set()
        await self.ended.wait()


@dataclass
class Fleet(httpx2.AsyncBaseTransport):
    """Workers behind a balancer that sends each request to any of them."""

    tasks: anyio.abc.TaskGroup
    workers: list[Worker] = field(default_factory=list)
    seen: list[tuple[str, str, int]] = field(default_factory=list)
    pick: Callable[[list[Worker]], Worker] = random.choice

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        worker = self.pick(self.workers)
        answer = await through(self.tasks, worker.router, request)
        self.seen.append((request.method, worker.registry.worker_id, answer.status_code))
        return answer

    def holder(self) -> Worker:
        """Return the worker that holds the only session."""
        (found,) = [
            worker
            for worker in self.workers
            if any(worker.router._places.here(one) for one in list(worker.ids()))
        ]
        return found

    def other(self) -> Worker:
        """Return one that does not."""
        return next(worker for worker in self.workers if worker is not self.holder())


def scope_of(request: httpx2.Request) -> dict[str, Any]:
    """Return a request as ASGI has it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.url.path,
        "raw_path": request.url.raw_path,
        "query_string": request.url.query,
        "headers": [(key.lower(), value) for key, value in request.headers.raw],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "root_path": "",
    }


async def leave_early(worker: Worker, request: httpx2.Request) -> None:
    """Make a request that begins a session, and leave while the registry is being told of it."""
    body = await request.aread()
    gone = anyio.Event()
    given = False
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.router, scope_of(request), receive, send)
        while not worker.ids():
            await anyio.sleep(0.01)
        assert sent == []
        gone.set()


async def through(tasks: anyio.abc.TaskGroup, app: Any, request: httpx2.Request) -> httpx2.Response:
    """Let an ASGI application answer; the answer's body streams."""
    body = await request.aread()
    head, gone = anyio.Event(), anyio.Event()
    start: dict[str, Any] = {}
    into, out = anyio.create_memory_object_stream[bytes](10_000)
    given = False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert not start, "an answer has one head"
            start.update(message)
            head.set()
        elif not gone.is_set():
            if message.get("body"):
                into.send_nowait(message["body"])
            if not message.get("more_body"):
                into.close()

    async def answer() -> None:
        try:
            await app(scope_of(request), receive, send)
        finally:
            head.set()
            into.close()

    tasks.start_soon(answer)
    await head.wait()
    if not start:
        raise httpx2.ReadError("the application has not answered")

    class Body(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in out:
                yield chunk

        async def aclose(self) -> None:
            gone.set()
            out.close()

    return httpx2.Response(start["status"], headers=start["headers"], stream=Body())


async def serve(
    backend: str,
    store: SessionStore,
    *,
    authenticates: bool = False,
    json_response: bool = False,
    router: dict[str, Any] | None = None,
    make: Callable[..., tuple[Any, Any]] = make_app,
    task_status: anyio.abc.TaskStatus[Worker],
    **settings: Any,
) -> None:
    """Be a worker, until it is to end."""
    # A worker is dead after three stamps that it has missed; a busy machine may stop it a second.
    settings = {"cleanup_interval": 1.0, "session_ttl": 3600.0, **settings}
    faulty = FaultyStore(store)
    async with AsyncExitStack() as stack:
        registry: Any
        if backend == "trio":
            registry = await stack.enter_async_context(
                open_registry(faulty, handlers=handlers(), **settings)
            )
        else:
            registry = await stack.enter_async_context(
                aio.SessionRegistry(faulty, handlers=handlers(), **settings)
            )
        calls = Calls()
        bus = RegistrySubscriptionBus(registry)
        server, app = make(
            registry, bus, calls, authenticates=authenticates, json_response=json_response
        )
        made = SessionRouter(app, registry, **(router or {}))
        await stack.enter_async_context(app.router.lifespan_context(app))
        await stack.enter_async_context(made.run())
        worker = Worker(registry, made, server, faulty, calls, bus)
        task_status.started(worker)
        await worker.ends.wait()
    worker.ended.set()


@asynccontextmanager
async def open_fleet(
    backend: str, store: Callable[[], SessionStore], *, size: int = 2, **settings: Any
) -> AsyncIterator[Fleet]:
    """Start workers, and stop those that are left."""
    async with anyio.create_task_group() as tasks:
        fleet = Fleet(tasks)
        work = functools.partial(serve, backend, **settings)
        for _ in range(size):
            fleet.workers.append(await tasks.start(work, store()))
        yield fleet
        for worker in fleet.workers:
            await worker.close()
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def raw(fleet: Fleet, token: str | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """Open an HTTP client of a fleet."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(transport=fleet, timeout=30.0, headers=headers) as http:
        yield http


@asynccontextmanager
async def client(
    fleet: Fleet, *, token: str | None = None, messages: Any = None
) -> AsyncIterator[ClientSession]:
    """Open a client of the SDK's, with a session."""

    async def elicit(context: Any, params: Any) -> mcp_types.ElicitResult:
        return mcp_types.ElicitResult(action="accept", content={"name": "bob"})

    async with (
        raw(fleet, token) as http,
        streamable_http_client(URL, http_client=http) as streams,
        ClientSession(
            streams[0], streams[1], elicitation_callback=elicit, message_handler=messages
        ) as session,
    ):
        await session.initialize()
        yield session


async def begin(fleet: Fleet, http: Any, worker: int) -> str:
    """Begin a session at one worker, and return its id."""
    fleet.pick = lambda workers: workers[worker]
    began = await http.post(URL, json=INITIALIZE, headers=HEADERS)
    assert began.status_code == 200, began.text
    session_id: str = began.headers["mcp-session-id"]
    done = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    await http.post(URL, json=done, headers={**HEADERS, "mcp-session-id": session_id})
    return session_id


def at(fleet: Fleet, worker: int) -> None:
    """Send what follows to one worker."""
    fleet.pick = lambda workers: workers[worker]


def text_of(answer: mcp_types.CallToolResult) -> str:
    """Return what a tool has said."""
    (content,) = answer.content
    assert isinstance(content, mcp_types.TextContent)
    return content.text


def as_bytes(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers that may have letters which do not belong there."""
    return [(key.encode(), value.encode()) for key, value in headers.items()]
