"""A store in the memory of one process, for a single worker and for tests."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from trio_sessions.abc import SessionStore, Worker
from trio_sessions.types import Holder, RowAnswers, RowClaim, Swept

__all__ = ["MemoryStore"]


@dataclass(slots=True, kw_only=True)
class _Row:
    created_at: float
    worker_id: str = ""
    incarnation: str = ""
    generation: int = 0
    owner: str | None = None
    taken_at: float = float("-inf")
    last_accessed: float = float("-inf")

    def is_of(self, worker: Worker) -> bool:
        return (self.worker_id, self.incarnation) == (worker.worker_id, worker.incarnation)


class MemoryStore(SessionStore):
    """Rows in a dictionary. Several registries may share one, as workers share a database.

    Its clock is Trio's, so it follows a mock clock. It belongs to one Trio run at a time;
    in a later run its rows count as never refreshed before that run.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._turn = trio.Lock()  # one operation at a time; others run between two
        self._clock: object = None
        self._vouched_at: float | None = None
        self._unbroken_since = float("-inf")

    async def open(self, worker: Worker) -> None:
        """Make the store ready; see `SessionStore.open`."""
        await trio.lowlevel.checkpoint()
        clock = trio.lowlevel.current_clock()
        if clock is not self._clock:
            self._clock = clock
            self._restart_clock()

    async def close(self, worker: Worker) -> None:
        """Do nothing: the rows stay for the other workers; see `SessionStore.close`."""
        await trio.lowlevel.checkpoint()

    async def _take_turn(self) -> None:
        """Wait for our turn: between two operations the other tasks run."""
        async with self._turn:
            pass

    def _restart_clock(self) -> None:
        """Take up a clock that has nothing to do with the one before."""
        now = trio.current_time()
        for row in self._rows.values():
            row.created_at = row.taken_at = row.last_accessed = now
        self._vouched_at = None
        if self._rows:
            self._unbroken_since = now

    async def write(self, worker: Worker, claims: Sequence[RowClaim]) -> RowAnswers:
        """Write rows; see `SessionStore.write`."""
        asked = trio.current_time()
        await self._take_turn()
        return RowAnswers(
            held=frozenset(
                claim.session_id for claim in claims if self._write(worker, claim, asked)
            )
        )

    def _write(self, worker: Worker, claim: RowClaim, asked: float) -> bool:
        now = trio.current_time()
        row = self._rows.get(claim.session_id)
        if row is None:
            row = self._rows[claim.session_id] = _Row(created_at=now)
        ours = row.is_of(worker)
        taken_at = asked - claim.age
        if not ours and row.taken_at > taken_at:
            return False
        row.worker_id, row.incarnation = worker.worker_id, worker.incarnation
        row.generation = max(row.generation, claim.generation) if ours else claim.generation
        row.taken_at = max(row.taken_at, taken_at)
        row.last_accessed = now
        return True

    def _own(self, worker: Worker, session_ids: Iterable[str]) -> list[tuple[str, _Row]]:
        rows = ((session_id, self._rows.get(session_id)) for session_id in session_ids)
        return [
            (session_id, row) for session_id, row in rows if row is not None and row.is_of(worker)
        ]

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows; see `SessionStore.refresh`."""
        await self._take_turn()
        now = trio.current_time()
        own = self._own(worker, session_ids)
        for _, row in own:
            row.last_accessed = now
        return RowAnswers(held=frozenset(session_id for session_id, _ in own))

    async def delete(self, worker: Worker, session_ids: Sequence[str], *, up_to: int) -> None:
        """Delete rows of removed sessions; see `SessionStore.delete`."""
        await self._take_turn()
        for session_id, row in self._own(worker, session_ids):
            if row.generation <= up_to:
                del self._rows[session_id]

    async def delete_all(self, worker: Worker, *, limit: int) -> int:
        """Delete all rows of this incarnation; see `SessionStore.delete_all`."""
        await self._take_turn()
        own = self._own(worker, list(self._rows))[:limit]
        for session_id, _ in own:
            del self._rows[session_id]
        return len(own)

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Say who holds a session; see `SessionStore.locate`."""
        await self._take_turn()
        row = self._rows.get(session_id)
        if row is None:
            return None
        return Holder(worker_id=row.worker_id, incarnation=row.incarnation)

    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
    ) -> Swept:
        """Vouch, then delete what has expired; see `SessionStore.sweep`."""
        await self._take_turn()
        now = trio.current_time()
        if self._vouched_at is not None and now - self._vouched_at > max_gap:
            self._unbroken_since = now
        self._vouched_at = now
        if now - self._unbroken_since < session_ttl:
            return Swept(sessions=0, messages=0)
        expired = [
            session_id
            for session_id, row in self._rows.items()
            if not row.is_of(worker) and now - row.last_accessed > session_ttl
        ][:limit]
        for session_id in expired:
            del self._rows[session_id]
        return Swept(sessions=len(expired), messages=0)
