"""What runs beside the caller: jobs that must end once they are begun, and loops that may be cut.

A removal whose caller is cancelled half-way would leave a transport open or a row behind, so it
runs here, shielded, and its caller only waits for it. Everything in a job is bounded: transports
by ``disconnect_timeout``, the store by ``store_timeout``.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

__all__ = ["Background", "is_cancellation"]


class _Loop:
    """A task that may be cut."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()


class Background:
    """The jobs and loops of one registry."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._jobs: set[trio.Event] = set()
        self._loops: set[_Loop] = set()

    # ---- jobs ----

    def start_job(self, job: Callable[..., Awaitable[None]], *args: Any) -> trio.Event:
        """Start what must come to its end; the event is set then."""
        ended = trio.Event()
        self._jobs.add(ended)
        self._nursery.start_soon(self._to_its_end, ended, partial(job, *args), name=job)
        return ended

    def start_apart(self, service: Callable[[], Awaitable[None]]) -> None:
        """Start what neither `interrupt` nor `finish_jobs` knows of: it is ended by its owner."""
        self._nursery.start_soon(self._shielded, service, name=service)

    async def _shielded(self, service: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope(shield=True):
            await service()

    async def _to_its_end(self, ended: trio.Event, job: Callable[[], Awaitable[None]]) -> None:
        try:
            with trio.CancelScope(shield=True):
                await job()
        finally:
            self._jobs.discard(ended)
            ended.set()

    async def finish_jobs(self) -> None:
        """Wait until no job is under way."""
        while self._jobs:
            await next(iter(self._jobs)).wait()

    # ---- loops ----

    def start_interruptible(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that `interrupt` may cut at any checkpoint, or before it has begun."""
        loop = _Loop()
        self._loops.add(loop)
        self._nursery.start_soon(self._until_interrupted, loop, partial(task, *args), name=task)

    async def start_loop(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that `interrupt` may cut, and wait until it reports `started`."""

        async def starting(*, task_status: trio.TaskStatus[None]) -> None:
            loop = _Loop()
            self._loops.add(loop)
            await self._until_interrupted(loop, partial(task, *args, task_status=task_status))

        await self._nursery.start(starting, name=task)

    async def _until_interrupted(self, loop: _Loop, task: Callable[[], Awaitable[None]]) -> None:
        try:
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


def is_cancellation(error: BaseException) -> bool:
    """Say whether an error is that of a cancelled scope, be it of a nursery in it."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)
