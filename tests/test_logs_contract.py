"""The stores keep the part of the contract that is about the logs of sessions."""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import Shared
from trio.testing import MockClock

from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.errors import RowDoubtful
from trio_sessions.revocation import Revocation
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore, log_conformance
from trio_sessions.types import StoredEntry, Swept
from trio_sessions.writes import Append, Batch, Claim, Committed, Delete, Outcome

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", log_conformance, ids=name)
async def test_our_stores_keep_it(database: Shared, check: Check) -> None:
    assert Part.LOGS in database.make_store().parts
    await check(database.make_store)


@pytest.mark.parametrize("check", log_conformance, ids=name)
async def test_the_memory_store_keeps_it(autojump_clock: MockClock, check: Check) -> None:
    """And so does the fake that wraps it."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))


async def test_a_revocation_takes_the_log_with_it(shared: Shared) -> None:
    """A later session of the id begins with none."""
    async with shared.open() as registry:
        edge = registry._house._edge
        await edge._store.commit(edge.worker, Batch(writes=[_claim("s", 1)]))
        await edge._store.commit(edge.worker, Batch(writes=[Append(session_id="s", event="1")]))
        assert len(await edge.read_log("s", after=0, limit=10, size=100)) == 1
        revoked = await edge.revoke(Revocation(session_ids=["s"], ttl=1e-6), limit=10)
        assert revoked.sessions == 1
        assert await edge.read_log("s", after=0, limit=10, size=100) == []
        answer: Any = None
        while not answer or answer[0].outcome is not Outcome.INSERTED:
            batch = Batch(writes=[_claim("s", 2)])
            answer = (await edge._store.commit(edge.worker, batch)).answers
        assert await edge.read_log("s", after=0, limit=10, size=100) == []


def _claim(session_id: str, generation: int) -> Claim:
    return Claim(session_id=session_id, generation=generation, age=0.0)


# ---- stores that break it ----


class Broken(MemoryStore):
    """Sees each write of a batch before it is carried out."""

    def change(self, worker: Worker, write: Any) -> Any:
        return write

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [self.change(worker, write) for write in batch.writes]
        return await super().commit(worker, replace(batch, writes=writes))


class TakesAway(MemoryStore):
    """Who reads has read for all."""

    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        found = await super().read_log(worker, session_id, after=after, limit=limit, size=size)
        for one in found:
            del self._rows[session_id].log[one.id]
        return found


class ShowsItToItsHolderAlone(MemoryStore):
    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        row = self._rows.get(session_id)
        if row is not None and not row.is_of(worker):
            return []
        return await super().read_log(worker, session_id, after=after, limit=limit, size=size)


class StopsTooLate(MemoryStore):
    """It shows the one of which ``after`` is the id once more."""

    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        return await super().read_log(worker, session_id, after=after - 1, limit=limit, size=size)


class ShowsAll(MemoryStore):
    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        return await super().read_log(worker, session_id, after=after, limit=limit, size=10**9)


class ShowsNothingThatIsLarge(MemoryStore):
    """It never shows the first entry where there is room for less."""

    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        found = await super().read_log(worker, session_id, after=after, limit=limit, size=size)
        return [one for one in found if len(one.event) <= size]


class StoresBackwards(MemoryStore):
    """The last of a batch comes first."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        if not all(isinstance(write, Append) for write in batch.writes):
            return await super().commit(worker, batch)
        backwards = replace(batch, writes=batch.writes[::-1])
        committed = await super().commit(worker, backwards)
        return replace(committed, answers=committed.answers[::-1])


class AppendsToWhatHasEnded(Broken):
    def change(self, worker: Worker, write: Any) -> Any:
        return replace(write, ended=0) if isinstance(write, Append) else write


class AppendsToAnyBirth(Broken):
    def change(self, worker: Worker, write: Any) -> Any:
        return replace(write, born=None) if isinstance(write, Append) else write


