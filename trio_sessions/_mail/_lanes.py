"""The lanes that letters take to other workers: a connection of one's own, or the database.

One for each incarnation, so that its letters come in order. It is chosen before the first one::

                    ┌─ it listens on this host ─> CONNECTED ─┐
    first letter ───┤                                        │ broken, or too slow,
                    └─ else ─> THE DATABASE <────────────────┘ or a letter is too large
                                    └─> nothing sent for as long as a letter lives: forgotten

What the kernel has taken as a whole has left, and is never sent again. Of a letter that was cut off
the receiver drops what came, so that goes to the database, with all that waits behind it.
See docs/decisions/0013-mcp.md.
"""

import socket
from collections import deque
from contextlib import suppress
from itertools import islice

import outcome
import trio

from trio_sessions._background import Background
from trio_sessions._edge import Edge
from trio_sessions._life import Life
from trio_sessions._logging import get_logger
from trio_sessions._mail._sockets import MOST, connected, pack
from trio_sessions._orders import Order
from trio_sessions._posting import PostOrder
from trio_sessions._writer import Writer

__all__ = ["Lanes"]

logger = get_logger("trio_sessions.mail")

_LIFE = 60.0  # seconds, of a letter in the database
_FULL = 4 * 1024 * 1024  # bytes that wait for one worker, before senders do
_PATIENCE = 10.0  # seconds for which a worker may take nothing
_TOGETHER = 64  # letters that are sent by one call
_NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)  # a program may want SIGPIPE for its output


class _Waiting(PostOrder):
    """A letter that waits in a lane; it is given to the writer if that breaks."""

    __slots__ = ("unsent",)

    def __init__(self, text: str, to: str, unsent: memoryview) -> None:
        super().__init__(text, to=to)
        self.unsent = unsent


