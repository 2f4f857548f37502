"""A transport that can be ended, and that notes what it was asked and what it has said."""

import enum

import trio

from trio_sessions.abc import Transport

__all__ = ["Line", "LineState"]


class LineState(enum.Enum):
    """What has become of the connection behind a transport."""

    LIVES = "lives"
    DIED = "dies"
    """It says that it is disconnected."""
    HANGS = "hangs"
    """It does not answer."""
    RAISES = "raises"
    """It answers with an error."""


class Line:
    """A transport in front of another one, which it asks for as long as it lives.

    Attributes:
        state: set it, to let something happen to the connection.
        said_disconnected: it has said so to whoever asked, so that its session may go.
        disconnects: how often `disconnect` was called.
        has_lied: the transport behind it said that it is disconnected, when nobody had ended it.
    """

    def __init__(self, transport: Transport) -> None:
        self.state = LineState.LIVES
        self.said_disconnected = False
        self.disconnects = 0
        self.has_lied = False
        self._transport = transport

    async def is_connected(self) -> bool:
        """Answer as the transport behind it does, unless something has happened to it."""
        match self.state:
            case LineState.HANGS:
                await trio.sleep_forever()
            case LineState.RAISES:
                raise OSError("the transport is broken")
            case LineState.DIED:
                self.said_disconnected = True
                return False
            case LineState.LIVES:
                answer = await self._transport.is_connected()
                self.has_lied |= answer is False and self.disconnects == 0
                return answer
        raise AssertionError("unreachable")

    async def disconnect(self) -> None:
        """Disconnect the transport behind it."""
        self.disconnects += 1
        await self._transport.disconnect()
