"""A store that fails when a test wants it to."""

import enum
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from trio_sessions.abc import SessionStore, Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.types import Holder, RowAnswers, RowClaim, Swept

__all__ = ["Fault", "FaultyStore"]

T = TypeVar("T")


class Fault(enum.Enum):
    """What becomes of an operation."""

    NONE = "none"
    FAILS = "fails"
    """It raises, and nothing was done: the database is away."""
    HANGS = "hangs"
    """It never ends, and nothing was done."""
    COMMITS_THEN_FAILS = "commits then fails"
    """It is done, and then raises: the answer was lost."""


class FaultyStore(SessionStore):
    """Wraps a store; one for each worker makes a fault that only this worker sees.

    Args:
        store: the store that does the work.

    Attributes:
        fault: what becomes of operations from now on.
        operations: the operations that ``fault`` applies to, by the names of the
            methods of `SessionStore`; None: all of them.
        error: what a failing operation raises.
        calls: how often each operation was asked for.
        faults: how often each operation ran into a fault; assert on it, so that a test
            has seen its fault happen.
    """

    def __init__(self, store: SessionStore) -> None:
        self.fault = Fault.NONE
        self.operations: frozenset[str] | None = None
        self.error: Exception = StoreUnavailable("the faulty store is away")
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._store = store

    def fail(self, fault: Fault = Fault.FAILS, *operations: str) -> None:
        """Let operations run into ``fault``: those named, or all of them."""
        unknown = set(operations) - SessionStore.__abstractmethods__
        if unknown:
            raise ValueError(f"operations must be methods of SessionStore, not {sorted(unknown)}")
        self.fault = fault
        self.operations = frozenset(operations) or None

    def heal(self) -> None:
        """Let every operation through again."""
        self.fault, self.operations = Fault.NONE, None

    async def _through(self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        self.calls[name] += 1
        concerned = self.operations is None or name in self.operations
        fault = self.fault if concerned else Fault.NONE
        if fault is Fault.NONE:
            return await operation()
        self.faults[name] += 1
        if fault is Fault.COMMITS_THEN_FAILS:
            await operation()
        elif fault is Fault.HANGS:
            await trio.sleep_forever()
        else:
            await trio.lowlevel.checkpoint()
        raise self.error

    async def open(self, worker: Worker) -> None:
        """Open the store, or fail; see `SessionStore.open`."""
        await self._through("open", lambda: self._store.open(worker))

    async def close(self, worker: Worker) -> None:
        """Close the store, always: a fault must not leak what lies below."""
        self.calls["close"] += 1
        await self._store.close(worker)

    async def write(self, worker: Worker, claims: Sequence[RowClaim]) -> RowAnswers:
        """Write rows, or fail; see `SessionStore.write`."""
        return await self._through("write", lambda: self._store.write(worker, claims))

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows, or fail; see `SessionStore.refresh`."""
        return await self._through("refresh", lambda: self._store.refresh(worker, session_ids))

    async def delete(self, worker: Worker, session_ids: Sequence[str], *, up_to: int) -> None:
        """Delete rows, or fail; see `SessionStore.delete`."""
        await self._through("delete", lambda: self._store.delete(worker, session_ids, up_to=up_to))

    async def delete_all(self, worker: Worker, *, limit: int) -> int:
        """Delete all rows, or fail; see `SessionStore.delete_all`."""
        return await self._through(
            "delete_all", lambda: self._store.delete_all(worker, limit=limit)
        )

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Say who holds a session, or fail; see `SessionStore.locate`."""
        return await self._through("locate", lambda: self._store.locate(worker, session_id))

    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
    ) -> Swept:
        """Vouch and sweep, or fail; see `SessionStore.sweep`."""
        return await self._through(
            "sweep",
            lambda: self._store.sweep(
                worker,
                session_ttl=session_ttl,
                message_ttl=message_ttl,
                max_gap=max_gap,
                limit=limit,
            ),
        )
