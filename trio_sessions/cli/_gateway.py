"""A small gateway and its clients, on real sockets of the loopback interface.

A client says ``{"session": id}`` in its first line, is answered ``{"welcome": true}``, and
from then on answers each ``{"ping": n}`` with ``{"pong": n}``.
"""

import trio

from trio_sessions import RegistryClosed, SessionRegistry
from trio_sessions._logging import get_logger
from trio_sessions.transports import StreamTransport

__all__ = ["AskingTransport", "Client", "Gateway"]

logger = get_logger("trio_sessions.cli")

_HOST = "127.0.0.1"
_INTRODUCTION = 5.0  # seconds that a new connection has to say which session it is


class AskingTransport(StreamTransport):
    """A transport that asks its peer, so that one that hangs is told from one that lives."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        super().__init__(stream)
        self.peer_gone = trio.Event()
        """The peer has closed, or this end has."""
        self.disconnected = trio.Event()
        """`disconnect` has ended."""
        self._pings = 0
        self._answered = trio.Event()

    async def is_connected(self) -> bool:
        """Ask the kernel, then the peer; one that does not answer is waited for."""
        if not await super().is_connected():
            return False
        self._pings += 1
        self._answered = trio.Event()
        try:
            await self.send({"ping": self._pings})
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        await self._answered.wait()
        return not self.peer_gone.is_set()

    async def disconnect(self) -> None:
        """Close the stream; see `StreamTransport.disconnect`."""
        try:
            await super().disconnect()
        finally:
            self.disconnected.set()

    async def read(self) -> None:
        """Take the peer's answers until either end closes."""
        try:
            async for message in self:
                # An answer to an earlier ping says nothing of now.
                if message == {"pong": self._pings}:
                    self._answered.set()
        except (trio.ClosedResourceError, ValueError) as exc:
            logger.debug("reading from a client ended: %r", exc)
        finally:
            self.peer_gone.set()
            self._answered.set()


class Gateway:
    """One worker: a registry and a server that registers every connection in it."""

    def __init__(self, registry: SessionRegistry) -> None:
        self.registry = registry
        self.port = 0

    @property
    def name(self) -> str:
        """The worker's id."""
        return self.registry.worker_id

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Accept connections until cancelled; `port` is known once it has started."""
        listeners = await trio.open_tcp_listeners(0, host=_HOST)
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._welcome, listeners)

    async def _welcome(self, stream: trio.SocketStream) -> None:
        transport = AskingTransport(stream)
        try:
            with trio.fail_after(_INTRODUCTION):
                hello = await transport.receive()
            if not isinstance(hello, dict):
                raise ValueError("the first line names no session")  # noqa: TRY004 -- as if it could not be read
            await self.registry.add_session(hello["session"], transport)  # it refuses what is no id
            await transport.send({"welcome": True})
        except (
            trio.EndOfChannel,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.TooSlowError,
            RegistryClosed,
            LookupError,
            ValueError,
        ) as exc:
            logger.warning("a connection did not become a session: %r", exc)
            return
        await transport.read()
        # The socket stays as it is until the registry has drawn its own conclusion.
        await transport.disconnected.wait()

    def transport_of(self, session_id: str) -> AskingTransport | None:
        """Return the transport of a session if it is held here."""
        transport = self.registry.get_session_sync(session_id)
        return transport if isinstance(transport, AskingTransport) else None


class Client:
    """The other end of one session."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.cut = trio.Event()
        """The gateway has closed the connection."""
        self._running = trio.CancelScope()
        self._awake = trio.Event()
        self._awake.set()

    async def run(self, port: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, and answer until either end closes; started once it is a session."""
        stream = await trio.open_tcp_stream(_HOST, port)
        transport = StreamTransport(stream)
        try:
            with self._running:
                await transport.send({"session": self.session_id})
                if await transport.receive() != {"welcome": True}:
                    raise ConnectionError("the gateway did not welcome a client")
                task_status.started()
                await self._answer(transport)
                self.cut.set()
        except trio.EndOfChannel:
            raise ConnectionError("the gateway refused a client") from None
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, transport: StreamTransport) -> None:
        try:
            async for message in transport:
                await self._awake.wait()
                if isinstance(message, dict) and "ping" in message:
                    await transport.send({"pong": message["ping"]})
        except trio.BrokenResourceError as exc:
            logger.debug("a client's connection broke: %r", exc)

    def vanish(self) -> None:
        """Close the socket without a word."""
        self._running.cancel()

    def hang(self) -> None:
        """Stop answering; the socket stays open."""
        self._awake = trio.Event()

    def wake(self) -> None:
        """Answer again."""
        self._awake.set()
