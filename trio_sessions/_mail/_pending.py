"""A call to another worker as its caller sees it, until it is over. Synchronous."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import outcome
import trio

from trio_sessions._handlers import CallRefused
from trio_sessions._json import decode, size_of
from trio_sessions.errors import CallFailed, SessionsError, WorkerGone

__all__ = ["Answer", "Incoming", "Pending", "failure"]

_BEAT = (0.1, 10.0)  # seconds between two beats, the least and the most
_ANSWERED = 7.0  # seconds after which a worker that collects letters has answered a beat
_TELL = 1024 * 1024  # bytes taken, after which the callee is told


def failure(contents: str, what: str) -> SessionsError:
    """Return the error that a callee has sent.

    Args:
        contents: what it says, JSON.
        what: names the call.
    """
    try:
        said = decode(contents)
    except (ValueError, LookupError):
        said = None
    match said:
        case {"gone": True}:
            return WorkerGone(f"{what} was cut off: the worker has closed")
        case {"busy": True, "message": str(message)}:
            return CallRefused(f"{what} failed: {message}")
        case {"type": str(kind), "message": str(message)}:
            return CallFailed(f"{what} failed: {kind + ': ' if kind else ''}{message}")
    return CallFailed(f"{what} failed, and the worker's reason cannot be read")


class Pending(abc.ABC):
    """A call that its caller waits for.

    Args:
        number: counts the calls of this worker.
        to: whom it was left for: an incarnation, or the id of a worker.
        name: what is called.
        timeout: seconds.
    """

    def __init__(self, *, number: int, to: str, name: str, timeout: float) -> None:
        self.number = number
        self.to = to
        self.callee: str | None = None
        """The incarnation that runs it, once that has said so."""
        self.is_asked = False
        """The letter that calls has been left: the callee may know of it."""
        self.timeout = timeout
        self.what = f"{name!r} at worker {to!r}"
        self.is_abandoned = False
        """Nobody can ask for it any more."""
        self.must_tell = True
        """The callee is to be told when nobody waits any more: it has not ended it by itself."""
        self.began_at = self.heard_at = trio.current_time()
        least, most = _BEAT
        self.beat_interval = min(most, max(least, timeout / 3))
        self.beat_at = self.began_at + min(1.0, self.beat_interval)

    @property
    def perhaps_why(self) -> str:
        """A hint that the worker has not said in time that it was called; empty: it has."""
        if self.callee is not None or trio.current_time() < self.began_at + _ANSWERED:
            return ""
        return (
            ", and has not said that it was called: a worker without handlers collects no letters"
        )

    @property
    @abc.abstractmethod
    def is_over(self) -> bool:
        """Whether nothing more can come."""

    @property
    def taken(self) -> int:
        """Items that were consumed."""
        return 0

    @abc.abstractmethod
    def fail(self, error: SessionsError) -> None:
        """End it with an error, after what has come already; the first reason stays."""

    def failed(self, sent: int, contents: str) -> None:
        """Fail the call with the error that the callee has sent."""
        self.must_tell = False
        self.fail(failure(contents, self.what))

    def hear(self, callee: str | None = None) -> None:
        """Note a sign of life, and from which incarnation it came."""
        self.heard_at = trio.current_time()
        self.callee = callee or self.callee


class Answer(Pending):
    """A call with one answer."""

    def __init__(self, *, number: int, to: str, name: str, timeout: float) -> None:
        super().__init__(number=number, to=to, name=name, timeout=timeout)
        self._result: outcome.Outcome[str] | None = None
        self._settled = trio.Event()

    @property
    def is_over(self) -> bool:
        return self._result is not None

    def fail(self, error: SessionsError) -> None:
        self._settle(outcome.Error(error))

    def answer(self, contents: str) -> None:
        """Take the answer in."""
        self.must_tell = False
        self._settle(outcome.Value(contents))

    def _settle(self, result: outcome.Outcome[str]) -> None:
        if self._result is None:
            self._result = result
            self._settled.set()

    async def wait(self) -> Any:
        """Wait for the answer, and return it, or raise what it was."""
        await self._settled.wait()
        assert self._result is not None
        contents = self._result.unwrap()
        try:
            return decode(contents)
        except (ValueError, LookupError) as exc:
            raise CallFailed(f"{self.what} has answered, and that cannot be read") from exc


@dataclass(slots=True)
class _Chunk:
    """The items of one letter."""

    items: list[Any]
    """The first one last."""
    size: int
    """Bytes."""


class Incoming(Pending):
    """A call that is answered with a stream of items.

    Args:
        number, to, name, timeout: as of `Pending`.
        window: items that the callee may send beyond those that were consumed.
    """

    def __init__(self, *, number: int, to: str, name: str, timeout: float, window: int) -> None:
        super().__init__(number=number, to=to, name=name, timeout=timeout)
        self.window = window
        self._chunks: list[_Chunk] = []
        """The first one last, and what comes in `_later`, so that both ends are cheap."""
        self._later: list[_Chunk] = []
        self._received = 0
        self._taken = 0
        self._told = 0
        self._size_taken = 0
        """Bytes taken since the callee was told."""
        self._is_over = False
        self._error: SessionsError | None = None
        """What it has ended with; None: well, if it has."""
        self._arrived = trio.Event()
        self._listeners: set[Callable[[], None]] = set()

    @property
    def is_over(self) -> bool:
        return self._is_over

    @property
    def taken(self) -> int:
        return self._taken

    # ---- what comes ----

    def items(self, first: int, contents: str) -> None:
        """Take items in; those that have come before are ignored."""
        items = decode(contents)
        if self.is_over or not isinstance(items, list):
            return
        if first > self._received:
            self._lose()
            return
        new = items[self._received - first :]
        if new:
            self._received += len(new)
            self._later.append(_Chunk(new[::-1], size_of(contents)))
            self._tell()

    def check(self, left: int) -> None:
        """Fail the stream unless all items have come that the callee says to have left by now."""
        if left > self._received:
            self._lose()

    def finish(self, sent: int) -> None:
        """End the stream, if all of its ``sent`` items have come; else fail it."""
        if sent > self._received:
            self._lose()
        else:
            self.must_tell = False
            self._finish(None)

    def failed(self, sent: int, contents: str) -> None:
        if sent > self._received:
            self._lose()
        else:
            super().failed(sent, contents)

    def fail(self, error: SessionsError) -> None:
        self._finish(error)

    def _lose(self) -> None:
        self.fail(CallFailed(f"{self.what} failed: items of the stream were lost on their way"))

    def _finish(self, error: SessionsError | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._error = error
            self._tell()

    def _tell(self) -> None:
        self._arrived.set()
        listeners, self._listeners = self._listeners, set()
        for listener in listeners:
            listener()

    # ---- what is taken ----

    def take(self) -> tuple[bool, Any]:
        """Return True and an item, or False and whether there will be one.

        Whoever asks behind a bad end gets its error, each time: it must not look like a good one.
        """
        if not self._chunks:
            self._chunks, self._later = self._later[::-1], []
        if self._chunks:
            chunk = self._chunks[-1]
            item = chunk.items.pop()
            self._taken += 1
            if not chunk.items:
                self._chunks.pop()
                self._size_taken += chunk.size
            return True, item
        if self._error is not None:
            raise self._error.with_traceback(None)
        return False, not self._is_over

    @property
    def should_tell(self) -> bool:
        """Whether the callee is to be told what was consumed, for it may wait for that."""
        is_much = self._size_taken >= _TELL or self._taken - self._told >= max(1, self.window // 2)
        return is_much and not self.is_over

    def told(self) -> None:
        """Note that the callee was told what was consumed."""
        self._told = self._taken
        self._size_taken = 0

    def listen(self, listener: Callable[[], None]) -> float:
        """Tell whoever listens, once, that `wait` would return; see `Reader.listen`."""
        self._listeners.add(listener)
        return self.heard_at + self.timeout - trio.current_time()

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Tell it nothing any more."""
        self._listeners.discard(listener)

    async def wait(self) -> None:
        """Wait until there is something to take, or nothing was heard for too long."""
        while not (self._chunks or self._later or self.is_over):
            if self._arrived.is_set():  # else another reader may wait for it
                self._arrived = trio.Event()
            with trio.move_on_at(self.heard_at + self.timeout):
                await self._arrived.wait()
                return
            if trio.current_time() >= self.heard_at + self.timeout:
                raise TimeoutError(
                    f"{self.what} gave no sign of life for {self.timeout:g} seconds"
                    f"{self.perhaps_why}"
                )
        await trio.lowlevel.checkpoint()
