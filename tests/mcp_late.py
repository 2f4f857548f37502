"""Servers whose manager of sessions is made when they start: fastmcp, and one of ours like it.

Ours is here so that what fastmcp does is looked at where it is not installed, too; whatever is
tried with the one is tried with the other.
"""

import importlib.util
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_fleet import Calls, Name, Users, make_app
from mcp_types import JSONRPCMessage

from trio_sessions.mcp import SessionEventStore
from trio_sessions.mcp._sdk import find_seat

__all__ = ["KINDS", "KIND_NAMES", "Scoping", "make_fastmcp", "make_late", "needs_fastmcp"]


class Scoping(EventStore):
    """Puts a random prefix before the names of streams, and sends nothing of a foreign one."""

    def __init__(self, store: EventStore) -> None:
        self._event_store = store
        name = uuid.uuid4().hex
        self._stream_prefix = f"{len(name)}:{name}:"

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        return await self._event_store.store_event(self._stream_prefix + stream_id, message)

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        waiting: list[EventMessage] = []

        async def keep(event: EventMessage) -> None:
            waiting.append(event)
            await anyio.lowlevel.checkpoint()

        found = await self._event_store.replay_events_after(last_event_id, keep)
        if found is None or not found.startswith(self._stream_prefix):
            return None
        for event in waiting:
            await send_callback(event)
        return found.removeprefix(self._stream_prefix)


class _Manager(StreamableHTTPSessionManager):
    """Gives each session an adapter of its own."""

    _shared: EventStore | None = None

    @property
    def event_store(self) -> EventStore | None:
        return None if self._shared is None else Scoping(self._shared)

    @event_store.setter
    def event_store(self, store: EventStore | None) -> None:
        self._shared = store


def make_late(registry: Any, bus: Any, calls: Calls, **settings: Any) -> tuple[Any, Any]:
    """Return a server of the SDK's, and its application, which is like fastmcp's."""
    server, app = make_app(registry, bus, calls, **settings)
    seat: Any = find_seat(app)
    model = seat.session_manager
    seat.session_manager = None

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        seat.session_manager = _Manager(model.app, model.event_store, model.json_response)
        async with seat.session_manager.run():
            yield

    app.router.lifespan_context = lifespan
    return server, app


def make_fastmcp(
    registry: Any, bus: Any, calls: Calls, *, authenticates: bool, json_response: bool
) -> tuple[Any, Any]:
    """Return a server of fastmcp's, and its application."""
    import fastmcp
    from fastmcp.server.auth import TokenVerifier
    from fastmcp.server.auth.auth import AccessToken
    from fastmcp.server.dependencies import get_access_token

    class Verifier(TokenVerifier):  # type: ignore[misc]  # where it is not installed
        async def verify_token(self, token: str) -> Any:
            found = await Users().verify_token(token)
            if found is None:
                return None
            return AccessToken(**found.model_dump(exclude_none=True), original_client_id="first")

    server = fastmcp.FastMCP("test", auth=Verifier() if authenticates else None)

    async def add(n: int, ctx: fastmcp.Context) -> int:
        """Count on in this session's worker, with progress."""
        calls.ran.append("add")
        for i in range(n):
            await ctx.report_progress(i, n, f"step {i}")
        return n + 1

    async def ask(ctx: fastmcp.Context) -> str:
        """Ask the client's user for a name."""
        answer = await ctx.elicit("name?", Name)
        assert answer.action == "accept"
        return f"hello {answer.data.name}"

    async def echo(text: str) -> str:
        """Say it again."""
        return text

    async def slow(gate: str) -> str:
        """Wait until the test says so."""
        calls.ran.append(f"slow {gate}")
        calls.started.setdefault(gate, anyio.Event()).set()
        await calls.gates.setdefault(gate, anyio.Event()).wait()
        return f"through {gate}"

    async def tell(ctx: fastmcp.Context) -> str:
        """Send a notification that belongs to no request."""
        await ctx.session.send_tool_list_changed()
        return "told"

    async def whose() -> str | None:
        """Say what only fastmcp's token has."""
        token = get_access_token()
        return None if token is None else token.original_client_id

    for tool in (add, ask, echo, slow, tell, whose):
        server.tool(tool)
    app = server.http_app(
        event_store=SessionEventStore(registry), json_response=json_response, path="/mcp"
    )
    return server, app


needs_fastmcp = pytest.mark.skipif(
    importlib.util.find_spec("fastmcp") is None,
    reason="fastmcp is not installed here; `make mcp-check` looks at it",
)
KIND_NAMES = ["like fastmcp", pytest.param("fastmcp", marks=needs_fastmcp)]
KINDS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "like fastmcp": make_late,
    "fastmcp": make_fastmcp,
}
