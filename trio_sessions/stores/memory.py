"""A store in the memory of one process, for a single worker and for tests."""

import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from trio_sessions.abc import Bell, SessionStore, Worker
from trio_sessions.stores._one_run import OneRun
from trio_sessions.types import (
    Capabilities,
    Holder,
    RowAnswers,
    RowClaim,
    Sent,
    StoredMessage,
    Swept,
    Undelivered,
    Wanted,
)

__all__ = ["MemoryStore"]


@dataclass(slots=True, kw_only=True)
class _Row:
    created_at: float
    worker_id: str = ""
    incarnation: str = ""
    generation: int = 0
    owner: str | None = None
    capabilities: Capabilities | None = None
    messages: "dict[int, _Message]" = field(default_factory=dict)
    taken_at: float = float("-inf")
    last_accessed: float = float("-inf")

    def holder(self) -> Holder:
        return Holder(worker_id=self.worker_id, incarnation=self.incarnation, owner=self.owner)

    def is_of(self, worker: Worker) -> bool:
        return (self.worker_id, self.incarnation) == (worker.worker_id, worker.incarnation)


@dataclass(slots=True, kw_only=True)
class _Message:
    payload: str
    stored_at: float


class _Bell:
    """Rung by whoever stores a message for a session of one worker."""

    def __init__(self) -> None:
        self._rung: set[str] = set()
        self._event = trio.Event()

    def ring(self, session_id: str) -> None:
        self._rung.add(session_id)
        self._event.set()

    async def wait(self) -> frozenset[str]:
        await self._event.wait()
        rung, self._rung, self._event = frozenset(self._rung), set(), trio.Event()
        return rung


class _Run:
    """What belongs to the Trio run that has the store open."""

    def __init__(self, ended: "_Run | None") -> None:
        self.turn = trio.Lock()
        """One operation at a time; others run between two."""
        self.bells: dict[str, _Bell] = {}


