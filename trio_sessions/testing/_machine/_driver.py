"""A Trio run that is driven by synchronous code, one call at a time.

Hypothesis calls the rules of a state machine synchronously, and what they act on must go on living
from one rule to the next. So Trio runs as a guest, and its host is this queue::

    a rule ── call(function) ──▶ starts a task in the run, then carries out what stands in
                                 the queue, until that task is done
    Trio   ── "go on with me" ──▶ the queue; from threads of its own, too

Between two calls nothing moves: the run is where the last call has left it, and what its threads
have found waits in the queue.
"""

import math
import queue
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple

import outcome
import trio

__all__ = ["TrioDriver"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class TrioDriver:
    """A Trio run whose steps are made by `call`; what is opened must be closed.

    It belongs to the thread that opens it. A call that nothing can cancel (a thread that never
    returns) blocks for ever; a test's own timeout is for that. Ctrl-C comes out of `call`.

    Args:
        clock: the run's clock; None: the real one.
    """

    def __init__(self, clock: trio.abc.Clock | None = None) -> None:
        self._clock = clock
        self._queue: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._ended: outcome.Outcome[None] | None = None
        self._pumps = 0

    def __enter__(self) -> Self:
        self.open()
        return self

    def open(self) -> None:
        """Start the run.

        Raises:
            RuntimeError: Trio runs in this thread already.
        """
        try:
            trio.lowlevel.start_guest_run(
                self._main,
                run_sync_soon_threadsafe=self._queue.put,
                done_callback=self._note_end,
                host_uses_signal_set_wakeup_fd=True,
                clock=self._clock,
            )
        except RuntimeError as exc:
            raise RuntimeError(
                "Trio runs in this thread already: run a RegistryMachine from a plain function, "
                "not from an async one"
            ) from exc
        self._pump(lambda: self._nursery is not None or self._ended is not None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def nursery(self) -> trio.Nursery:
        """The nursery of whatever outlives a call; for use within calls."""
        assert self._nursery is not None, "the run has not begun"
        return self._nursery

    @property
    def is_called(self) -> bool:
        """Whether this is asked from within the run."""
        return self._pumps > 0

    def call(
        self,
        function: Callable[[*Ts], Awaitable[T]],
        *args: *Ts,
        patience: float = math.inf,
    ) -> T:
        """Await ``function(*args)`` in the run, and return what it returns.

        Args:
            function: an async function.
            args: its arguments.
            patience: seconds, on the run's clock, after which it is cancelled.

        Raises:
            trio.TooSlowError: it was cancelled for that.
            RuntimeError: the run has ended, by an error of a task of the nursery (chained).
        """
        done: list[outcome.Outcome[T]] = []

        async def patiently() -> T:
            with trio.fail_after(patience):
                return await function(*args)

        async def carry_out() -> None:
            done.append(await outcome.acapture(patiently))

        if self._token is None or self._ended is not None:
            raise self._over()
        self._token.run_sync_soon(self.nursery.start_soon, carry_out)
        self._pump(lambda: bool(done) or self._ended is not None)
        if not done:
            raise self._over()
        found = done[0]
        if isinstance(found, outcome.Error) and isinstance(found.error, trio.Cancelled):
            self._pump(lambda: self._ended is not None)  # nobody but the end cancels a call
            raise self._over()
        return found.unwrap()

    def close(self) -> None:
        """Cancel what still runs, and wait for the end; harmless if it has ended.

        Raises:
            BaseException: what a task of the nursery has raised.
        """
        if self._token is not None and self._ended is None:
            self._token.run_sync_soon(self.nursery.cancel_scope.cancel)
            self._pump(lambda: self._ended is not None)
        if self._ended is not None:
            self._ended.unwrap()

    def _pump(self, is_done: Callable[[], bool]) -> None:
        self._pumps += 1
        try:
            while not is_done():
                self._queue.get()()
        finally:
            self._pumps -= 1

    async def _main(self) -> None:
        async with trio.open_nursery() as self._nursery:
            self._token = trio.lowlevel.current_trio_token()
            await trio.sleep_forever()

    def _note_end(self, ended: outcome.Outcome[Any]) -> None:
        self._ended = ended

    def _over(self) -> RuntimeError:
        error = RuntimeError("the Trio run of these calls has ended")
        if isinstance(self._ended, outcome.Error):
            error.__cause__ = self._ended.error
        return error
