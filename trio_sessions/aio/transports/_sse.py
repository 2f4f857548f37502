"""A transport for server-sent events: a bounded queue between the registry and a response."""

import asyncio
import enum
import re
from collections import deque
from collections.abc import AsyncIterator

from trio_sessions._json import encode
from trio_sessions.types import RemovalReason

__all__ = ["SSETransport"]

_IS_NAME = re.compile(r"[^\r\n\0]+").fullmatch


class _State(enum.Enum):
    """The states of a transport; it goes from one to any below it, and to none above."""

    OPEN = enum.auto()
    """It takes events; they wait until somebody streams it."""
    CLOSED = enum.auto()
    """It takes no more events; the stream sends those that wait, and ends."""
    OVER = enum.auto()
    """The stream has ended, or its client was given up; what waited is lost."""


class SSETransport:
    """A session over a response of server-sent events: one JSON value an event.

    Its methods are coroutines of asyncio. The response streams what `stream` yields; any that
    takes bytes will do, as ``EventSourceResponse`` of sse-starlette and Starlette's
    ``StreamingResponse(..., media_type="text/event-stream")``. Of the two, only the first sends
    pings, by which a client that vanished without a word is noticed::

        @app.get("/sse")
        async def open_stream() -> EventSourceResponse:
            async def stream(session_id: str) -> AsyncIterator[bytes]:
                transport = SSETransport()
                try:
                    await registry.add_session(session_id, transport)
                    async for event in transport.stream():
                        yield event
                finally:
                    await registry.remove_session(session_id, transport=transport)

            return EventSourceResponse(stream(secrets.token_urlsafe()))

    The client has gone when the server ends the response, and thereby the stream.

    Args:
        max_events: events that may wait for a client that reads slowly.
        max_message_bytes: one message, encoded.
        send_timeout: seconds that one message waits for room. A client that makes none is given
            up: its stream ends, and the next pass removes its session.
    """

    def __init__(
        self,
        *,
        max_events: int = 100,
        max_message_bytes: int = 1_048_576,
        send_timeout: float = 30.0,
    ) -> None:
        if max_events < 1:
            raise ValueError(f"max_events must be at least 1, not {max_events}")
        self._max_events = max_events
        self._max_message_bytes = max_message_bytes
        self._send_timeout = send_timeout
        self._events = deque[bytes]()
        self._state = _State.OPEN
        self._is_streamed = False
        self._sending = asyncio.Lock()
        self._changed = asyncio.Event()
        """Something was put in or taken out, or the state is another one."""

    async def is_connected(self) -> bool:
        """Say whether the stream goes on, or is still to begin; never waits."""
        return self._is_open

    @property
    def _is_open(self) -> bool:
        return self._state is _State.OPEN

    async def disconnect(self, reason: RemovalReason | None = None) -> None:
        """End the stream, after the events that wait; never waits, and twice is fine.

        Args:
            reason: tells the client why, by a last event ``end`` whose data is the reason's word
                as JSON. None: it ends without one.
        """
        if self._is_open:
            if reason is not None:
                self._events.append(_event("end", f'"{reason.value}"'))
            self._go(_State.CLOSED)

    async def send(self, message: object, *, event: str = "message") -> None:
        """Send one JSON value as an event. Tasks take turns.

        Args:
            message: the event's data, as JSON.
            event: its name; a browser's ``onmessage`` gets those named ``message``.

        Raises:
            TypeError, ValueError: JSON cannot carry it (NaN and infinity neither), or the name
                is empty or has a line break in it.
            MessageTooLarge: it has more than ``max_message_bytes``.
            ConnectionError: the client has gone, or has not read for ``send_timeout``, or the
                transport is disconnected.

        Cancellation: the message was not sent.
        """
        if not _IS_NAME(event):
            raise ValueError(f"event must be one line, and not empty, not {event!r}")
        encoded = encode(message, what="the message", limit=self._max_message_bytes)
        async with self._sending:
            try:
                async with asyncio.timeout(self._send_timeout):
                    while self._is_open and len(self._events) >= self._max_events:
                        await self._change()
            except TimeoutError:
                self._go(_State.OVER)
                raise ConnectionError(
                    f"the client has left {self._max_events} events unread for send_timeout "
                    f"({self._send_timeout:g} s), and was given up"
                ) from None
            if not self._is_open:
                raise ConnectionError("the client has gone, or the transport is disconnected")
            self._events.append(_event(event, encoded))
            self._changed.set()

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the events, encoded, until the transport is disconnected; once.

        Raises:
            RuntimeError: it was streamed before.

        Cancellation: the client counts as gone; so it does when the iterator is closed.
        """
        if self._is_streamed:
            raise RuntimeError("the transport was streamed before: one response, one transport")
        self._is_streamed = True
        try:
            while self._state is not _State.OVER:
                if self._events:
                    event = self._events.popleft()
                    self._changed.set()
                    yield event
                elif self._state is _State.CLOSED:
                    return
                else:
                    await self._change()
        finally:
            self._go(_State.OVER)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _go(self, state: _State) -> None:
        if state is _State.OVER:
            self._events.clear()
        self._state = state
        self._changed.set()


def _event(name: str, data: str) -> bytes:
    """Encode an event; JSON as we write it is one line."""
    return f"event: {name}\ndata: {data}\n\n".encode()
