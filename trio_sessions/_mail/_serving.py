"""The callee's side: handlers that other workers have called.

Each runs in a task of its own, until it has answered, its caller has left or lives no more, its
time is over, or the registry is closed. What it raises goes to the caller, and ends nothing here.
"""

import enum
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, cast

import trio

from trio_sessions._background import Background
from trio_sessions._handlers import Handler, Last, is_stream
from trio_sessions._interrupts import interruptible
from trio_sessions._json import decode, encode
from trio_sessions._life import Life
from trio_sessions._logging import get_logger
from trio_sessions._mail._letters import seal
from trio_sessions._mail._outflow import Outflow
from trio_sessions._mail._seen import Seen
from trio_sessions._mail._sending import Sender

__all__ = ["Serving"]

logger = get_logger("trio_sessions.mail")

_MOST = 1000  # calls at a time
_BUSY = "the worker is busy: it carries out {} calls"
_LOOK = 1.0  # seconds after which it is looked whether a caller lives
_MESSAGE = 2000  # characters of what a handler raised
_REPORT = 65_536  # bytes of an error, or of the answer to a beat, and more than enough


class _Why(enum.Enum):
    """Why a handler was cancelled."""

    LEFT = "its caller has left"
    GONE = "its caller does not live any more"
    SILENT = "its time is over, or its caller gives no sign of life"


class _Running:
    """A call that is carried out here."""

    def __init__(self, caller: str, number: int, name: str, timeout: float) -> None:
        self.caller = caller
        self.number = number
        self.name = name
        self.timeout = timeout
        self.began_at = trio.current_time()
        self.scope = trio.CancelScope(deadline=self.began_at + timeout)
        self.outflow: Outflow | None = None
        self.why = _Why.SILENT
        self.is_told = False
        """The caller was told how it ended, or need not be."""

    @property
    def sent(self) -> int:
        return 0 if self.outflow is None else self.outflow.sent

    def cancel(self, why: _Why) -> None:
        self.why = why
        self.scope.cancel()

    def hear(self) -> None:
        """Note a sign of life of the caller: a stream may go on for as long as these come."""
        if self.outflow is not None:
            self.scope.deadline = trio.current_time() + self.timeout

    def failed(self, kind: str, message: str, *, gone: bool = False) -> str:
        """Return the letter that says so."""
        return _failed(self.number, self.sent, kind, message, gone=gone)


def _failed(
    number: int,
    sent: int,
    kind: str,
    message: str,
    *,
    gone: bool = False,
    busy: bool = False,
) -> str:
    said = {
        "type": kind,
        "message": message[:_MESSAGE].encode(errors="replace").decode(),
        "gone": gone,
        "busy": busy,
    }
    contents = encode(said, what="an error", limit=_REPORT)
    return seal("failed", number, sent, contents=contents)


