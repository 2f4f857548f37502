"""The way to compare with: gather and semaphore, one session per thread.

Written from the public description of such a clean-up: connection checks one after the
other; then `asyncio.gather` over all sessions, a semaphore, and for each session a thread
that selects its row, updates it and commits.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from trio_sessions.stores.database import metadata

__all__ = ["GatherWay"]

_MAX_CONCURRENT = 20


class _Connected:
    async def is_connected(self) -> bool:
        return True


class GatherWay:
    """The connected sessions of one worker, refreshed the other way.

    Args:
        url: the database, with the tables of this package.
        session_ids: rows that are there.
        threads: the size of asyncio's thread pool; None: asyncio's default, which
            depends on the number of processors and not on the semaphore.
    """

    def __init__(self, url: sa.URL, session_ids: Sequence[str], threads: int | None) -> None:
        # It checks each connection when taking it from the pool, as gateways do by default.
        self._engine = sa.create_engine(url, pool_size=_MAX_CONCURRENT, pool_pre_ping=True)
        self._rows = metadata().tables["trio_sessions"]
        self._transports = {session_id: _Connected() for session_id in session_ids}
        self._threads = threads

    def close(self) -> None:
        self._engine.dispose()

    def run_pass(self) -> int:
        """Check and refresh everything in an event loop of its own; return how many rows."""
        return asyncio.run(self._pass())

    async def _pass(self) -> int:
        if self._threads is not None:
            pool = ThreadPoolExecutor(self._threads)
            asyncio.get_running_loop().set_default_executor(pool)
        connected = [
            session_id
            for session_id, transport in self._transports.items()
            if await transport.is_connected()
        ]
        semaphore = asyncio.Semaphore(_MAX_CONCURRENT)

        async def bounded_refresh(session_id: str) -> bool:
            async with semaphore:
                return await asyncio.to_thread(self._refresh, session_id)

        results = await asyncio.gather(
            *(bounded_refresh(session_id) for session_id in connected), return_exceptions=True
        )
        return sum(result is True for result in results)

    def _refresh(self, session_id: str) -> bool:
        row = self._rows.c
        with self._engine.connect() as connection:
            found = connection.execute(
                sa.select(row.session_id).where(row.session_id == session_id)
            ).first()
            if found is None:
                return False
            connection.execute(
                sa.update(self._rows)
                .where(row.session_id == session_id)
                .values(last_accessed=sa.func.now())
            )
            connection.commit()
            return True
