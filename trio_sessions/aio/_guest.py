"""Trio as a guest of asyncio's loop, or uvloop's: one guest run a thread, shared by registries.

A guest run that its host abandons would never run Trio's ``finally`` blocks, and the thread
could never start Trio again. So the end of the loop is noticed in two ways: a task of ours is
cancelled with all others when `asyncio.run` tidies up, and what the closing of a loop throws
away tells us when nobody has tidied up.
"""

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
import warnings
import weakref

import outcome
import trio

from trio_sessions._logging import get_logger
from trio_sessions._process import keep_for_ever
from trio_sessions.aio._host import Host
from trio_sessions.aio._life import State
from trio_sessions.aio._sigint import Sigint
from trio_sessions.aio._steps import Steps
from trio_sessions.aio._tasks import new_task
from trio_sessions.aio._threads import this_thread

__all__ = ["Guest", "guest_of"]

logger = get_logger("trio_sessions.aio")

_FOREVER = 100 * 365 * 24 * 3600.0  # seconds; no loop takes a timer without a time


class _ThisThread(threading.local):
    guest: "Guest | None" = None


_this_thread = _ThisThread()


def _abandon_in_a_forked_child() -> None:
    """Leave the guest run to the parent, whose connections and rows are at stake."""
    if _this_thread.guest is not None:
        _this_thread.guest.abandon("the process was forked while the registry was open")


os.register_at_fork(after_in_child=_abandon_in_a_forked_child)


class _GoesWithTheLoop:
    """A timer's callback, held by the loop alone: it goes when the loop is closed."""

    def __init__(self, guest: "Guest") -> None:
        self._guest = guest

    def __call__(self) -> None:
        """Do nothing; nobody lives to see it."""

    def __del__(self) -> None:
        self._guest.finish_without_loop()


class Guest(Host):
    """The guest run of one thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._steps = Steps(loop)
        self._sigint = Sigint(loop, self._steps)
        self._sigint.wrap()
        try:
            trio.lowlevel.start_guest_run(
                self._main,
                run_sync_soon_threadsafe=self._steps.soon_threadsafe,
                run_sync_soon_not_threadsafe=self._steps.soon,
                done_callback=self._done,
                host_uses_signal_set_wakeup_fd=True,
                clock=self._steps.clock,
                instruments=[self._steps.instrument],
            )
        except BaseException:  # Ctrl-C is as before; raised again
            self._sigint.unwrap()
            raise
        # Weak, because the loop alone must hold it.
        self._timer = weakref.ref(loop.call_later(_FOREVER, _GoesWithTheLoop(self)))
        self._keeper = new_task(loop, self._keep(), name="trio_sessions: keeps Trio")

    async def _keep(self) -> None:
        """End with the guest run, or end it when the loop cancels all tasks to tidy up."""
        try:
            await self.life.wait_closed(self._interrupt)
        except asyncio.CancelledError:
            logger.warning("the loop ended with a registry open: closed it, await shutdown() first")

    async def wait_ended(self) -> None:
        try:
            await super().wait_ended()
        finally:  # or it would be left for a turn of the loop
            await asyncio.wait([self._keeper])

    def _interrupt(self) -> None:
        if self.life.state is State.CLOSED:
            return
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        self.life.go(State.CLOSING)

    def _done(self, ended: outcome.Outcome[None]) -> None:
        if _this_thread.guest is self:
            _this_thread.guest = None
        self._steps.unwatch()
        self._sigint.unwrap()
        self._end(ended.error if isinstance(ended, outcome.Error) else None)
        timer = self._timer()
        if timer is not None:  # now that the run is over, its going means nothing
            timer.cancel()

    def follow_loop(self) -> None:
        is_here = self._thread is this_thread()
        if is_here or self.life.state is State.CLOSED or self._steps.runner is None:
            return
        from trio._core._run import GLOBAL_RUN_CONTEXT

        if hasattr(GLOBAL_RUN_CONTEXT, "runner"):
            raise RuntimeError(
                "the registry's Trio cannot end in this thread, where another one runs: let the "
                "event loop go on in a thread without a registry, and shut down there"
            )
        GLOBAL_RUN_CONTEXT.runner = self._steps.runner
        self._thread = this_thread()
        _this_thread.guest = self
        self._steps.go_on_here()

    def abandon(self, why: str) -> None:
        """Make no more steps, for good: nobody else will, in this process."""
        _this_thread.guest = None
        keep_for_ever(self._steps.runner)  # else its tasks would be torn down outside of Trio
        self._steps.stop()
        self._end(RuntimeError(why))
        self.forget()

    def forget(self) -> None:
        """Remove the run's traces in this thread, when it cannot end, or has ended elsewhere."""
        self._sigint.unwrap()
        with contextlib.suppress(ImportError, AttributeError):  # Trio believes that it runs here
            from trio._core._run import GLOBAL_RUN_CONTEXT

            del GLOBAL_RUN_CONTEXT.runner

    def finish_without_loop(self) -> None:
        """End the guest run although its loop is closed, by making its steps here.

        Rows are deleted, in bounded time; transports cannot be disconnected any more. Ctrl-C
        gives up the rest.
        """
        if self.life.state is State.CLOSED:
            return
        try:
            warnings.warn(
                "an event loop was closed while a trio_sessions.aio.SessionRegistry was open: "
                "await registry.shutdown() before the loop ends",
                ResourceWarning,
                stacklevel=2,
            )
        finally:
            if _this_thread.guest is self and not sys.is_finalizing():
                self._interrupt()
                is_enough = self._steps.make_all(self._is_over)
                if _this_thread.guest is self:  # it has not ended
                    who = "Ctrl-C" if is_enough else "the silence of a thread"
                    self.abandon(f"{who} gave up the last steps of a loop that was closed")

    def _is_over(self) -> bool:
        return self.life.state is State.CLOSED or self._sigint.held > 0


def guest_of(loop: asyncio.AbstractEventLoop) -> Guest:
    """Return the guest run of this thread, on this loop; start one if there is none.

    Raises:
        RuntimeError: Trio runs in this thread already, and not as a guest of this loop.
    """
    guest = _this_thread.guest
    if guest is not None and guest.life.state is State.CLOSED:  # it has ended in another thread
        guest.forget()
        guest = _this_thread.guest = None
    if guest is not None and guest.loop is not loop and guest.loop.is_closed():
        guest.finish_without_loop()
        guest = _this_thread.guest
    if guest is None:
        try:
            # In a context of its own: it outlives whoever happens to open the first registry.
            guest = _this_thread.guest = contextvars.Context().run(Guest, loop)
        except RuntimeError as exc:
            raise RuntimeError(
                "Trio runs in this thread already: inside a Trio program use "
                "trio_asyncio.open_loop(), and the registry within it"
            ) from exc
    if guest.loop is not loop:
        raise RuntimeError(
            "another event loop of this thread has a registry open and is not closed: "
            "await its registry.shutdown() first"
        )
    return guest