class _Connected:
    """A connection to one worker.

    Args:
        connection: to whom letters are sent.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.waiting: deque[_Waiting] = deque()
        self.size = 0
        """Bytes that wait."""
        self.changed = trio.Event()

    def send(self, data: bytes) -> int:
        """Send as much as goes at once, of one letter; return how much that was."""
        try:
            return self.socket.send(data, _NO_SIGNAL)
        except BlockingIOError:
            return 0

    def send_waiting(self) -> None:
        """Send as much as goes at once, of all that wait."""
        try:
            unsent = [one.unsent for one in islice(self.waiting, _TOGETHER)]
            sent = self.socket.sendmsg(unsent, (), _NO_SIGNAL)
        except BlockingIOError:
            return
        self.size -= sent
        while self.waiting and sent >= len(self.waiting[0].unsent):
            one = self.waiting.popleft()
            sent -= len(one.unsent)
            one.settle(outcome.Value(1))
        if sent:
            self.waiting[0].unsent = self.waiting[0].unsent[sent:]
        self.note_change()

    def note_change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Lanes:
    """The ways from this worker to all others.

    Args:
        folder: where workers of this host listen; None: all letters go by the database.
        writer: takes letters to the database.
        edge: knows whether this is a forked child.
        background: where connections are watched.
        life: of the registry. Once it is not open, no task is started any more, and nothing is put
            into a lane to wait; what goes at once, goes.
    """

    def __init__(
        self,
        folder: str | None,
        *,
        writer: Writer,
        edge: Edge,
        background: Background,
        life: Life,
    ) -> None:
        self._folder = folder
        self._writer = writer
        self._edge = edge
        self._background = background
        self._life = life
        self._connected: dict[str, _Connected] = {}
        self._used: dict[str, float] = {}
        """When a letter was last sent by the database, to whom; the longest ago first."""

    def end(self) -> None:
        """Close the connections."""
        for to, one in list(self._connected.items()):
            self._break(to, one)

    def _find(self, to: str) -> _Connected | None:
        """Return the connection to a worker; None: its letters go by the database."""
        one = self._connected.get(to)
        if one is not None or self._folder is None:
            return one
        if trio.current_time() < self._used.get(to, float("-inf")) + _LIFE:
            return None
        connection = connected(self._folder, to)
        if connection is None:
            self._choose_database(to)
            return None
        self._used.pop(to, None)
        one = self._connected[to] = _Connected(connection)
        if self._life.is_open:
            self._background.start_lasting(self._watch, to, one)
        return one

    def _choose_database(self, to: str) -> None:
        now = trio.current_time()
        self._used.pop(to, None)
        self._used[to] = now
        oldest = next(iter(self._used))
        if now >= self._used[oldest] + _LIFE:
            del self._used[oldest]

    def is_clear(self, to: str) -> bool:
        """Say whether there is a connection to a worker, in which nothing waits."""
        one = None if self._edge.is_inherited else self._connected.get(to)
        return one is not None and not one.waiting

    async def has_room(self, to: str) -> bool:
        """Wait until there is room in a connection to a worker; False: there is no connection."""
        one = self._find(to)
        while one is not None and one.size >= _FULL:
            await one.changed.wait()
            one = self._find(to)
        if one is None:
            return False
        await trio.lowlevel.checkpoint()
        return to in self._connected

    def give(self, to: str, text: str, *, may_be_lost: bool = False) -> Order[int] | None:
        """Send a letter. Synchronous: the order of the calls.

        Args:
            to: for whom.
            text: the letter.
            may_be_lost: it is not sent where too much waits.

        Returns:
            What waits to be sent; None: it has left, or is lost.
        """
        one = None if self._edge.is_inherited else self._find(to)
        if one is not None:
            data = pack(text)
            try:
                if len(data) <= MOST:
                    sent = 0 if one.waiting else one.send(data)
                    if sent == len(data):
                        return None
                    if may_be_lost and one.size >= _FULL:
                        return None
                    if self._life.is_open:
                        return self._let_wait(to, one, _Waiting(text, to, memoryview(data)[sent:]))
            except OSError as exc:
                logger.debug("a connection to another worker has broken: %s", exc)
            self._break(to, one)
        if self._folder is not None:
            self._choose_database(to)
        return self._writer.give(PostOrder(text, to=to))

    def _let_wait(self, to: str, one: _Connected, order: _Waiting) -> Order[int]:
        order.send()
        one.size += len(order.unsent)
        one.waiting.append(order)
        if len(one.waiting) == 1:
            self._background.start_lasting(self._flush, to, one)
        return order

    async def answer(self, order: Order[int]) -> int | None:
        """Return for how many workers a letter was left.

        Cancellation: it is withdrawn, unless it is on its way.
        """
        if isinstance(order, _Waiting):
            return await order.wait()
        return await self._writer.answer(order)

    async def _flush(self, to: str, one: _Connected) -> None:
        """Send what waits, as the other worker takes it."""
        try:
            while one.waiting:
                with trio.move_on_after(_PATIENCE) as patience:
                    await trio.lowlevel.wait_writable(one.socket)
                if patience.cancelled_caught:
                    logger.warning("a worker takes no letters by its socket any more")
                    break
                if self._edge.is_inherited:
                    return
                one.send_waiting()
        except OSError as exc:
            logger.debug("a connection to another worker has broken: %s", exc)
        except trio.ClosedResourceError:
            pass  # nothing waits any more
        finally:
            if one.waiting:
                self._break(to, one)

    async def _watch(self, to: str, one: _Connected) -> None:
        """Forget a connection when the other end closes it; nothing else comes."""
        with suppress(trio.ClosedResourceError):
            if self._connected.get(to) is one:  # it may have broken before this task began
                await trio.lowlevel.wait_readable(one.socket)
        self._break(to, one)

    def _break(self, to: str, one: _Connected) -> None:
        """Drop a connection: its worker's letters go by the database, those that wait first."""
        if self._connected.get(to) is not one or self._edge.is_inherited:
            return
        del self._connected[to]
        trio.lowlevel.notify_closing(one.socket)
        one.socket.close()
        self._choose_database(to)
        while one.waiting:
            self._writer.give(one.waiting.popleft())
        one.size = 0
        one.note_change()
