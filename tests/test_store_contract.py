"""Every store keeps the contract, and so does the fake that wraps one."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from conftest import Shared
from trio.testing import MockClock

from trio_sessions import StoreUnavailable
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault, FaultyStore, store_conformance
from trio_sessions.types import Begun, Presence, RowAnswers, Stamp, Stamped, Swept
from trio_sessions.writes import (
    Acknowledge,
    Answer,
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Committed,
    Delete,
    Outcome,
    Send,
    SetCapabilities,
    SetOwner,
    Write,
)

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", store_conformance, ids=name)
async def test_our_stores_keep_the_contract(database: Shared, check: Check) -> None:
    """On SQLite and on PostgreSQL alike; the one in memory has a clock that jumps, below."""
    await check(database.make_store)


@pytest.mark.parametrize("check", store_conformance, ids=name)
async def test_the_memory_store_keeps_the_contract(autojump_clock: MockClock, check: Check) -> None:
    """It follows Trio's clock, and so nobody waits for a lease to run out."""
    store = MemoryStore()
    await check(lambda: store)


@pytest.mark.parametrize("check", store_conformance, ids=name)
async def test_a_faulty_store_without_a_fault_keeps_the_contract(
    autojump_clock: MockClock, check: Check
) -> None:
    """The fake is a verified fake."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))


class BelievesEverything(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        await super().refresh(worker, session_ids)
        return RowAnswers(held=frozenset(session_ids))


class TellsNoTakeoverFromAbsence(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        answers = await super().refresh(worker, session_ids)
        return RowAnswers(held=answers.held)


class TakesAbsenceForTakeover(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        held = (await super().refresh(worker, session_ids)).held
        return RowAnswers(held=held, taken_over=frozenset(session_ids) - held)


class Changes(MemoryStore):
    """Carries out other writes than it was asked for."""

    kind: type[Write[Any]]
    changes: Mapping[str, Any]

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [
            replace(write, **self.changes) if isinstance(write, self.kind) else write
            for write in batch.writes
        ]
        return await super().commit(worker, replace(batch, writes=writes))


def changing(kind: type[Write[Any]], **changes: Any) -> type[MemoryStore]:
    name = f"{kind.__name__}With{''.join(changes).title()}"
    return type(name, (Changes,), {"kind": kind, "changes": changes})


class KnowsNoIncarnation(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        return await super().commit(replace(worker, incarnation=""), batch)

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        return await super().refresh(replace(worker, incarnation=""), session_ids)

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        return await super().delete_all(replace(worker, incarnation=""), limit=limit)


class DeletesWhatOthersHold(MemoryStore):
    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        for row in self._rows.values():
            row.worker_id, row.incarnation = worker.worker_id, worker.incarnation
        return await super().delete_all(worker, limit=limit)


class Confuses(MemoryStore):
    """Changes what it answers to a claim."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        answers = [self.confuse(one) for one in committed.answers]
        return replace(committed, answers=answers)

    def confuse(self, answer: Answer) -> Answer:
        raise NotImplementedError


class KnowsNoTakeover(Confuses):
    def confuse(self, answer: Answer) -> Answer:
        if isinstance(answer, Claimed) and answer.outcome is Outcome.TAKEN_OVER:
            return replace(answer, outcome=Outcome.KEPT)
        return answer


class KnowsNoBirth(Confuses):
    def confuse(self, answer: Answer) -> Answer:
        return replace(answer, born="") if isinstance(answer, Claimed) else answer


class GivesBirthAtEachTakeover(Confuses):
    def confuse(self, answer: Answer) -> Answer:
        if isinstance(answer, Claimed) and answer.outcome is Outcome.TAKEN_OVER:
            return replace(answer, born=f"{answer.born}, {answer.holder.worker_id}")
        return answer


class CountsNoMessages(Confuses):
    def confuse(self, answer: Answer) -> Answer:
        return replace(answer, dropped=0) if isinstance(answer, Claimed) else answer


