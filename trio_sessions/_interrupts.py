"""Ctrl-C arrives at checkpoints only: in our code it is what a cancellation is.

Trio raises KeyboardInterrupt between any two bytecodes of a task, unless a frame on the stack
is marked; then the main task gets it, at its next checkpoint. A job that was noted and not
started, or a task of a system nursery that dies of it, would be beyond repair. So whatever may
be the outermost frame of ours on a stack is marked: the classes that users call, and those
that start tasks. What is called from there is covered, but code of users', which must stay
interruptible, is awaited through `interruptible`. See docs/decisions/0008-edges.md.

At a checkpoint of the main task Ctrl-C goes through shields. What must not be cut short, as
closing, therefore runs in another task.
"""

import inspect
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TypeVar

import trio

from trio_sessions.errors import bare

__all__ = ["Uninterrupted", "interruptible", "lone_interrupt", "uninterrupted"]

T = TypeVar("T")
Class = TypeVar("Class", bound=type)


def uninterrupted(cls: Class) -> Class:
    """Hold Ctrl-C back in every function of a class, async or not, until a checkpoint."""
    for attribute in vars(cls).values():
        function = getattr(attribute, "__func__", attribute)  # of a static method
        if inspect.isfunction(function):
            # A decorator's own code is shared with all that it decorates.
            trio.lowlevel.enable_ki_protection(inspect.unwrap(function))
    return cls


async def interruptible(awaitable: Awaitable[T]) -> T:
    """Await what is the user's: there Ctrl-C is raised wherever it is."""
    try:
        return await _unprotected(awaitable)
    finally:
        if inspect.iscoroutine(awaitable):
            awaitable.close()  # Ctrl-C may have come before its first step


@trio.lowlevel.disable_ki_protection
async def _unprotected(awaitable: Awaitable[T]) -> T:
    return await awaitable


@uninterrupted
class Uninterrupted(AbstractAsyncContextManager[T]):
    """A context manager around another one; Ctrl-C waits for a checkpoint of that or the block."""

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self._manager = manager

    async def __aenter__(self) -> T:
        return await self._manager.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, traceback)


def lone_interrupt(group: BaseExceptionGroup[BaseException]) -> KeyboardInterrupt | None:
    """Return the Ctrl-C that a nursery has wrapped, if that and cancellations are all of it."""
    rest = group.split(trio.Cancelled)[1]
    lone: BaseException | None = None if rest is None else bare(rest)
    return lone if isinstance(lone, KeyboardInterrupt) else None
