"""Calls into transports: all at once, each with a deadline, none able to hold up the others.

A transport is foreign code: it may wait for ever, raise anything, or refuse to be
cancelled (a blocking thread, a shielded scope). So the calls run in a nursery of their
own, in a system task. The caller waits for the answers until the deadline and no longer;
a call that ignores its cancellation is left behind there, counted, and not repeated until
it has ended.

What differs where transports are another loop's, as under `trio_sessions.aio`, stands in the
methods of `TransportCalls` up to `open`.
"""

import contextlib
import inspect
import logging
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import outcome
import trio

from trio_sessions._table import Entry
from trio_sessions.types import fingerprint

__all__ = ["Answer", "Scope", "TransportCalls"]

logger = logging.getLogger("trio_sessions.transports")

Answer = object
"""What a transport's method returned; an `outcome.Error` holds what it raised instead."""
Method = Callable[[], Awaitable[object]]

_SLICE = 0.002  # seconds of answers at once before the event loop gets its turn
_UNWINDING = 0.05  # seconds past its deadline that a round waits for cancelled calls to end
_PARTING = 0.5  # seconds that cancelled calls get to unwind when the registry closes


class Scope(Protocol):
    """What can cancel the calls of one leading task."""

    @property
    def cancel_called(self) -> bool: ...

    def cancel(self) -> None: ...