class TakesItsOwnEndForEverybodys(Broken):
    """What has ended here is nobody's, whoever holds the row."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        if any(isinstance(one, Append) and one.ended > 2 for one in batch.writes):
            return Committed(answers=[None] * len(batch.writes))
        return await super().commit(worker, batch)


class LosesItInATakeover(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        for _, claim in batch.of(Claim):
            row = self._rows.get(claim.session_id)
            if row is not None and not row.is_of(worker):
                row.log.clear()
        return await super().commit(worker, batch)


class Haunted(MemoryStore):
    """What went with a row comes back with the next one of its id."""

    haunts: type = Delete

    def __init__(self) -> None:
        super().__init__()
        self._logs: dict[str, Any] = {}

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        for write in batch.writes:
            row = self._rows.get(write.session_id)
            if isinstance(write, self.haunts) and row is not None:
                self._logs[write.session_id] = dict(row.log)
        committed = await super().commit(worker, batch)
        for _, claim in batch.of(Claim):
            self._rows[claim.session_id].log.update(self._logs.pop(claim.session_id, {}))
        return committed


class HauntedByClaims(Haunted):
    haunts = Claim


class HauntedByWorkers(Haunted):
    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        self._logs |= {one: dict(row.log) for one, row in self._rows.items()}
        return await super().delete_all(worker, limit=limit)

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        kept = dict(self._logs)
        committed = await super().commit(worker, batch)
        if not kept:
            self._logs.clear()
        return committed


class HauntedBySweeps(HauntedByWorkers):
    async def sweep(self, worker: Worker, **settings: Any) -> Swept:
        before = dict(self._rows)
        swept = await super().sweep(worker, **settings)
        for session_id in before.keys() - self._rows.keys():
            self._logs[session_id] = dict(before[session_id].log)
        return swept


class NumbersAnew(MemoryStore):
    """Ids begin again with each session, as with ``max(id) + 1``."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        if any(isinstance(write, Append) for write in batch.writes):
            largest = max((one for row in self._rows.values() for one in row.log), default=0)
            self._rows._entry_ids.following = largest + 1
        return await super().commit(worker, batch)


class KeepsAll(Broken):
    def change(self, worker: Worker, write: Any) -> Any:
        return replace(write, keep=None) if isinstance(write, Append) else write


class KeepsTheOldest(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(
            worker,
            replace(
                batch,
                writes=[
                    replace(one, keep=None) if isinstance(one, Append) else one
                    for one in batch.writes
                ],
            ),
        )
        for _, one in batch.of(Append):
            if one.keep is not None:
                row = self._rows[one.session_id]
                row.log = dict(itertools.islice(row.log.items(), one.keep))
        return committed


class ExpiresWhatIsYoung(MemoryStore):
    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        return await super().expire_logs(worker, older_than=0.0, limit=limit)


class ExpiresAllAtOnce(MemoryStore):
    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        return await super().expire_logs(worker, older_than=older_than, limit=1000)


class NeverExpires(MemoryStore):
    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        return await super().expire_logs(worker, older_than=1e9, limit=limit)


class IsSureThoughInDoubt(MemoryStore):
    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        if session_id not in self._rows:
            return await self._answer(())
        return await super().read_log(worker, session_id, after=after, limit=limit, size=size)


class SaysNobodyThoughInDoubt(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        answers = [None if isinstance(one, RowDoubtful) else one for one in committed.answers]
        return replace(committed, answers=answers)


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (TakesAway, "entries_are_read_again_and_again"),
        (ShowsItToItsHolderAlone, "entries_are_read_again_and_again"),
        (StopsTooLate, "a_read_goes_on_after_an_id"),
        (ShowsAll, "a_read_goes_on_after_an_id"),
        (ShowsNothingThatIsLarge, "a_read_goes_on_after_an_id"),
        (StoresBackwards, "a_batch_appends_in_its_order"),
        (AppendsToWhatHasEnded, "an_append_is_for_the_session_that_is_meant"),
        (AppendsToAnyBirth, "an_append_is_for_the_session_that_is_meant"),
        (TakesItsOwnEndForEverybodys, "an_append_is_for_the_session_that_is_meant"),
        (LosesItInATakeover, "a_log_stays_when_the_session_is_taken_over"),
        (Haunted, "a_log_goes_with_its_session"),
        (HauntedByClaims, "a_log_goes_with_its_session"),
        (HauntedByWorkers, "a_log_goes_with_its_session"),
        (HauntedBySweeps, "a_sweep_takes_the_log_too"),
        (NumbersAnew, "a_log_goes_with_its_session"),
        (KeepsAll, "the_newest_are_kept"),
        (KeepsTheOldest, "the_newest_are_kept"),
        (ExpiresWhatIsYoung, "old_entries_are_expired"),
        (ExpiresAllAtOnce, "old_entries_are_expired"),
        (NeverExpires, "old_entries_are_expired"),
        (IsSureThoughInDoubt, "in_doubt_only_what_is_there_has_a_log"),
        (SaysNobodyThoughInDoubt, "in_doubt_only_what_is_there_has_a_log"),
    ],
)
async def test_a_broken_store_fails_the_check_of_its_rule(
    autojump_clock: MockClock, broken: type[MemoryStore], rule: str
) -> None:
    store = broken()
    [check] = [one for one in log_conformance if name(one) == rule]
    with pytest.raises(AssertionError):
        await check(lambda: store)
