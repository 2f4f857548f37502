"""One store operation: one call in a thread, one connection, and a watchdog that can cut it.

A Trio deadline does not interrupt a thread, and a server that hangs after it has taken the
statement is covered by no timeout of the driver or the network. So a task watches the
clock on the wall, and after ``timeout`` shuts down the connection under the thread.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import outcome
import trio

from trio_sessions.stores.database._database import Cutter

__all__ = ["Operation", "current"]

T = TypeVar("T")


class _Current(threading.local):
    operation: "Operation | None" = None


current = _Current()
"""The operation that this thread is working on."""


class Operation:
    """Runs one function in a thread and ends it if it takes too long on a connection."""

    def __init__(self, cutter: Callable[[Any], Cutter], timeout: float) -> None:
        self.was_cut = False
        self._make_cutter = cutter
        self._timeout = timeout
        self._lock = threading.Lock()
        self._cutter: Cutter | None = None
        self._since = 0.0

    async def run(self, work: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        """Run ``work`` in a thread.

        Cancellation: while it waits for the limiter; not while the thread runs.
        """
        watching = trio.CancelScope(shield=True)  # it goes on as long as the thread does
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, watching)
            # Captured, so that the nursery does not wrap what it raises.
            result = await outcome.acapture(
                partial(trio.to_thread.run_sync, self._in_thread, work, limiter=limiter)
            )
            watching.cancel()
        return result.unwrap()

    def _in_thread(self, work: Callable[[], T]) -> T:
        current.operation = self
        try:
            return work()
        finally:
            current.operation = None
            self.release()

    async def _watch(self, watching: trio.CancelScope) -> None:
        # Real time, looked at again and again: a mock clock may jump while a thread works.
        with watching:
            while True:
                await trio.sleep(self._timeout / 10)
                with self._lock:
                    overdue = time.monotonic() - self._since > self._timeout
                    if self._cutter is not None and overdue and not self.was_cut:
                        self.was_cut = True
                        self._cutter.cut()

    def hold(self, dbapi_connection: Any) -> None:
        """Watch this connection from now on. Called in the thread."""
        self.release()
        with self._lock:
            self._cutter = self._make_cutter(dbapi_connection)
            self._since = time.monotonic()

    def release(self) -> None:
        """Watch no connection any more. Called in the thread."""
        with self._lock:
            if self._cutter is not None:
                self._cutter.close()
                self._cutter = None
