"""Who lives of those whom this worker has called, or who have called it: asked once a second.

One question for all of them, and none while everything that goes on is younger than a second, or
is our own. What the database says after it was away is not believed at once: the others may not
have had the time to stamp their rows.
"""

import math

import trio

from trio_sessions._edge import Edge
from trio_sessions._logging import get_logger
from trio_sessions._mail._calling import Calling
from trio_sessions._mail._serving import Serving
from trio_sessions.errors import SessionsError

__all__ = ["Watch"]

logger = get_logger("trio_sessions.mail")

_LOOK = 1.0  # seconds between two looks
_SETTLE = 6.0  # seconds after an outage in which nobody is taken for dead: a stamp, and a bit


class Watch:
    """The loop that looks after the others.

    Args:
        edge: the way to the store.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._needed = trio.Event()
        self._due = math.inf
        """When there is something to be done."""
        self._settled_at = float("-inf")

    def wake(self, due: float) -> None:
        """Note that there is something to be done at a moment, on Trio's clock."""
        if due < self._due:
            self._needed.set()

    async def run(self, calling: Calling, serving: Serving) -> None:
        """Send the beats that are due, and end calls whose other side does not live any more.

        Cancellation: at any moment.
        """
        looked_at = float("-inf")
        while True:
            self._needed = trio.Event()
            pause = calling.pause
            is_idle = pause is None and serving.is_idle
            longest = math.inf if is_idle else min(_LOOK, pause or _LOOK)
            self._due = trio.current_time() + longest
            with trio.move_on_at(self._due):
                await self._needed.wait()
            await trio.lowlevel.checkpoint()
            calling.beat()
            now = trio.current_time()
            if now < looked_at + _LOOK:
                continue
            before = now - _LOOK
            if calling.callees(before) or serving.callers(before):
                looked_at = now
                await self._look(calling, serving)

    async def _look(self, calling: Calling, serving: Serving) -> None:
        asked_at = trio.current_time()
        try:
            living = await self._edge.living()
        except SessionsError as exc:
            logger.debug("cannot look whether other workers live: %s", exc)
            self._settled_at = trio.current_time() + _SETTLE
            return
        now = trio.current_time()
        if now > asked_at + _LOOK:  # so slow that others could not stamp, either
            self._settled_at = now + _SETTLE
        if now >= self._settled_at:
            calling.judge(living.__contains__, asked_at)
            serving.judge(living.__contains__, asked_at)
