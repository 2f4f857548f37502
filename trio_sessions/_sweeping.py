"""What the store keeps of dead workers is deleted piece by piece, as time allows.

A piece is bounded in sessions and in messages, but not in bytes, nor in what a server has to do
for it. So how large the next one may be is learnt: one that fails makes those after it smaller,
also in the next pass, and each that is done makes them larger again.
"""

import trio

from trio_sessions._counters import Counters
from trio_sessions._edge import Edge
from trio_sessions._logging import get_logger
from trio_sessions._settings import Settings
from trio_sessions.errors import RowUnavailable, SessionsError

__all__ = ["Sweeper"]

logger = get_logger("trio_sessions.cleanup")

_SHARE = 0.25  # of cleanup_interval: a backlog must not keep the next pass from its beginning
_SMALLER, _LARGER = 8, 2  # a piece that fails has cost its whole time, so go down quickly


class Sweeper:
    """The sweeps of one registry, from one pass to the next.

    Args:
        edge: the way to the store.
        counters: count the messages that go.
        settings: ``batch_size`` is a piece at most; ``cleanup_interval`` bounds a sweep.
    """

    def __init__(self, edge: Edge, counters: Counters, settings: Settings) -> None:
        self.finished = False
        """The last sweep has left nothing that had expired when it began."""
        self.rows: int | None = None
        """How many rows the store has said that this worker has; None: it has not."""
        self._edge = edge
        self._counters = counters
        self._most = settings.batch_size
        self._limit = settings.batch_size
        self._time = settings.cleanup_interval * _SHARE

    async def sweep(self) -> int:
        """Stamp, and sweep as long as there is time; return how many sessions went.

        It does not raise.
        """
        self.finished, self.rows = False, None
        expired, until = 0, trio.current_time() + self._time
        try:
            while True:
                swept = await self._edge.sweep(limit=self._limit)
                expired += swept.sessions
                self.rows = None if swept.stamped is None else swept.stamped.rows
                self._counters.count_dropped(swept.messages)
                self._limit = min(self._most, self._limit * _LARGER)
                if not swept.more:
                    self.finished = True
                    break
                if trio.current_time() >= until:
                    logger.info("more has expired than there is time for, the next pass goes on")
                    break
        except SessionsError as exc:
            self._counters.count_sweep_failure()
            if not isinstance(exc, RowUnavailable):  # else somebody else is at it
                self._limit = max(1, self._limit // _SMALLER)
            logger.warning("the sweep did not finish, the next pass goes on: %s", exc)
        return expired
