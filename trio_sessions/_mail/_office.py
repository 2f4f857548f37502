"""The post office: fetches the letters of this worker, and hands each to whom it concerns."""

from collections.abc import Callable, Collection, Sequence

import trio

from trio_sessions._edge import Edge
from trio_sessions._json import decode, size_of
from trio_sessions._logging import get_logger
from trio_sessions._mail._calling import Calling
from trio_sessions._mail._incoming import Incoming
from trio_sessions._mail._letters import Letter, unseal
from trio_sessions._mail._serving import Serving
from trio_sessions._mail._topics import Subscriptions
from trio_sessions.errors import SessionsError

__all__ = ["Office"]

logger = get_logger("trio_sessions.mail")

_LETTERS = 1000  # taken away by one operation, at most
_SIZE = 4 * 1024 * 1024  # bytes taken away by one operation; but one letter
_SLICE = 100_000  # characters handed on before the event loop gets its turn
_LOOK = 5.0  # seconds between two looks for letters that the bell may not have rung for
_OLD = 60.0  # seconds after which nobody waits for a letter
_EXPIRED = 1000  # letters deleted by one operation
_PIECES = 100  # operations of one round of deleting


class Office:
    """The letters of one worker, on their way in.

    Args:
        edge: the way to the store.
        incoming: letters that come by sockets.
        topics, calling, serving: to whom letters are handed.
    """

    def __init__(
        self,
        edge: Edge,
        *,
        incoming: Incoming,
        topics: Subscriptions,
        calling: Calling,
        serving: Serving,
    ) -> None:
        self._edge = edge
        self._incoming = incoming
        self._topics = topics
        self._calling = calling
        self._serving = serving
        self._moved: list[Callable[[str], None]] = []
        self._said: list[Callable[[Sequence[tuple[str, str]]], None]] = []
        self._is_rung = True  # there may be letters from before
        self._rang = trio.Event()

    def notify_moved(self, listener: Callable[[str], None]) -> None:
        """Tell ``listener`` of each session that another worker says to hold now."""
        self._moved.append(listener)

    def notify_said(self, listener: Callable[[Sequence[tuple[str, str]]], None]) -> None:
        """Tell ``listener`` what other workers say to have changed: of which session, and what."""
        self._said.append(listener)

    def look(self) -> None:
        """Collect letters soon, rung for or not."""
        self._is_rung = True
        self._rang.set()

    async def collect(self, worked: Callable[[], None]) -> None:
        """Collect letters, whenever there are some.

        Raises:
            SessionsError: the store is away; call it again.
        """
        while True:
            while not self._is_rung:
                self._rang = trio.Event()
                await self._rang.wait()
            self._is_rung = False
            try:
                letters = await self._edge.collect(limit=_LETTERS, size=_SIZE)
            except SessionsError:
                self._is_rung = True
                raise
            worked()
            if len(letters) >= _LETTERS or sum(map(size_of, letters)) >= _SIZE:
                self._is_rung = True
            if letters:
                self._incoming.drain()
            await self._hand_on(letters)

    async def _hand_on(self, letters: Collection[str]) -> None:
        since = 0
        for text in letters:
            self.receive(text)
            since += len(text)
            if since >= _SLICE:
                since = 0
                await trio.lowlevel.cancel_shielded_checkpoint()
        await trio.lowlevel.checkpoint()

    def receive(self, text: str) -> None:
        """Hand a letter to whom it concerns; one that cannot be read is logged, and dropped."""
        try:
            self._receive(unseal(text))
        except (ValueError, LookupError, RecursionError) as exc:
            logger.warning("a letter was dropped that cannot be read: %s", type(exc).__name__)

    def _receive(self, letter: Letter | None) -> None:  # noqa: C901, PLR0912 -- one case a kind
        contents = "" if letter is None else letter.contents
        match letter and letter.head:
            case ["topic", str(topic), str(sender), int(number)]:
                self._topics.deliver(topic, contents, sender=sender, number=number)
            case ["call", str(caller), int(number), str(name), float(timeout), int(window)]:
                self._serving.begin(caller, number, name, contents, timeout=timeout, window=window)
            case ["moved"]:
                match decode(contents):
                    case str(session_id):
                        for listener in self._moved:
                            listener(session_id)
            case ["said"]:
                self._receive_said(decode(contents))
            case ["leave", str(caller), int(number)]:
                self._serving.leave(caller, number)
            case ["taken", str(caller), int(number), int(taken)]:
                self._serving.taken(caller, number, taken)
            case ["beat", str(caller)]:
                self._serving.beat(caller, decode(contents))
            case ["answer", int(number)]:
                self._calling.answer(number, contents)
            case ["items", int(number), int(first)]:
                self._calling.items(number, first, contents)
            case ["last", int(number), int(first), int(sent)]:
                self._calling.items(number, first, contents)
                self._calling.finish(number, sent)
            case ["end", int(number), int(sent)]:
                self._calling.finish(number, sent)
            case ["failed", int(number), int(sent)]:
                self._calling.failed(number, sent, contents)
            case ["alive", str(callee)]:
                match decode(contents):
                    case [list(running), list(unknown), list(left)]:
                        self._calling.alive(callee, running, unknown, left)
            case _:
                logger.warning("a letter was dropped: this version does not know its kind")

    def _receive_said(self, contents: object) -> None:
        said: list[tuple[str, str]] = []
        for one in contents if isinstance(contents, list) else ():
            match one:
                case [str(session_id), str(what)]:
                    said.append((session_id, what))
        for listener in self._said:
            listener(said)

    async def look_anyway(self) -> None:
        """Look for letters now and then: the bell may be broken, or others may ring none.

        A letter is kept for a minute, so it will not do to look at passes.

        Cancellation: at any moment.
        """
        while True:
            await trio.sleep(_LOOK)
            self.look()

    async def expire(self, interval: float) -> None:
        """Delete letters that nobody has collected, once an interval.

        Cancellation: at any moment.
        """
        while True:
            await trio.sleep(interval)
            try:
                for _ in range(_PIECES):
                    expired = await self._edge.expire_mail(older_than=_OLD, limit=_EXPIRED)
                    if expired < _EXPIRED:
                        break
            except SessionsError as exc:
                logger.debug("old letters could not be deleted now: %s", exc)
