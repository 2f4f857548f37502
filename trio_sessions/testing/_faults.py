"""A store that fails when a test wants it to."""

import enum
import inspect
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from trio_sessions._asking import insist, insist_async
from trio_sessions.abc import (
    Bell,
    DataStore,
    InspectionStore,
    LogStore,
    MailStore,
    RevocationStore,
    SessionStore,
    Worker,
)
from trio_sessions.errors import StoreUnavailable
from trio_sessions.testing._passing import PassingStore
from trio_sessions.writes import Write

__all__ = ["Fault", "FaultyStore"]

T = TypeVar("T")

_OPERATIONS = frozenset(
    name
    for contract in (
        SessionStore,
        InspectionStore,
        RevocationStore,
        DataStore,
        MailStore,
        LogStore,
    )
    for name, value in inspect.getmembers(contract, inspect.isfunction)
    if not name.startswith("_")
)
_KINDS = frozenset(kind.__name__ for kind in Write.__subclasses__())


class Fault(enum.Enum):
    """What becomes of an operation."""

    NONE = "none"
    """It is done, and answered."""
    FAILS = "fails"
    """It raises, and nothing was done: the database is away."""
    HANGS = "hangs"
    """It never ends, and nothing was done."""
    COMMITS_THEN_FAILS = "commits then fails"
    """It is done, and then raises: the answer was lost."""
    BEGINS_LATE = "begins late"
    """It is done after ``seconds``, and then answered."""
    ANSWERS_LATE = "answers late"
    """It is done at once, and answered after ``seconds``."""


_LATE = frozenset({Fault.BEGINS_LATE, Fault.ANSWERS_LATE})


class _PausedBell:
    """A bell that is not heard while its worker is paused."""

    def __init__(self, bell: Bell, while_paused: Callable[[], Awaitable[None]]) -> None:
        self._bell = bell
        self._while_paused = while_paused

    async def wait(self) -> frozenset[str] | None:
        rung = await self._bell.wait()
        await self._while_paused()
        return rung


class FaultyStore(PassingStore):
    """Wraps a store; one for each worker makes a fault that only this worker sees.

    `fail` makes all operations, some, or only the next few run into a fault; `heal` ends it.
    `pause` stops the worker's side as SIGSTOP stops a process: whatever is asked, and whatever is
    answered, waits for `resume`.

    Args:
        store: the store that does the work.

    Attributes:
        fault: what becomes of operations from now on.
        operations: the operations that ``fault`` applies to, by the names of the
            methods of `SessionStore`; None: all of them. The name of a kind of write
            (``"Claim"``) stands for each batch that has one in it.
        remaining: how many more operations ``fault`` applies to; None: all until `heal`.
        seconds: by how much an operation is late, where the fault is that.
        error: what a failing operation raises.
        calls: how often each operation was asked for, and batches with each kind of write.
        faults: how often each operation, and batches with each kind of write, ran into a
            fault; assert on it, so that a test has seen its fault happen.
    """

    def __init__(self, store: SessionStore) -> None:
        self.fault = Fault.NONE
        self.operations: frozenset[str] | None = None
        self.remaining: int | None = None
        self.seconds = 0.0
        self.error: Exception = StoreUnavailable("the faulty store is away")
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        super().__init__(store)
        self._resumed: trio.Event | None = None

    def fail(
        self,
        fault: Fault = Fault.FAILS,
        *operations: str,
        times: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Let operations run into ``fault``; this takes the place of an earlier fault.

        Args:
            fault: what becomes of them.
            operations: those that are concerned, by name; none: all of them.
            times: only the next so many of these, at least 1; None: until `heal`.
            seconds: how late they are, at least 0; for a fault that is about that, and no other.

        Raises:
            ValueError: there is no such operation, or a number is not as it must be.
            TypeError: ``fault`` is no `Fault`.
        """
        if not isinstance(fault, Fault):
            raise TypeError(f"fault must be one of {[str(one) for one in Fault]}, not {fault!r}")
        unknown = set(operations) - _OPERATIONS - _KINDS
        if unknown:
            raise ValueError(
                f"operations must be methods of SessionStore or writes, not {sorted(unknown)}"
            )
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for 'until heal()', not {times}")
        if (seconds is not None) is not (fault in _LATE):
            raise ValueError(
                f"seconds must be given for {sorted(str(one) for one in _LATE)}, and only for "
                f"these; the fault is {fault}, and seconds is {seconds}"
            )
        if seconds is not None and not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be finite and at least 0, not {seconds}")
        self.fault, self.remaining, self.seconds = fault, times, seconds or 0.0
        self.operations = frozenset(operations) or None

    def heal(self) -> None:
        """Let every operation through again; those that hang go on hanging."""
        self.fault, self.operations, self.remaining = Fault.NONE, None, None

    def pause(self) -> None:
        """Let everything wait from now on: what is asked, what is answered, and the bell."""
        if self._resumed is None:
            self._resumed = trio.Event()

    def resume(self) -> None:
        """Let what waits go on; harmless where nothing is paused."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    @property
    def is_paused(self) -> bool:
        """Whether everything waits for `resume`."""
        return self._resumed is not None

    async def _while_paused(self) -> None:
        while self._resumed is not None:
            await self._resumed.wait()

    def _take_fault(self, *names: str) -> Fault:
        """Return what becomes of an operation that begins now, and count it."""
        if self.operations is not None and self.operations.isdisjoint(names):
            return Fault.NONE
        fault = self.fault
        if fault is not Fault.NONE:
            self.faults.update(names)
            if self.remaining is not None:
                self.remaining -= 1
                if self.remaining == 0:
                    self.heal()
        return fault

    async def _through(self, name: str, operation: Callable[[], Awaitable[T]], *kinds: str) -> T:
        self.calls.update((name, *kinds))
        await self._while_paused()
        seconds, fault = self.seconds, self._take_fault(name, *kinds)
        if fault is Fault.HANGS:
            await trio.sleep_forever()
        if fault is Fault.FAILS:
            await trio.lowlevel.checkpoint()
            raise self._error(did_nothing=True)
        if fault is Fault.BEGINS_LATE:
            await trio.sleep(seconds)
        answer = await insist_async(operation(), self._called(name))
        await self._while_paused()
        if fault is Fault.COMMITS_THEN_FAILS:
            raise self._error(did_nothing=False)
        if fault is Fault.ANSWERS_LATE:
            await trio.sleep(seconds)
        return answer

    def _error(self, *, did_nothing: bool) -> Exception:
        if isinstance(self.error, StoreUnavailable):
            self.error.did_nothing = did_nothing
        return self.error

    async def close(self, worker: Worker) -> None:
        """Close the store, always: a fault must not leak what lies below."""
        self.calls["close"] += 1
        await insist_async(self._store.close(worker), self._called("close"))

    def _called(self, name: str) -> str:
        return f"{type(self._store).__name__}.{name}"

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        """Open a bell, or fail; one that is open goes on to ring, but for a pause."""
        await self._through("open_bell", trio.lowlevel.checkpoint)
        opened = partial(self._store.open_bell, worker)
        async with insist(opened(), AbstractAsyncContextManager, opened) as bell:
            yield _PausedBell(bell, self._while_paused)
