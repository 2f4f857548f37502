"""A replay's events on their way to the client, many in one piece.

The SDK hands a replay's events to the response one by one, at a tenth of a millisecond each. Once
the first of them has been seen to leave as it is, the others may go beside the SDK::

    replay ──first event──> SDK ──> middleware ──> Frames.watch ──> client
       └────all others, once the first has passed there─────^

So whoever changes what is sent (a compression, say), or keeps it back, has the events one by one.
"""

from collections.abc import Iterable
from contextvars import ContextVar

import anyio

from trio_sessions.mcp._contracts import Message, Send

__all__ = ["Frames", "frames"]

_PATIENCE = 1.0  # seconds for the first event to pass
_SIZE = 65_536  # bytes of one piece, or one event


class Frames:
    """The stream of one request, to which events may be written beside the SDK.

    Args:
        send: the request's, to its client.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._awaited: bytes | None = None
        self._passed = anyio.Event()

    def watch(self, message: Message) -> None:
        """Take note of what has been sent to the client."""
        if self._awaited is not None and self._awaited in message.get("body", b""):
            self._awaited = None
            self._passed.set()

    def expect(self, event_id: str) -> None:
        """Watch for an event, which the SDK is handed next."""
        self._passed = anyio.Event()
        self._awaited = f"id: {event_id}\r\n".encode()

    async def has_passed(self) -> bool:
        """Wait until the event has been sent; False: it does not come as it was handed in."""
        with anyio.move_on_after(_PATIENCE):
            await self._passed.wait()
        return self._passed.is_set()

    async def write(self, events: Iterable[tuple[str, str]]) -> None:
        """Send events to the client, each an id and its JSON."""
        piece, size = [], 0
        for event_id, data in events:
            frame = f"id: {event_id}\r\nevent: message\r\ndata: {data}\r\n\r\n".encode()
            piece.append(frame)
            size += len(frame)
            if size >= _SIZE:
                await self._write(b"".join(piece))
                piece, size = [], 0
        if piece:
            await self._write(b"".join(piece))

    async def _write(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


frames: ContextVar[Frames | None] = ContextVar("trio_sessions.mcp.frames", default=None)
"""The stream of the running request, if events may be written to it."""