class MemoryStore(SessionStore):
    """Rows in a dictionary. Several registries may share one, as workers share a database.

    Its clock is Trio's, so it follows a mock clock. It belongs to one Trio run at a time, and
    refuses another one with `StoreInUse`; in a later run its rows count as never refreshed
    before that run. A forked process has a copy of its own.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._opened = OneRun(_Run, "the memory store")
        self._clock: object = None
        self._vouched_at: float | None = None
        self._unbroken_since = float("-inf")
        self._message_ids = itertools.count(1)
        self._sessions: dict[int, str] = {}
        """The session of each message."""

    async def open(self, worker: Worker) -> None:
        """Make the store ready; see `SessionStore.open`.

        Raises:
            StoreInUse: another Trio run has it open.
        """
        await trio.lowlevel.checkpoint()
        self._opened.join(worker)
        clock = trio.lowlevel.current_clock()
        if clock is not self._clock:
            self._clock = clock
            self._restart_clock()

    async def close(self, worker: Worker) -> None:
        """Leave the rows to the other workers; see `SessionStore.close`."""
        await trio.lowlevel.checkpoint()
        self._opened.leave(worker)

    async def _take_turn(self) -> None:
        """Wait for our turn: between two operations the other tasks run."""
        async with self._opened.state.turn:
            pass

    def _restart_clock(self) -> None:
        """Take up a clock that has nothing to do with the one before."""
        now = trio.current_time()
        for row in self._rows.values():
            row.created_at = row.taken_at = row.last_accessed = now
            for message in row.messages.values():
                message.stored_at = now
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
        row.owner = claim.owner or row.owner
        row.capabilities = claim.capabilities or row.capabilities
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

    async def delete(self, worker: Worker, session_ids: Sequence[str], *, up_to: int) -> int:
        """Delete rows of removed sessions; see `SessionStore.delete`."""
        await self._take_turn()
        messages = 0
        for session_id, row in self._own(worker, session_ids):
            if row.generation <= up_to:
                messages += self._remove(session_id)
        return messages

    def _remove(self, session_id: str) -> int:
        """Remove a row and its messages; return how many these were."""
        messages = self._rows.pop(session_id).messages
        for message_id in messages:
            del self._sessions[message_id]
        return len(messages)

    async def delete_all(self, worker: Worker, *, limit: int) -> int:
        """Delete all rows of this incarnation; see `SessionStore.delete_all`."""
        await self._take_turn()
        own = self._own(worker, list(self._rows))[:limit]
        for session_id, _ in own:
            self._remove(session_id)
        return len(own)

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Say who holds a session; see `SessionStore.locate`."""
        await self._take_turn()
        row = self._rows.get(session_id)
        if row is None:
            return None
        return row.holder()

    # ---- owners and capabilities ----

    async def set_owner(self, worker: Worker, session_id: str, owner: str | None) -> bool:
        """Set a session's owner; see `SessionStore.set_owner`."""
        await self._take_turn()
        row = self._rows.get(session_id)
        if row is not None:
            row.owner = owner
        return row is not None

    async def claim_owner(self, worker: Worker, session_id: str, owner: str) -> str | None:
        """Set a session's owner unless it has one; see `SessionStore.claim_owner`."""
        await self._take_turn()
        row = self._rows.get(session_id)
        if row is None:
            return None
        if row.owner is None:
            row.owner = owner
        return row.owner

    async def set_capabilities(
        self, worker: Worker, session_id: str, capabilities: Capabilities
    ) -> bool:
        """Replace a session's capabilities; see `SessionStore.set_capabilities`."""
        await self._take_turn()
        row = self._rows.get(session_id)
        if row is not None:
            row.capabilities = capabilities
        return row is not None

    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's capabilities; see `SessionStore.get_capabilities`."""
        await self._take_turn()
        row = self._rows.get(session_id)
        return None if row is None or row.capabilities is None else row.capabilities.encoded

    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """Return the ids of sessions that can be asked; see `SessionStore`."""
        await self._take_turn()
        return [
            session_id
            for session_id, row in self._rows.items()
            if row.capabilities is not None and row.capabilities.elicitation
        ]

    # ---- messages ----

    async def send(self, worker: Worker, session_id: str, payload: str) -> Sent | None:
        """Store a message for a session; see `SessionStore.send`."""
        await self._take_turn()
        row = self._rows.get(session_id)
        if row is None:
            return None
        return Sent(id=self._store(row, session_id, payload), holder=row.holder())

    async def send_on(self, worker: Worker, messages: Sequence[Undelivered]) -> int:
        """Store messages for sessions that others hold now; see `SessionStore.send_on`."""
        await self._take_turn()
        stored = 0
        for message in messages:
            row = self._rows.get(message.session_id)
            if row is not None and not row.is_of(worker):
                self._store(row, message.session_id, message.payload, message.age)
                stored += 1
        return stored

    def _store(self, row: _Row, session_id: str, payload: str, age: float = 0.0) -> int:
        message_id = next(self._message_ids)
        row.messages[message_id] = _Message(payload=payload, stored_at=trio.current_time() - age)
        self._sessions[message_id] = session_id
        bell = self._opened.state.bells.get(row.incarnation)
        if bell is not None:
            bell.ring(session_id)
        return message_id

    async def waiting(self, worker: Worker) -> list[str]:
        """Return the ids of sessions with messages; see `SessionStore.waiting`."""
        await self._take_turn()
        return [session_id for session_id, row in self._own(worker, self._rows) if row.messages]

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Return stored messages; see `SessionStore.fetch`."""
        await self._take_turn()
        found = {}
        for one in wanted:
            for _, row in self._own(worker, [one.session_id]):
                found[one.session_id] = list(self._fetch(row, one))
        return found

    @staticmethod
    def _fetch(row: _Row, wanted: Wanted) -> Iterator[StoredMessage]:
        now, size = trio.current_time(), 0
        fresh = (one for one in row.messages.items() if one[0] not in wanted.held)
        for message_id, message in itertools.islice(fresh, wanted.count):
            if size >= wanted.size:
                return
            size += len(message.payload.encode())
            age = now - message.stored_at
            yield StoredMessage(id=message_id, payload=message.payload, age=age)

    async def acknowledge(self, worker: Worker, message_ids: Sequence[int]) -> None:
        """Delete messages; see `SessionStore.acknowledge`."""
        await self._take_turn()
        for message_id in message_ids:
            for _, row in self._own(worker, [self._sessions.get(message_id, "")]):
                row.messages.pop(message_id, None)
                self._sessions.pop(message_id)

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        """Return what tells of messages; see `SessionStore.open_bell`."""
        await trio.lowlevel.checkpoint()
        bells = self._opened.state.bells
        bell = bells[worker.incarnation] = _Bell()
        try:
            yield bell
        finally:
            del bells[worker.incarnation]

    # ---- the sweep ----

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
        expired, messages = [], 0
        if now - self._unbroken_since >= session_ttl:
            expired = [
                session_id
                for session_id, row in self._rows.items()
                if not row.is_of(worker) and now - row.last_accessed > session_ttl
            ][:limit]
        for session_id in expired:
            messages += self._remove(session_id)
        stale = [
            (row, message_id)
            for row in self._rows.values()
            for message_id, message in row.messages.items()
            if now - message.stored_at > message_ttl
        ][:limit]
        for row, message_id in stale:
            del row.messages[message_id], self._sessions[message_id]
        return Swept(sessions=len(expired), messages=messages + len(stale))
