"""The way of a replay's events to the client: many in one piece, past the SDK's stream of events.

The SDK hands each event of a replay from task to task, at a tenth of a millisecond each. The event
store may write them where the SDK sends what it writes itself::

    event store ──> SDK's callback ──> SDK's stream ──> send ──> middleware, router ──> client
         └───────── pieces of many events ──────────────^

`Innermost` stands right before the SDK, so whatever stands before it has every event on its way.
The SDK has sent the head by then, and is handed nothing until the replay is over, so the order is
kept.
"""

from collections.abc import Iterable
from contextvars import ContextVar

import anyio
import anyio.lowlevel

from trio_sessions.mcp._contracts import App, Message, Receive, Scope, Send
from trio_sessions.mcp._sdk import EventMessage, ServerSentEvent

__all__ = ["Innermost", "Outlet", "outlet"]

_PIECE = 65_536
"""Bytes from which on a piece is sent; what an event has more makes it larger."""


class Innermost:
    """Let the event store write to the streams that clients get.

    Args:
        app: the SDK's, with nothing between it and its stream of events.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        own = Outlet(send)
        token = outlet.set(own)
        try:
            await self._app(scope, receive, own.send)
        finally:
            outlet.reset(token)


class Outlet:
    """Where the SDK sends its answer to one request.

    Args:
        send: the request's.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._has_begun = anyio.Event()

    async def send(self, message: Message) -> None:
        """Send what the SDK says."""
        await self._send(message)
        if message["type"] == "http.response.start":
            self._has_begun.set()

    async def write(self, events: Iterable[EventMessage]) -> None:
        """Send events as the SDK would, once the answer has begun.

        Args:
            events: those that the SDK has not been handed, nor will be.
        """
        await self._has_begun.wait()
        piece = bytearray()
        for event in events:
            piece += _frame(event)
            if len(piece) >= _PIECE:
                await self._write(piece)
                piece = bytearray()
        if piece:
            await self._write(piece)

    async def _write(self, piece: bytearray) -> None:
        await self._send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
        await anyio.lowlevel.checkpoint()  # servers that need not wait make none


def _frame(event: EventMessage) -> bytes:
    """Return an event as the SDK's stream has it."""
    data = event.message.model_dump_json(by_alias=True, exclude_unset=True)
    return ServerSentEvent(data, event="message", id=event.event_id or None).encode()


outlet: ContextVar[Outlet | None] = ContextVar("trio_sessions.mcp.outlet", default=None)
"""That of the request in whose context a task runs, if it is one for a stream."""
