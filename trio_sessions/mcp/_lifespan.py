"""The life of an ASGI application behind a router: what begins first, and what ends first."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, runtime_checkable

from trio_sessions._logging import get_logger
from trio_sessions.errors import RegistryClosed
from trio_sessions.mcp._contracts import App, Message, Receive, Registry, Scope, Send

__all__ = ["live"]

logger = get_logger("trio_sessions.mcp")


@runtime_checkable
class _Openable(Protocol):
    """The registry of asyncio, which may be made before it is opened."""

    async def initialize(self) -> None:
        """Open it."""
        ...

    async def shutdown(self) -> None:
        """Close it."""
        ...


async def live(  # noqa: PLR0917 -- three of them are ASGI's, in its order
    app: App,
    registry: Registry,
    run: Callable[[], AbstractAsyncContextManager[Any]],
    leave: Callable[[], Awaitable[None]],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Live from the server's startup to its shutdown.

    A registry of asyncio that is not open yet is opened first, and closed last: until the SDK has
    ended, other workers may ask for what is here.

    Args:
        app: the SDK's, which has a life of its own.
        registry: of the router.
        run: the router's own tasks.
        leave: hands the sessions over.
        scope: of the lifespan.
        receive: of the lifespan.
        send: of the lifespan.
    """
    message = await receive()
    assert message["type"] == "lifespan.startup"
    own = registry if isinstance(registry, _Openable) and not _is_open(registry) else None
    if own is not None:
        try:
            await own.initialize()
        except Exception as exc:
            logger.exception("the registry could not be opened")
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
            return
    given = False
    last: Message | None = None

    async def receive_ours() -> Message:
        nonlocal given
        if not given:
            given = True
            return message
        following = await receive()
        if following["type"] == "lifespan.shutdown":
            await leave()
        return following

    async def send_ours(event: Message) -> None:
        nonlocal last
        if event["type"].startswith("lifespan.shutdown"):
            last = event  # once the registry is closed, too
        else:
            await send(event)

    try:
        async with run():
            await app(scope, receive_ours, send_ours)
    finally:
        if own is not None:
            await own.shutdown()
    if last is not None:
        await send(last)


def _is_open(registry: Registry) -> bool:
    try:
        return bool(registry.worker_id)
    except RegistryClosed:
        return False
