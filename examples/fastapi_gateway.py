"""A gateway on FastAPI: events to clients by SSE, messages to them by POST.

With two workers, on an SQLite file unless DATABASE_URL names another database::

    uvicorn examples.fastapi_gateway:app --workers 2
"""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from typing import Annotated, Any

from fastapi import Body, FastAPI, HTTPException
from sse_starlette import EventSourceResponse, ServerSentEvent

from trio_sessions import InvalidSessionId, SessionNotFound, StoreUnavailable, aio


class EventTransport:
    """One client's events. Its methods are coroutines of asyncio."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[str] = asyncio.Queue(maxsize=100)
        self._connected = True

    async def is_connected(self) -> bool:
        """Answer the pass. What the web server notices ends the stream at once anyway."""
        return self._connected

    async def disconnect(self) -> None:
        """End the stream: the registry has removed the session."""
        self._connected = False
        if self._events.empty():
            self._events.put_nowait("")  # wakes the stream up

    async def send(self, message: Any) -> None:
        """Send an event. A client that leaves 100 of them unread is given up."""
        self._connected = self._connected and not self._events.full()
        if self._connected:  # else the next pass removes the session
            self._events.put_nowait(json.dumps(message))

    async def stream(self, session_id: str) -> AsyncIterator[ServerSentEvent]:
        """Hold the session as long as its client takes events; the first tells its id."""
        try:
            await registry.add_session(session_id, self)
            task = asyncio.create_task(registry.respond(None, None, session_id))
            registry.register_respond_task(session_id, task)  # it ends with the session
            hello = {"session": session_id, "worker": registry.worker_id}
            yield ServerSentEvent(json.dumps(hello), event="session")
            while (event := await self._events.get()) and self._connected:
                yield ServerSentEvent(event, event="message")
        finally:
            await registry.remove_session(session_id, transport=self)


class Registry(aio.SessionRegistry):
    """The sessions of this worker, and what it does with a message to one of them."""

    async def generate_response(
        self, message: Any, transport: Any, server_id: str | None, user: Any
    ) -> None:
        """Answer one message: here, echo it."""
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


@app.get("/sse")
async def open_stream() -> EventSourceResponse:
    """Open a session."""
    return EventSourceResponse(EventTransport().stream(secrets.token_urlsafe()))


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
