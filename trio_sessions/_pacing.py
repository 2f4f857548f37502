"""The paced loop: when the next pass starts."""

import random
from collections.abc import Awaitable, Callable

import trio

__all__ = ["keep_pace", "pause_after"]

_JITTER = 0.1
_SOONER = 0.1


def pause_after(*, interval: float, complete: bool, chance: float) -> float:
    """Return the seconds from the start of a pass to the start of the next.

    The jitter only shortens, so that ``interval`` is never exceeded. After a pass that
    the database did not answer for every session, the next comes ten times sooner: a
    lease that was not renewed should not have to wait for a whole interval.

    Args:
        interval: ``cleanup_interval``, seconds.
        complete: whether the database answered for every session.
        chance: a number in [0, 1), which decides the jitter.
    """
    pause = interval * (1 - _JITTER * chance)
    return pause if complete else pause * _SOONER


async def keep_pace(
    run: Callable[[], Awaitable[bool]],
    interval: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call ``run`` now and then again and again; never two at a time.

    A call that takes longer than the pause delays the next, which then starts at once.
    ``run`` returns whether its pass was complete; what it raises ends the loop.
    `started` is reported after the first call.
    """
    first = True
    while True:
        start = trio.current_time()
        complete = await run()
        if first:
            task_status.started()
            first = False
        chance = random.random()  # noqa: S311 -- jitter, no secret
        await trio.sleep_until(
            start + pause_after(interval=interval, complete=complete, chance=chance)
        )