async def _await(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _coroutine(name: str, method: Method) -> Coroutine[Any, Any, object]:
    """Call a transport's method, and insist on something that can be awaited."""
    called = method()
    if inspect.iscoroutine(called):
        return called
    if inspect.isawaitable(called):
        return _await(called)
    raise TypeError(
        f"{name}() must be an async function, this one returned {type(called).__name__}"
    )


@types.coroutine
def _noticing_wait(
    coroutine: Coroutine[Any, Any, object],
    on_wait: Callable[[], None],
    check: Callable[[object], None],
) -> Generator[Any, Any, object]:
    """Await ``coroutine``, calling ``on_wait`` when it first has to wait.

    ``check`` may refuse what the coroutine asks of the loop, which ends the coroutine.
    """
    try:
        request = coroutine.send(None)
    except StopIteration as done:
        return done.value
    on_wait()
    while True:
        try:
            check(request)
        except TypeError:
            coroutine.close()  # told by an error, it might ask the same again, without end
            raise
        try:
            reply = yield request
        except BaseException as exc:  # noqa: BLE001 -- handed on to the coroutine, whatever it is
            resume: outcome.Outcome[Any] = outcome.Error(exc)
        else:
            resume = outcome.Value(reply)
        try:
            request = resume.send(coroutine)  # type: ignore[arg-type]  # same protocol as a generator
        except StopIteration as done:
            return done.value


class _Round:
    """One method called on many transports.

    A task leads through the sequence. While transports answer without waiting, it goes
    on by itself; when one has to wait, a new task takes the lead and this one stays.
    """

    def __init__(
        self, calls: "TransportCalls", name: str, entries: Iterator[Entry], timeout: float
    ) -> None:
        self.answers: dict[Entry, Answer] = {}
        self.escaping: BaseException | None = None
        """What a transport raised that is no `Exception`, and must travel on."""
        self.settled = trio.Event()
        self.led_through = trio.Event()
        self._waiting: dict[Entry, Scope] = {}
        self._given_up = False
        self._calls = calls
        self._name = name
        self._entries = entries
        self._timeout = timeout

    @trio.lowlevel.enable_ki_protection
    async def lead(self) -> None:
        """Call one transport after the other, until one has to wait."""
        slice_end = time.perf_counter() + _SLICE
        with self._calls.scope() as scope:  # without a deadline until a call has to wait
            for entry in self._entries:
                if time.perf_counter() > slice_end:
                    await self._calls.checkpoint()
                    slice_end = time.perf_counter() + _SLICE
                if self._given_up:
                    break
                if (entry, self._name) in self._calls.running:
                    self.answers[entry] = outcome.Error(self._late(entry))
                elif await self._call(entry, scope):
                    return
        self.led_through.set()
        self._notice_end()

    async def _call(self, entry: Entry, scope: Scope) -> bool:
        """Call one transport and record its answer; say whether it had to wait."""
        key = (entry, self._name)
        waited = False

        def on_wait() -> None:
            nonlocal waited
            waited = True
            self._calls.limit(scope, self._timeout)
            self._waiting[entry] = scope
            self._calls.running[key] = scope
            self._calls.start(self.lead)

        try:
            coroutine = _coroutine(self._name, getattr(entry.transport, self._name))
            answer = await _noticing_wait(coroutine, on_wait, self._calls.check)
        except self._calls.cancelled:
            answer = outcome.Error(self._cut(entry))
        except Exception as exc:  # noqa: BLE001 -- one session is isolated; the caller logs it
            answer = outcome.Error(exc)
        except BaseException as exc:  # noqa: BLE001 -- raised again by `ask`, in the pass
            answer = self._judge_fatal(exc, entry)
        if waited:
            if scope.cancel_called:  # what a transport says after its deadline is no answer
                answer = outcome.Error(self._late(entry))
            del self._calls.running[key]
            del self._waiting[entry]
        self.answers.setdefault(entry, answer)
        self._notice_end()
        return waited

    def _late(self, entry: Entry) -> TimeoutError:
        return TimeoutError(
            f"{self._name}() of session {fingerprint(entry.session_id)} "
            f"did not answer within {self._timeout:g} s"
        )

    def _judge_fatal(self, exc: BaseException, entry: Entry) -> Answer:
        """Tell a cancelled nursery, whose error is a group, from what must travel on."""
        rest: BaseException | None = exc
        if isinstance(exc, BaseExceptionGroup):
            _, rest = exc.split(self._calls.cancelled)
        if rest is None:
            return outcome.Error(self._cut(entry))
        if not isinstance(rest, Exception):
            self.escaping = rest
        return outcome.Error(rest)

    def _cut(self, entry: Entry) -> RuntimeError:
        return RuntimeError(
            f"{self._name}() of session {fingerprint(entry.session_id)} "
            "was cancelled from elsewhere"
        )

    def _notice_end(self) -> None:
        if self.led_through.is_set() and not self._waiting:
            self.settled.set()

    def give_up(self) -> None:
        """Cancel what still waits, and answer for it."""
        self._given_up = True
        for entry, scope in self._waiting.items():
            scope.cancel()
            self.answers.setdefault(entry, outcome.Error(self._late(entry)))


class TransportCalls:
    """The nursery that calls into transports run in."""

    cancelled: type[BaseException] = trio.Cancelled
    """What a cancelled call raises."""

    def __init__(self) -> None:
        self.running: dict[tuple[Entry, str], Scope] = {}
        """Calls that had to wait and have not ended."""
        self._nursery: trio.Nursery | None = None

    def start(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a task for calls, in the caller's context."""
        assert self._nursery is not None
        self._nursery.start_soon(task)

    def scope(self) -> AbstractContextManager[Scope]:
        """Return what cancels the calls made in its block."""
        return trio.CancelScope()

    def limit(self, scope: Scope, seconds: float) -> None:
        """Give a scope its deadline."""
        assert isinstance(scope, trio.CancelScope)
        scope.deadline = trio.current_time() + seconds

    async def checkpoint(self) -> None:
        """Let the other tasks of the loop run."""
        await trio.lowlevel.checkpoint()

    def check(self, request: object) -> None:
        """Raise if a transport asks something of the loop that it does not know."""

    def overdue(self) -> int:
        """Count the calls that were cancelled and have not ended."""
        return sum(scope.cancel_called for scope in self.running.values())

    def stuck_tasks(self) -> int:
        """Count the tasks tied to removed sessions that were cancelled and have not ended."""
        return 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hold the nursery open for the block; then cancel it and wait a bounded time.

        A call that even then goes on is logged, and left to Trio, which waits for it
        when the run ends.
        """
        opened, ended = trio.Event(), trio.Event()

        async def host() -> None:
            try:
                async with trio.open_nursery() as self._nursery:
                    opened.set()
                    await trio.sleep_forever()
            finally:
                ended.set()

        trio.lowlevel.spawn_system_task(host, name="trio_sessions: calls into transports")
        with trio.CancelScope(shield=True):
            await opened.wait()
        assert self._nursery is not None
        try:
            yield
        finally:
            self._nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _PARTING):
                await ended.wait()
            self.log_running()

    def log_running(self) -> None:
        """Name the calls that nobody waits for any more."""
        if self.running:
            logger.error(
                "%d calls into transports ignore their cancellation and go on: %s",
                len(self.running),
                ", ".join(f"{name}() of {fingerprint(e.session_id)}" for e, name in self.running),
            )

    async def ask(self, name: str, entries: list[Entry], timeout: float) -> dict[Entry, Answer]:
        """Call the method ``name`` of every entry's transport, all at once.

        Returns:
            An answer for each entry. One that did not come in time is a `TimeoutError`.

        Raises:
            BaseException: what a transport raised that is no `Exception`.

        Cancellation: the calls are cancelled too.
        """
        round_ = _Round(self, name, iter(entries), timeout)
        try:
            self.start(round_.lead)
            await round_.led_through.wait()
            with trio.move_on_after(timeout + _UNWINDING):
                await round_.settled.wait()
        finally:
            round_.give_up()
        if round_.escaping is not None:
            raise round_.escaping
        return round_.answers
