"""Work that goes on through outages: done again and again, with a pause that grows."""

import logging
import random
from collections.abc import Awaitable, Callable

import trio

from trio_sessions.errors import SessionsError

__all__ = ["jittered", "persist"]

_BACKOFF = (0.1, 5.0)  # seconds between two attempts, the first and the longest


async def persist(
    what: str, work: Callable[[Callable[[], None]], Awaitable[None]], logger: logging.Logger
) -> None:
    """Do ``work`` again and again: an outage ends nothing, it only makes it wait.

    Args:
        what: names it in the log.
        work: what is to be done; it calls its argument when something has succeeded.
        logger: where failures are told.

    Cancellation: at any moment.
    """
    first, longest = _BACKOFF
    pause = first

    def worked() -> None:
        nonlocal pause
        pause = first

    while True:
        try:
            await work(worked)
        except SessionsError as exc:
            log = logger.warning if pause == first else logger.debug
            log("%s failed, and goes on when the database is back: %s", what, exc)
        await trio.sleep(jittered(pause))
        pause = min(2 * pause, longest)


def jittered(pause: float) -> float:
    """Return a pause of about so many seconds: workers that failed together try again apart."""
    return pause * (0.5 + random.random())  # noqa: S311 -- jitter, no secret