class ShufflesBatches(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        backwards = await super().commit(worker, replace(batch, writes=batch.writes[::-1]))
        return replace(backwards, answers=backwards.answers[::-1])


class ShufflesAnswers(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        return replace(committed, answers=committed.answers[::-1])


class GivesNoGrace(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        self._workers._vouched_at = None
        return await super().sweep(worker, **durations)


class SweepsItsOwn(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        return await super().sweep(replace(worker, incarnation="nobody"), **durations)


class SweepsTooSoon(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        return await super().sweep(worker, **{**durations, "session_ttl": 1e-6})


class SweepsAllAtOnce(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        return await super().sweep(worker, **{**durations, "limit": 1000})


class LeavesAllAtOnce(MemoryStore):
    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        return await super().delete_all(worker, limit=1000)


class DropsNoMessages(MemoryStore):
    """Forgets what there was of an ended session, and says so of the next one."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        for write in batch.writes:
            row = self._rows.get(write.session_id)
            if row is not None and isinstance(write, Claim | Delete):
                row.messages.clear()
        return await super().commit(worker, batch)


class DoesNotWait(MemoryStore):
    async def _begin(self) -> Any:
        return self._opened.state

    @staticmethod
    async def _answer(answer: Any) -> Any:
        return answer


# ---- workers ----


class KeepsNoStamp(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        return await super().commit(worker, replace(batch, stamp=None))


class StampsWithARefresh(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        answers = await super().refresh(worker, session_ids)
        if answers.stamp is None:
            return answers
        stamped = await self.stamp(worker, answers.stamp, passed=False)
        return replace(answers, stamp=stamped.stamp)


class ShowsNoStamp(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        return replace(await super().refresh(worker, session_ids), stamp=None)


class CatchesUp(MemoryStore):
    """Sets a stamp that is higher than the one that is named, whatever there is."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        row = self._workers._rows.get(worker.incarnation)
        if row is not None and batch.stamp is not None:
            row.stamp = batch.stamp
        return await super().commit(worker, batch)


class TakesBeatsFromTheWorker(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        row = self._workers._rows.get(worker.incarnation)
        if row is None or committed.stamp is None or batch.stamp is None:
            return committed
        row.stamp = replace(batch.stamp, beat=batch.stamp.beat + 1)
        return replace(committed, stamp=row.stamp)


class IsNeverLate(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        return await super().commit(worker, replace(batch, not_after=None))


class LeavesItsRow(MemoryStore):
    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        row = self._workers._rows.get(worker.incarnation)
        swept = await super().delete_all(worker, limit=limit)
        if row is not None:
            self._workers._rows[worker.incarnation] = row
        return swept


class KnowsNoLease(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        for row in self._workers._rows.values():
            row.stamped_at = row.passed_at = float("-inf")
        return await super().sweep(worker, **durations)


class KnowsNoEndOfPasses(MemoryStore):
    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        return await super().stamp(worker, stamp, passed=True)


class KnowsOneTtl(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        for row in self._workers._rows.values():
            row.presence = replace(row.presence, session_ttl=durations["session_ttl"])
        return await super().sweep(worker, **durations)


class ForgetsWhoHasGone(MemoryStore):
    async def begin(self, worker: Worker, *args: Any, **details: Any) -> Begun:
        self._workers._gone.clear()
        return await super().begin(worker, *args, **details)


class ForgetsWhichHistoryHasGone(MemoryStore):
    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        gone = self._workers._gone
        if worker.incarnation in gone and after is not None:
            gone[worker.incarnation] = after, trio.current_time()
        return await super().begin(worker, history, presence, after=after)


class NeverDoubts(MemoryStore):
    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        return await super().begin(worker, history, presence, after=None)


class NeverMissesItsRow(MemoryStore):
    def _is_in_doubt(self, worker: Worker, now: float) -> bool:
        return self._workers.is_in_doubt(now)


MUTANTS = [
    (KeepsNoStamp, "each_batch_and_each_stamp_counts_one_beat"),
    (KeepsNoStamp, "what_the_store_does_not_know_does_nothing"),
    (StampsWithARefresh, "a_refresh_reads_the_stamp_and_sets_none"),
    (ShowsNoStamp, "a_refresh_reads_the_stamp_and_sets_none"),
    (CatchesUp, "what_the_store_does_not_know_does_nothing"),
    (CatchesUp, "a_new_history_ends_the_one_before"),
    (TakesBeatsFromTheWorker, "each_batch_and_each_stamp_counts_one_beat"),
    (TakesBeatsFromTheWorker, "stamps_at_once_have_each_a_beat_of_their_own"),
    (IsNeverLate, "a_late_batch_does_nothing"),
    (LeavesItsRow, "a_worker_that_leaves_takes_its_row_along"),
    (KnowsNoLease, "stamps_keep_rows_that_are_not_refreshed"),
    (ForgetsWhichHistoryHasGone, "stamps_keep_rows_that_are_not_refreshed"),
    (ForgetsWhoHasGone, "stamps_keep_rows_that_are_not_refreshed"),
    (KnowsOneTtl, "a_lease_is_as_long_as_its_holder_says"),
    (NeverMissesItsRow, "a_worker_without_a_row_is_in_doubt"),
    (NeverDoubts, "after_a_rewind_what_is_not_there_is_unknown"),
    (BelievesEverything, "what_is_not_there_is_in_no_field"),
    (TellsNoTakeoverFromAbsence, "what_is_not_there_is_in_no_field"),
    (TellsNoTakeoverFromAbsence, "a_row_belongs_to_one_incarnation"),
    (TakesAbsenceForTakeover, "what_is_not_there_is_in_no_field"),
    (BelievesEverything, "the_newest_claim_takes_over"),
    (changing(Claim, age=0.0), "an_older_claim_does_not_take_over"),
    (changing(Claim, age=0.0), "a_claim_says_what_it_found"),
    (changing(Claim, ended=0), "what_an_ended_session_left_is_replaced"),
    (changing(Claim, ended=0), "a_new_session_has_no_messages"),
    (changing(Claim, owner=None), "a_claim_brings_and_is_told_what_was_said"),
    (changing(Claim, owner="x"), "an_owner_is_claimed_once"),
    (changing(Claim, capabilities=None), "capabilities_are_replaced"),
    (changing(SetOwner, ended=0), "what_an_ended_session_left_is_no_session"),
    (changing(ClaimOwner, ended=0), "what_an_ended_session_left_is_no_session"),
    (changing(SetCapabilities, ended=0), "what_an_ended_session_left_is_no_session"),
    (changing(Send, ended=0), "what_an_ended_session_left_is_no_session"),
    (changing(Send, born=None), "a_message_may_be_for_one_birth_only"),
    (changing(Send, elsewhere=False), "a_message_may_be_for_the_next_holder_only"),
    (changing(Send, age=0.0), "a_message_may_be_for_the_next_holder_only"),
    (changing(Acknowledge, message_ids=()), "messages_wait_until_they_are_acknowledged"),
    (changing(Delete, up_to=1_000_000), "an_earlier_generation_changes_nothing"),
    (KnowsNoIncarnation, "a_row_belongs_to_one_incarnation"),
    (DeletesWhatOthersHold, "leaving_is_bounded_and_may_be_repeated"),
    (KnowsNoTakeover, "a_claim_says_what_it_found"),
    (KnowsNoBirth, "a_session_has_one_birth"),
    (GivesBirthAtEachTakeover, "a_session_has_one_birth"),
    (CountsNoMessages, "what_an_ended_session_left_is_replaced"),
    (ShufflesBatches, "messages_of_one_batch_are_stored_in_its_order"),
    (ShufflesAnswers, "each_write_of_a_batch_has_its_own_answer"),
    (ShufflesAnswers, "many_writes_fit_into_one_batch"),
    (GivesNoGrace, "a_gap_in_the_vouching_opens_a_grace"),
    (SweepsItsOwn, "expired_rows_of_others_are_swept"),
    (SweepsTooSoon, "expired_rows_of_others_are_swept"),
    (SweepsAllAtOnce, "expired_rows_of_others_are_swept"),
    (SweepsAllAtOnce, "a_dead_session_goes_piece_by_piece"),
    (SweepsAllAtOnce, "stale_messages_go_piece_by_piece"),
    (LeavesAllAtOnce, "leaving_is_bounded_and_may_be_repeated"),
    (LeavesAllAtOnce, "leaving_with_messages_goes_piece_by_piece"),
    (DropsNoMessages, "many_messages_of_an_ended_session"),
    (DoesNotWait, "every_operation_is_a_checkpoint"),
    (DoesNotWait, "every_operation_on_messages_is_a_checkpoint"),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
async def test_the_contract_finds_a_store_that_breaks_it(
    autojump_clock: MockClock, mutant: type[MemoryStore], check: str
) -> None:
    """Each broken store fails the check that is there for its fault."""
    store = mutant()
    [found] = [c for c in store_conformance if c.__name__ == check]
    with pytest.raises(AssertionError):
        await found(lambda: store)


async def test_a_live_worker_s_session_that_is_swept_is_told(autojump_clock: MockClock) -> None:
    """In words: the rule alone does not say what has happened."""
    store = KnowsNoLease()
    [found] = [
        c for c in store_conformance if c.__name__ == "stamps_keep_rows_that_are_not_refreshed"
    ]
    with pytest.raises(AssertionError, match="a session of a live worker was swept"):
        await found(lambda: store)


async def test_the_contract_finds_a_store_that_knows_no_end_of_passes(
    autojump_clock: MockClock,
) -> None:
    """Which is to wait for a lease that never runs out: the check gives up."""
    store = KnowsNoEndOfPasses()
    [found] = [
        c for c in store_conformance if c.__name__ == "stamps_keep_rows_that_are_not_refreshed"
    ]
    with pytest.raises(trio.TooSlowError):
        await found(lambda: store)


async def test_a_faulty_store_fails_as_it_is_told() -> None:
    """Fails, hangs, or commits and then fails; only what it was told to."""
    inner = MemoryStore()
    store = FaultyStore(inner)
    worker = Worker(worker_id="w", incarnation="1", limiter=trio.CapacityLimiter(1))
    claim = Batch(writes=[Claim(session_id="s", generation=1, age=0.0)])
    await store.open(worker)
    store.fail(Fault.FAILS, "commit")
    with pytest.raises(StoreUnavailable):
        await store.commit(worker, claim)
    assert await store.locate(worker, "s") is None
    store.fail(Fault.COMMITS_THEN_FAILS, "commit")
    with pytest.raises(StoreUnavailable):
        await store.commit(worker, claim)
    assert await store.locate(worker, "s") is not None
    store.fail(Fault.HANGS)
    with trio.move_on_after(0.05) as scope:
        await store.locate(worker, "s")
    assert scope.cancelled_caught
    store.heal()
    assert await store.locate(worker, "s") is not None
    assert store.faults == {"commit": 2, "Claim": 2, "locate": 1}
    with pytest.raises(ValueError, match="wirte"):
        store.fail(Fault.FAILS, "wirte")
