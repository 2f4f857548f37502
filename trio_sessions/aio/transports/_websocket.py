"""A transport over a WebSocket of Starlette, with one JSON value a message."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from trio_sessions._json import encode
from trio_sessions.transports import close_code
from trio_sessions.transports._read_ahead import ReadAhead
from trio_sessions.transports._wire import parse
from trio_sessions.types import RemovalReason

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

__all__ = ["WebSocketTransport"]

_PROBE = 0.05  # seconds that a connection nobody reads from is given to show its end


class WebSocketTransport:
    """A session over a `starlette.websockets.WebSocket`: one JSON value a message.

    Its methods are coroutines of asyncio. The endpoint accepts the WebSocket, and stays until the
    client has gone or the session was removed::

        @app.websocket("/ws")
        async def talk(websocket: WebSocket) -> None:
            await websocket.accept()
            transport = WebSocketTransport(websocket)
            session_id = secrets.token_urlsafe()
            await registry.add_session(session_id, transport)
            try:
                async for message in transport:
                    ...
            finally:
                await registry.remove_session(session_id, transport=transport)

    Read through it alone, best by ``async for``: then `is_connected` answers at once. If nobody
    reads, it reads ahead for 50 ms, as far as 64 KiB, so that a client that goes is noticed too.
    One that vanished without a word (power, cable) is noticed by the server's pings: uvicorn's
    ``--ws-ping-interval``, Hypercorn's ``websocket_ping_interval``.

    What a client may send is bounded by the server: uvicorn's ``--ws-max-size``, for instance.

    Args:
        websocket: it is accepted; the transport closes it in `disconnect`.
        max_message_bytes: one message that is sent, encoded.
        send_timeout: seconds for one message. A client that has not taken it by then is given up:
            the next pass removes its session.

    Raises:
        ValueError: the WebSocket was not accepted.
    """

    def __init__(
        self,
        websocket: "WebSocket",
        *,
        max_message_bytes: int = 1_048_576,
        send_timeout: float = 30.0,
    ) -> None:
        if websocket.application_state.name == "CONNECTING":
            raise ValueError(
                "websocket must be accepted before it is a transport: await websocket.accept()"
            )
        self._websocket = websocket
        self._max_message_bytes = max_message_bytes
        self._send_timeout = send_timeout
        self._sending = asyncio.Lock()
        self._receiving = asyncio.Lock()
        self._unread = ReadAhead()
        self._gone = False
        """The client has gone, or was given up."""
        self._closed = False

    async def is_connected(self) -> bool:
        """Say whether both ends are open; see `trio_sessions.Transport.is_connected`."""
        if not self._is_over and not self._receiving.locked() and self._unread.has_room:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROBE), self._receiving:
                    await self._read_ahead()
        return not self._is_over

    @property
    def _is_over(self) -> bool:
        return self._closed or self._gone or not self._is_open

    @property
    def _is_open(self) -> bool:
        """Whether neither end has closed it, as far as Starlette knows."""
        states = self._websocket.application_state, self._websocket.client_state
        return all(state.name == "CONNECTED" for state in states)

    async def _read_ahead(self) -> None:
        while self._unread.has_room and (received := await self._receive()) is not None:
            self._unread.put(received)

    async def _receive(self) -> str | bytes | None:
        """Return the client's next message; None: there are no more."""
        if self._is_over:
            return None
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            self._gone = True
            return None
        text: str | None = event.get("text")
        binary: bytes = event.get("bytes") or b""
        return binary if text is None else text

    async def disconnect(self, reason: RemovalReason | None = None) -> None:
        """Close the WebSocket; closing twice is fine.

        Args:
            reason: tells the client why, by `trio_sessions.transports.close_code` and by its word.

        Cancellation: the client may not be told.
        """
        self._closed = True
        if self._is_open:
            with contextlib.suppress(*_disconnects()):
                await self._websocket.close(close_code(reason), reason and reason.value)

    async def send(self, message: object) -> None:
        """Send one JSON value. Tasks take turns.

        Raises:
            TypeError, ValueError: JSON cannot carry it (NaN and infinity neither).
            MessageTooLarge: it has more than ``max_message_bytes``.
            ConnectionError: the client has gone, or has not read for ``send_timeout``, or the
                transport is disconnected.

        Cancellation: the message may or may not have been sent.
        """
        encoded = encode(message, what="the message", limit=self._max_message_bytes)
        async with self._sending:
            if self._is_over:
                raise ConnectionError("the client has gone, or the transport is disconnected")
            try:
                async with asyncio.timeout(self._send_timeout):
                    await self._websocket.send_text(encoded)
            except TimeoutError:
                self._gone = True
                raise ConnectionError(
                    f"the client has not read for send_timeout ({self._send_timeout:g} s), "
                    "and was given up"
                ) from None
            except _disconnects() as exc:
                self._gone = True
                raise ConnectionError("the client has gone") from exc

    async def receive(self) -> object:
        """Return the client's next JSON value, be it in a text message or in a binary one.

        Raises:
            ConnectionError: the client has gone, or the transport is disconnected.
            ValueError: the message is not JSON; the next call returns the next one.

        Cancellation: nothing is lost.
        """
        async with self._receiving:
            received: str | bytes | None
            if self._unread:
                received = self._unread.take()
            else:
                received = await self._receive()
        if received is None:
            raise ConnectionError("the client has gone, or the transport is disconnected")
        return parse(received, what="the message")

    def __aiter__(self) -> AsyncIterator[object]:
        """Iterate over the client's messages until either end closes."""
        return self

    async def __anext__(self) -> object:
        try:
            return await self.receive()
        except ConnectionError:
            raise StopAsyncIteration from None


def _disconnects() -> tuple[type[Exception], ...]:
    """Return what Starlette, or the server, raises where the client has gone meanwhile."""
    from starlette.websockets import WebSocketDisconnect

    # A server that has seen the close, and not yet told of it, says RuntimeError.
    return (WebSocketDisconnect, RuntimeError)
