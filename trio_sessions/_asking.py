"""Asking a store: each operation with a deadline, questions at a gate of their own.

Foreign errors become `StoreUnavailable`. With ``max_concurrent`` of 3 or more, a thread is left for
the refresh and the sweep, and one for the writer's batch, however many questions there are
(invariant 17). With fewer, one question at a time is asked; the refresh may have to wait for it, or
for the batch, but not for the questions behind it. The stamp has threads of its own
(`trio_sessions._edge`). Whoever leaves before a thread is at work on its question has asked
nothing. A caller that is cancelled while a thread works returns at once, and the question keeps its
place at the gate until it ends::

    caller ── waits for ──> task: gate ── store: limiter ── thread ──> answer
       └── leaves: cancels ──────┴──────────────┘  but no thread

See docs/decisions/0009-one-writer.md.
"""

import inspect
import math
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

import outcome
import trio

from trio_sessions._contact import Contact
from trio_sessions._interrupts import lone_interrupt
from trio_sessions._life import Life
from trio_sessions._logging import get_logger
from trio_sessions._process import this_process
from trio_sessions._settings import Settings
from trio_sessions.abc import Part, Pool, SessionStore
from trio_sessions.errors import (
    NotSupported,
    RegistryClosed,
    SessionsError,
    StoreUnavailable,
)

__all__ = ["INHERITED", "Asking", "breach", "insist", "insist_async"]

logger = get_logger("trio_sessions.rows")

T = TypeVar("T")

INHERITED = (
    "the registry was opened before this process was forked, and is its parent's: "
    "open one of your own"
)

_FREE = 2  # tokens of the limiter that no question gets: for the pass, and for the writer


