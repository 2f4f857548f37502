"""A transport over any Trio stream, with newline-delimited JSON."""

import json
import select
from collections.abc import AsyncIterator

import trio

from trio_sessions._interrupts import uninterrupted
from trio_sessions.errors import MessageTooLarge
from trio_sessions.transports._wire import parse

__all__ = ["StreamTransport"]

_HANG_UP = getattr(select, "POLLRDHUP", None)  # where the kernel can say that the peer closed
_PROBE = 0.05  # seconds that a stream without a socket is given to show its end
_RECEIVE = 65_536  # bytes


@uninterrupted
class StreamTransport:
    """A session over a `trio.abc.Stream`: one JSON value a line, in both directions.

    It knows that its peer has closed without waiting for a write to fail. On a socket,
    also under TLS, the kernel is asked (Linux: ``POLLRDHUP``), which reads nothing and
    answers at once. On other streams it reads ahead for 50 ms, so read from those through
    `receive` only. A peer that has closed just its sending half counts as gone. A peer
    that vanished without a word (power, cable) is noticed when the network gives up on
    unanswered data: set TCP keepalive on the socket where that matters.

    Args:
        stream: the connection; the transport closes it in `disconnect`.
        max_message_bytes: one line, in either direction.
    """

    def __init__(self, stream: trio.abc.Stream, *, max_message_bytes: int = 1_048_576) -> None:
        self._stream = stream
        self._max_message_bytes = max_message_bytes
        self._sending = trio.Lock()
        self._receiving = trio.Lock()
        self._closing = trio.Lock()
        self._unread = bytearray()
        self._searched = 0  # of the unread bytes: so many hold no end of a line
        self._peer_closed = False
        self._closed = False

    async def is_connected(self) -> bool:
        """Say whether both ends are open; see `Transport.is_connected`."""
        if self._closed or self._peer_closed:
            return False
        socket = _socket_under(self._stream)
        if socket is not None and _HANG_UP is not None:
            return not _hung_up(socket, _HANG_UP)
        if not self._receiving.locked() and len(self._unread) < _RECEIVE:
            with trio.move_on_after(_PROBE):
                async with self._receiving:
                    try:
                        await self._read_more()
                    except trio.ClosedResourceError:  # somebody closed the stream itself
                        return False
        return not self._peer_closed

    async def disconnect(self) -> None:
        """Close the stream, as gracefully as the deadline allows; closing twice is fine.

        Cancellation: closes it by force.
        """
        self._closed = True
        try:
            async with self._closing:  # a second one would cut the first off
                await self._stream.aclose()
        except BaseException:  # cancelled, too; raised again
            await trio.aclose_forcefully(self._stream)
            raise

    async def send(self, message: object) -> None:
        """Send one JSON value as a line. Tasks take turns.

        Raises:
            TypeError, ValueError: JSON cannot carry it (NaN and infinity neither).
            MessageTooLarge: the line is longer than ``max_message_bytes``.
            trio.BrokenResourceError: the peer is gone.
            trio.ClosedResourceError: this end is closed.

        Cancellation: if a part of the line may have been sent, the stream is closed, since
        nothing that followed could be understood.
        """
        try:
            line = json.dumps(message, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except RecursionError:
            raise ValueError("the message is nested too deeply for JSON") from None
        if len(line) > self._max_message_bytes:
            raise self._too_large(str(len(line)))
        async with self._sending:
            try:
                await self._stream.send_all(line)
            except BaseException:  # half a line may have gone; raised again
                self._closed = True
                await trio.aclose_forcefully(self._stream)
                raise

    async def receive(self) -> object:
        """Return the peer's next JSON value.

        Raises:
            trio.EndOfChannel: the peer has closed.
            trio.ClosedResourceError: this end is closed.
            MessageTooLarge: the line is longer than ``max_message_bytes``. There is no
                reading on after this: it is raised again.
            ValueError: the line is not JSON; the next call returns the next line.

        Cancellation: nothing is lost.
        """
        async with self._receiving:
            while (end := self._unread.find(b"\n", self._searched)) < 0:
                self._searched = len(self._unread)
                if self._searched >= self._max_message_bytes:
                    raise self._too_large("more than " + str(self._searched))
                if self._peer_closed:
                    raise trio.EndOfChannel
                await self._read_more()
            if end >= self._max_message_bytes:
                self._searched = end
                raise self._too_large(str(end + 1))
            line = bytes(self._unread[:end])
            del self._unread[: end + 1]
            self._searched = 0
            return parse(line, what="the line")

    def _too_large(self, size: str) -> MessageTooLarge:
        return MessageTooLarge(
            f"the line has {size} bytes, max_message_bytes is {self._max_message_bytes}"
        )

    def __aiter__(self) -> AsyncIterator[object]:
        """Iterate over the peer's messages until it closes."""
        return self

    async def __anext__(self) -> object:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def _read_more(self) -> None:
        try:
            received = await self._stream.receive_some(_RECEIVE)
        except trio.BrokenResourceError:
            received = b""
        if received:
            self._unread += received
        else:
            self._peer_closed = True


def _socket_under(stream: object) -> trio.SocketStream | None:
    """Return the socket that a stream rests on, if there is one."""
    while stream is not None and not isinstance(stream, trio.SocketStream):
        stream = getattr(stream, "transport_stream", getattr(stream, "receive_stream", None))
    return stream


def _hung_up(stream: trio.SocketStream, hang_up: int) -> bool:
    descriptor = stream.socket.fileno()
    if descriptor < 0:
        return True
    poll = select.poll()
    poll.register(descriptor, hang_up)
    return bool(poll.poll(0))  # an error or a whole hang-up is always reported too
