"""A network in front of PostgreSQL that a test can break, and that counts what goes over it.

It speaks just enough of the protocol to know where a round trip begins and ends:
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import sqlalchemy as sa
import trio

__all__ = ["Proxy", "open_proxy"]


class _Messages:
    """Cuts one direction of one connection into messages: a type and a body."""

    def __init__(self, *, startup: bool) -> None:
        self._unread = bytearray()
        self._startup = startup  # the client's first message has a length, but no type

    def feed(self, data: bytes | bytearray) -> list[tuple[bytes, bytes]]:
        self._unread += data
        messages: list[tuple[bytes, bytes]] = []
        while True:
            head = 0 if self._startup else 1
            if len(self._unread) < head + 4:
                return messages
            (length,) = struct.unpack_from(">I", self._unread, head)
            if len(self._unread) < head + length:
                return messages
            kind = bytes(self._unread[:head])
            messages.append((kind, bytes(self._unread[head + 4 : head + length])))
            del self._unread[: head + length]
            self._startup = False


class Proxy:
    """Stands between a store and its server.

    Attributes:
        url: the server, as seen through the proxy.
        round_trips: the statements of each round trip, in the order of their sending.
        connections: how many are open now.
        accepted: how many there ever were.
        in_flight: round trips that are not answered yet.
        most_in_flight: how many there were at once, at most.
        held_back: bytes that a silence has kept from their receiver.
        delay: seconds that the network takes, in each direction.
    """

    def __init__(self, server: sa.URL, nursery: trio.Nursery) -> None:
        self.round_trips: list[str] = []
        self.connections = 0
        self.accepted = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.held_back = 0
        self.delay = 0.0
        self.url = server
        self._server = server
        self._nursery = nursery
        self._silent: set[str] = set()
        self._changed = trio.Event()
        self._open: set[trio.CancelScope] = set()
        self._listener: trio.SocketListener | None = None

    # ---- what a test does ----

    def reset(self) -> None:
        """Forget what was counted."""
        self.round_trips.clear()
        self.most_in_flight = self.in_flight
        self.accepted = self.connections

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait until ``holds`` is true of what goes over the network."""
        while not holds():
            await self._changed.wait()

    def fall_silent(self, *directions: str) -> None:
        """Deliver nothing any more ``to server``, ``to client`` or, unless named, both.

        ``answers`` holds back only the answers to statements, so that one can connect.
        """
        self._silent = set(directions or ("to server", "to client"))

    def cut(self) -> None:
        """Close every connection, as when the server is killed."""
        for scope in self._open:
            scope.cancel()

    def lead_to(self, server: sa.URL) -> None:
        """Lead those who connect from now on to another server, as an address that moves."""
        self._server = server

    async def refuse(self) -> None:
        """Cut every connection and refuse new ones."""
        assert self._listener is not None
        await self._listener.aclose()
        self._listener = None
        self.cut()
        await self.wait_until(lambda: not self.connections)

    async def heal(self) -> None:
        """Let everything through again."""
        self._silent = set()
        self._notify()
        if self._listener is None:
            await self._listen(self.url.port or 0)

    # ---- what it does by itself ----

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _listen(self, port: int) -> None:
        [self._listener] = await trio.open_tcp_listeners(port, host="127.0.0.1")
        port = self._listener.socket.getsockname()[1]
        query = {key: value for key, value in self._server.query.items() if key != "host"}
        self.url = self._server.set(host="127.0.0.1", port=port, query=query)
        self.url = self.url.update_query_dict({"sslmode": "disable", "gssencmode": "disable"})
        self._nursery.start_soon(self._serve, self._listener)

    async def _serve(self, listener: trio.SocketListener) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                self._nursery.start_soon(self._connect, await listener.accept())

    async def _connect(self, client: trio.SocketStream) -> None:
        self.connections += 1
        self.accepted += 1
        pending: list[str] = []  # the statements of this connection's unanswered round trips
        self._notify()
        try:
            with trio.CancelScope() as scope:
                self._open.add(scope)
                await self._wait_for("to server")
                try:
                    server = await self._connect_to_server()
                except OSError:  # it is not there: nor are we, as a network would say it
                    return
                async with client, server, trio.open_nursery() as nursery:
                    for pump in self._to_server, self._to_client:
                        nursery.start_soon(pump, client, server, pending, scope)
        finally:
            await trio.aclose_forcefully(client)
            self._open.discard(scope)
            self.connections -= 1
            self.in_flight -= len(pending)
            self._notify()

    async def _connect_to_server(self) -> trio.SocketStream:
        host = self._server.query.get("host", self._server.host)
        assert isinstance(host, str)
        port = self._server.port or 5432
        if host.startswith("/"):
            return await trio.open_unix_socket(f"{host}/.s.PGSQL.{port}")
        return await trio.open_tcp_stream(host, port)

    async def _to_server(
        self,
        client: trio.SocketStream,
        server: trio.SocketStream,
        pending: list[str],
        scope: trio.CancelScope,
    ) -> None:
        messages = _Messages(startup=True)
        prepared: dict[bytes, str] = {}
        statements: list[str] = []
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in client:
                for kind, body in messages.feed(data):
                    if kind == b"P":  # Parse: a name, then the statement
                        name, text, *_ = body.split(b"\0")
                        prepared[name] = text.decode()
                    elif kind == b"B":  # Bind: a portal, then the name of a statement
                        statements.append(prepared[body.split(b"\0")[1]])
                    elif kind == b"Q":
                        statements.append(body.rstrip(b"\0").decode())
                    if kind in {b"Q", b"S"}:
                        statement = "; ".join(statements)
                        statements.clear()
                        self.round_trips.append(statement)
                        pending.append(statement)
                        self.in_flight += 1
                        self.most_in_flight = max(self.most_in_flight, self.in_flight)
                        self._notify()
                await self._hold_back(data, "to server")
                await server.send_all(data)
        scope.cancel()

    async def _to_client(
        self,
        client: trio.SocketStream,
        server: trio.SocketStream,
        pending: list[str],
        scope: trio.CancelScope,
    ) -> None:
        messages = _Messages(startup=False)
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in server:
                ready = sum(kind == b"Z" for kind, _ in messages.feed(data))
                answered = min(ready, len(pending))  # the handshake ends in one, too
                if pending:
                    await self._wait_for("answers")
                await self._hold_back(data, "to client")
                # Before the answer is there: who has it may ask again before we run again.
                del pending[:answered]
                self.in_flight -= answered
                self._notify()
                await client.send_all(data)
        scope.cancel()

    async def _wait_for(self, direction: str) -> None:
        while direction in self._silent:
            await self._changed.wait()

    async def _hold_back(self, data: bytes | bytearray, direction: str) -> None:
        if direction in self._silent:
            self.held_back += len(data)
            self._notify()
            await self._wait_for(direction)
        if self.delay:
            await trio.sleep(self.delay)


@asynccontextmanager
async def open_proxy(server: sa.URL) -> AsyncIterator[Proxy]:
    """Put a proxy in front of ``server`` for the length of the block."""
    async with trio.open_nursery() as nursery:
        proxy = Proxy(server, nursery)
        await proxy._listen(0)
        try:
            yield proxy
        finally:
            # No checkpoint: what it raises would take the place of what the block has raised.
            if proxy._listener is not None:
                proxy._listener.socket.close()
            nursery.cancel_scope.cancel()