class Serving:
    """The calls that other workers have made to this one.

    Args:
        handlers: what may be called, by name.
        sender: leaves the answers.
        background: where handlers run.
        life: of the registry.
        limit: bytes of an answer, or of an item.
        wake: tells whoever watches the callers when there is one to look for.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        sender: Sender,
        background: Background,
        life: Life,
        limit: int,
        wake: Callable[[float], None],
    ) -> None:
        self._handlers = handlers
        self._sender = sender
        self._background = background
        self._life = life
        self._limit = limit
        self._wake = wake
        self._running: dict[tuple[str, int], _Running] = {}
        self._seen = Seen()
        """The calls that have come."""

    # ---- what callers say ----

    def begin(
        self, caller: str, number: int, name: str, payload: str, *, timeout: float, window: int
    ) -> None:
        """Begin to carry out a call, or refuse it; one that comes again is ignored."""
        if not self._seen.is_new(caller, number):
            return
        handler = self._handlers.get(name)
        refusal = self._refusal(handler, name, window)
        busy = "" if refusal or len(self._running) < _MOST else _BUSY.format(_MOST)
        if handler is None or refusal or busy:
            gone = not self._life.is_open
            letter = _failed(number, 0, "", refusal or busy, gone=gone, busy=bool(busy))
            self._sender.post_soon(caller, letter)
            return
        one = _Running(caller, number, name, timeout)
        if window:
            one.outflow = Outflow(self._sender, caller, number, window)
        self._running[caller, number] = one
        self._wake(one.began_at + _LOOK)
        self._background.start_lasting(self._serve, one, handler, payload)

    def _refusal(self, handler: Handler | None, name: str, window: int) -> str:
        """Return why a call cannot be carried out, were there room; empty: it can."""
        if not self._life.is_open:
            return "the registry is closing"
        if handler is None:
            return f"this worker has no handler of the name {name!r}"
        if is_stream(handler) is not (window > 0):
            right, wrong = ("stream", "call") if is_stream(handler) else ("call", "stream")
            return f"the handler {name!r} is for workers.{right}(), not for workers.{wrong}()"
        return ""

    def leave(self, caller: str, number: int) -> None:
        """Cancel a call: nobody waits for its answer."""
        one = self._running.get((caller, number))
        if one is not None:
            one.is_told = True
            one.cancel(_Why.LEFT)

    def taken(self, caller: str, number: int, taken: int) -> None:
        """Take note of how many items the caller has consumed, of all."""
        one = self._running.get((caller, number))
        if one is not None and one.outflow is not None:
            one.hear()
            one.outflow.taken(taken)

    def beat(self, caller: str, waits: object) -> None:
        """Take note of what a caller still waits for, and say what of it runs here."""
        running: list[int] = []
        unknown: list[int] = []
        left: list[tuple[int, int]] = []
        for item in waits if isinstance(waits, list) else []:
            match item:
                case [int(number), int(taken)]:
                    one = self._running.get((caller, number))
                    (unknown if one is None else running).append(number)
                    if one is not None and one.outflow is not None:
                        left.append((number, one.outflow.left))
                    self.taken(caller, number, taken)
        contents = encode([running, unknown, left], what="the answer to a beat", limit=1 << 20)
        self._sender.post_soon(caller, seal("alive", self._sender.own, contents=contents))

    # ---- who lives ----

    def callers(self, before: float) -> bool:
        """Say whether a call of another worker began before a moment, and goes on."""
        return any(
            one.began_at <= before and not self._sender.is_own(one.caller)
            for one in self._running.values()
        )

    @property
    def is_idle(self) -> bool:
        """Whether no call is carried out."""
        return not self._running

    def judge(self, is_alive: Callable[[str], bool], asked_at: float) -> None:
        """Cancel the calls, begun by ``asked_at``, of workers that do not live."""
        for one in list(self._running.values()):
            is_own = self._sender.is_own(one.caller)
            if not is_own and one.began_at <= asked_at and not is_alive(one.caller):
                one.is_told = True
                one.cancel(_Why.GONE)

    # ---- carrying out ----

    async def _serve(self, one: _Running, handler: Handler, payload: str) -> None:
        try:
            with one.scope:
                if one.outflow is None:
                    letter = await self._answer(one, handler, payload)
                    await self._sender.deliver(one.caller, letter)
                else:
                    await self._stream(one, one.outflow, handler, payload)
                one.is_told = True
            if one.scope.cancelled_caught:
                logger.debug("the handler %r was cancelled: %s", one.name, one.why.value)
                self._tell(one, one.failed("TimeoutError", one.why.value))
        except Exception as exc:  # of the handler: logged, and told; of ours: raised
            if not one.scope.cancelled_caught:  # what a handler raises is caught where it is called
                raise
            logger.exception("the handler %r failed while it was cancelled", one.name)
            self._tell(one, one.failed(type(exc).__name__, "it failed while it was cancelled"))
        except BaseExceptionGroup as group:
            cancelled, rest = group.split(trio.Cancelled)
            if cancelled is None or not isinstance(rest, Exception):
                raise
            logger.exception(
                "the handler %r failed while it was cancelled", one.name, exc_info=rest
            )
            raise cancelled from None
        finally:
            del self._running[one.caller, one.number]
            self._tell(one, one.failed("", "", gone=True))

    def _tell(self, one: _Running, letter: str) -> None:
        if not one.is_told:
            one.is_told = True
            if one.outflow is not None:
                one.outflow.flush()
            self._sender.post_soon(one.caller, letter)

    def _caught(self, one: _Running, error: Exception) -> str:
        """Return what is said to the caller of what a handler has raised, which is logged."""
        logger.error("the handler %r failed, and its caller is told so", one.name, exc_info=error)
        try:
            message = str(error)
        except Exception:  # noqa: BLE001 -- a user's, and its error has been told
            message = "it cannot be shown"
        return one.failed(type(error).__name__, message)

    async def _answer(self, one: _Running, handler: Handler, payload: str) -> str:
        """Return the letter that answers a call."""
        try:
            value = await interruptible(cast("Any", handler(decode(payload))))
            contents = encode(value, what=f"the answer of {one.name!r}", limit=self._limit)
        except Exception as exc:  # noqa: BLE001 -- of the handler: it is logged, and told
            return self._caught(one, exc)
        return seal("answer", one.number, contents=contents)

    async def _stream(
        self, one: _Running, outflow: Outflow, handler: Handler, payload: str
    ) -> None:
        """Send what a handler yields, until it ends or fails."""
        async with trio.open_nursery() as nursery:
            outflow.send_by(partial(nursery.start_soon, outflow.send))
            try:
                await self._produce(one, outflow, handler, payload)
            except Exception as exc:  # noqa: BLE001 -- of the handler: it is logged, and told
                outflow.fail(self._caught(one, exc))
            else:
                outflow.end()

    async def _produce(
        self, one: _Running, outflow: Outflow, handler: Handler, payload: str
    ) -> None:
        what = f"an item of {one.name!r}"
        items = cast("AsyncIterator[Any]", handler(decode(payload)))
        async with aclosing(cast("Any", items)):
            while True:
                await outflow.room()
                try:
                    item = await interruptible(items.__anext__())
                except StopAsyncIteration:
                    return
                is_last = isinstance(item, Last)
                item = item.item if is_last else item
                outflow.put(encode(item, what=what, limit=self._limit), is_last=is_last)
                if is_last:
                    return
                await trio.lowlevel.checkpoint()  # it may yield without one
