"""The SDK's seams, and what is said where one is missing. Only this package imports the SDK.

The SDK has no hook for its sessions: not where they are looked up, and not where they end. So
the router stands in front of its application, and here is all that it takes hold of behind.
"""

from importlib import metadata
from typing import Any, cast

from trio_sessions.errors import MissingDependency

try:
    from mcp.server.auth.middleware.auth_context import auth_context_var
    from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, authorization_context
    from mcp.server.auth.provider import AccessToken
    from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
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
    from sse_starlette.sse import AppStatus
    from starlette.authentication import AuthCredentials
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
    "ResourceUpdated",
    "ResourcesListChanged",
    "ServerEvent",
    "ToolsListChanged",
    "auth_context_var",
    "authorization_context",
    "check_seams",
    "find_manager",
    "messages",
]

Manager = StreamableHTTPSessionManager

_SEAMS = (
    "_server_instances",  # the sessions of the process, by id: the only way to end one
    "json_response",  # whether answers come as a whole, and may take their time
    "max_request_body_size",
    "session_idle_timeout",
    "stateless",
)


def check_seams(manager: object) -> None:
    """Raise `ImportError` where a manager of sessions lacks what the router takes hold of."""
    missing = [seam for seam in _SEAMS if not hasattr(manager, seam)]
    if missing:
        raise ImportError(
            f"trio_sessions.mcp works with mcp>=2.3,<3: {type(manager).__module__}."
            f"{type(manager).__name__} of this version has no {', '.join(missing)}"
        )


def find_manager(app: object) -> Any | None:
    """Return the manager of the sessions of an application, however deep it lies, or None.

    Args:
        app: an ASGI application of Starlette, with the SDK's among its routes; or one of the
            SDK's servers.
    """
    seen: set[int] = set()
    waiting: list[object] = [app]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen or isinstance(current, str | bytes | int):
            continue
        seen.add(id(current))
        try:
            manager = getattr(current, "session_manager", None)
        except RuntimeError:  # a server of which nobody has made an application yet
            manager = None
        if hasattr(manager, "handle_request"):
            return manager
        waiting.extend(getattr(current, "routes", None) or ())
        waiting.extend(getattr(current, name, None) for name in ("endpoint", "app"))
    return None


check_seams(Manager(app=cast("Any", None)))  # never run, only looked at
