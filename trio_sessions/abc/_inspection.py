"""The part of a store's contract that is for operators: who holds what."""

import abc

from trio_sessions.abc._stem import Part, Store, Worker
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo

__all__ = ["InspectionStore"]


class InspectionStore(Store):
    """Questions about all workers and all sessions, and what a worker says of itself.

    Questions change nothing. Each answer is one snapshot; moments and ages are by the store's
    clock. A worker is *gone* exactly when `RowStore.sweep` would take its rows now, and *late*
    when it has missed three stamps (`trio_sessions.inspection.state_of`).
    """

    part = Part.INSPECTION

    @abc.abstractmethod
    async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        """Replace what the worker's row says of it; it is no stamp.

        Args:
            worker: whose row.
            data: a JSON object.
            draining: it takes no new sessions.

        Returns:
            Whether it has a row. Without one nothing is done: `WorkerStore.begin` brings the data.
        """

    @abc.abstractmethod
    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        """Return the workers that have a row, the oldest first."""

    @abc.abstractmethod
    async def list_sessions(
        self, worker: Worker, selection: Selection, *, after: str, limit: int
    ) -> list[SessionInfo]:
        """Return sessions by id, in the order in which the store compares ids.

        Args:
            worker: who asks.
            selection: which.
            after: only those with a greater id; ``""``: from the first.
            limit: at most so many.
        """

    @abc.abstractmethod
    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        """Return what is known of a session; None: there is none.

        Raises:
            StoreUnavailable: also if there is none, and the store is in doubt (`WorkerStore`).
        """
