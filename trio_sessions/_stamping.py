"""Stamps between the passes: they keep the lease, and notice soon that the database went back.

See docs/decisions/0010-evidence.md.
"""

import logging

import trio

from trio_sessions._edge import Edge
from trio_sessions._logging import get_logger
from trio_sessions._restoring import Restorer
from trio_sessions._witness import WentBack, Witness
from trio_sessions.errors import SessionsError

__all__ = ["keep_stamping"]

logger = get_logger("trio_sessions.registry")

_FIRST_PAUSE = 0.05  # seconds until the next attempt after one that failed; it grows


async def keep_stamping(
    *, edge: Edge, witness: Witness, restorer: Restorer, interval: float
) -> None:
    """Stamp the worker's row once an interval; restore at once what the database has forgotten.

    Args:
        edge: the way to the store.
        witness: says whether the database went back.
        restorer: sees to the rows.
        interval: seconds.

    Cancellation: at any moment.
    """
    pause, is_away = 0.0, False
    while True:
        if pause:
            await trio.sleep(pause)
        else:
            with trio.move_on_after(interval):
                await witness.contradicted()
        try:
            await restorer.ensure()
            await edge.stamp(passed=False)
        except SessionsError as exc:
            pause = min(interval, max(_FIRST_PAUSE, pause * 2))
            if not isinstance(exc, WentBack):  # which is told by whoever begins a new history
                _log_failure(exc, is_first=not is_away)
                is_away = True
        else:
            pause, is_away = 0.0, False


def _log_failure(error: SessionsError, *, is_first: bool) -> None:
    logger.log(
        logging.WARNING if is_first else logging.DEBUG,
        "this worker could not be stamped, and others sweep its sessions after its session_ttl: %s",
        error,
    )
