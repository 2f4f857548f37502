"""A transport over a WebSocket of trio-websocket, with one JSON value a message."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import trio

from trio_sessions._interrupts import uninterrupted
from trio_sessions._json import encode
from trio_sessions.errors import MissingDependency
from trio_sessions.transports._close_codes import close_code
from trio_sessions.transports._read_ahead import ReadAhead
from trio_sessions.transports._wire import parse
from trio_sessions.types import RemovalReason

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

__all__ = ["WebSocketTransport"]

_PROBE = 0.05  # seconds that a connection nobody reads from is given to show its end


@uninterrupted
class WebSocketTransport:
    """A session over a `trio_websocket.WebSocketConnection`: one JSON value a message.

    Read from it through `receive`, or by ``async for``: then `is_connected` answers at once. If
    nobody reads, it reads ahead for 50 ms, as far as 64 KiB, so that a close behind messages is
    noticed too. A peer that vanished without a word (power, cable) is noticed when the network
    gives up on unanswered data; have the connection pinged where that matters.

    What a peer may send is bounded by trio-websocket: ``max_message_size`` of its server.

    Args:
        connection: the connection; the transport closes it in `disconnect`.
        max_message_bytes: one message that is sent, encoded.
        send_timeout: seconds for one message. A peer that has not taken it by then is given up:
            the connection is closed by force.

    Raises:
        MissingDependency: trio-websocket is missing; the extra ``websocket`` brings it.
    """

    def __init__(
        self,
        connection: "WebSocketConnection",
        *,
        max_message_bytes: int = 1_048_576,
        send_timeout: float = 30.0,
    ) -> None:
        self._has_ended = _import_ended()
        self._connection = connection
        self._max_message_bytes = max_message_bytes
        self._send_timeout = send_timeout
        self._sending = trio.Lock()
        self._receiving = trio.Lock()
        self._unread = ReadAhead()
        self._closed = False

    async def is_connected(self) -> bool:
        """Say whether both ends are open; see `Transport.is_connected`."""
        if not self._is_over and not self._receiving.locked() and self._unread.has_room:
            with trio.move_on_after(_PROBE):
                async with self._receiving:
                    await self._read_ahead()
        return not self._is_over

    @property
    def _is_over(self) -> bool:
        return self._closed or self._connection.closed is not None

    async def _read_ahead(self) -> None:
        try:
            while self._unread.has_room:
                self._unread.put(await self._connection.get_message())
        except self._has_ended:
            pass  # the connection says so

    async def disconnect(self, reason: RemovalReason | None = None) -> None:
        """Close the connection, and wait for the peer's close; closing twice is fine.

        Args:
            reason: tells the peer why, by `close_code` and by its word.

        Cancellation: closes it by force.
        """
        self._closed = True
        await self._connection.aclose(close_code(reason), reason and reason.value)

    async def send(self, message: object) -> None:
        """Send one JSON value. Tasks take turns.

        Raises:
            TypeError, ValueError: JSON cannot carry it (NaN and infinity neither).
            MessageTooLarge: it has more than ``max_message_bytes``.
            trio.BrokenResourceError: the peer is gone, or has not read for ``send_timeout``.
            trio.ClosedResourceError: this end is closed.

        Cancellation: if a part of the message may have been sent, the connection is closed, since
        nothing that followed could be understood.
        """
        encoded = encode(message, what="the message", limit=self._max_message_bytes)
        async with self._sending:
            if self._closed:
                raise trio.ClosedResourceError("the transport is disconnected")
            with trio.move_on_after(self._send_timeout):
                await self._send(encoded)
                return
        raise trio.BrokenResourceError(
            f"the peer has not read for send_timeout ({self._send_timeout:g} s), and was given up"
        )

    async def _send(self, encoded: str) -> None:
        try:
            await self._connection.send_message(encoded)
        except self._has_ended as exc:
            raise trio.BrokenResourceError("the peer is gone") from exc
        except BaseException:  # half a frame may have gone; raised again
            self._closed = True
            await trio.aclose_forcefully(self._connection)
            raise

    async def receive(self) -> object:
        """Return the peer's next JSON value, be it in a text message or in a binary one.

        Raises:
            trio.EndOfChannel: the peer has closed, or is gone.
            trio.ClosedResourceError: this end is closed.
            ValueError: the message is not JSON; the next call returns the next one.

        Cancellation: nothing is lost.
        """
        async with self._receiving:
            if self._unread:
                received = self._unread.take()
            else:
                try:
                    received = await self._connection.get_message()
                except self._has_ended:
                    if self._closed:
                        raise trio.ClosedResourceError("the transport is disconnected") from None
                    raise trio.EndOfChannel from None
        return parse(received, what="the message")

    def __aiter__(self) -> AsyncIterator[object]:
        """Iterate over the peer's messages until either end closes."""
        return self

    async def __anext__(self) -> object:
        try:
            return await self.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise StopAsyncIteration from None


def _import_ended() -> type[Exception]:
    """Return what trio-websocket raises where a connection has ended."""
    try:
        from trio_websocket import ConnectionClosed
    except ImportError as exc:
        raise MissingDependency(
            f"WebSocketTransport needs trio-websocket, which cannot be imported ({exc}): "
            "pip install 'trio_sessions[websocket]'"
        ) from exc
    return ConnectionClosed
