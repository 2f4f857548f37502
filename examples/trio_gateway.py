"""A gateway on Trio: the same as `fastapi_gateway.py`, with Starlette on Hypercorn.

One worker, on an SQLite file unless DATABASE_URL names another database; start more of them
on other ports, since Hypercorn's own further workers are not given time to close::

    hypercorn -k trio --bind 127.0.0.1:8000 examples.trio_gateway:app
"""

import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, fields
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from trio_sessions import (
    InvalidSessionId,
    SessionNotFound,
    SessionRegistry,
    StoreUnavailable,
    open_registry,
)


class EventTransport:
    """One client's events. Its methods are Trio functions."""

    def __init__(self) -> None:
        self._events, self.stream = trio.open_memory_channel[str](100)

    async def is_connected(self) -> bool:
        """Answer the pass. What the web server notices ends the stream at once anyway."""
        ends = self._events.statistics()
        return ends.open_send_channels > 0 and ends.open_receive_channels > 0

    async def disconnect(self) -> None:
        """End the stream: the registry has removed the session."""
        self._events.close()

    async def send(self, message: Any, event: str = "message") -> None:
        """Send an event. A client that leaves 100 of them unread is given up."""
        try:
            self._events.send_nowait(f"event: {event}\ndata: {json.dumps(message)}\n\n")
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._events.close()  # the next pass removes the session


class SessionResponse(StreamingResponse):
    """Holds a session as long as its client takes events; the first tells its id."""

    def __init__(self, registry: SessionRegistry) -> None:
        self.registry, self.transport = registry, EventTransport()
        super().__init__(self.transport.stream, media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the events, from `add_session` to `remove_session`."""
        session_id = secrets.token_urlsafe()
        try:
            await self.registry.add_session(session_id, self.transport)
            hello = {"session": session_id, "worker": self.registry.worker_id}
            await self.transport.send(hello, event="session")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.respond, session_id)
                await super().__call__(scope, receive, send)
                nursery.cancel_scope.cancel()
        finally:
            self.transport.stream.close()
            # Goes on if this is cancelled; ends nobody who has the session since.
            await self.registry.remove_session(session_id, transport=self.transport)

    async def respond(self, session_id: str) -> None:
        """Answer the messages; when the session is removed, the stream ends too."""
        with suppress(SessionNotFound):  # it may have been removed before this began
            await self.registry.respond(session_id, generate_response)


async def generate_response(message: Any, transport: Any) -> None:
    """Answer one message: here, echo it."""
    await transport.send({"echo": message})


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Open the registry before the first request, close it after the last."""
    ttl = float(os.environ.get("SESSION_TTL", "3600"))  # seconds; the same in all workers
    opening = open_registry(
        os.environ.get("DATABASE_URL", "sqlite:///sessions.db"),
        session_ttl=ttl,
        cleanup_interval=float(os.environ.get("CLEANUP_INTERVAL", ttl / 12)),
    )
    async with opening as registry:
        yield {"registry": registry}


async def open_stream(request: Request) -> Response:
    """Open a session."""
    return SessionResponse(request.state.registry)


async def post_message(request: Request) -> Response:
    """Take a message for a session of any worker; 404: it is gone, 503: nobody can tell."""
    registry, session_id = request.state.registry, request.path_params["session_id"]
    try:
        await registry.broadcast(session_id, await request.json())
    except (InvalidSessionId, SessionNotFound) as exc:
        raise HTTPException(404, "no such session") from exc
    except StoreUnavailable as exc:
        raise HTTPException(503, "the database cannot tell", {"Retry-After": "5"}) from exc
    except (TypeError, ValueError) as exc:  # too large, or NaN, which JSON does not have
        raise HTTPException(422, str(exc)) from exc
    return Response(status_code=202)


async def statistics(request: Request) -> Response:
    """Return counters and gauges; the last report holds session ids, which are secret."""
    now = request.state.registry.statistics()
    return JSONResponse(
        {f.name: getattr(now, f.name) for f in fields(now) if f.name != "last_report"}
    )


async def live(request: Request) -> Response:
    """Say 503 if this process should be restarted: an outage of the database is no reason."""
    health = request.state.registry.health()  # asks nobody, and never waits
    return JSONResponse(asdict(health), 503 if health.closed else 200)


async def ready(request: Request) -> Response:
    """Say 503 if new clients should go elsewhere; those that are here stay."""
    health = request.state.registry.health()
    takes_clients = health.database_answers and not (health.draining or health.closed)
    return JSONResponse(asdict(health), 200 if takes_clients else 503)


app = Starlette(
    routes=[
        Route("/sse", open_stream),
        Route("/messages/{session_id}", post_message, methods=["POST"]),
        Route("/statistics", statistics),
        Route("/livez", live),
        Route("/readyz", ready),
    ],
    lifespan=lifespan,
)
