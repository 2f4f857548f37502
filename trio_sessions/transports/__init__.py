"""Ready transports."""

from trio_sessions.transports._stream import StreamTransport

__all__ = ["StreamTransport"]
