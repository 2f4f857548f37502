"""The SDK's subscription bus, on a topic."""

import uuid
from collections.abc import Callable

import anyio
import anyio.lowlevel

from trio_sessions._logging import get_logger
from trio_sessions.errors import NotSupported, RegistryClosed, SessionsError
from trio_sessions.mcp._contracts import Registry
from trio_sessions.mcp._sdk import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from trio_sessions.mcp._tunnel import tunnel_of

__all__ = ["RegistrySubscriptionBus"]

logger = get_logger("trio_sessions.mcp")

_PAUSE = 1.0  # seconds between two tries to listen
_KINDS: dict[str, Callable[[], ServerEvent]] = {
    kind.__name__: kind for kind in (ToolsListChanged, PromptsListChanged, ResourcesListChanged)
}


def _pack(event: ServerEvent) -> list[str]:
    if isinstance(event, ResourceUpdated):
        return [type(event).__name__, event.uri]
    return [type(event).__name__]


def _unpack(packed: object) -> ServerEvent | None:
    match packed:
        case ["ResourceUpdated", str(uri)]:
            return ResourceUpdated(uri=uri)
        case [str(kind)] if kind in _KINDS:
            return _KINDS[kind]()
    return None


class RegistrySubscriptionBus:
    """Tell the listeners of all workers what changes at any of them.

    To be given to the SDK's server, ``MCPServer(..., subscriptions=bus)``. It hears the others for
    as long as the `SessionRouter` of the same registry runs. Each event is heard at most once: who
    listens anew asks anew for what may have changed.

    Logger: ``trio_sessions.mcp``.

    Args:
        registry: that of the router.
        topic: the same for all workers; another one for each server, if there are several.

    Raises:
        ValueError: the registry was made without `handlers`.
    """

    def __init__(self, registry: Registry, *, topic: str = "trio_sessions.mcp.events") -> None:
        self._registry = registry
        self._topic = topic
        self._own = uuid.uuid4().hex
        self._listeners: dict[object, Callable[[ServerEvent], None]] = {}
        tunnel_of(registry).services.append(self._hear)

    async def publish(self, event: ServerEvent) -> None:
        """Tell everybody. Where the database is away, those of this worker; a warning is logged.

        Args:
            event: the SDK's.
        """
        self._tell(event)
        try:
            await self._registry.topics.publish(self._topic, [self._own, _pack(event)])
        except SessionsError as exc:
            logger.warning("other workers were not told of an event: %s", exc)
            await anyio.lowlevel.checkpoint()

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Tell a listener of every event, until the function that is returned is called.

        Args:
            listener: synchronous; called on the event loop.
        """
        token = object()
        self._listeners[token] = listener

        def unsubscribe() -> None:
            self._listeners.pop(token, None)

        return unsubscribe

    def _tell(self, event: ServerEvent) -> None:
        for listener in list(self._listeners.values()):
            try:
                listener(event)
            except Exception:
                logger.exception("a listener failed, the others are told all the same")

    async def _hear(self) -> None:
        """Listen to the other workers."""
        while True:
            try:
                async with self._registry.topics.subscribe(self._topic) as heard:
                    async for message in heard:
                        self._take(message)
            except NotSupported:
                logger.exception("this store has no topics: events stay at their worker")
                return
            except RegistryClosed:
                return
            except SessionsError as exc:
                logger.warning("other workers cannot be heard just now: %s", exc)
            await anyio.sleep(_PAUSE)

    def _take(self, message: object) -> None:
        match message:
            case [str(origin), packed] if origin != self._own:
                event = _unpack(packed)
                if event is None:
                    logger.warning("another worker has told of an event that is unknown here")
                else:
                    self._tell(event)
