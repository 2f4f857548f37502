"""Who lives of those whom this worker has called, or who have called it: asked once a second.

One question for all of them, and none while everything that goes on is younger than a second, or
is our own. What the database says after it was away is not believed at once: the others may not
have had the time to stamp their rows.
"""

import logging
from collections.abc import Iterable

import trio

from trio_sessions._edge import Edge
from trio_sessions._mail._calling import Calling
from trio_sessions._mail._serving import Serving
from trio_sessions.errors import SessionsError
from trio_sessions.inspection import WorkerInfo, WorkerState

__all__ = ["Watch"]

logger = logging.getLogger("trio_sessions.mail")

_LOOK = 1.0  # seconds between two looks
_SETTLE = 6.0  # seconds after an outage in which nobody is taken for late: a stamp, and a bit


class Watch:
    """The loop that looks after the others.

    Args:
        edge: the way to the store.
    """

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._needed = trio.Event()
        self._settled_at = float("-inf")

    def wake(self) -> None:
        """Note that there is somebody to look after."""
        self._needed.set()

    async def run(self, calling: Calling, serving: Serving) -> None:
        """Look after them, and send beats.

        Cancellation: at any moment.
        """
        looked_at = float("-inf")
        while True:
            self._needed = trio.Event()
            if calling.pause is None and serving.is_idle:
                await self._needed.wait()
            await trio.sleep(min(_LOOK, calling.pause or _LOOK))
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
            workers = await self._edge.inspect(lambda store, one: store.list_workers(one), list)
        except SessionsError as exc:
            logger.debug("cannot look whether other workers live: %s", exc)
            workers = None
        now = trio.current_time()
        if workers is None or now > asked_at + _LOOK:
            self._settled_at = now + _SETTLE
        if workers is None:
            return
        alive = _alive(workers, believes_late=now >= self._settled_at)
        calling.judge(alive.__contains__, asked_at)
        serving.judge(alive.__contains__, asked_at)


def _alive(workers: Iterable[WorkerInfo], *, believes_late: bool) -> set[str]:
    """Return the incarnations, and the ids, of workers that may be alive."""
    gone = {WorkerState.GONE, WorkerState.LATE} if believes_late else {WorkerState.GONE}
    return {
        name
        for one in workers
        if one.state not in gone
        for name in (one.incarnation, one.worker_id)
    }
