"""A round: one method called on many transports, all at once, at the price of few tasks.

A call that answers without waiting needs no task of its own, and most do. But nobody can know
beforehand which will wait, and a call that has begun to wait cannot change its task. So it is
the lead that changes hands: the task that *leads* goes from transport to transport, and calls
each. When one has to wait, the task stays with that call, and another task is appointed, where
a transport is left::

    ask ── appoint ──> task 1: t1 t2 t3 t4┐ waits            one transport after the other
                                          └─ appoint ──> task 2: t5 t6┐ waits
                       task 1: t4 answers                             └─ appoint ──> task 3 …
                       task 2: t6 is cut at its deadline                      … the sequence ends

A task stops leading in four ways:

- the sequence is at its end (its last call may have to wait), or the round was given up;
- its call has to wait, and the next task was appointed; likewise where a call that did not wait
  leaves the task cancelled, or in a scope that is (`CallHost.cancellation`);
- the next task could not be appointed;
- it fails, is cancelled, or its coroutine is thrown away by a loop that ends.

What a transport raises to end the host's loop (`SystemExit` in a task of asyncio) is such a
failure, but where each transport is to be called whatever happens, as to be disconnected: then it
travels when the leading has ended.

All but the second end the leading (``_led_through``), in two places: the ``finally`` of `_lead`
and `_hand_on`. The round is settled when the leading has ended and no call waits. Whatever has
no answer then is unknown. And if a leading task is lost in a way that nobody has thought of,
`ask` has a bound of its own: it goes on once no transport was called for some seconds longer
than one call may take. See docs/decisions/0008-edges.md. Over 400 lines, because who leads, and how
each way out ends the round, has to be seen in one place.
"""

import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from operator import attrgetter
from typing import Any, Protocol, TypeVar

import outcome
import trio

from trio_sessions._entry import Entry
from trio_sessions._logging import get_logger
from trio_sessions._one_call import (
    Enter,
    Waiting,
    begin,
    go_on,
    interruptibly,
    to_its_end,
)
from trio_sessions._process import this_process
from trio_sessions._running import Running, Scope
from trio_sessions.types import fingerprint

__all__ = ["Answer", "CallHost", "Listener", "Round"]

Answer = object
"""What a transport's method returned; an `outcome.Error` holds what it raised instead."""

logger = get_logger("trio_sessions.transports")

T = TypeVar("T")

_SLICE = 0.002  # seconds of answers at once before the event loop gets its turn
_UNWINDING = 0.05  # seconds past its deadline that a round waits for cancelled calls to end
_PATIENCE = 5.0  # seconds that a task may be silent before it counts as lost, and not as late


