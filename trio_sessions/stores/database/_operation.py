"""One store operation: one call in a thread, one connection, and a watchdog that can end it.

A Trio deadline does not interrupt a thread, and a server that hangs after it has taken the
statement is covered by no timeout of the driver or the network. So a task watches the clock
on the wall, and what it may do after ``timeout`` depends on whether anything has been sent::

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

import enum
import math
import threading
import time
from collections.abc import Callable
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
    """Nobody waits for the operation any more, and nothing of it has been done."""


class _Current(threading.local):
    operation: "Operation | None" = None


current = _Current()
"""The operation that this thread is working on."""


@uninterrupted
class Operation:
    """Runs one function in a thread and ends it if it takes too long on a connection.

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
        watching = trio.CancelScope(shield=True)  # it goes on as long as the thread does
        # In a task of its own, which no Ctrl-C reaches: that goes through shields.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, watching)
            nursery.start_soon(self._carry_out, work, limiter, watching, captured.append)
        if self.state is State.WITHDRAWN:
            raise Withdrawn
        return captured[0].unwrap()

    async def _carry_out(
        self,
        work: Callable[[], T],
        limiter: trio.CapacityLimiter,
        watching: trio.CancelScope,
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
            # Captured, so that the nursery does not wrap what it raises.
            report(await outcome.acapture(in_thread))
        watching.cancel()

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

    async def _watch(self, watching: trio.CancelScope) -> None:
        # Real time, looked at again and again: a mock clock may jump while a thread works.
        with watching:
            while self.state is not State.WITHDRAWN:
                await trio.sleep(self._timeout / 10)
                self._look()

    def _look(self) -> None:
        with self._lock:
            elapsed = time.monotonic() - self._since
            if self.state is State.WAITING and elapsed > self._patience:
                self.abandon()
            elif self.state is State.CONNECTED and elapsed > self._timeout:
                self.state = State.CUT
                assert self._cutter is not None
                self._cutter.cut()

    def abandon(self) -> None:
        """Let the caller go without the thread: nothing is sent, or another process has it."""
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
