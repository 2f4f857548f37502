"""What a handler yields, on its way to the caller: in order, with back-pressure.

The handler is asked for its next item only while fewer are under way than the caller allows, and
they are not too large together. What it yields while a letter is being left goes with the next.
"""

import trio

from trio_sessions._json import size_of
from trio_sessions._mail._letters import seal
from trio_sessions._mail._sending import Sender

__all__ = ["Outflow"]

_LETTER = 256 * 1024  # bytes of items in one letter; a larger item goes alone
_UNDER_WAY = 4 * 1024 * 1024  # bytes of items that the caller has not consumed


class Outflow:
    """The items of one call.

    Args:
        sender: leaves the letters.
        caller: for whom.
        number: its number of the call.
        window: items that may be under way.
    """

    def __init__(self, sender: Sender, caller: str, number: int, window: int) -> None:
        self._sender = sender
        self._caller = caller
        self._number = number
        self._window = window
        self._waiting: list[str] = []
        self._sizes: list[int] = []
        """Of the items that the caller has not consumed."""
        self._size = 0
        self._gone = 0
        """Items that stood in letters."""
        self._left = 0
        """Items in letters that were left, surely."""
        self._in_hand: str | None = None
        """A letter that is being left, and may not have been if that is cancelled."""
        self._taken = 0
        self._last: str | None = None
        """The letter behind all items."""
        self._ends_well = False
        self._changed = trio.Event()

    @property
    def sent(self) -> int:
        """Items that were put in."""
        return self._taken + len(self._sizes)

    @property
    def left(self) -> int:
        """The items in letters that were left for sure: those that are missing there were lost."""
        return self._left

    def _has_room(self) -> bool:
        return not self._sizes or (len(self._sizes) < self._window and self._size < _UNDER_WAY)

    async def room(self) -> None:
        """Wait until another item may come."""
        while not self._has_room():
            await self._change()

    async def _change(self) -> None:
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    def put(self, item: str) -> None:
        """Add an item, JSON, to those that are to be sent."""
        size = size_of(item)
        self._waiting.append(item)
        self._sizes.append(size)
        self._size += size
        self._changed.set()

    def taken(self, taken: int) -> None:
        """Take note of how many items the caller has consumed, of all."""
        count = min(taken - self._taken, len(self._sizes))
        if count > 0:
            self._size -= sum(self._sizes[:count])
            del self._sizes[:count]
            self._taken += count
            self._changed.set()

    def end(self) -> None:
        """End the stream behind the items that were put in, unless it has failed."""
        if self._last is None:
            self._ends_well = True
            self.fail(seal("end", self._number, self.sent))

    def fail(self, letter: str) -> None:
        """End the stream with this letter behind the items put in, unless it has ended."""
        if self._last is None:
            self._last = letter
            self._changed.set()

    async def send(self) -> None:
        """Send what is put in, until the last letter has gone."""
        while self._waiting or self._last is None:
            if not self._waiting:
                await self._change()
                continue
            self._in_hand = self._take_letter()
            has_ended = self._ends_well and not self._waiting
            await self._sender.deliver(self._caller, self._in_hand)
            self._in_hand = None
            self._left = self._gone
            if has_ended:
                return
        await self._sender.deliver(self._caller, self._last)

    def flush(self) -> None:
        """Send at once what is left, when `send` was cancelled; it may be lost.

        What was in hand may come twice, which its receiver notices.
        """
        if self._in_hand is not None:
            self._sender.post_soon(self._caller, self._in_hand)
        while self._waiting:
            self._sender.post_soon(self._caller, self._take_letter())

    def _take_letter(self) -> str:
        """Return the letter with the next items."""
        count, size = 0, 0
        for item in self._waiting:
            size += size_of(item)
            if count and size > _LETTER:
                break
            count += 1
        items = ",".join(self._waiting[:count])
        first = self._gone
        del self._waiting[:count]
        self._gone += count
        if self._ends_well and not self._waiting:
            return seal("last", self._number, first, self.sent, contents=f"[{items}]")
        return seal("items", self._number, first, contents=f"[{items}]")
