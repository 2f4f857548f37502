"""Ready transports for programs on asyncio, to be given to `trio_sessions.aio.SessionRegistry`.

`WebSocketTransport` is for WebSockets of Starlette, and so of FastAPI; `SSETransport` for responses
of server-sent events, by sse-starlette or by any response that streams. Neither package is needed
to import this module.
"""

from trio_sessions.aio.transports._sse import SSETransport
from trio_sessions.aio.transports._websocket import WebSocketTransport

__all__ = ["SSETransport", "WebSocketTransport"]
