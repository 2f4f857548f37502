"""One store operation: one call in a thread, one connection, and a watchdog that can end it.

A Trio deadline does not interrupt a thread, and a server that hangs after it has taken the
statement is covered by no timeout of the driver or the network. So a task, one for all operations
of a run, watches the clock on the wall, and what it may do after ``timeout`` depends on whether
anything has been sent::

    WAITING ──── hold ────▶ CONNECTED ── release ──▶ ENDED
       │                     │     ▲
       │ no connection       │     │ hold: the pool
       │ in time             │     │ has connected again
       ▼                     ▼     │
    WITHDRAWN               CUT ───┘

- CONNECTED: the connection is shut down under the thread, which then fails in its own way.
  What a write has done is unknown.
- WAITING: the thread is in the engine's pool. It waits for a connection, connects, or asks one
  with the pool's own ping (``pool_pre_ping``), on a connection that the pool does not show
  before. Nothing of ours has been sent, so the caller leaves the thread alone there, and a
  connection that it gets after all goes back unused. The thread keeps its token of the limiter.

A thread that a fork has left behind in the parent never ends in the child, nor gives it back
a token: there the caller leaves it alone at once, and what has not begun does not begin.

See docs/decisions/0005-a-watchdog-shuts-the-socket.md.
"""

import contextlib
import enum
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import outcome
import trio

from trio_sessions._forked_run import abandon_on_fork
from trio_sessions._interrupts import uninterrupted
from trio_sessions._process import this_process
from trio_sessions.stores.database._database import Cutter

__all__ = ["Operation", "State", "Withdrawn", "current"]

T = TypeVar("T")


class State(enum.Enum):
    """How far an operation has come; see the drawing above."""

    WAITING = enum.auto()
    CONNECTED = enum.auto()
    ENDED = enum.auto()
    CUT = enum.auto()
    WITHDRAWN = enum.auto()


class Withdrawn(Exception):
    """The error of an operation for which nobody waits any more, and which has done nothing."""


class _Current(threading.local):
    operation: "Operation | None" = None


current = _Current()
"""The operation that this thread is working on."""


