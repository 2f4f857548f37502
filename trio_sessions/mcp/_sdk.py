"""The SDK's seams, and what is said where one is missing. Only this package imports the SDK.

The SDK has no hook for its sessions: not where they are looked up, and not where they end. So
the router stands in front of its application, and here is all that it takes hold of behind.
"""

from collections.abc import Iterator
from importlib import metadata
from typing import Any, cast

from trio_sessions.errors import MissingDependency

try:
    from mcp.server.auth.middleware.auth_context import auth_context_var
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, authorization_context
    from mcp.server.auth.provider import AccessToken
    from mcp.server.sse import SseServerTransport
    from mcp.server.streamable_http import (
        EventCallback,
        EventMessage,
        EventStore,
        StreamableHTTPServerTransport,
    )
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from mcp.server.subscriptions import (
        PromptsListChanged,
        ResourcesListChanged,
        ResourceUpdated,
        ServerEvent,
        ToolsListChanged,
    )
    from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCMessage, JSONRPCResponse
    from mcp_types import jsonrpc_message_adapter as messages
    from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
    from sse_starlette import ServerSentEvent
    from sse_starlette.sse import AppStatus
    from starlette.authentication import AuthCredentials
    from starlette.datastructures import QueryParams
except ImportError as exc:
    try:
        found = metadata.version("mcp")
    except metadata.PackageNotFoundError:
        raise MissingDependency(
            "trio_sessions.mcp needs the MCP SDK: pip install 'trio_sessions[mcp]'"
        ) from exc
    raise ImportError(
        f"trio_sessions.mcp works with mcp>=2.3,<3, and mcp {found} lacks what it builds on "
        f"({exc}): pip install 'trio_sessions[mcp]'"
    ) from exc

__all__ = [
    "HANDSHAKE_PROTOCOL_VERSIONS",
    "INTERNAL_ERROR",
    "MOST_BYTES",
    "AccessToken",
    "AppStatus",
    "AuthCredentials",
    "AuthenticatedUser",
    "ErrorData",
    "EventCallback",
    "EventMessage",
    "EventStore",
    "JSONRPCError",
    "JSONRPCMessage",
    "JSONRPCResponse",
    "Manager",
    "PromptsListChanged",
    "QueryParams",
    "ResourceUpdated",
    "ResourcesListChanged",
    "ServerEvent",
    "ServerSentEvent",
    "ToolsListChanged",
    "auth_context_var",
    "authorization_context",
    "check_seams",
    "find_endpoints",
    "find_seat",
    "is_of_sdk",
    "messages",
]

Manager = StreamableHTTPSessionManager

_SEAMS = (
    "asgi_app",  # what answers: innermost, behind every middleware
    "_server_instances",  # the sessions of the process, by id: the only way to end one
    "event_store",
    "json_response",  # whether answers come as a whole, and may take their time
    "max_request_body_size",
    "session_idle_timeout",
    "stateless",
)
_OF_SESSIONS = ("is_terminated", "terminate")
_OF_STREAMS = (
    "enable_automatic_graceful_drain",  # to set it where it is not there would change nothing
    "original_handler",
    "should_exit",
)


def check_seams(manager: object) -> None:
    """Raise `ImportError` where a manager of sessions lacks what the router takes hold of."""
    _check(manager, type(manager), _SEAMS)


def _check(found: object, kind: type, seams: tuple[str, ...]) -> None:
    missing = [seam for seam in seams if not hasattr(found, seam)]
    if missing:
        raise ImportError(
            f"trio_sessions.mcp works with mcp>=2.3,<3 and sse-starlette>=3.2: {kind.__module__}."
            f"{kind.__name__} of this version has no {', '.join(missing)}"
        )


def find_seat(app: object) -> Any | None:
    """Return the object whose ``session_manager`` manages an application's sessions, or None.

    The SDK's has one from the beginning; fastmcp's is None until the server starts.

    Args:
        app: an ASGI application of Starlette, with the SDK's among its routes, however deep; or
            one of the SDK's servers.
    """
    empty: object | None = None
    for current in _parts(app):
        try:
            manager = getattr(current, "session_manager", ...)
        except RuntimeError:  # a server of which nobody has made an application yet
            continue
        if hasattr(manager, "handle_request"):
            return current
        if manager is None and empty is None:
            empty = current
    return empty


def find_endpoints(app: object) -> frozenset[str]:
    """Return the paths to which clients of the SSE transports in an application post.

    Args:
        app: as for `find_seat`. Where such a path is served by a function of one's own, that is not
            known.

    Raises:
        ImportError: the SDK does not say which path it is.
    """
    found = set()
    for current in _parts(app):
        transport = getattr(current, "__self__", None)
        if isinstance(transport, SseServerTransport):
            if not hasattr(transport, "_endpoint"):
                raise ImportError(
                    "trio_sessions.mcp works with mcp>=2.3,<3: mcp.server.sse.SseServerTransport "
                    "of this version has no _endpoint"
                )
            found.add(str(transport._endpoint).rstrip("/") + "/")  # noqa: SLF001 -- it says so nowhere else
    return frozenset(found)


def _parts(app: object) -> Iterator[object]:
    """Iterate over an application and everything in it that may be one."""
    seen: set[int] = set()
    waiting: list[object] = [app]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen or isinstance(current, str | bytes | int):
            continue
        seen.add(id(current))
        yield current
        waiting.extend(getattr(current, "routes", None) or ())
        waiting.extend(getattr(current, name, None) for name in ("endpoint", "app"))


def is_of_sdk(callback: EventCallback) -> bool:
    """Say whether the SDK itself awaits a replay's events: then all that it does is to send them.

    Args:
        callback: what an event store was given; that of an adapter may do anything.
    """
    return getattr(callback, "__module__", None) == EventStore.__module__


_model = Manager(app=cast("Any", None))  # never run, only looked at
check_seams(_model)
_check(StreamableHTTPServerTransport, StreamableHTTPServerTransport, _OF_SESSIONS)
_check(AppStatus, AppStatus, _OF_STREAMS)
MOST_BYTES: int = _model.max_request_body_size
"""Bytes of a request's body that a manager takes which was told nothing else."""
