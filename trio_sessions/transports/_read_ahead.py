"""Messages of a peer that were read before anybody asked for them. Synchronous."""

from collections import deque

__all__ = ["ReadAhead"]

_MOST = 65_536  # characters or bytes; a message counts as one more


class ReadAhead:
    """What a transport has read in order to see the peer's end behind it, the oldest first."""

    def __init__(self) -> None:
        self._messages = deque[str | bytes]()
        self._room = _MOST

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def has_room(self) -> bool:
        """Whether another message may be read; the last one may be larger than the room."""
        return self._room > 0

    def put(self, message: str | bytes) -> None:
        """Keep a message."""
        self._messages.append(message)
        self._room -= len(message) + 1

    def take(self) -> str | bytes:
        """Take out the oldest message; there must be one."""
        message = self._messages.popleft()
        self._room += len(message) + 1
        return message
