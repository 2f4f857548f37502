"""A transport that does what a test wants."""

from typing import Literal

import trio

__all__ = ["FakeTransport", "State"]

State = Literal["connected", "closed", "hangs", "raises"]


async def _hang() -> None:
    """Wait for ever as real code does, with child tasks: cancelled, it raises a group."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)


class FakeTransport:
    """A transport whose answers are set by the test; it obeys the contract of `Transport`.

    Args:
        state: what ``is_connected()`` does: answers True (``"connected"``) or False
            (``"closed"``), waits for ever (``"hangs"``), or raises ``error``
            (``"raises"``). Set the attribute to change it.
        on_disconnect: what ``disconnect()`` does: ``"closes"`` the transport, ``"hangs"``,
            or ``"raises"``.
        error: what is raised.

    Attributes:
        checks: how often ``is_connected()`` was called.
        disconnects: how often ``disconnect()`` was called.
    """

    def __init__(
        self,
        state: State = "connected",
        *,
        on_disconnect: Literal["closes", "hangs", "raises"] = "closes",
        error: Exception | None = None,
    ) -> None:
        self.state: State = state
        self.on_disconnect = on_disconnect
        self.error = error if error is not None else OSError("the fake transport is broken")
        self.checks = 0
        self.disconnects = 0

    async def is_connected(self) -> bool:
        """Answer as ``state`` says; answers at once unless it hangs."""
        self.checks += 1
        if self.state == "hangs":
            await _hang()
        if self.state == "raises":
            raise self.error
        return self.state == "connected"

    async def disconnect(self) -> None:
        """Do what ``on_disconnect`` says."""
        self.disconnects += 1
        await trio.lowlevel.checkpoint()
        if self.on_disconnect == "hangs":
            await _hang()
        if self.on_disconnect == "raises":
            raise self.error
        self.state = "closed"
