"""Ready transports.

`StreamTransport` needs nothing but Trio. `WebSocketTransport` needs trio-websocket, which the extra
``websocket`` brings; importing this module does not. Those for asyncio are in
`trio_sessions.aio.transports`.
"""

from trio_sessions.transports._close_codes import close_code
from trio_sessions.transports._stream import StreamTransport
from trio_sessions.transports._websocket import WebSocketTransport

__all__ = ["StreamTransport", "WebSocketTransport", "close_code"]
