"""The one message that the reader of an inbox has in hand. Synchronous."""

from trio_sessions._messages._line import Message

__all__ = ["Hand"]


class Hand:
    """What was handed out last, until it is finished or put back.

    When a newer transport takes the session over, the former reader may still have it. The
    next one waits for a while, or it would be overtaken.
    """

    __slots__ = ("_message", "_until")

    def __init__(self) -> None:
        self._message: Message | None = None
        self._until = float("inf")

    def __bool__(self) -> bool:
        return self._message is not None

    @property
    def message(self) -> Message | None:
        """What is in it."""
        return self._message

    @property
    def until(self) -> float:
        """Until when it is waited for; never, if nothing is in it."""
        return self._until if self._message is not None else float("-inf")

    def take(self, message: Message) -> None:
        """Take a message; mark one that a former reader still has as too late to be put back."""
        if self._message is not None:
            self._message.life = -1  # if it comes back, it is too late
        self._message, self._until = message, float("inf")

    def wait_until(self, moment: float) -> None:
        """Wait for it no longer than this."""
        self._until = moment

    def release(self, message: Message | None) -> None:
        """Let go of a message, if it is this one that is in it."""
        if self._message is message:
            self._message = None
