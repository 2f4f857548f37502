"""A loopback proxy before a PostgreSQL: adds a delay, and counts round trips."""

import contextlib
import math
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import sqlalchemy as sa
import trio

__all__ = ["SlowNetwork"]

_RECEIVE = 65_536


class SlowNetwork:
    """A network on which each round trip takes ``delay`` seconds longer.

    A round trip begins when a client speaks after the server has spoken, so what a
    client sends in one go counts once, whatever the number of packets.

    Args:
        server: the database behind it, on TCP or on a Unix socket.
        delay: seconds added to a round trip, half of it in each direction.
    """

    def __init__(self, server: sa.URL, delay: float) -> None:
        self.round_trips = 0
        self._server = server
        self._delay = delay

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[sa.URL]:
        """Yield the URL of the database as seen through this network."""
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_tcp, self._handle, 0, host="127.0.0.1")
            listeners: list[trio.SocketListener] = await nursery.start(serve)
            port = listeners[0].socket.getsockname()[1]
            query = {name: value for name, value in self._server.query.items() if name != "host"}
            yield self._server.set(
                host="127.0.0.1",
                port=port,
                query={**query, "sslmode": "disable", "gssencmode": "disable"},
            )
            nursery.cancel_scope.cancel()

    async def _connect(self) -> trio.SocketStream:
        host = self._server.query.get("host", self._server.host or "127.0.0.1")
        assert isinstance(host, str)
        port = self._server.port or 5432
        if host.startswith("/"):
            return await trio.open_unix_socket(Path(host) / f".s.PGSQL.{port}")
        return await trio.open_tcp_stream(host, port)

    async def _handle(self, client: trio.SocketStream) -> None:
        server = await self._connect()
        server_spoke = True

        def from_client() -> None:
            nonlocal server_spoke
            self.round_trips += server_spoke
            server_spoke = False

        def from_server() -> None:
            nonlocal server_spoke
            server_spoke = True

        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, client, server, from_client, nursery.cancel_scope)
            nursery.start_soon(self._pump, server, client, from_server, nursery.cancel_scope)

    async def _pump(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        on_data: Callable[[], None],
        connection: trio.CancelScope,
    ) -> None:
        sender, receiver = trio.open_memory_channel[tuple[float, bytes]](math.inf)

        async def deliver() -> None:
            async for due, data in receiver:
                await trio.sleep_until(due)
                await target.send_all(data)

        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deliver)
                async with sender:
                    while data := await source.receive_some(_RECEIVE):
                        on_data()
                        await sender.send((trio.current_time() + self._delay / 2, data))
        connection.cancel()