class CallHost(Protocol):
    """A host for calls into transports: a nursery of Trio, or a loop of asyncio."""

    @property
    def cancelled(self) -> tuple[type[BaseException], ...]:
        """What a call raises that was cancelled, or cut off in another way."""
        ...

    @property
    def ends_loop(self) -> tuple[type[BaseException], ...]:
        """What a task of this host raises in order to end its loop, if a transport did."""
        ...

    def start(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task in the caller's context. Its first step comes later, never inside this.

        Raises:
            Exception: it cannot be started.
        """
        ...

    def scope(self) -> AbstractContextManager[Scope]:
        """Return what cancels the calls made in its block."""
        ...

    def limit(self, scope: Scope, seconds: float) -> None:
        """Give a scope its deadline."""
        ...

    def cancellation(self, *, thorough: bool) -> Callable[[], object]:
        """Return what says something else once the running task, or a scope in it, is cancelled.

        Args:
            thorough: though to ask may cost a quarter of what a call that answers at once does.
        """
        ...

    async def checkpoint(self) -> None:
        """Let the other tasks of the loop run."""

    def check(self, request: object) -> None:
        """Raise `TypeError` if a transport asks something of the loop that it does not know."""


class Listener(Protocol):
    """A listener for answers, told of each as it comes, one after the other."""

    def answered(self, entry: Entry, answer: Answer) -> None:
        """Take an answer; it may be that of a call that had no time."""
        ...


class Round:
    """One round, run once.

    Args:
        host: where the calls run.
        running: calls that wait, of all rounds; a transport whose call does is not called again.
        name: the method.
        entries: whose transports are called.
        timeout: seconds for one call that has to wait.
        enter: how to call into a transport.
        listener: is told of each answer.
        method: what is called for an entry, if it is not its transport's method of that name.
    """

    def __init__(
        self,
        host: CallHost,
        running: Running,
        name: str,
        entries: Sequence[Entry],
        timeout: float,
        *,
        enter: Enter = interruptibly,
        listener: Listener | None = None,
        method: Callable[[Entry], Callable[[], object]] | None = None,
    ) -> None:
        self._answers: dict[Entry, Answer] = {}
        self._escaping: BaseException | None = None
        """What a transport raised that is no `Exception`, and must travel on."""
        self._leader: object = None
        """Which task leads; None: the next one has been appointed, and has not begun."""
        self._led_through = trio.Event()
        """Nobody leads any more."""
        self._settled = trio.Event()
        self._failure: Exception | None = None
        """What has ended the leading before its end."""
        self._loop_ends_with: BaseException | None = None
        """What a transport raised to end the host's loop, put off until the leading has ended."""
        self._given_up = False
        self._waiting: dict[Entry, Scope] = {}
        self._called = 0
        self._process = this_process()
        self._host = host
        self._running = running
        self._still_running = running.calls
        self._name = name
        self._method = method or attrgetter(f"transport.{name}")
        self._entries = entries
        self._remaining = deque(entries)
        self._timeout = timeout
        self._enter = enter
        self._listener = listener
        self._untold: list[Entry] = []
        self._tells_at_once = False
        """Nobody leads any more, and those that have answered by then have been told of."""

    async def ask(self) -> dict[Entry, Answer]:
        """Call all transports; return an answer for each entry.

        Raises:
            BaseException: what a transport raised that is no `Exception`.

        Cancellation: the calls are cancelled too.
        """
        try:
            self._hand_on()
            called = -1
            # If nobody was called meanwhile, whoever leads is lost.
            while not self._led_through.is_set() and called != self._called:
                called = self._called
                with trio.move_on_after(self._timeout + _PATIENCE) as bound:
                    await self._led_through.wait()
                    if not self._tells_at_once:
                        self._tell_from_now_on()
                    if not self._settled.is_set():
                        bound.deadline = trio.current_time() + self._timeout + _UNWINDING
                        await self._settled.wait()
        finally:
            self._give_up()
        if self._escaping is not None:
            raise self._escaping
        return self._answers

    def _give_up(self) -> None:
        """Cancel what still waits, and answer for whatever has not answered."""
        self._given_up = True
        for scope in self._waiting.values():
            scope.cancel()
        if len(self._answers) < len(self._entries):
            for entry in self._entries:
                if entry not in self._answers:
                    self._answer(entry, outcome.Error(self._unanswered(entry)))
        self._tell()

    # ---- leading ----

    def _hand_on(self) -> None:
        """Appoint a new task to lead, if a transport is left."""
        self._leader = None
        if self._remaining:
            try:
                self._host.start(self._lead)
            except Exception as exc:  # noqa: BLE001 -- the answer of whoever was not called
                self._failure = exc
            else:
                return
        # `ask` tells, a turn later: what answers by then is told together with the others.
        self._led_through.set()
        self._end_loop()
        self._notice_end()

    @trio.lowlevel.enable_ki_protection
    async def _lead(self) -> None:
        """Call one transport after the other, until one has to wait, and stay with that one."""
        me = self._leader = object()
        try:
            with self._host.scope() as scope:  # without a deadline until a call has to wait
                await self._call_each(scope)
        except Exception as exc:  # logged, and the answer of whoever was not called
            logger.exception("%s() could not be called on all transports", self._name)
            self._failure = exc
        finally:
            if self._leader is me:
                self._end_leading()
            self._notice_end()

    def _end_leading(self) -> None:
        self._led_through.set()
        self._end_loop()
        self._tell_from_now_on()

    def _tell_from_now_on(self) -> None:
        self._tells_at_once = True
        self._tell()

    async def _call_each(self, scope: Scope) -> None:
        """Call transports until one had to wait, in which case another task leads by now."""
        slice_end = time.perf_counter() + _SLICE
        # A check that is cut is unknown, and harms nobody; a connection would stay open.
        cancellation = self._host.cancellation(thorough=self._enter is to_its_end)
        as_before = cancellation()
        while self._remaining:
            if time.perf_counter() > slice_end:
                await self._host.checkpoint()
                slice_end = time.perf_counter() + _SLICE
            if self._given_up or self._process is not this_process():  # a fork: not ours to call
                break
            entry = self._remaining.popleft()
            self._called += 1
            if self._still_running and (entry, self._name) in self._still_running:
                self._answer(entry, outcome.Error(self._late(entry)))
            elif (waiting := self._begin(entry)) is not None:
                await self._stay_with(entry, waiting, scope)
                return
            elif self._remaining and cancellation() != as_before:
                self._hand_on()
                return

    def _begin(self, entry: Entry) -> Waiting | None:
        """Call one transport, and record its answer, if it does not have to wait."""
        context = copy_context()
        try:
            coroutine, answer = context.run(begin, self._method(entry), self._name, self._enter)
        except BaseException as exc:  # noqa: BLE001 -- judged; what must, travels
            self._answer(entry, self._judge(exc, entry))
            self._let_travel(exc)
            return None
        if coroutine is not None:
            return Waiting(coroutine, answer, context)
        self._answers[entry] = answer
        if self._listener is not None:
            self._will_tell(entry)
        return None

    async def _stay_with(self, entry: Entry, waiting: Waiting, scope: Scope) -> None:
        """Hand the lead to another task; await the call that waits, and record its answer."""
        answer: Answer
        try:
            self._host.limit(scope, self._timeout)
            self._waiting[entry] = scope
            self._running.begin(entry, self._name, scope)
            self._hand_on()
            answer = await go_on(waiting, self._host.check, self._enter)
        except BaseException as exc:  # noqa: BLE001 -- the same
            answer = self._judge(exc, entry)
            self._let_travel(exc)
        finally:
            if scope.cancel_called:  # what comes after the deadline is no answer
                answer = outcome.Error(self._late(entry))
            # They need not be there: a signal's handler may have raised before they were.
            self._waiting.pop(entry, None)
            self._running.end(entry, self._name)
            if entry not in self._answers:
                self._answer(entry, answer)

    def _answer(self, entry: Entry, answer: Answer) -> None:
        self._answers[entry] = answer
        if self._listener is not None:
            self._will_tell(entry)

    def _will_tell(self, entry: Entry) -> None:
        self._untold.append(entry)
        if self._tells_at_once:
            self._tell()

    def _tell(self) -> None:
        """Tell the listener: of those that answered at once together, of others one by one."""
        if self._listener is not None:
            untold, self._untold = self._untold, []
            for entry in untold:
                self._listener.answered(entry, self._answers[entry])

    def _notice_end(self) -> None:
        if self._led_through.is_set() and not self._waiting:
            self._settled.set()

    # ---- what ends the loop ----

    def _let_travel(self, exc: BaseException) -> None:
        """Raise the error in ``exc`` that ends the loop, if there is one and it is not put off."""
        end = _first(exc, self._host.ends_loop)
        if end is not None and not self._puts_off(end):
            raise end

    def _puts_off(self, end: BaseException) -> bool:
        """Put off an error that ends the loop while others must still be called; say whether."""
        if self._enter is not to_its_end or not self._remaining:
            return False
        if self._loop_ends_with is None:
            self._loop_ends_with = end
        return True

    def _end_loop(self) -> None:
        """Raise the error that was put off, if there is one, in a task of its own."""
        if self._loop_ends_with is not None:
            end, self._loop_ends_with = self._loop_ends_with, None
            self._host.start(partial(_raise, end))

    # ---- what is no answer ----

    def _judge(self, exc: BaseException, entry: Entry) -> Answer:
        """Return the answer of a call that has raised."""
        if isinstance(exc, self._host.cancelled):
            return outcome.Error(self._cut(entry))
        if isinstance(exc, Exception):  # one session is isolated; the caller logs it
            return outcome.Error(exc)
        return self._judge_fatal(exc, entry)

    def _judge_fatal(self, exc: BaseException, entry: Entry) -> Answer:
        """Return the answer of a call that raised no `Exception`; keep what `ask` must raise."""
        rest: BaseException | None = exc
        if isinstance(exc, BaseExceptionGroup):
            _, rest = exc.split(self._host.cancelled)
        if rest is None:
            return outcome.Error(self._cut(entry))
        if isinstance(rest, Exception):
            return outcome.Error(rest)
        if _first(rest, self._host.ends_loop) is None:  # raised again by `ask`, in the pass
            self._escaping = rest
        return outcome.Error(RuntimeError(f"{self._name}() raised {type(rest).__name__}"))

    def _unanswered(self, entry: Entry) -> Exception:
        if self._failure is None:
            return self._late(entry)
        error = RuntimeError(
            f"{self._name}() of session {fingerprint(entry.session_id)} cannot be awaited: "
            f"{self._failure}"
        )
        error.__cause__ = self._failure
        return error

    def _late(self, entry: Entry) -> TimeoutError:
        return TimeoutError(
            f"{self._name}() of session {fingerprint(entry.session_id)} "
            f"did not answer within {self._timeout:g} s"
        )

    def _cut(self, entry: Entry) -> RuntimeError:
        return RuntimeError(
            f"{self._name}() of session {fingerprint(entry.session_id)} "
            "was cancelled from elsewhere"
        )


async def _raise(error: BaseException) -> None:
    raise error


def _first(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """Return the first error of these kinds, be it in a group."""
    if isinstance(error, BaseExceptionGroup):
        found = (_first(each, kinds) for each in error.exceptions)
        return next((each for each in found if each is not None), None)
    return error if isinstance(error, kinds) else None
