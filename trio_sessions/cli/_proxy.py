"""A forwarder to a database server that can be switched off: an outage for one user."""

import contextlib
from collections.abc import Awaitable, Callable

import trio

__all__ = ["Proxy"]

_CHUNK = 65_536  # bytes


class Proxy:
    """Forwards TCP connections to ``connect()``; while away it cuts all of them.

    Args:
        connect: opens a connection to the real server.
    """

    def __init__(self, connect: Callable[[], Awaitable[trio.SocketStream]]) -> None:
        self.port = 0
        self._connect = connect
        self._away = False
        self._serving = trio.CancelScope(shield=True)
        self._forwarding: set[trio.CancelScope] = set()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Forward until `stop`; `port` is known once it has started.

        Cancellation: does not end it, because workers that are cancelled want to clean up.
        """
        with self._serving:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started()
            await trio.serve_listeners(self._forward, listeners)

    def stop(self) -> None:
        """Cut everything, for good."""
        self._serving.cancel()

    def go_away(self) -> None:
        """Cut every connection, and each new one as soon as it comes."""
        self._away = True
        for scope in self._forwarding:
            scope.cancel()

    def come_back(self) -> None:
        """Forward new connections again."""
        self._away = False

    async def _forward(self, client: trio.SocketStream) -> None:
        if self._away:
            return  # the server that called this closes the connection
        with trio.CancelScope() as scope:
            self._forwarding.add(scope)
            try:
                # The server may be gone, or any end close at any moment: that is an end, no error.
                with contextlib.suppress(OSError):
                    async with await self._connect() as server, trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump, client, server, scope)
                        nursery.start_soon(self._pump, server, client, scope)
            finally:
                self._forwarding.discard(scope)

    @staticmethod
    async def _pump(
        source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(_CHUNK):
                await target.send_all(data)
        scope.cancel()
