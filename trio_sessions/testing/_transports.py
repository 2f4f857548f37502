"""A transport that does what a test wants."""

from typing import Literal, get_args

import trio

from trio_sessions.types import RemovalReason

__all__ = ["FakeTransport", "State"]

State = Literal["connected", "closed", "hangs", "raises"]
OnDisconnect = Literal["closes", "hangs", "raises"]


async def _hang() -> None:
    """Wait for ever as real code does, with child tasks: cancelled, it raises a group."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)


class FakeTransport:
    """A transport whose answers are set by the test; it obeys the contract of `Transport`.

    What it does not know it refuses: a word for a state that does not exist, and an attribute
    that does not, so that no typing error makes a test pass.

    Args:
        state: what ``is_connected()`` does: answers True (``"connected"``) or False
            (``"closed"``), waits for ever (``"hangs"``), or raises ``error``
            (``"raises"``). Set the attribute to change it.
        on_disconnect: what ``disconnect()`` does: ``"closes"`` the transport, ``"hangs"``,
            or ``"raises"``. Set the attribute to change it.
        error: what is raised.

    Attributes:
        checks: how often ``is_connected()`` was called.
        disconnects: how often ``disconnect()`` was called.
        sent: what was sent, in that order.

    Raises:
        ValueError: ``state`` or ``on_disconnect`` is none of these words.
    """

    __slots__ = (
        "__weakref__",
        "_on_disconnect",
        "_state",
        "checks",
        "disconnects",
        "error",
        "reasons",
        "sent",
    )

    def __init__(
        self,
        state: State = "connected",
        *,
        on_disconnect: OnDisconnect = "closes",
        error: Exception | None = None,
    ) -> None:
        self.state = state
        self.on_disconnect = on_disconnect
        self.error = error if error is not None else OSError("the fake transport is broken")
        self.checks = 0
        self.disconnects = 0
        self.reasons: list[RemovalReason | None] = []
        """Why it was disconnected, each time."""
        self.sent: list[object] = []

    @property
    def state(self) -> State:
        """What ``is_connected()`` does."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        _check("state", state, get_args(State))
        self._state: State = state

    @property
    def on_disconnect(self) -> OnDisconnect:
        """What ``disconnect()`` does."""
        return self._on_disconnect

    @on_disconnect.setter
    def on_disconnect(self, on_disconnect: OnDisconnect) -> None:
        _check("on_disconnect", on_disconnect, get_args(OnDisconnect))
        self._on_disconnect: OnDisconnect = on_disconnect

    async def is_connected(self) -> bool:
        """Answer as ``state`` says; answers at once unless it hangs."""
        self.checks += 1
        if self.state == "hangs":
            await _hang()
        if self.state == "raises":
            raise self.error
        return self.state == "connected"

    async def send(self, message: object) -> None:
        """Note what is sent, as ``state`` says: it hangs or raises as `is_connected` does.

        Raises:
            trio.BrokenResourceError: the state is ``"closed"``: the peer is gone.
            trio.ClosedResourceError: it is closed, and was disconnected from this side.

        Cancellation: nothing was sent.
        """
        await trio.lowlevel.checkpoint()
        if self.state == "hangs":
            await _hang()
        if self.state == "raises":
            raise self.error
        if self.state == "closed":
            raise trio.ClosedResourceError if self.disconnects else trio.BrokenResourceError
        self.sent.append(message)

    async def disconnect(self, reason: RemovalReason | None = None) -> None:
        """Do what ``on_disconnect`` says, and note the reason."""
        self.disconnects += 1
        self.reasons.append(reason)
        await trio.lowlevel.checkpoint()
        if self.on_disconnect == "hangs":
            await _hang()
        if self.on_disconnect == "raises":
            raise self.error
        self.state = "closed"


def _check(name: str, word: object, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, not {word!r}")
