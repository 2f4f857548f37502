"""Waiting on asyncio's side for what must be waited for, cancelled or not."""

import asyncio
from collections.abc import Callable

__all__ = ["through_cancellation"]


async def through_cancellation(
    future: "asyncio.Future[None]", on_cancel: Callable[[], object] = lambda: None
) -> None:
    """Wait until ``future`` is done; a cancellation is passed on, and raised afterwards.

    Args:
        future: never fails, and is not cancelled by this.
        on_cancel: called each time that the waiting task is cancelled.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as exc:
            cancelled = exc
            on_cancel()
    if cancelled is not None:
        raise cancelled
