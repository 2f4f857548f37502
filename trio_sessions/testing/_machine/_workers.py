"""Real workers beside the model: registries that are opened, crash, and are closed."""

from collections.abc import Callable
from typing import Any

import outcome
import trio

from trio_sessions import SessionRegistry, serve_registry
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.errors import RowUnavailable, StoreUnavailable
from trio_sessions.testing._machine._door import Door, Reach
from trio_sessions.testing._machine._model import Unknown
from trio_sessions.types import Holder
from trio_sessions.writes import Batch, Claim, Delete, Unfinished

__all__ = ["LiveWorker", "Stranger"]

_AGAIN = 0.01  # seconds until a locked row is asked for again


class LiveWorker:
    """A registry with a door of its own to what is shared.

    Args:
        name: its ``worker_id``, another one at each start.
        store: what it shares with the others.
        lateness: seconds by which answers are late where they are.
    """

    def __init__(self, name: str, store: SessionStore, lateness: float) -> None:
        self.name = name
        self.door = Door(store, lateness)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._outcome: outcome.Outcome[None] | None = None
        self._registry: SessionRegistry | None = None

    @property
    def registry(self) -> SessionRegistry:
        """The registry; raises what has ended it, if it has ended."""
        if self._outcome is not None:
            self._outcome.unwrap()
        assert self._registry is not None
        return self._registry

    async def start(self, nursery: trio.Nursery, settings: dict[str, Any]) -> None:
        """Open it."""

        async def serve(*, task_status: trio.TaskStatus[SessionRegistry]) -> None:
            with self._scope:
                await serve_registry(
                    self.door, worker_id=self.name, task_status=task_status, **settings
                )

        async def run(*, task_status: trio.TaskStatus[SessionRegistry]) -> None:
            async def attempt() -> None:
                await serve(task_status=task_status)

            ended = await outcome.acapture(attempt)
            self._ended.set()
            if self._registry is None:
                ended.unwrap()  # it never began: whoever starts it is told
            self._outcome = ended

        self._registry = await nursery.start(run)

    async def close(self) -> None:
        """Leave the block; raise what its end has raised."""
        self._scope.cancel()
        await self._ended.wait()
        if self._outcome is not None:
            self._outcome.unwrap()

    async def crash(self) -> None:
        """End it without a trace in the store."""
        self.door.set_reach(Reach.AWAY)
        await self.close()


class Stranger:
    """A worker that is no registry: it looks at rows, and takes them away."""

    def __init__(self, name: str, make_store: Callable[[], SessionStore]) -> None:
        self._store = Door(make_store(), 0.0)
        self._worker = Worker(worker_id=name, incarnation=name, limiter=trio.CapacityLimiter(1))
        self._generation = 0

    async def open(self) -> None:
        """Open its store."""
        await self._store.open(self._worker)

    async def close(self) -> None:
        """Close its store."""
        await self._store.close(self._worker)

    async def row(self, session_id: str) -> Holder | Unknown | None:
        """Return a session's row, as far as the store can say."""
        try:
            return await self._store.locate(self._worker, session_id)
        except StoreUnavailable:
            return Unknown()

    async def delete_row(self, session_id: str) -> None:
        """Take a session over, and end it."""
        self._generation += 1
        claim = Claim(session_id=session_id, generation=self._generation, age=0.0)
        delete = Delete(session_id=session_id, up_to=self._generation)
        for write in (claim, delete):
            batch = Batch(writes=[write])
            while True:
                [answer] = (await self._store.commit(self._worker, batch)).answers
                if not isinstance(answer, RowUnavailable | Unfinished):
                    break
                await trio.sleep(_AGAIN)