@uninterrupted
class Operation:
    """One function in a thread, ended if it takes too long on a connection.

    Args:
        cutter: makes what can cut a connection.
        timeout: seconds on a connection.
        patience: seconds to wait for one.
        process: whose connections these are.
    """

    def __init__(
        self,
        cutter: Callable[[Any], Cutter],
        *,
        timeout: float,
        patience: float,
        process: object,
    ) -> None:
        self.state = State.WAITING
        self.has_held = False
        """Whether it has had a connection: something may have been sent."""
        self._make_cutter = cutter
        self._timeout = timeout
        self._patience = patience
        self._process = process
        self._lock = threading.Lock()
        self._cutter: Cutter | None = None
        self._since = math.inf
        """When the wait began that is bounded: for a connection, or on one."""
        self._thread = trio.CancelScope()
        """Round the thread; shielded as long as it runs."""

    async def run(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        """Run ``work`` in a thread.

        Raises:
            Withdrawn: it had no connection in time, or the process was forked meanwhile.

        Cancellation: while it waits for the limiter; not while the thread runs.
        """
        self._check_process()
        abandon_on_fork(self)
        captured: list[outcome.Outcome[T]] = []
        with _watch_of_this_run(self._timeout).over(self):
            if _may_be_interrupted():
                # In a task of its own, which no Ctrl-C reaches: that goes through shields.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._carry_out, work, limiter, captured.append)
            else:
                await self._carry_out(work, limiter, captured.append)
        if self.state is State.WITHDRAWN:
            raise Withdrawn
        return captured[0].unwrap()

    async def _carry_out(
        self,
        work: Callable[[], T],
        limiter: trio.CapacityLimiter,
        report: Callable[[outcome.Outcome[T]], None],
    ) -> None:
        token = _Token(limiter, self._begin)

        async def in_thread() -> T:
            return await trio.to_thread.run_sync(
                self._in_thread,
                work,
                abandon_on_cancel=True,
                limiter=cast("trio.CapacityLimiter", token),  # or what looks like one
            )

        with self._thread:
            # Captured, so that a nursery does not wrap what it raises.
            report(await outcome.acapture(in_thread))

    def _begin(self) -> None:
        """Note that the thread runs: from now on only the watchdog may leave it alone."""
        self._thread.shield = True
        self._since = time.monotonic()

    def _check_process(self) -> None:
        if self._process is not this_process():
            raise Withdrawn

    def _in_thread(self, work: Callable[[], T]) -> T:
        self._check_process()  # again: it may have been forked while we waited for the limiter
        current.operation = self
        try:
            return work()
        finally:
            current.operation = None
            self.release()

    def look(self) -> None:
        """Withdraw or cut the operation if it takes too long."""
        with self._lock:
            elapsed = time.monotonic() - self._since
            if self.state is State.WAITING and elapsed > self._patience:
                self.abandon()
            elif self.state is State.CONNECTED and elapsed > self._timeout:
                self.state = State.CUT
                assert self._cutter is not None
                self._cutter.cut()

    def abandon(self) -> None:
        """Return to the caller without the thread: nothing was sent, or a fork left it behind."""
        self.state = State.WITHDRAWN
        self._thread.cancel()

    def hold(self, dbapi_connection: Any) -> None:
        """Watch this connection from now on. Called in the thread.

        Raises:
            Withdrawn: it comes too late: nothing may be sent on it.
        """
        with self._lock:
            if self.state is State.WITHDRAWN:
                raise Withdrawn
            self._close_cutter()
            self._cutter = self._make_cutter(dbapi_connection)
            self._since = time.monotonic()
            self.state = State.CONNECTED
            self.has_held = True

    def release(self) -> None:
        """Watch no connection any more. Called in the thread."""
        with self._lock:
            self._close_cutter()
            if self.state in {State.WAITING, State.CONNECTED}:
                self.state = State.ENDED

    def _close_cutter(self) -> None:
        if self._cutter is not None:
            self._cutter.close()
            self._cutter = None


class _Watch:
    """The watchdog of the operations of one run that have the same timeout.

    Args:
        timeout: of each, seconds.
    """

    def __init__(self, timeout: float) -> None:
        self._pause = timeout / 10
        self._operations: dict[Operation, None] = {}
        self._runs = False

    @contextlib.contextmanager
    def over(self, operation: Operation) -> Iterator[None]:
        """Look after an operation in the block."""
        self._operations[operation] = None
        if not self._runs:
            self._runs = True
            trio.lowlevel.spawn_system_task(self._run, name="trio_sessions: watches operations")
        try:
            yield
        finally:
            del self._operations[operation]

    async def _run(self) -> None:
        """Watch while operations run: also at the end of the Trio run, which waits for threads."""
        try:
            await self._look_at_all()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._look_at_all()
            raise
        finally:
            self._runs = False

    async def _look_at_all(self) -> None:
        # Real time, looked at again and again: a mock clock may jump while a thread works.
        while self._operations:
            await trio.sleep(self._pause)
            for operation in list(self._operations):
                operation.look()


_watches: trio.lowlevel.RunVar[dict[float, _Watch]] = trio.lowlevel.RunVar("trio_sessions: watches")


def _watch_of_this_run(timeout: float) -> _Watch:
    try:
        watches = _watches.get()
    except LookupError:
        watches = {}
        _watches.set(watches)
    if timeout not in watches:
        watches[timeout] = _Watch(timeout)
    return watches[timeout]


def _may_be_interrupted() -> bool:
    """Say whether the running task may be the main one, to which Trio hands Ctrl-C."""
    nursery = trio.lowlevel.current_task().parent_nursery
    return nursery is None or nursery.parent_task is trio.lowlevel.current_root_task()


class _Token:
    """One token of a limiter, which tells when it has been taken."""

    def __init__(self, limiter: trio.CapacityLimiter, taken: Callable[[], None]) -> None:
        self._limiter = limiter
        self._taken = taken

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._limiter.acquire_on_behalf_of(borrower)
        self._taken()

    def release_on_behalf_of(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)
