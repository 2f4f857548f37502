"""Our own tasks on asyncio's side."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["new_task"]

T = TypeVar("T")


def new_task(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], *, name: str
) -> "asyncio.Task[T]":
    """Start a task at the next turn of ``loop``, whatever its task factory does.

    Most are started from within one of Trio's steps. A factory that runs a first step at once
    (`asyncio.eager_task_factory`) would run it inside of that.
    """
    return asyncio.Task(coroutine, loop=loop, name=name)
