"""A gateway on FastAPI: events to clients by SSE, messages to them by POST; or all by WebSocket.

With two workers, on an SQLite file unless DATABASE_URL names another database::

    uvicorn examples.fastapi_gateway:app --workers 2
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, fields
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException, Response, WebSocket
from sse_starlette import EventSourceResponse

from trio_sessions import (
    InvalidSessionId,
    SessionNotFound,
    SessionsError,
    StoreUnavailable,
    aio,
)
from trio_sessions.aio.transports import SSETransport, WebSocketTransport


class Registry(aio.SessionRegistry):
    """The sessions of this worker, and what it does with a message to one of them."""

    async def generate_response(
        self, message: Any, transport: Any, server_id: str | None, user: Any
    ) -> None:
        """Answer one message: here, echo it."""
        with suppress(ConnectionError):  # the client has gone, or was given up: so does the session
            await transport.send({"echo": message})


ttl = float(os.environ.get("SESSION_TTL", "3600"))  # seconds; the same in all workers
registry = Registry(  # opens nothing yet: a server may fork after this import
    os.environ.get("DATABASE_URL", "sqlite:///sessions.db"),
    session_ttl=ttl,
    cleanup_interval=float(os.environ.get("CLEANUP_INTERVAL", ttl / 12)),
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open the registry before the first request, close it after the last."""
    async with registry:
        yield


app = FastAPI(lifespan=lifespan)


async def respond(session_id: str) -> dict[str, str]:
    """Answer the messages of a session until it is removed; return what its client is told."""
    task = asyncio.create_task(registry.respond(None, None, session_id))
    registry.register_respond_task(session_id, task)
    return {"session": session_id, "worker": registry.worker_id}


async def events() -> AsyncIterator[bytes]:
    """Hold a session as long as its client takes events; the first tells its id."""
    session_id, transport = secrets.token_urlsafe(), SSETransport(send_timeout=2)
    try:
        await registry.add_session(session_id, transport)
        await transport.send(await respond(session_id), event="session")
        async for event in transport.stream():
            yield event
    finally:
        await registry.remove_session(session_id, transport=transport)


@app.get("/sse")
async def open_stream() -> EventSourceResponse:
    """Open a session of server-sent events."""
    return EventSourceResponse(events())


@app.websocket("/ws")
async def talk(websocket: WebSocket) -> None:
    """Hold a session as long as its WebSocket is open; its client may send messages to it."""
    await websocket.accept()
    session_id, transport = secrets.token_urlsafe(), WebSocketTransport(websocket, send_timeout=2)
    try:
        await registry.add_session(session_id, transport)
        await transport.send(await respond(session_id))
        async for message in transport:
            await registry.broadcast(session_id, message)
    except (SessionsError, ValueError, ConnectionError):
        pass  # the session or its client has gone meanwhile, or has sent what is no JSON
    finally:
        await registry.remove_session(session_id, transport=transport)


@app.post("/messages/{session_id}", status_code=202)
async def post_message(session_id: str, message: Annotated[Any, Body()]) -> None:
    """Take a message for a session of any worker; 404: it is gone, 503: nobody can tell."""
    try:
        await registry.broadcast(session_id, message)
    except (InvalidSessionId, SessionNotFound) as exc:
        raise HTTPException(404, "no such session") from exc
    except StoreUnavailable as exc:
        raise HTTPException(503, "the database cannot tell", {"Retry-After": "5"}) from exc
    except (TypeError, ValueError) as exc:  # too large, or NaN, which JSON does not have
        raise HTTPException(422, str(exc)) from exc


@app.get("/statistics")
async def statistics() -> dict[str, Any]:
    """Return counters and gauges; the last report holds session ids, which are secret."""
    now = registry.statistics()
    return {f.name: getattr(now, f.name) for f in fields(now) if f.name != "last_report"}


@app.get("/livez")
async def live(response: Response) -> dict[str, Any]:
    """Say 503 if this process should be restarted: an outage of the database is no reason."""
    health = registry.health()  # asks nobody, and never waits
    response.status_code = 503 if health.closed else 200
    return asdict(health)


@app.get("/readyz")
async def ready(response: Response) -> dict[str, Any]:
    """Say 503 if new clients should go elsewhere; those that are here stay."""
    health = registry.health()
    takes_clients = health.database_answers and not (health.draining or health.closed)
    response.status_code = 200 if takes_clients else 503
    return asdict(health)
