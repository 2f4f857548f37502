"""Further stores that break the contract, each in one rule; the check of that rule finds it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import trio
from trio.testing import MockClock

from trio_sessions import StoreUnavailable
from trio_sessions.abc import Worker
from trio_sessions.stores._doubt import doubtful
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.stores.memory._row import Row
from trio_sessions.testing import store_conformance
from trio_sessions.types import Begun, Holder, Presence, RowAnswers, Stamp, Stamped, Swept
from trio_sessions.writes import (
    Acknowledge,
    Answer,
    Batch,
    Claim,
    Claimed,
    Committed,
    Keep,
    Outcome,
    Verdict,
    Write,
)

NEVER = float("-inf")


class Meddles(MemoryStore):
    """Changes rows after each write of a batch, and knows how they were."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        before = {
            write.session_id: replace(row, messages=dict(row.messages))
            for write in batch.writes
            if (row := self._rows.get(write.session_id)) is not None
        }
        committed = await super().commit(worker, batch)
        for write, answer in zip(batch.writes, committed.answers, strict=False):
            row, was = self._rows.get(write.session_id), before.get(write.session_id)
            if row is not None and was is not None:
                self.meddle(write, answer, row, was)
        return committed

    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        raise NotImplementedError


def is_takeover(answer: Answer) -> bool:
    return isinstance(answer, Claimed) and answer.outcome is Outcome.TAKEN_OVER


# ---- the age of a claim ----


class ForgetsTheWait(MemoryStore):
    """Waits for a token as for a thread, and takes a claim for as old as it was before."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        async with worker.limiter:
            return await super().commit(worker, batch)


# ---- what renews a row ----


class AddingAgainRenewsNothing(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if isinstance(write, Claim) and write.generation > was.generation:
            row.last_accessed = was.last_accessed


class ALateClaimRenewsNothing(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if isinstance(write, Claim) and write.generation < was.generation:
            row.last_accessed = was.last_accessed


class ATakeoverRenewsNothing(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if is_takeover(answer):
            row.last_accessed = was.last_accessed


class ALostClaimRenews(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if isinstance(write, Claim):
            row.last_accessed = trio.current_time()


class EveryWordRenews(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        row.last_accessed = trio.current_time()


class RefreshesWhatOthersHold(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        for session_id in self._rows.keys() & set(session_ids):
            self._rows[session_id].last_accessed = trio.current_time()
        return await super().refresh(worker, session_ids)


# ---- leases ----


class SweepsByTheStampAlone(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        for row in self._rows.values():
            if row.incarnation in self._workers._rows:
                row.last_accessed = NEVER
        return await super().sweep(worker, **durations)


class ASweepIsNoPass(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        row = self._workers._rows.get(worker.incarnation)
        passed_at = None if row is None else row.passed_at
        swept = await super().sweep(worker, **durations)
        if row is not None and passed_at is not None:
            row.passed_at = passed_at
        return swept


class ABatchEndsAPass(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        row = self._workers._rows.get(worker.incarnation)
        if row is not None:
            row.passed_at = trio.current_time()
        return await super().commit(worker, batch)


class BeginsWithTheOldLease(MemoryStore):
    async def begin(self, worker: Worker, *args: Any, **details: Any) -> Begun:
        row = self._workers._rows.get(worker.incarnation)
        begun = await super().begin(worker, *args, **details)
        if row is not None:
            self._workers._rows[worker.incarnation].passed_at = row.passed_at
        return begun


class KnowsNoOtherTtl(MemoryStore):
    """Judges who has no row, and a silence, by the sweeper's own."""

    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        self._workers.longest_ttl = lambda session_ttl: session_ttl  # type: ignore[method-assign]
        return await super().sweep(worker, **durations)


