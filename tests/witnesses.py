"""Workers as a store sees them: each with a row, and with what was acknowledged to it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

import trio

from trio_sessions.abc import SessionStore, Worker
from trio_sessions.types import Presence, Stamp, Swept
from trio_sessions.writes import Batch, Claim, Committed, Write

__all__ = ["Witnessed", "open_witnessed"]

_numbers = count(1)


class Witnessed:
    """One worker with its store.

    Attributes:
        known: the highest stamp that was acknowledged to it.
    """

    def __init__(self, store: SessionStore, worker: Worker, session_ttl: float) -> None:
        self.store = store
        self.worker = worker
        self.session_ttl = session_ttl
        self.known = Stamp(history="", beat=0)

    async def begin(self, *, rewound: bool = False, cleanup_interval: float | None = None) -> bool:
        """Begin a history; say whether the lease was lost."""
        presence = Presence(
            session_ttl=self.session_ttl,
            cleanup_interval=cleanup_interval or self.session_ttl / 2,
            stamp_interval=5.0,
            version="0",
        )
        after = (self.known.history or "another") if rewound else None
        history = f"history-{next(_numbers)}"
        begun = await self.store.begin(self.worker, history, presence, after=after)
        self.known = Stamp(history=history, beat=1)
        return begun.was_swept

    async def commit(self, *writes: Write[object], not_after: float | None = None) -> Committed:
        """Commit a batch, and keep the stamp that it has set."""
        batch = Batch(writes=writes, stamp=self.known, not_after=not_after)
        committed = await self.store.commit(self.worker, batch)
        self.known = committed.stamp or self.known
        return committed

    async def claim(self, session_id: str) -> Committed:
        """Claim a session."""
        return await self.commit(Claim(session_id=session_id, generation=1, age=0.0))

    async def stamp(self, *, passed: bool = False) -> bool:
        """Stamp; say whether the store had the stamp before."""
        stamped = await self.store.stamp(self.worker, self.known, passed=passed)
        self.known = stamped.stamp or self.known
        return stamped.stamp is not None

    async def sweep(self, *, limit: int = 100) -> Swept:
        """Sweep, and keep the stamp that it has set."""
        swept = await self.store.sweep(
            self.worker,
            session_ttl=self.session_ttl,
            message_ttl=86400.0,
            max_gap=self.session_ttl * 0.4,
            limit=limit,
            stamp=self.known,
        )
        assert swept.stamped is not None
        self.known = swept.stamped.stamp or self.known
        return swept

    async def seen(self) -> Stamp | None:
        """Return what a refresh shows."""
        return (await self.store.refresh(self.worker, ["nobody"])).stamp


@asynccontextmanager
async def open_witnessed(
    make_store: Callable[[], SessionStore], name: str, *, session_ttl: float = 600.0
) -> AsyncIterator[Witnessed]:
    """Open a store for a worker, and begin a history."""
    worker = Worker(
        worker_id=name,
        incarnation=f"{name}-{next(_numbers)}",
        limiter=trio.CapacityLimiter(5),
    )
    store = make_store()
    await store.open(worker)
    try:
        one = Witnessed(store, worker, session_ttl)
        await one.begin()
        yield one
    finally:
        with trio.CancelScope(shield=True):
            await store.close(worker)
