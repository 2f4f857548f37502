"""Every store keeps the contract, and so does the fake that wraps one."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from conftest import Shared

from trio_sessions import StoreUnavailable
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore, _Row
from trio_sessions.testing import Fault, FaultyStore, store_conformance
from trio_sessions.types import RowAnswers, RowClaim, Swept

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", store_conformance, ids=name)
async def test_our_stores_keep_the_contract(shared: Shared, check: Check) -> None:
    """In memory, on SQLite and on PostgreSQL alike."""
    await check(shared.make_store)


@pytest.mark.parametrize("check", store_conformance, ids=name)
async def test_a_faulty_store_without_a_fault_keeps_the_contract(check: Check) -> None:
    """The fake is a verified fake."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))


class BelievesEverything(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        await super().refresh(worker, session_ids)
        return RowAnswers(held=frozenset(session_ids))


class TakesAnyAge(MemoryStore):
    async def write(self, worker: Worker, claims: Sequence[RowClaim]) -> RowAnswers:
        fresh = [replace(claim, age=0.0) for claim in claims]
        return await super().write(worker, fresh)


class KnowsNoIncarnation(MemoryStore):
    def _own(self, worker: Worker, session_ids: Iterable[str]) -> list[tuple[str, _Row]]:
        return [(s, self._rows[s]) for s in session_ids if s in self._rows]


class KnowsNoGeneration(MemoryStore):
    async def delete(self, worker: Worker, session_ids: Sequence[str], *, up_to: int) -> int:
        return await super().delete(worker, session_ids, up_to=1_000_000)


class GivesNoGrace(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        self._vouched_at = None
        return await super().sweep(worker, **durations)


class SweepsItsOwn(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        return await super().sweep(replace(worker, incarnation="nobody"), **durations)


class SweepsTooSoon(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        return await super().sweep(worker, **{**durations, "session_ttl": 0.0})


class SweepsAllAtOnce(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        return await super().sweep(worker, **{**durations, "limit": 1000})


class DoesNotWait(MemoryStore):
    async def _take_turn(self) -> None:
        pass


MUTANTS = [
    (BelievesEverything, "what_is_not_there_is_in_neither_answer"),
    (BelievesEverything, "the_newest_claim_takes_over"),
    (TakesAnyAge, "an_older_claim_does_not_take_over"),
    (KnowsNoIncarnation, "a_row_belongs_to_one_incarnation"),
    (KnowsNoIncarnation, "deleting_is_bounded_and_may_be_repeated"),
    (KnowsNoGeneration, "an_earlier_generation_changes_nothing"),
    (GivesNoGrace, "a_gap_in_the_vouching_opens_a_grace"),
    (SweepsItsOwn, "expired_rows_of_others_are_swept"),
    (SweepsTooSoon, "expired_rows_of_others_are_swept"),
    (SweepsAllAtOnce, "expired_rows_of_others_are_swept"),
    (DoesNotWait, "every_operation_is_a_checkpoint"),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
async def test_the_contract_finds_a_store_that_breaks_it(
    mutant: type[MemoryStore], check: str
) -> None:
    """Each broken store fails the check that is there for its fault."""
    store = mutant()
    [found] = [c for c in store_conformance if c.__name__ == check]
    with pytest.raises(AssertionError):
        await found(lambda: store)


async def test_a_faulty_store_fails_as_it_is_told() -> None:
    """Fails, hangs, or commits and then fails; only what it was told to."""
    inner = MemoryStore()
    store = FaultyStore(inner)
    worker = Worker(worker_id="w", incarnation="1", limiter=trio.CapacityLimiter(1))
    claim = RowClaim(session_id="s", generation=1, age=0.0)
    await store.open(worker)
    store.fail(Fault.FAILS, "write")
    with pytest.raises(StoreUnavailable):
        await store.write(worker, [claim])
    assert await store.locate(worker, "s") is None
    store.fail(Fault.COMMITS_THEN_FAILS, "write")
    with pytest.raises(StoreUnavailable):
        await store.write(worker, [claim])
    assert await store.locate(worker, "s") is not None
    store.fail(Fault.HANGS)
    with trio.move_on_after(0.05) as scope:
        await store.locate(worker, "s")
    assert scope.cancelled_caught
    store.heal()
    assert await store.locate(worker, "s") is not None
    assert store.faults == {"write": 2, "locate": 1}
    with pytest.raises(ValueError, match="wirte"):
        store.fail(Fault.FAILS, "wirte")
