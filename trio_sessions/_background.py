"""What runs beside the caller: jobs that must end once they are begun, and loops that may be cut.

A removal whose caller is cancelled half-way would leave a transport open or a row behind, so it
runs here, shielded, and its caller only waits for it. Everything in a job is bounded: transports
by ``disconnect_timeout``, the store by ``store_timeout``.
"""

import contextvars
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from trio_sessions._interrupts import uninterrupted
from trio_sessions._logging import speak_for, speaker
from trio_sessions._process import this_process

__all__ = ["Background", "is_cancellation"]


class _Loop:
    """A task that may be cut."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()


@uninterrupted
class Background:
    """The jobs and loops of one registry."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._jobs: dict[trio.Event, trio.CancelScope] = {}
        self._services: list[trio.CancelScope] = []
        self._loops: set[_Loop] = set()
        self._context = contextvars.copy_context()  # that of the opening
        self._worker_id = speaker()
        self._process = this_process()

    # ---- jobs ----

    def start_job(self, job: Callable[..., Awaitable[None]], *args: Any) -> trio.Event:
        """Start what must come to its end; the event is set then."""
        ended = trio.Event()
        scope = self._jobs[ended] = trio.CancelScope(shield=True)
        try:
            self._nursery.start_soon(self._to_its_end, ended, scope, partial(job, *args), name=job)
        except BaseException:  # the handler of another signal; nobody waits for what never began
            self._jobs.pop(ended, None)
            raise
        return ended

    async def _to_its_end(
        self, ended: trio.Event, scope: trio.CancelScope, job: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            self._jobs[ended] = scope  # it has been started, whatever its starter believes
            speak_for(self._worker_id)
            with scope:
                if self._process is this_process():
                    await job()
        finally:
            self._jobs.pop(ended, None)
            ended.set()

    def start_service(self, service: Callable[[], Awaitable[None]]) -> None:
        """Start what its owner ends: neither `interrupt` nor `finish_jobs` knows of it."""
        scope = trio.CancelScope(shield=True)
        self._services.append(scope)
        self._context.run(
            partial(self._nursery.start_soon, self._serve, scope, service, name=service)
        )

    @staticmethod
    async def _serve(scope: trio.CancelScope, service: Callable[[], Awaitable[None]]) -> None:
        with scope:
            await service()

    def abandon(self) -> None:
        """Cancel all jobs and loops, in a forked child: they are its parent's to finish."""
        self.interrupt()
        for scope in (*self._jobs.values(), *self._services):
            scope.cancel()

    async def finish_jobs(self) -> None:
        """Wait until no job is under way."""
        while self._jobs:
            await next(iter(self._jobs)).wait()

    # ---- loops ----

    def start_interruptible(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that `interrupt` may cut at any checkpoint, or before it has begun."""
        loop = _Loop()
        self._loops.add(loop)
        try:
            self._nursery.start_soon(self._until_interrupted, loop, partial(task, *args), name=task)
        except BaseException:  # as in `start_job`
            self._loops.discard(loop)
            raise

    def start_lasting(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task as `start_interruptible` does, in the context of the opening.

        It may go on for as long as the registry, and the caller's context may be a request's.
        """
        self._context.run(self.start_interruptible, task, *args)

    async def start_loop(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that `interrupt` may cut, and wait until it reports `started`."""
        await self._nursery.start(self._start_loop, partial(task, *args), name=task)

    async def _start_loop(
        self, task: Callable[..., Awaitable[None]], *, task_status: trio.TaskStatus[None]
    ) -> None:
        loop = _Loop()
        await self._until_interrupted(loop, partial(task, task_status=task_status))

    async def _until_interrupted(self, loop: _Loop, task: Callable[[], Awaitable[None]]) -> None:
        try:
            self._loops.add(loop)
            speak_for(self._worker_id)
            with loop.scope:
                await task()
        finally:
            self._loops.discard(loop)
            loop.ended.set()

    def interrupt(self) -> None:
        """Cancel the loops and the pass that runs, but no job."""
        for loop in self._loops:
            loop.scope.cancel()

    async def finish_loops(self) -> None:
        """Wait until the interrupted loops have ended."""
        while self._loops:
            await next(iter(self._loops)).ended.wait()


def is_cancellation(error: BaseException, *others: type[BaseException]) -> bool:
    """Say whether an error is that of a cancelled scope, be it of a nursery in it.

    Args:
        error: the error.
        others: what counts as a cancellation, too.
    """
    kinds: tuple[type[BaseException], ...] = (trio.Cancelled, *others)
    if isinstance(error, BaseExceptionGroup):
        return error.split(kinds)[1] is None
    return isinstance(error, kinds)