class SweepsThoughItHasForgotten(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        swept = await super().sweep(worker, **durations)
        if swept.stamped is None or swept.stamped.stamp is not None:
            return swept
        done = await super().sweep(worker, **{**durations, "stamp": None})
        return replace(done, stamped=swept.stamped)


class StampsUnasked(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        seen = self._workers.seen(worker)
        if seen is not None and durations.get("stamp") is None:
            self._workers.stamp(worker, seen, trio.current_time())
        return await super().sweep(worker, **durations)


class ASweepOfNothingDoesNotVouch(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        vouched_at = self._workers._vouched_at
        swept = await super().sweep(worker, **durations)
        if durations["limit"] == 0 and vouched_at is not None:
            self._workers._vouched_at = vouched_at
        return swept


class AStampDoesNotVouch(MemoryStore):
    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        vouched_at = self._workers._vouched_at
        stamped = await super().stamp(worker, stamp, passed=passed)
        self._workers._vouched_at = vouched_at
        return stamped


class DropsStaleMessagesWithoutALimit(MemoryStore):
    least: ClassVar = 1

    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        swept = await super().sweep(worker, **durations)
        if durations["limit"] < self.least:
            return swept
        older = trio.current_time() - durations["message_ttl"]
        more = self._rows.drop_older(older, 1000)
        return replace(swept, messages=swept.messages + more)


class DropsStaleMessagesWithALimitOfZero(DropsStaleMessagesWithoutALimit):
    least = 0


class SaysThatThereIsMore(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        swept = await super().sweep(worker, **durations)
        return replace(swept, more=durations["limit"] > 0)


# ---- takeovers ----


class DropsCapabilitiesInATakeover(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if is_takeover(answer):
            row.capabilities = None


class ForgetsWhoCanBeAsked(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if is_takeover(answer) and row.capabilities is not None:
            row.capabilities = replace(row.capabilities, elicitation=False)


class DropsTheOwnerInATakeover(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if is_takeover(answer) and isinstance(write, Claim) and write.owner is Keep.AS_IS:
            row.owner = None


class ATakeoverBringsNothing(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if is_takeover(answer):
            row.owner, row.capabilities = was.owner, was.capabilities


class GoesOnCountingGenerations(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        row.generation = max(row.generation, was.generation)


class IsTakenOnce(Meddles):
    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if isinstance(answer, Claimed) and answer.outcome is Outcome.KEPT:
            row.taken_at = was.taken_at


class BringsBackWhatWasAcknowledged(Meddles):
    def __init__(self) -> None:
        super().__init__()
        self._all: dict[str, dict[int, Any]] = {}

    def meddle(self, write: Write[object], answer: Answer, row: Row, was: Row) -> None:
        if isinstance(write, Acknowledge):
            self._all[write.session_id] = was.messages
        elif is_takeover(answer):
            row.messages.update(self._all.get(write.session_id, {}))


class RingsTheFirstHolder(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        bells = self._opened.state
        kept = dict(bells)
        bells.clear()
        bells.update({one: bell for one, bell in kept.items() if one.startswith("a-")})
        try:
            return await super().commit(worker, batch)
        finally:
            bells.update(kept)


# ---- manners ----


class StartsThreadsOfItsOwn(MemoryStore):
    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        await trio.to_thread.run_sync(lambda: None)
        return await super().locate(worker, session_id)


class KeepsATokenOfTheLimiter(MemoryStore):
    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        worker.limiter.acquire_on_behalf_of_nowait(object())
        return await super().locate(worker, session_id)


class StaysLockedWhenItIsCancelled(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self._lock = trio.CapacityLimiter(1)

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        me = object()
        self._lock.acquire_on_behalf_of_nowait(me)
        holder = await super().locate(worker, session_id)
        self._lock.release_on_behalf_of(me)
        return holder

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        async with self._lock:
            return await super().commit(worker, batch)


class ClosesForEverybody(MemoryStore):
    async def close(self, worker: Worker) -> None:
        await super().close(worker)
        self._opened.claim = None


class KnowsNoCapitals(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [replace(one, session_id=one.session_id.casefold()) for one in batch.writes]
        return await super().commit(worker, replace(batch, writes=writes))


class CutsLongOwners(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [
            replace(one, owner=one.owner[:255])
            if isinstance(one, Claim) and isinstance(one.owner, str)
            else one
            for one in batch.writes
        ]
        return await super().commit(worker, replace(batch, writes=writes))


class HasNoParts(MemoryStore):
    parts = frozenset()


class CountsCharacters(MemoryStore):
    async def fetch(self, worker: Worker, wanted: Any) -> Any:
        return await super().fetch(worker, [replace(one, size=2 * one.size) for one in wanted])


# ---- workers ----


class BeginsTwice(MemoryStore):
    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        seen = self._workers.seen(worker)
        if seen is not None and seen.history == history:
            self._workers.stamp(worker, seen, trio.current_time())
            return await self._answer(Begun(was_swept=False))
        return await super().begin(worker, history, presence, after=after)


class SweepsAfterARewind(MemoryStore):
    async def begin(self, *args: Any, **details: Any) -> Begun:
        series = self._workers._unbroken_since
        begun = await super().begin(*args, **details)
        self._workers._unbroken_since = series
        return begun


class TellsNoClock(MemoryStore):
    async def begin(self, worker: Worker, *args: Any, **details: Any) -> Begun:
        return replace(await super().begin(worker, *args, **details), clock=None)


class KnowsWorkersByTheirName(MemoryStore):
    async def begin(self, worker: Worker, *args: Any, **details: Any) -> Begun:
        begun = await super().begin(worker, *args, **details)
        self._workers._rows[worker.worker_id] = self._workers._rows[worker.incarnation]
        return begun

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        seen = self._workers.seen(replace(worker, incarnation=worker.worker_id))
        return replace(await super().refresh(worker, session_ids), stamp=seen)


class StampsWhatIsLate(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        if committed.verdict is Verdict.LATE and batch.stamp is not None:
            self._workers.stamp(worker, batch.stamp, trio.current_time())
        return committed


class DoubtsForItsOwnInterval(MemoryStore):
    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        begun = await super().begin(worker, history, presence, after=after)
        return replace(begun, doubt=2 * presence.cleanup_interval if begun.doubt else 0.0)


class DoubtsRefreshes(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        answers = await super().refresh(worker, session_ids)
        if not self._workers.is_in_doubt(trio.current_time()):
            return answers
        absent = set(session_ids) - answers.held - answers.taken_over
        return replace(answers, unknown=dict.fromkeys(absent, StoreUnavailable("doubt")))


class DoubtsWhatIsThere(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        if not self._workers.is_in_doubt(trio.current_time()):
            return committed
        answers = [doubtful() if isinstance(one, Holder) else one for one in committed.answers]
        return replace(committed, answers=answers)


class AnswersAtOnce(MemoryStore):
    async def _begin(self) -> Any:
        return self._opened.state

    @staticmethod
    async def _answer(answer: Any) -> Any:
        return answer


MUTANTS: list[tuple[Callable[[], MemoryStore], str]] = [
    (ForgetsTheWait, "a_claim_grows_older_while_it_waits"),
    (AddingAgainRenewsNothing, "a_claim_renews_the_row"),
    (ALateClaimRenewsNothing, "a_claim_renews_the_row"),
    (ATakeoverRenewsNothing, "a_claim_renews_the_row"),
    (ALostClaimRenews, "only_its_holder_renews_a_row"),
    (EveryWordRenews, "only_its_holder_renews_a_row"),
    (RefreshesWhatOthersHold, "only_its_holder_renews_a_row"),
    (SweepsByTheStampAlone, "a_refreshed_row_outlives_its_lease"),
    (ASweepIsNoPass, "the_end_of_a_pass_renews_the_lease"),
    (ABatchEndsAPass, "the_end_of_a_pass_renews_the_lease"),
    (BeginsWithTheOldLease, "a_new_history_is_a_new_lease"),
    (KnowsNoOtherTtl, "a_holder_without_a_row_has_the_longest_lease"),
    (KnowsNoOtherTtl, "a_gap_is_as_long_as_the_longest_lease_allows"),
    (SweepsThoughItHasForgotten, "what_the_store_does_not_know_sweeps_nothing"),
    (StampsUnasked, "what_the_store_does_not_know_sweeps_nothing"),
    (ASweepOfNothingDoesNotVouch, "a_sweep_of_nothing_vouches"),
    (AStampDoesNotVouch, "a_stamp_vouches_for_the_fleet"),
    (SweepsAfterARewind, "a_rewind_opens_a_grace"),
    (DropsStaleMessagesWithoutALimit, "all_messages_of_a_sweep_share_its_limit"),
    (DropsStaleMessagesWithALimitOfZero, "all_messages_of_a_sweep_share_its_limit"),
    (SaysThatThereIsMore, "all_messages_of_a_sweep_share_its_limit"),
    (DropsCapabilitiesInATakeover, "a_takeover_keeps_or_brings_what_was_said"),
    (ForgetsWhoCanBeAsked, "a_takeover_keeps_or_brings_what_was_said"),
    (DropsTheOwnerInATakeover, "a_takeover_keeps_or_brings_what_was_said"),
    (ATakeoverBringsNothing, "a_takeover_keeps_or_brings_what_was_said"),
    (GoesOnCountingGenerations, "a_takeover_counts_in_its_own_generations"),
    (IsTakenOnce, "to_add_again_is_to_take_again"),
    (BringsBackWhatWasAcknowledged, "what_is_acknowledged_is_not_seen_by_the_next"),
    (RingsTheFirstHolder, "a_message_that_crosses_a_takeover_is_noticed"),
    (HasNoParts, "a_store_says_what_it_is"),
    (StartsThreadsOfItsOwn, "every_thread_has_the_worker_s_limiter"),
    (KeepsATokenOfTheLimiter, "every_thread_has_the_worker_s_limiter"),
    (StaysLockedWhenItIsCancelled, "what_is_cancelled_has_happened_or_not"),
    (ClosesForEverybody, "one_store_serves_several_workers"),
    (ClosesForEverybody, "closing_without_opening_is_harmless"),
    (KnowsNoCapitals, "words_that_are_alike_are_not_one"),
    (CutsLongOwners, "the_longest_words_come_back_as_they_were"),
    (CountsCharacters, "the_longest_words_come_back_as_they_were"),
    (BeginsTwice, "a_history_may_be_begun_twice"),
    (TellsNoClock, "whoever_begins_is_told_the_clock"),
    (KnowsWorkersByTheirName, "a_restart_has_a_witness_of_its_own"),
    (StampsWhatIsLate, "a_late_batch_does_nothing"),
    (AnswersAtOnce, "every_operation_of_a_worker_is_a_checkpoint"),
    (DoubtsForItsOwnInterval, "doubt_lasts_for_two_intervals_of_the_slowest"),
    (DoubtsRefreshes, "doubt_concerns_neither_claims_nor_refreshes"),
    (DoubtsWhatIsThere, "doubt_concerns_neither_claims_nor_refreshes"),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
async def test_the_contract_finds_a_breach(
    autojump_clock: MockClock, mutant: Callable[[], MemoryStore], check: str
) -> None:
    """Each broken store fails the check of the rule that it breaks."""
    store = mutant()
    [found] = [c for c in store_conformance if c.__name__ == check]
    with pytest.raises((AssertionError, StoreUnavailable)):
        await found(lambda: store)
