"""A transport of asyncio for a registry of Trio, by trio-asyncio."""

from collections.abc import Awaitable, Callable
from functools import partial

from trio_sessions._calls import check_transport
from trio_sessions._farewell import takes_reason
from trio_sessions.abc import Transport
from trio_sessions.types import RemovalReason

__all__ = ["asyncio_transport"]


def asyncio_transport(transport: Transport) -> Transport:
    """Make a Trio transport of one whose methods are coroutines of asyncio.

    For a **Trio** program that runs asyncio code under ``trio_asyncio.open_loop()``::

        await registry.add_session(session_id, asyncio_transport(transport))

    Call it within that loop's block; its methods are awaited on that loop, and cancelled
    there when their deadline has passed.

    Args:
        transport: its methods are asyncio's.

    Raises:
        TypeError: it lacks a method.
        RuntimeError: no loop of trio-asyncio is open here.
    """
    import trio_asyncio

    check_transport(transport)
    loop = trio_asyncio.current_loop.get()
    if loop is None:
        raise RuntimeError(
            "asyncio_transport() needs a loop to await the transport on: call it inside "
            "`async with trio_asyncio.open_loop():`"
        )
    return _AsyncioTransport(transport, loop)


class _AsyncioTransport:
    """A Trio transport around one of asyncio; each method crosses there and back."""

    def __init__(self, transport: Transport, loop: object) -> None:
        self._transport = transport
        self._loop = loop

    async def _cross(self, method: Callable[[], Awaitable[object]]) -> object:
        async def call() -> object:
            return await method()

        return await self._loop.run_aio_coroutine(call())  # type: ignore[attr-defined]

    async def is_connected(self) -> bool:
        """Ask the transport, on asyncio's side."""
        return await self._cross(self._transport.is_connected)  # type: ignore[return-value]

    async def disconnect(self, reason: RemovalReason | None = None) -> None:
        """Disconnect the transport, on asyncio's side, and tell it why if it takes that."""
        disconnect: Callable[..., Awaitable[object]] = self._transport.disconnect
        await self._cross(partial(disconnect, reason) if takes_reason(disconnect) else disconnect)
