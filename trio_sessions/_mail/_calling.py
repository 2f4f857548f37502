"""The caller's side: what this worker has asked of others, and still waits for.

A call is one letter there and one back. Whoever leaves sends another one; should that be lost, the
callee has a deadline of its own. What takes longer than a second sends beats, which the callee
answers: so it is known which incarnation runs it, that it still does, and what was lost.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio

from trio_sessions._edge import chunked
from trio_sessions._interrupts import uninterrupted
from trio_sessions._json import encode
from trio_sessions._mail._letters import seal
from trio_sessions._mail._pending import Answer, Incoming, Pending
from trio_sessions._mail._reader import Reader
from trio_sessions._mail._sending import Sender
from trio_sessions._orders import Order
from trio_sessions.errors import CallFailed, SessionsError, WorkerGone

__all__ = ["Calling", "Stream"]

P = TypeVar("P", bound=Pending)

_WINDOW = 32  # items of a stream that may be under way, or wait to be consumed
_LEAST_LOOK = 0.1  # seconds between two rounds of beats, at least
_CALLS = 10_000  # calls in one beat
_BEAT = 1 << 20  # bytes of one beat, more than that takes


class Calling:
    """The calls that this worker makes.

    Args:
        sender: leaves the letters.
        wake: tells whoever watches the callees when there is something to be done.
    """

    def __init__(self, sender: Sender, wake: Callable[[float], None]) -> None:
        self._sender = sender
        self._wake = wake
        self._numbers = itertools.count(1)
        self._pending: dict[int, Pending] = {}

    # ---- making calls ----

    async def call(self, to: str, name: str, payload: str, timeout: float) -> Any:
        """Call, and return the answer; see `Workers.call`."""
        one = Answer(number=next(self._numbers), to=to, name=name, timeout=timeout)
        with trio.move_on_after(timeout), self.waiting_for(one):
            await self.ask(one, name, payload, 0)
            return await one.wait()
        raise TimeoutError(f"{one.what} did not answer within {timeout:g} seconds{one.perhaps_why}")

    def is_near(self, to: str) -> bool:
        """Say whether a letter to a worker leaves without waiting, most likely."""
        return self._sender.is_near(to)

    def new_stream(self, to: str, name: str, timeout: float) -> Incoming:
        """Begin to wait for a stream; `ask` and `leave` must follow."""
        number = next(self._numbers)
        one = Incoming(number=number, to=to, name=name, timeout=timeout, window=_WINDOW)
        self._pending[number] = one
        self._wake(one.beat_at)
        return one

    @contextmanager
    def waiting_for(self, one: Pending) -> Iterator[None]:
        """Wait for a call in the block."""
        self._pending[one.number] = one
        self._wake(one.beat_at)
        try:
            yield
        finally:
            self.leave(one)

    async def ask(self, one: Pending, name: str, payload: str, window: int) -> None:
        """Leave the letter that calls.

        Raises:
            WorkerGone: there is nobody who could get it.
            StoreUnavailable: it may have been left, or not.
        """
        letter = self._letter(one, name, payload, window)
        self._note_asked(one, was_left=await self._sender.post(one.to, letter))

    def ask_nowait(self, one: Pending, name: str, payload: str, window: int) -> Order[int] | None:
        """Leave the letter that calls; return what `asked` is to wait for, if anything."""
        order = self._sender.post_nowait(one.to, self._letter(one, name, payload, window))
        if order is None:
            self._note_asked(one, was_left=True)
        return order

    async def asked(self, one: Pending, order: Order[int]) -> None:
        """Wait until the letter that calls was left; raises as `ask`."""
        self._note_asked(one, was_left=await self._sender.was_left(order))

    def _letter(self, one: Pending, name: str, payload: str, window: int) -> str:
        own = self._sender.own
        return seal("call", own, one.number, name, one.timeout, window, contents=payload)

    def _note_asked(self, one: Pending, *, was_left: bool) -> None:
        if not was_left:
            gone = WorkerGone(f"{one.what} cannot be called: no such worker lives")
            one.must_tell = False
            one.fail(gone)
            raise gone
        one.is_asked = True
        one.hear()

    def leave(self, one: Pending) -> None:
        """Stop waiting for a call, and tell the callee unless it knows."""
        if self._pending.pop(one.number, None) is not None and one.must_tell:
            leave = seal("leave", self._sender.own, one.number)
            self._sender.post_soon(one.callee or one.to, leave)

    def _let_go(self, one: Pending) -> None:
        """Leave a call that is over, though its items may still have to be consumed."""
        if one.is_over:
            self.leave(one)

    def tell_taken(self, one: Incoming, earlier: Order[int] | None) -> Order[int] | None:
        """Tell the callee what was consumed, unless an earlier word of it is still to go."""
        letter = seal("taken", self._sender.own, one.number, one.taken)
        order = self._sender.post_soon(one.callee or one.to, letter, earlier=earlier)
        if order is None or order is not earlier:
            one.told()
        return order

    # ---- what comes back ----

    def answer(self, number: int, contents: str) -> None:
        """Take in an answer; one that nobody waits for is ignored, here and below."""
        one = self._pending.get(number)
        if isinstance(one, Answer):
            one.answer(contents)
            self._let_go(one)

    def items(self, number: int, first: int, contents: str) -> None:
        """Take in items of a stream."""
        one = self._pending.get(number)
        if isinstance(one, Incoming):
            one.hear()
            one.items(first, contents)
            self._let_go(one)

    def finish(self, number: int, sent: int) -> None:
        """Take in the end of a stream."""
        one = self._pending.get(number)
        if isinstance(one, Incoming):
            one.finish(sent)
            self._let_go(one)

    def failed(self, number: int, sent: int, contents: str) -> None:
        """Take in that a call has failed."""
        one = self._pending.get(number)
        if one is not None:
            one.failed(sent, contents)
            self._let_go(one)

    def alive(self, callee: str, running: list[Any], unknown: list[Any], left: list[Any]) -> None:
        """Take in the answer to a beat."""
        for one in self._among(running):
            one.hear(callee)
        for one in self._among(unknown):
            error = (
                f"{one.what} was lost: the worker knows nothing of it (any more), for it began "
                "anew, or a letter got lost"
            )
            one.fail(CallFailed(error))
            self._let_go(one)

        for item in left:
            match item:
                case [int(number), int(count)]:
                    stream = self._pending.get(number)
                    if isinstance(stream, Incoming):
                        stream.check(count)
                        self._let_go(stream)

    def _among(self, numbers: list[Any]) -> list[Pending]:
        known = [self._pending.get(one) for one in numbers if isinstance(one, int)]
        return [one for one in known if one is not None]

    # ---- who lives ----

    @property
    def pause(self) -> float | None:
        """Seconds until there is something to beat or to look for; None: nobody is called."""
        if not self._pending:
            return None
        due = min(one.beat_at for one in self._pending.values())
        return max(_LEAST_LOOK, due - trio.current_time())

    def callees(self, before: float) -> bool:
        """Say whether a call to another worker, made by ``before``, is not answered."""
        return any(
            one.began_at <= before and not self._sender.is_own(one.to)
            for one in self._pending.values()
        )

    def judge(self, is_alive: Callable[[str], bool], asked_at: float) -> None:
        """Fail the calls, made by ``asked_at``, of workers that do not live."""
        for one in list(self._pending.values()):
            if one.began_at > asked_at or self._sender.is_own(one.to):
                continue
            if not is_alive(one.callee or one.to):
                one.fail(WorkerGone(f"{one.what} was cut off: the worker does not live any more"))
                self._let_go(one)

    def beat(self) -> None:
        """Send the beats that are due, which name the calls waited for; leave abandoned calls.

        What is due within half its interval goes with another one's beat to that worker: so many
        streams that are silent cost as many letters as one. A call whose own letter is still to go
        is not named: the beat would come first, and the callee know nothing of it.
        """
        now = trio.current_time()
        for one in list(self._pending.values()):
            if one.is_abandoned:
                self.leave(one)
            elif not one.is_asked and one.beat_at <= now:
                one.beat_at = now + one.beat_interval
        waiting = [one for one in self._pending.values() if one.is_asked]
        due: dict[str, list[tuple[int, int]]] = {
            one.callee or one.to: [] for one in waiting if one.beat_at <= now
        }
        for one in waiting if due else ():
            beats = due.get(one.callee or one.to)
            if beats is not None and one.beat_at <= now + one.beat_interval / 2:
                one.beat_at = now + one.beat_interval
                beats.append((one.number, one.taken))
        for to, ones in due.items():
            for part in chunked(ones, _CALLS):
                waits = encode(part, what="a beat", limit=_BEAT)
                self._sender.post_soon(to, seal("beat", self._sender.own, contents=waits))

    def close(self, error: Callable[[], SessionsError]) -> None:
        """Leave all calls, and fail them."""
        for one in list(self._pending.values()):
            self.leave(one)
            one.fail(error())


@uninterrupted
class Stream(Reader):
    """The items of one call; made by `Workers.stream`."""

    _incoming: Incoming | None = None

    def __init__(
        self,
        calling: Calling,
        check_open: Callable[[], None],
        *,
        to: str,
        name: str,
        payload: str,
        timeout: float,
    ) -> None:
        self._calling = calling
        self._to = to
        self._name = name
        self._payload = payload
        self._timeout = timeout
        self._check_open = check_open
        self._telling: Order[int] | None = None
        self._asking: Order[int] | None = None
        """The letter that calls, while it waits in a lane."""
        self._is_closed = False

    def __del__(self) -> None:
        if self._incoming is not None:
            self._incoming.is_abandoned = True  # nothing else may be done in whatever thread

    def _begin(self) -> Incoming:
        if self._incoming is not None or self._is_closed:
            raise RuntimeError("a stream is entered once: call again")
        self._check_open()
        self._incoming = self._calling.new_stream(self._to, self._name, self._timeout)
        return self._incoming

    def open_nowait(self) -> bool:
        if not self._calling.is_near(self._to):
            return False
        one = self._begin()
        self._asking = self._calling.ask_nowait(one, self._name, self._payload, one.window)
        return self._asking is None

    async def open(self) -> None:
        asking, self._asking = self._asking, None
        one = self._begin() if asking is None or self._incoming is None else self._incoming
        try:
            with trio.move_on_after(self._timeout):
                if asking is None:
                    await self._calling.ask(one, self._name, self._payload, one.window)
                else:
                    await self._calling.asked(one, asking)
                return
            raise TimeoutError(f"{one.what} could not be called within {self._timeout:g} seconds")
        except BaseException:  # whoever does not come in has nothing to close
            self.close()
            raise

    @property
    def needs_opening(self) -> bool:
        return self._incoming is None and not self._is_closed

    async def prepare(self) -> None:
        await self.open()

    async def aclose(self) -> None:
        """Close it, for who has not entered it as a context manager."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self._is_closed = True
        if self._incoming is not None:
            self._calling.leave(self._incoming)

    def next_nowait(self) -> tuple[bool, Any]:
        one = self._incoming
        if one is None or (self._is_closed and not one.is_over):
            return False, False
        found = one.take()
        if found[0] and one.should_tell:
            self._telling = self._calling.tell_taken(one, self._telling)
        return found

    def listen(self, listener: Callable[[], None]) -> float | None:
        return None if self._incoming is None else self._incoming.listen(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        if self._incoming is not None:
            self._incoming.unlisten(listener)

    async def wait(self) -> None:
        if self._incoming is not None:
            await self._incoming.wait()