class Asking:
    """The operations of one worker's store, each with a deadline, questions at a gate.

    Args:
        store: the store.
        settings: ``store_timeout`` and ``max_concurrent``.
        life: of the registry.
    """

    def __init__(self, store: SessionStore, settings: Settings, life: Life) -> None:
        self.contact = Contact()
        self._bare_store = store
        self._settings = settings
        self._process = this_process()
        self._gate = trio.Semaphore(max(1, settings.max_concurrent - _FREE))
        self._life = life

    @property
    def _store(self) -> SessionStore:
        """The store, to be asked once."""
        return self._settings.tracing.watch(self._bare_store)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child: then rows and transports are its parent's."""
        return self._process is not this_process()

    @property
    def gives_up_after(self) -> float:
        """Seconds after which an operation of the store is given up, by it or by the registry."""
        timeout = self._settings.store_timeout
        return min(timeout, self._store.gives_up_after or timeout)

    async def _ask(
        self,
        operation: Callable[[], Awaitable[T]],
        kind: Any,
        *,
        new_scope: Callable[[], trio.CancelScope] = trio.CancelScope,
        at_once: Callable[[], T | None] | None = None,
    ) -> T:
        """Await one operation, within ``store_timeout``; insist on its kind of answer.

        Args:
            operation: what is asked of the store.
            kind: of this class is the answer.
            new_scope: makes a new one, by which the caller may give up earlier.
            at_once: does the same if nothing has to be waited for, without a checkpoint; else
                returns None.
        """
        if self.is_inherited:
            raise RegistryClosed(INHERITED)
        with self.contact:
            try:
                if at_once is not None:
                    answer = at_once()
                    if answer is not None:
                        return insist(answer, kind, at_once)
                scope = new_scope()
                scope.relative_deadline = self._settings.store_timeout
                with scope:
                    return await _answer(operation, kind)
            except SessionsError:
                raise
            except Exception as exc:  # of whoever wrote the store: logged, and the cause
                logger.exception("the store failed in a way that it does not promise")
                raise StoreUnavailable(
                    f"the store failed with {type(exc).__name__}; see the cause"
                ) from exc
            except BaseExceptionGroup as group:
                interrupt = lone_interrupt(group)
                if interrupt is not None:  # it came while the store waited in a nursery
                    raise interrupt from None
                raise
            raise StoreUnavailable(
                "the store did not answer within store_timeout "
                f"({self._settings.store_timeout:g} s){self._clock_that_jumps()}"
            )

    def _clock_that_jumps(self) -> str:
        """Return a hint if the run's clock jumps while threads are at work; else an empty text."""
        clock = trio.lowlevel.current_clock()  # a MockClock, but trio.testing is not imported here
        if getattr(clock, "autojump_threshold", math.inf) == math.inf:
            return ""
        if not self._store.may_outlast_cancellation:
            return ""
        return (
            ": the clock of this run jumps while the store's threads are at work; put "
            "`with trio_sessions.testing.virtual_time():` around what is tested"
        )

    async def _through_gate(self, operation: Callable[[], Awaitable[T]]) -> T:
        try:
            self._gate.acquire_nowait()  # no turn of the loop where nobody waits
        except trio.WouldBlock:
            await self._gate.acquire()
        try:
            if self._life.is_closed:
                raise RegistryClosed("the registry was closed before the store was asked")
            return await operation()
        finally:
            self._gate.release()

    async def _through_gate_alone(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Ask in a task of its own: a caller that leaves does not wait for a thread."""
        answer: outcome.Outcome[T] | None = None
        answered = trio.Event()
        scope = trio.CancelScope()

        async def ask() -> None:
            nonlocal answer
            with scope:
                answer = await outcome.acapture(self._through_gate, operation)
            answered.set()

        context = copy_context() if self._settings.tracing.is_used else None
        trio.lowlevel.spawn_system_task(ask, context=context)
        try:
            await answered.wait()
        finally:
            scope.cancel()
        assert answer is not None
        return answer.unwrap()

    async def _question(
        self, operation: Callable[[], Awaitable[T]], kind: Any, *, may_leave: bool = True
    ) -> T:
        """Ask at the gate; raise `RegistryClosed` if the store is closed before it has answered.

        Args:
            operation: what is asked of the store.
            kind: of this class is the answer.
            may_leave: whether the caller may leave while a thread is at work.
        """
        alone = may_leave and self._store.may_outlast_cancellation
        through = self._through_gate_alone if alone else self._through_gate
        try:
            return await self._ask(partial(through, partial(_answer, operation, kind)), object)
        except StoreUnavailable as exc:
            if self._life.is_closed:
                raise RegistryClosed("the registry was closed while the store was asked") from exc
            raise

    @property
    def questions_waiting(self) -> int:
        """The number of questions that wait at the gate."""
        return self._gate.statistics().tasks_waiting

    def connections(self) -> Pool | None:
        """Return how the store's pool of connections is, if it has one."""
        return self._bare_store.connections()

    def keeps(self, part: Part) -> bool:
        """Say whether the store keeps a part of the contract."""
        return part in self._store.parts

    def _keeps(self, part: Part, contract: str) -> SessionStore:
        if not self.keeps(part):
            raise NotSupported(
                f"{type(self._store).__name__} does not keep the part of the contract for this: "
                f"trio_sessions.abc.{contract}"
            )
        return self._store


async def _answer(operation: Callable[[], Awaitable[T]], kind: Any) -> T:
    """Await a method of the store, and insist on its kind of answer."""
    asked = insist_async(operation(), operation)
    return insist(await asked, kind, asked)


def insist_async(asked: Awaitable[T], called: object) -> Awaitable[T]:
    """Return what can be awaited, else raise; ``called`` is the method, or its name."""
    if not inspect.isawaitable(asked):
        name = called if isinstance(called, str) else _name(called)
        raise breach(f"{name} must be async, and returned {type(asked).__name__} at once")
    return asked


def insist(answer: T, kind: Any, asked: object) -> T:
    """Return the answer if it is of this kind, else raise; ``asked`` names the method."""
    if not isinstance(answer, kind):
        if inspect.iscoroutine(answer):
            answer.close()
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(
            "None" if one is type(None) else getattr(one, "__name__", str(one)) for one in kinds
        )
        raise breach(f"{_name(asked)} answered with {type(answer).__name__}, not with {expected}")
    return answer


def _name(asked: object) -> str:
    """Name a method of the store by its coroutine, or by what calls it."""
    return getattr(getattr(asked, "func", asked), "__qualname__", "it")


def breach(what: str) -> StoreUnavailable:
    """Log that the store broke its contract, and return the error that says it."""
    logger.error("the store broke its contract: %s", what)
    return StoreUnavailable(f"the store broke its contract: {what}")
