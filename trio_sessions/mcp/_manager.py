"""The manager of the SDK's sessions, which may be made only when the server starts.

The SDK's application has its manager from the beginning. fastmcp makes another one whenever its
server starts, in the place where its application looks for it; so it is looked up each time here,
and prepared when it is seen first, before any request is.
"""

from typing import Any

import anyio

from trio_sessions.mcp._contracts import App, Message, Send
from trio_sessions.mcp._events import SessionEventStore
from trio_sessions.mcp._outlet import Innermost
from trio_sessions.mcp._sdk import MOST_BYTES, check_seams, find_seat
from trio_sessions.mcp._streams import behind

__all__ = ["SdkSessions", "find_sessions"]


class SdkSessions:
    """The sessions that the SDK has in this process.

    Args:
        seat: the object whose ``session_manager`` manages them, once there is one.
    """

    def __init__(self, seat: Any) -> None:
        self._seat = seat
        self._prepared: Any = None
        self._keeps_events = self._replays = False

    @property
    def manager(self) -> Any | None:
        """The manager, or None before the server starts.

        Raises:
            ImportError: it lacks something that the router needs.
        """
        found = self._seat.session_manager
        if found is not None and found is not self._prepared:
            self._prepare(found)
        return found

    def checking(self, send: Send) -> Send:
        """Return the ``send`` of a lifespan in which a manager that will not do ends the start."""

        async def checked(event: Message) -> None:
            if event["type"] == "lifespan.startup.complete":
                _ = self.manager
            await send(event)

        return checked

    def _prepare(self, manager: Any) -> None:
        """Check a manager, and let the router do what it would do itself."""
        check_seams(manager)
        manager.session_idle_timeout = None
        manager.asgi_app = Innermost(manager.asgi_app)
        store = manager.event_store
        kept = behind(store)
        self._replays = store is not None
        self._keeps_events = isinstance(kept, SessionEventStore)
        if isinstance(kept, SessionEventStore) and kept is not store:
            kept.expect_prefixes()
        self._prepared = manager

    @property
    def stateless(self) -> bool:
        """Whether it keeps no sessions."""
        manager = self.manager
        return manager is not None and bool(manager.stateless)

    @property
    def json_response(self) -> bool:
        """Whether it answers as a whole, and not by streams."""
        manager = self.manager
        return manager is not None and bool(manager.json_response)

    @property
    def keeps_events(self) -> bool:
        """Whether what it says is kept by a `SessionEventStore`."""
        return self.manager is not None and self._keeps_events

    @property
    def replays(self) -> bool:
        """Whether what it says is kept, by whatever event store."""
        return self.manager is not None and self._replays

    @property
    def max_request_body_size(self) -> int:
        """Bytes that it takes; before there is one, what the SDK's do unless they are told."""
        manager = self.manager
        most: int = MOST_BYTES if manager is None else manager.max_request_body_size
        return most

    @property
    def server(self) -> str | None:
        """The name of the server, or None before it starts."""
        return getattr(getattr(self.manager, "app", None), "name", None)

    def get(self, alias: str) -> Any | None:
        """Return a session of the SDK's, if there is one of this id."""
        manager = self.manager
        return None if manager is None else manager._server_instances.get(alias)  # noqa: SLF001 -- the SDK has no other way to it; see `_sdk`

    async def end(self, alias: str) -> None:
        """End a session of the SDK's, and with it every stream of it; an unknown one is no error.

        Cancellation: it ends all the same.
        """
        manager = self.manager
        session = None if manager is None else manager._server_instances.pop(alias, None)  # noqa: SLF001 -- as above
        if session is not None and not session.is_terminated:
            with anyio.CancelScope(shield=True):  # it closes streams in memory, waits for nobody
                await session.terminate()


class _Given:
    """The place of a manager that was named, or of none."""

    def __init__(self, manager: object | None) -> None:
        self.session_manager = manager


def find_sessions(app: App, manager: object | None, *, is_needed: bool = True) -> SdkSessions:
    """Return the sessions of an application.

    Args:
        app: the SDK's, or one in which it is mounted.
        manager: of the sessions, where it cannot be found in ``app``; None: it is looked for.
        is_needed: there must be one; False: the application may have streams of SSE alone.

    Raises:
        ImportError: the manager lacks something that the router needs.
        ValueError: there is none.
    """
    seat = find_seat(app) if manager is None else _Given(manager)
    if seat is None and not is_needed:
        seat = _Given(None)
    if seat is None:
        raise ValueError(
            "app must be the SDK's: server.streamable_http_app(), or an application in which "
            "it is mounted; or give its session manager as manager="
        )
    sessions = SdkSessions(seat)
    _ = sessions.manager  # what is wrong now need not wait for the first request
    return sessions
