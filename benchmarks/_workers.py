"""A worker of ours with many connected sessions, whose passes can be timed."""

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import sqlalchemy as sa
import trio

from trio_sessions import CleanupReport, SessionRegistry, SessionStore, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Stamp, Swept

__all__ = ["Cost", "TimedStore", "hold_sessions", "hold_unconfirmed"]

_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a pass, or a part of it, took."""

    seconds: float
    round_trips: int = 0


class TimedStore(DatabaseStore):
    """Notes when the sweep begins, which is when check and refresh have ended.

    Args:
        url: the database.
        count: says how many round trips there have been so far.
    """

    def __init__(self, url: sa.URL, count: Callable[[], int] = lambda: 0) -> None:
        super().__init__(url)
        self._count = count
        self._sweep_began = Cost(seconds=0.0)

    def _so_far(self) -> Cost:
        return Cost(seconds=time.perf_counter(), round_trips=self._count())

    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
        stamp: Stamp | None = None,
    ) -> Swept:
        self._sweep_began = self._so_far()
        return await super().sweep(
            worker,
            session_ttl=session_ttl,
            message_ttl=message_ttl,
            max_gap=max_gap,
            limit=limit,
            stamp=stamp,
        )

    async def time_pass(self, registry: SessionRegistry) -> tuple[Cost, Cost]:
        """Run a pass that must confirm every session; return check + refresh, and the whole."""
        start = self._so_far()
        report: CleanupReport = await registry.cleanup()
        end = self._so_far()
        assert report.refreshed == registry.statistics().sessions, "not every row was confirmed"

        def cost(until: Cost) -> Cost:
            return Cost(
                seconds=until.seconds - start.seconds,
                round_trips=until.round_trips - start.round_trips,
            )

        return cost(self._sweep_began), cost(end)


@contextlib.asynccontextmanager
async def hold_unconfirmed(
    store: SessionStore, sessions: int, *, worker_id: str = "bench"
) -> AsyncIterator[SessionRegistry]:
    """Open a registry and add sessions whose rows are still to be written, all by the next pass.

    Adding them one by one with their rows would take longer than all that is measured.
    """
    faulty = FaultyStore(store)
    opening = open_registry(
        faulty, worker_id=worker_id, session_ttl=2 * _HOUR, cleanup_interval=_HOUR
    )
    async with opening as registry:
        faulty.fail(Fault.FAILS, "Claim")
        logger = logging.getLogger("trio_sessions")
        logger.setLevel(logging.ERROR)  # each is logged as unconfirmed, which is what we want
        for start in range(0, sessions, 1000):
            async with trio.open_nursery() as nursery:
                for number in range(start, min(start + 1000, sessions)):
                    session_id = f"{worker_id}-{number:08}"
                    nursery.start_soon(registry.add_session, session_id, FakeTransport())
        logger.setLevel(logging.NOTSET)
        faulty.heal()
        yield registry


@contextlib.asynccontextmanager
async def hold_sessions(
    store: SessionStore, sessions: int, *, worker_id: str = "bench"
) -> AsyncIterator[SessionRegistry]:
    """Open a registry with sessions whose rows are written."""
    async with hold_unconfirmed(store, sessions, worker_id=worker_id) as registry:
        report = await registry.cleanup()
        assert len(report.restored) == sessions, "not every row was written"
        yield registry
