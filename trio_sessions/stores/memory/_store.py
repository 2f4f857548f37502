"""A store in the memory of one process, for a single worker and for tests.

Over 400 lines: one short method for each operation of the contract.
"""

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from trio_sessions._json import decode_object
from trio_sessions.abc import (
    Bell,
    DataStore,
    InspectionStore,
    LimitStore,
    LogStore,
    MailStore,
    RevocationStore,
    SessionStore,
    Worker,
)
from trio_sessions.abc._mail import MAIL
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.errors import RowUnavailable
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.stores._crowds import Crowds
from trio_sessions.stores.memory._bells import MemoryBell
from trio_sessions.stores.memory._core import MemoryCore
from trio_sessions.stores.memory._inspection import inform, page
from trio_sessions.stores.memory._row import Row
from trio_sessions.types import (
    Begun,
    Holder,
    Presence,
    RowAnswers,
    Sent,
    Stamp,
    Stamped,
    StoredEntry,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import Answer, Batch, Committed, Post, Verdict, Write

__all__ = ["MemoryStore"]


class MemoryStore(
    MemoryCore,
    SessionStore,
    InspectionStore,
    RevocationStore,
    DataStore,
    LimitStore,
    MailStore,
    LogStore,
):
    """Rows in a dictionary. Several registries may share one, as workers share a database.

    Its clock is Trio's, so it follows a mock clock. It belongs to one Trio run at a time, and
    refuses another one with `StoreInUse`; in a later run its rows count as never refreshed
    before that run. A forked process has a copy of its own.
    """

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        """Carry out writes; see `Store.commit`."""
        await self._begin()
        return await self._answer(self._commit(worker, batch))

    def commit_at_once(self, worker: Worker, batch: Batch) -> Committed | None:
        """Carry out writes; see `Store.commit_at_once`. None: a subclass commits in its own way."""
        is_overridden = type(self).commit is not MemoryStore.commit
        return None if is_overridden else self._commit(worker, batch)

    def _commit(self, worker: Worker, batch: Batch) -> Committed:
        bells, now = self._opened.state, self._now()
        if batch.not_after is not None and now > batch.not_after:
            return Committed(answers=(), verdict=Verdict.LATE, clock=now)
        stamp: Stamp | None = None
        if batch.stamp is not None:
            stamp = self._workers.stamp(worker, batch.stamp, now)
            self._acknowledged.note(worker, stamp)
            if stamp is None:
                return Committed(answers=(), verdict=Verdict.FORGOTTEN, clock=now)
        in_doubt = self._is_in_doubt(worker, now)
        crowds = self._rows.crowds(
            worker, batch, lambda incarnation: self._workers.has_stamped(incarnation, now)
        )
        answers = list[Answer]()
        for write in batch.writes:
            answer = self._carry_out(worker, write, now, in_doubt=in_doubt, crowds=crowds)
            if isinstance(answer, Sent):
                bells.ring(answer.holder.incarnation, write.session_id)
            answers.append(answer)
        return Committed(answers=answers, stamp=stamp, clock=now)

    def _carry_out(
        self,
        worker: Worker,
        write: Write[object],
        now: float,
        *,
        in_doubt: bool,
        crowds: Crowds | None,
    ) -> Answer:
        if not isinstance(write, Post):
            return self._rows.carry_out(worker, write, now, in_doubt=in_doubt, crowds=crowds)
        recipients = self._mail.post(write, self._workers, now)
        if isinstance(recipients, RowUnavailable):
            return recipients
        for incarnation in recipients:
            self._opened.state.ring(incarnation, MAIL)
        return len(recipients)

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows; see `RowStore.refresh`."""
        await self._begin()
        now = self._now()
        own = self._rows.own(worker, session_ids)
        for row in own.values():
            row.last_accessed = now
            row.taken_at = min(row.taken_at, now)
        held = frozenset(own)
        rest = frozenset() if len(held) == len(session_ids) else frozenset(session_ids) - held
        others = rest & self._rows.keys()
        return await self._answer(
            RowAnswers(
                held=held,
                taken_over=others,
                taken_ago={one: now - self._rows[one].taken_at for one in others},
                stamp=self._workers.seen(worker),
            )
        )

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        """Delete rows of this incarnation; see `SessionStore.delete_all`."""
        await self._begin()
        self._acknowledged.forget(worker)
        own = [one for one, row in self._rows.items() if row.is_of(worker)][:limit]
        sessions, messages = self._rows.remove_some(own, limit)
        more = (len(own) >= limit or messages >= limit) and sessions + messages > 0
        if not more:
            self._workers.remove(worker)
            self._mail.forget(worker.incarnation)
        return await self._answer(Swept(sessions=sessions, messages=messages, more=more))

    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        """Return rows of this incarnation; see `RowStore.own_rows`."""
        await self._begin()
        own = sorted(
            (session_id, row.generation)
            for session_id, row in self._rows.items()
            if session_id > after and row.is_of(worker)
        )
        return await self._answer(own[:limit])

    # ---- workers ----

    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        """Write the worker's row anew; see `WorkerStore.begin`."""
        await self._begin()
        now = self._now()
        self._acknowledged.begin(worker, history)
        return await self._answer(self._workers.begin(worker, history, presence, now, after=after))

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        """Stamp the worker's row, and vouch; see `WorkerStore.stamp`."""
        await self._begin()
        now = self._now()
        stamped = self._stamp(worker, stamp, now, passed=passed)
        if stamped.stamp is not None:
            ttl = self._workers.longest_ttl(0.0)
            self._workers.vouch(now, ttl, ttl * MAX_GAP)
        return await self._answer(stamped)

    def _stamp(self, worker: Worker, stamp: Stamp, now: float, *, passed: bool) -> Stamped:
        new = self._workers.stamp(worker, stamp, now, passed=passed)
        self._acknowledged.note(worker, new)
        rows = self._rows.count(worker) if passed else None
        return Stamped(stamp=new, rows=rows, clock=now)

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Say who holds a session; see `SessionStore.locate`."""
        await self._begin()
        row = self._rows.get(session_id)
        if row is None and self._is_in_doubt(worker, self._now()):
            await self._refuse_in_doubt()
        return await self._answer(None if row is None else row.holder())

    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        """Mark ids, and delete their rows; see `RevocationStore.revoke`."""
        await self._begin()
        now = self._now()
        self._rows.marks.purge(now)
        if revocation.session_ids is not None:
            ids, more = list(dict.fromkeys(revocation.session_ids)), False
        else:
            assert revocation.selection is not None
            chosen = page(self._rows, revocation.selection, now, after="", limit=limit)
            ids = [session_id for session_id, _ in chosen]
            more = len(ids) >= limit
        gone = 0
        for session_id in ids:
            self._rows.marks.mark(session_id, now, revocation.ttl)
            gone += self._rows.take(session_id) is not None
        return await self._answer(Revoked(sessions=gone, more=more))

    async def revocations(self, worker: Worker, *, within: float) -> list[Mark]:
        """Return ids that were marked lately; see `RevocationStore.revocations`."""
        await self._begin()
        return await self._answer(self._rows.marks.fresh(self._now(), within))

    # ---- owners and capabilities ----

    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's capabilities; see `SessionStore.get_capabilities`."""
        await self._begin()
        row = self._rows.get(session_id)
        if row is None and self._is_in_doubt(worker, self._now()):
            await self._refuse_in_doubt()
        capabilities = None if row is None else row.capabilities
        return await self._answer(None if capabilities is None else capabilities.encoded)

    async def get_data(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's data; see `DataStore.get_data`."""
        await self._begin()
        row = self._rows.get(session_id)
        if row is None and self._is_in_doubt(worker, self._now()):
            await self._refuse_in_doubt()
        return await self._answer(None if row is None else row.data)

    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """Return the ids of sessions that can be asked; see `SessionStore`."""
        await self._begin()
        if self._is_in_doubt(worker, self._now()):
            await self._refuse_in_doubt()
        return await self._answer(
            [
                session_id
                for session_id, row in self._rows.items()
                if row.capabilities is not None and row.capabilities.elicitation
            ]
        )

    # ---- for operators ----

    async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        """Replace what the worker says of itself; see `InspectionStore.announce`."""
        await self._begin()
        return await self._answer(self._workers.announce(worker, data=data, draining=draining))

    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        """Return the workers; see `InspectionStore.list_workers`."""
        await self._begin()
        sessions = Counter(row.incarnation for row in self._rows.values())
        return await self._answer(self._workers.list(self._now(), sessions, self._moment))

    async def list_sessions(
        self, worker: Worker, selection: Selection, *, after: str, limit: int
    ) -> list[SessionInfo]:
        """Return sessions by id; see `InspectionStore.list_sessions`."""
        await self._begin()
        now = self._now()
        found = page(self._rows, selection, now, after=after, limit=limit)
        return await self._answer([self._inform(one, row, now) for one, row in found])

    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        """Return what is known of a session; see `InspectionStore.describe`."""
        await self._begin()
        row = self._rows.get(session_id)
        if row is None and self._is_in_doubt(worker, self._now()):
            await self._refuse_in_doubt()
        if row is None:
            return await self._answer(None)
        info = self._inform(session_id, row, self._now())
        return await self._answer(replace(info, data=decode_object(row.data)))

    def _inform(self, session_id: str, row: Row, now: float) -> SessionInfo:
        return inform(session_id, row, self._workers, now, self._moment)

    # ---- logs ----

    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        """Return entries of a session's log; see `LogStore.read_log`."""
        await self._begin()
        row, now = self._rows.get(session_id), self._now()
        if row is None and self._is_in_doubt(worker, now):
            await self._refuse_in_doubt()
        found = () if row is None else row.read_log(now, after=after, limit=limit, size=size)
        return await self._answer(list(found))

    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Delete old entries of logs; see `LogStore.expire_logs`."""
        await self._begin()
        return await self._answer(self._rows.expire_logs(self._now() - older_than, limit))

    # ---- messages ----

    async def waiting(self, worker: Worker) -> list[str]:
        """Return the ids of sessions with messages; see `SessionStore.waiting`."""
        await self._begin()
        own = self._rows.own(worker, self._rows)
        return await self._answer([session_id for session_id, row in own.items() if row.messages])

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Return stored messages; see `SessionStore.fetch`."""
        await self._begin()
        found, now = {}, self._now()
        for one in wanted:
            for row in self._rows.own(worker, [one.session_id]).values():
                found[one.session_id] = list(row.fetch(one, now))
        return await self._answer(found)

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        """Return what tells of messages; see `SessionStore.open_bell`."""
        await trio.lowlevel.checkpoint()
        bells = self._opened.state
        bell = bells[worker.incarnation] = MemoryBell()
        try:
            yield bell
        finally:
            del bells[worker.incarnation]

    # ---- mail ----

    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        """Take letters away; see `MailStore.collect`."""
        await self._begin()
        return await self._answer(self._mail.collect(worker.incarnation, limit, size))

    async def listen(self, worker: Worker, topics: Sequence[str]) -> None:
        """Add topics; see `MailStore.listen`."""
        await self._begin()
        self._mail.listen(worker.incarnation, topics)
        await self._answer(None)

    async def unlisten(self, worker: Worker, topics: Sequence[str]) -> None:
        """Remove topics; see `MailStore.unlisten`."""
        await self._begin()
        self._mail.unlisten(worker.incarnation, topics)
        await self._answer(None)

    async def living(self, worker: Worker) -> frozenset[str]:
        """Say who can get letters; see `MailStore.living`."""
        await self._begin()
        return await self._answer(self._workers.living(self._now()))

    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Delete old letters; see `MailStore.expire_mail`."""
        await self._begin()
        expired = self._mail.expire(self._workers, self._now(), older_than, limit)
        return await self._answer(expired)

    # ---- the sweep ----

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
        """Stamp, vouch, then delete what has expired; see `SessionStore.sweep`."""
        await self._begin()
        now = self._now()
        stamped = None if stamp is None else self._stamp(worker, stamp, now, passed=True)
        if stamped is not None and stamped.stamp is None:
            return await self._answer(Swept(sessions=0, messages=0, more=False, stamped=stamped))
        workers = self._workers
        workers.vouch(now, session_ttl, max_gap)
        workers.set_right(now)
        expired = (
            session_id
            for session_id, row in self._rows.of_others(worker)
            if workers.has_expired(row.incarnation, row.last_accessed, now, session_ttl)
        )
        if limit:
            self._rows.set_right(now)
        found = list(itertools.islice(expired, limit))
        sessions, messages = self._rows.remove_some(found, limit)
        messages += self._rows.drop_older(now - message_ttl, limit - messages)
        lapsed = set(workers.lapsed(now)) - {worker.incarnation} if limit else set[str]()
        if lapsed:
            lapsed -= {row.incarnation for row in self._rows.values()}
        if limit:
            workers.sweep(lapsed, now)
            for incarnation in lapsed:
                self._mail.forget(incarnation)
        more = (len(found) >= limit or messages >= limit) and sessions + messages > 0
        return await self._answer(
            Swept(sessions=sessions, messages=messages, more=more, stamped=stamped)
        )
