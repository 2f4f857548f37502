"""The one message that the reader of an inbox has in hand, and who owns that fact. Synchronous.

Which rows were handed out and are not acknowledged is the inbox's to know (`Inbox.held`).
"""

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
        """The message in hand; None: there is none."""
        return self._message

    @property
    def until(self) -> float:
        """The moment until which the next reader waits for it; -inf: nothing is in hand."""
        return self._until if self._message is not None else float("-inf")

    def take(self, message: Message) -> None:
        """Take a message; mark one that a former reader still has as too late to be put back."""
        if self._message is not None:
            self._message.life = -1  # if it comes back, it is too late
        self._message, self._until = message, float("inf")

    def wait_until(self, moment: float) -> None:
        """Limit how long the next reader waits for the message in hand."""
        self._until = moment

    def release(self, message: Message | None) -> None:
        """Let go of a message, if it is this one that is in it."""
        if self._message is message:
            self._message = None
