"""Letters that come by sockets: this worker's own, and the connections of others to it.

A connection goes one way. It lasts until its sender closes it, or sends nonsense; what is not a
whole letter by then was not left. Where none can be accepted, it is tried again after a pause that
grows (invariant 16). See docs/decisions/0013-mcp.md.
"""

import contextlib
import socket

import trio

from trio_sessions._background import Background
from trio_sessions._edge import Edge
from trio_sessions._logging import get_logger
from trio_sessions._mail._sending import Receiver
from trio_sessions._mail._sockets import Unpacking, is_same_user, listen, stop_listening
from trio_sessions._persisting import jittered

__all__ = ["Incoming"]

logger = get_logger("trio_sessions.mail")

_PIECE = 65_536  # bytes taken from one connection before others get their turn
_PIECES = 64  # and before letters of the database are handed on: more than a kernel keeps
_CONNECTIONS = 1000
_PAUSES = (0.1, 5.0)  # seconds between two attempts where files cannot be opened


class Incoming:
    """The letters that come by sockets.

    Args:
        folder: of the sockets; None: there are none.
        edge: knows who we are.
        background: where connections are read.
    """

    def __init__(self, folder: str | None, *, edge: Edge, background: Background) -> None:
        self._folder = folder
        self._edge = edge
        self._background = background
        self._receiver: Receiver | None = None
        self._listener: socket.socket | None = None
        self._connections: set[_Connection] = set()

    def receive_by(self, receiver: Receiver) -> None:
        """Hand letters to this receiver."""
        self._receiver = receiver

    def open(self) -> None:
        """Listen, and take letters in.

        Raises:
            ValueError: the folder cannot be used.
        """
        if self._folder is not None:
            self._listener = listen(self._folder, self._edge.worker.incarnation)
            self._background.start_lasting(self._accept, self._listener)

    def close(self) -> None:
        """Take no further connections."""
        if self._listener is not None:
            trio.lowlevel.notify_closing(self._listener)
            stop_listening(self._listener)
            self._listener = None

    def end(self) -> None:
        """Close the connections that nobody reads any more."""
        for one in self._connections:
            one.socket.close()
        self._connections.clear()

    def drain(self) -> None:
        """Read all that was sent by sockets before now: letters in the database may be younger."""
        if self._listener is not None and not self._edge.is_inherited:
            with contextlib.suppress(OSError):
                self._take_connections(self._listener)
            for one in list(self._connections):
                for _ in range(_PIECES):
                    if not one.read():
                        break

    async def _accept(self, listener: socket.socket) -> None:
        first, longest = _PAUSES
        pause = first
        while self._listener is listener:
            try:
                await trio.lowlevel.wait_readable(listener)
                if self._edge.is_inherited:
                    return
                self._take_connections(listener)
            except trio.ClosedResourceError:
                return
            except OSError as exc:
                log = logger.warning if pause == first else logger.debug
                log("a connection of another worker cannot be accepted now: %s", exc)
                await trio.sleep(jittered(pause))
                pause = min(2 * pause, longest)
            else:
                pause = first

    def _take_connections(self, listener: socket.socket) -> None:
        """Accept the connections that wait, but for those of other users, or beyond the limit.

        Raises:
            OSError: they cannot be had; as when too many files are open.
        """
        while True:
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            accepted.settimeout(0)
            if len(self._connections) >= _CONNECTIONS or not is_same_user(accepted):
                accepted.close()
                continue
            assert self._receiver is not None
            one = _Connection(accepted, self._receiver)
            self._connections.add(one)
            self._background.start_lasting(self._read, one)

    async def _read(self, one: "_Connection") -> None:
        try:
            while not one.has_ended:
                await trio.lowlevel.wait_readable(one.socket)
                if self._edge.is_inherited:
                    return
                one.read()
        finally:
            self._connections.discard(one)
            one.socket.close()


class _Connection:
    """A worker that sends letters to this one."""

    def __init__(self, connection: socket.socket, receiver: Receiver) -> None:
        self.socket = connection
        self.has_ended = False
        self._receiver = receiver
        self._unpacking = Unpacking()

    def read(self) -> bool:
        """Read a piece, and hand on the letters in it; say whether there was one."""
        if self.has_ended:
            return False
        try:
            data = self.socket.recv(_PIECE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        try:
            for text in self._unpacking.take(data):
                self._receiver.receive(text)
        except ValueError as exc:
            logger.warning("a connection is cut off, for what comes is no letters: %s", exc)
            data = b""
        self.has_ended = not data
        return bool(data)
