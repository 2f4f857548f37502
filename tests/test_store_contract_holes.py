"""Stores that break the contract where many sessions, or a long time, are needed to see it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_sessions.abc import Worker
from trio_sessions.inspection import SessionInfo
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import inspection_conformance, store_conformance
from trio_sessions.types import RowAnswers, Sent, StoredMessage, Swept, Wanted
from trio_sessions.writes import Batch, Claim, Claimed, Committed, Outcome, Send


class _Numbers(MemoryStore):
    """Numbers messages in each row by those that wait there."""

    def __init__(self) -> None:
        super().__init__()
        add = self._rows._add

        def numbered(worker: Worker, write: Any, now: float) -> Any:
            row = self._rows.get(write.session_id)
            before = {} if row is None else dict(row.messages)
            sent = add(worker, write, now)
            if row is None or not isinstance(sent, Sent):
                return sent
            number = self.number(list(before))
            message = row.messages.pop(sent.id)
            row.messages[number] = message
            return replace(sent, id=number)

        self._rows._add = numbered  # type: ignore[method-assign]

    def number(self, there: Sequence[int]) -> int:
        raise NotImplementedError


class NumbersByHowManyThereAre(_Numbers):
    def number(self, there: Sequence[int]) -> int:
        return len(there) + 1


class NumbersAfterTheLastThatIsThere(_Numbers):
    def number(self, there: Sequence[int]) -> int:
        return max(there, default=0) + 1


class FetchesForTheFirst(MemoryStore):
    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        return await super().fetch(worker, wanted[:1])


class WaitsForTwo(MemoryStore):
    async def waiting(self, worker: Worker) -> list[str]:
        return (await super().waiting(worker))[:2]


class JudgesByTheShorterTtl(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        workers = self._workers

        def has_expired(
            incarnation: str, last_accessed: float, now: float, session_ttl: float
        ) -> bool:
            holder = workers._rows.get(incarnation)
            if holder is None:
                return type(workers).has_expired(
                    workers, incarnation, last_accessed, now, session_ttl
                )
            ttl = min(session_ttl, holder.presence.session_ttl)
            old = now - last_accessed > ttl and now - workers._unbroken_since >= ttl
            return old and holder.has_lapsed(now)

        workers.has_expired = has_expired  # type: ignore[method-assign]
        return await super().sweep(worker, **durations)


class SweepsOldRowsOfTheLiving(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        workers = self._workers

        def has_expired(
            incarnation: str, last_accessed: float, now: float, session_ttl: float
        ) -> bool:
            holder = workers._rows.get(incarnation)
            if holder is not None and now - last_accessed > 3 * holder.presence.session_ttl:
                return True
            return type(workers).has_expired(workers, incarnation, last_accessed, now, session_ttl)

        workers.has_expired = has_expired  # type: ignore[method-assign]
        return await super().sweep(worker, **durations)


class RenewsNotMany(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        before = {one: row.last_accessed for one, row in self._rows.items()}
        answers = await super().refresh(worker, session_ids)
        if len(session_ids) >= 5:
            for session_id in answers.held:
                self._rows[session_id].last_accessed = before[session_id]
        return answers


class ListsAllOfItsRows(MemoryStore):
    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        return await super().own_rows(worker, after=after, limit=1000)


class CountsTheRowsOfOthersInASweep(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        swept = await super().sweep(worker, **durations)
        if swept.stamped is None:
            return swept
        return replace(swept, stamped=replace(swept.stamped, rows=len(self._rows)))


class OpeningRenewsAllRows(MemoryStore):
    async def open(self, worker: Worker) -> None:
        await super().open(worker)
        for row in self._rows.values():
            row.last_accessed = trio.current_time()


class SetsTheTakingBack(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        for write in batch.writes:
            row = self._rows.get(write.session_id) if isinstance(write, Claim) else None
            if row is not None and isinstance(write, Claim) and row.is_of(worker):
                row.taken_at = trio.current_time() - write.age
        return committed


class IsIdleSinceItsCreation(MemoryStore):
    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        info = await super().describe(worker, session_id)
        return None if info is None else replace(info, idle=info.age)


class ATakeoverIsACreation(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        for write, answer in zip(batch.writes, committed.answers, strict=False):
            if isinstance(answer, Claimed) and answer.outcome is Outcome.TAKEN_OVER:
                self._rows[write.session_id].created_at = trio.current_time()
        return committed


class _ExpiresAtItsTtl(MemoryStore):
    """Lets one thing go a hair early: at its ttl, as who compares with >= does."""

    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        self.hasten(1e-9)
        return await super().sweep(worker, **durations)

    def hasten(self, hair: float) -> None:
        raise NotImplementedError


class RowsExpireAtTheirTtl(_ExpiresAtItsTtl):
    """Those without a lease."""

    def hasten(self, hair: float) -> None:
        for row in self._rows.values():
            if row.incarnation not in self._workers._rows:
                row.last_accessed -= hair


class LeasesExpireAtTheirTtl(_ExpiresAtItsTtl):
    def hasten(self, hair: float) -> None:
        for worker in self._workers._rows.values():
            worker.stamped_at -= hair
        for row in self._rows.values():
            row.last_accessed -= hair if row.incarnation in self._workers._rows else 0.0


class MessagesExpireAtTheirTtl(_ExpiresAtItsTtl):
    def hasten(self, hair: float) -> None:
        for row in self._rows.values():
            for number, message in row.messages.items():
                row.messages[number] = replace(message, stored_at=message.stored_at - hair)


class _InATie(MemoryStore):
    """Does something else where two claims are of one moment."""

    def __init__(self) -> None:
        super().__init__()
        claims: Any = self._rows._claim

        def claimed(worker: Worker, claim: Claim, now: float, taken_at: float, crowds: Any) -> Any:
            row = self._rows.get(claim.session_id)
            if row is None or row.is_of(worker) or row.taken_at != taken_at:
                return claims(worker, claim, now, taken_at, crowds)
            lost = Claimed(
                outcome=Outcome.LOST,
                holder=row.holder(),
                capabilities=row.capabilities,
                born=row.born,
            )
            done = claims(worker, claim, now, taken_at, crowds) if self.takes else lost
            return self.answer(done, worker)

        self._rows._claim = claimed  # type: ignore[method-assign]

    takes = False
    """Whether the second claim is carried out."""

    def answer(self, claimed: Claimed, worker: Worker) -> Claimed:
        """Say what has become of the second of them; as it stands here it is true."""
        return claimed


class TheFirstWinsATie(_InATie):
    pass


class TellsBothThatTheyHaveWonATie(_InATie):
    def answer(self, claimed: Claimed, worker: Worker) -> Claimed:
        holder = replace(claimed.holder, worker_id=worker.worker_id, incarnation=worker.incarnation)
        return replace(claimed, outcome=Outcome.TAKEN_OVER, holder=holder)


class TakesATieAndSaysThatItIsLost(_InATie):
    takes = True

    def answer(self, claimed: Claimed, worker: Worker) -> Claimed:
        return replace(claimed, outcome=Outcome.LOST)


class _AgesWhatWaits(MemoryStore):
    """Waits for a token as for a thread, and adds that time to some ages so many times."""

    of: type[Claim] | type[Send] = Claim
    times = 2

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        asked_at = trio.current_time()
        async with worker.limiter:
            waited = trio.current_time() - asked_at
            aged = [
                replace(one, age=one.age + waited * (self.times if isinstance(one, self.of) else 1))
                if isinstance(one, Claim | Send)
                else one
                for one in batch.writes
            ]
            return await super().commit(worker, replace(batch, writes=aged))


class AgesAClaimTwice(_AgesWhatWaits):
    pass


class AgesASendTwice(_AgesWhatWaits):
    of = Send


class AgesNoSend(_AgesWhatWaits):
    of = Send
    times = 0


EDGE = "what_is_exactly_as_old_as_its_ttl_stays"
TIE = "of_two_claims_of_one_moment_the_second_wins"

MUTANTS: list[tuple[Callable[[], MemoryStore], str]] = [
    (NumbersByHowManyThereAre, "a_new_message_overwrites_none"),
    (NumbersAfterTheLastThatIsThere, "a_new_message_overwrites_none"),
    (FetchesForTheFirst, "messages_of_several_sessions_are_fetched_at_once"),
    (WaitsForTwo, "messages_of_several_sessions_are_fetched_at_once"),
    (JudgesByTheShorterTtl, "a_visitor_judges_by_the_holder_s_lease"),
    (SweepsOldRowsOfTheLiving, "a_row_is_kept_as_long_as_its_worker_lives"),
    (RenewsNotMany, "many_rows_are_refreshed_at_once"),
    (ListsAllOfItsRows, "the_rows_of_an_incarnation_can_be_counted_and_listed"),
    (CountsTheRowsOfOthersInASweep, "the_rows_of_an_incarnation_can_be_counted_and_listed"),
    (SetsTheTakingBack, "an_older_claim_of_the_holder_sets_nothing_back"),
    (IsIdleSinceItsCreation, "a_session_is_described_in_one_answer"),
    (ATakeoverIsACreation, "a_session_is_described_in_one_answer"),
    (OpeningRenewsAllRows, "only_its_holder_renews_a_row"),
    (RowsExpireAtTheirTtl, EDGE),
    (LeasesExpireAtTheirTtl, EDGE),
    (MessagesExpireAtTheirTtl, EDGE),
    (AgesAClaimTwice, "a_claim_grows_older_while_it_waits"),
    (AgesASendTwice, "a_message_grows_older_while_it_waits"),
    (AgesNoSend, "a_message_grows_older_while_it_waits"),
    (TheFirstWinsATie, TIE),
    (TellsBothThatTheyHaveWonATie, TIE),
    (TakesATieAndSaysThatItIsLost, TIE),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
async def test_the_contract_finds_what_few_sessions_do_not_show(
    autojump_clock: MockClock, mutant: Callable[[], MemoryStore], check: str
) -> None:
    """Each broken store fails the check of the rule that it breaks."""
    store = mutant()
    [found] = [c for c in (*store_conformance, *inspection_conformance) if c.__name__ == check]
    with pytest.raises(AssertionError):
        await found(lambda: store)
