"""What a handler yields, on its way to the caller: in order, with back-pressure.

The handler is asked for its next item only while fewer are under way than the caller allows, and
they are not too large together. What leaves at once, as by a socket, leaves when it is put in;
else a task leaves it, and what the handler yields meanwhile goes with the next letter.
"""

from collections.abc import Callable

import trio

from trio_sessions._json import size_of
from trio_sessions._mail._letters import seal
from trio_sessions._mail._sending import Sender
from trio_sessions._orders import Order

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
        self._order: Order[int] | None = None
        """The letter in hand, where it waits in a lane already."""
        self._is_end = False
        """Nothing follows the letter in hand."""
        self._has_ended = False
        """The last letter has left."""
        self._start: Callable[[], None] | None = None
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

    def put(self, item: str, *, is_last: bool = False) -> None:
        """Add an item, JSON, to those that are to be sent; after the last one the stream ends."""
        size = size_of(item)
        self._waiting.append(item)
        self._sizes.append(size)
        self._size += size
        if is_last:
            self.end()
        else:
            self._go_on()

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
            self._go_on()

    # ---- sending ----

    def send_by(self, start: Callable[[], None]) -> None:
        """Start a task for `send` by this function, once there is something that has to wait."""
        self._start = start
        self._go_on()

    def _go_on(self) -> None:
        """Send what goes at once; have the rest sent."""
        while self._needs_sending and self._in_hand is None and self._sender.is_near(self._caller):
            self._order = self._sender.post_nowait(self._caller, self._take_letter())
            if self._order is None:
                self._note_left()
        if self._needs_sending and self._start is not None:
            start, self._start = self._start, None
            start()
        self._changed.set()

    @property
    def _needs_sending(self) -> bool:
        is_some = self._waiting or self._last is not None or self._in_hand is not None
        return bool(is_some) and not self._has_ended

    async def send(self) -> None:
        """Send what is put in, until the last letter has gone."""
        while not self._has_ended:
            if not self._needs_sending:
                await self._change()
                continue
            letter = self._in_hand or self._take_letter()
            order, self._order = self._order, None
            await self._sender.deliver(self._caller, letter, order)
            self._note_left()

    def _note_left(self) -> None:
        self._in_hand = None
        self._left = self._gone
        self._has_ended = self._is_end

    def flush(self) -> None:
        """Send at once what is left, when `send` was cancelled; it may be lost.

        What was in hand may come twice, which its receiver notices.
        """
        if self._in_hand is not None:
            self._sender.post_soon(self._caller, self._in_hand)
        while self._waiting:
            self._sender.post_soon(self._caller, self._take_items())

    def _take_letter(self) -> str:
        """Take the next letter in hand, and return it."""
        if self._waiting:
            self._in_hand = self._take_items()
            self._is_end = self._ends_well and not self._waiting
        else:
            assert self._last is not None
            self._in_hand, self._is_end = self._last, True
        return self._in_hand

    def _take_items(self) -> str:
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
