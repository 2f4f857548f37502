"""The stores keep the part of the contract by which owners have no more sessions than they may."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from conftest import Shared
from trio.testing import MockClock

from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore, limit_conformance
from trio_sessions.writes import Batch, Claim, Committed, Write

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", limit_conformance, ids=name)
async def test_our_stores_keep_it(database: Shared, check: Check) -> None:
    assert Part.LIMITS in database.make_store().parts
    await check(database.make_store)


@pytest.mark.parametrize("check", limit_conformance, ids=name)
async def test_the_memory_store_keeps_it(autojump_clock: MockClock, check: Check) -> None:
    """And so does the fake that wraps it."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))


# ---- stores that break it ----


class Meddles(MemoryStore):
    """Changes each claim before it is carried out."""

    def before(self, worker: Worker, claim: Claim) -> Any:
        return claim

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [
            self.before(worker, one) if isinstance(one, Claim) else one for one in batch.writes
        ]
        return await super().commit(worker, replace(batch, writes=writes))


class LetsEverybodyIn(Meddles):
    def before(self, worker: Worker, claim: Claim) -> Any:
        return replace(claim, most_of_owner=None)


class CountsItsOwnAlone(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        owners = {one: row.owner for one, row in self._rows.items() if not row.is_of(worker)}
        for session_id in owners:
            self._rows[session_id].owner = None
        committed = await super().commit(worker, batch)
        for session_id, owner in owners.items():
            self._rows[session_id].owner = owner
        return committed


class CountsForThoseWithoutALimit(Meddles):
    def before(self, worker: Worker, claim: Claim) -> Any:
        return replace(claim, most_of_owner=claim.most_of_owner or 2)


class CountsWhatTheyHaveAlready(Meddles):
    def before(self, worker: Worker, claim: Claim) -> Any:
        row = self._rows.get(claim.session_id)
        if row is not None and row.owner == claim.owner and claim.most_of_owner:
            return replace(claim, most_of_owner=claim.most_of_owner - 1, owner="somebody")
        return claim


class LetsAnothersIn(Meddles):
    """A row that is there is taken for the owner's."""

    def before(self, worker: Worker, claim: Claim) -> Any:
        is_there = claim.session_id in self._rows
        return replace(claim, most_of_owner=None) if is_there else claim


class CountsTheEnded(Meddles):
    def before(self, worker: Worker, claim: Claim) -> Any:
        if claim.ended and claim.most_of_owner:
            return replace(claim, most_of_owner=claim.most_of_owner - 1)
        return claim


class TakesAwayFirst(MemoryStore):
    """An owner of whom the batch ends something is not counted any more."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes, uncounted = list[Write[object]](), set[str | None]()
        for write in batch.writes:
            row = self._rows.get(write.session_id)
            if isinstance(write, Claim) and write.owner in uncounted:
                write = replace(write, most_of_owner=None)
            if isinstance(write, Claim) and write.ended and row is not None:
                uncounted.add(row.owner if row.owner != write.owner else None)
            writes.append(write)
        return await super().commit(worker, replace(batch, writes=writes))


class CountsNoFurtherThanMay(MemoryStore):
    """And takes away from that what has ended."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        ended = [claim for _, claim in batch.of(Claim) if claim.ended and claim.most_of_owner]
        writes = [
            replace(one, most_of_owner=one.most_of_owner + len(ended) + 5)
            if ended and isinstance(one, Claim) and one.most_of_owner
            else one
            for one in batch.writes
        ]
        return await super().commit(worker, replace(batch, writes=writes))


class HandsOnFirst(MemoryStore):
    """What is claimed for another owner counts for nobody."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        owners = {
            claim.session_id: row.owner
            for _, claim in batch.of(Claim)
            if (row := self._rows.get(claim.session_id)) is not None and row.owner != claim.owner
        }
        for session_id in owners:
            self._rows.give(session_id, None)
        committed = await super().commit(worker, batch)
        for session_id, owner in owners.items():
            if self._rows[session_id].owner is None:
                self._rows.give(session_id, owner)
        return committed


class CountsWhatWasSaidFirst(MemoryStore):
    """Owners that are set later do not count."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        said = {one.session_id for one in batch.writes if not isinstance(one, Claim)}
        committed = await super().commit(worker, batch)
        for session_id in said & self._rows.keys():
            self._rows[session_id].owner = "set later"
        return committed


class CountsTheGone(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        self._workers.has_stamped = lambda *_: True  # type: ignore[method-assign]
        return await super().commit(worker, batch)


class CountsOnceForABatch(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        crowds = self._rows.crowds
        self._rows.crowds = lambda *_: None  # type: ignore[method-assign]
        committed = await super().commit(worker, batch)
        self._rows.crowds = crowds  # type: ignore[method-assign]
        return committed


class CountsBefore(MemoryStore):
    """Others may write between its count and its write."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        crowds = self._rows.crowds(worker, batch, lambda _: True)
        await trio.sleep(0.001)
        before = self._rows.crowds
        self._rows.crowds = lambda *_: crowds  # type: ignore[method-assign]
        committed = await super().commit(worker, batch)
        self._rows.crowds = before  # type: ignore[method-assign]
        return committed


BROKEN = [
    (LetsEverybodyIn, "who_has_as_many_gets_no_other"),
    (CountsItsOwnAlone, "who_has_as_many_gets_no_other"),
    (CountsForThoseWithoutALimit, "who_names_no_owner_or_no_limit_is_let_in"),
    (CountsWhatTheyHaveAlready, "what_an_owner_has_already_is_no_further_one"),
    (LetsAnothersIn, "what_an_owner_has_already_is_no_further_one"),
    (CountsTheEnded, "what_has_ended_does_not_count"),
    (TakesAwayFirst, "what_another_has_left_makes_no_room"),
    (CountsNoFurtherThanMay, "what_has_ended_of_many_makes_no_room"),
    (HandsOnFirst, "a_session_that_is_not_handed_on_counts"),
    (CountsWhatWasSaidFirst, "an_owner_that_is_set_counts_from_then"),
    (CountsTheGone, "sessions_of_workers_that_are_gone_do_not_count"),
    (CountsOnceForABatch, "of_many_in_one_batch_as_many_as_may_come_in"),
    (CountsBefore, "of_many_at_once_as_many_as_may_come_in"),
]


@pytest.mark.parametrize(("broken", "rule"), BROKEN)
async def test_a_broken_store_fails_the_check_of_its_rule(
    autojump_clock: MockClock, broken: type[MemoryStore], rule: str
) -> None:
    store = broken()
    [check] = [one for one in limit_conformance if name(one) == rule]
    with pytest.raises(AssertionError):
        await check(lambda: store)


def test_each_rule_has_a_store_that_breaks_it() -> None:
    assert {rule for _, rule in BROKEN} == {name(one) for one in limit_conformance}
