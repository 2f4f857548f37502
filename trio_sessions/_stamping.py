"""Stamps between the passes: they keep the lease, and notice soon that the database went back."""

import logging

import trio

from trio_sessions._edge import Edge
from trio_sessions._restoring import Restorer
from trio_sessions._witness import Witness
from trio_sessions.errors import SessionsError

__all__ = ["keep_stamping"]

logger = logging.getLogger("trio_sessions.registry")

_FIRST_PAUSE = 0.05  # seconds until a new history is begun again that could not be


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
    pause, is_away = _FIRST_PAUSE, False
    while True:
        with trio.move_on_after(interval):
            await witness.contradicted()
        try:
            await restorer.ensure()
            await edge.stamp(passed=False)
        except SessionsError as exc:
            logger.log(
                logging.DEBUG if is_away else logging.WARNING,
                "this worker could not be stamped, and others sweep its sessions after its "
                "session_ttl: %s",
                exc,
            )
            is_away = True
            await trio.sleep(pause)
            pause = min(interval, pause * 2)
        else:
            pause, is_away = _FIRST_PAUSE, False
