"""Waiting on asyncio's side for what must be waited for, cancelled or not."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["wait_out"]


async def wait_out(
    wait: Callable[[], Awaitable[object]], on_cancel: Callable[[], object] = lambda: None
) -> None:
    """Await ``wait()`` to its end; a cancellation is passed on, and raised afterwards.

    Args:
        wait: may be called again, when the one before was cancelled; it will come to its end,
            whatever becomes of this task.
        on_cancel: called each time that the waiting task is cancelled.
    """
    try:
        await wait()
    except asyncio.CancelledError as exc:
        cancelled = exc
    else:
        return
    on_cancel()
    with _without_repetition():
        while True:
            try:
                await wait()
            except asyncio.CancelledError as exc:
                cancelled = exc
                on_cancel()
            else:
                break
    raise cancelled


def _without_repetition() -> AbstractContextManager[Any]:
    """Keep anyio from cancelling again at each turn of the loop, all the time that we wait.

    It does so for every task in a scope that was cancelled, unless a shielded scope stands in
    between. Without anyio there is no such scope, and nothing to import.
    """
    anyio, shield = sys.modules.get("anyio"), contextlib.ExitStack()
    if anyio is not None:
        # On trio-asyncio's loop, since Python 3.12, anyio finds no task, and nobody is in a scope.
        with contextlib.suppress(RuntimeError):
            shield.enter_context(anyio.CancelScope(shield=True))
    return shield
