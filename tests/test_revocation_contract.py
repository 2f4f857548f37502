"""The stores keep the part of the contract by which sessions are ended for good."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from conftest import Shared
from trio.testing import MockClock

from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore, revocation_conformance
from trio_sessions.writes import Batch, Committed

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", revocation_conformance, ids=name)
async def test_our_stores_keep_it(database: Shared, check: Check) -> None:
    assert Part.REVOCATION in database.make_store().parts
    await check(database.make_store)


@pytest.mark.parametrize("check", revocation_conformance, ids=name)
async def test_the_memory_store_keeps_it(autojump_clock: MockClock, check: Check) -> None:
    """And so does the fake that wraps it."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))


# ---- stores that break it ----


class KeepsTheRow(MemoryStore):
    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        rows = dict(self._rows)
        revoked = await super().revoke(worker, revocation, limit=limit)
        self._rows.update(rows)
        return revoked


class MarksNothing(MemoryStore):
    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        revoked = await super().revoke(worker, revocation, limit=limit)
        self._rows.marks._marks.clear()
        return revoked


class LetsTheOthersIn(MemoryStore):
    """A mark holds for whoever held the session alone."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        marks = self._rows.marks._marks
        kept = dict(marks)
        if worker.worker_id == "b":
            marks.clear()
        committed = await super().commit(worker, batch)
        marks.update(kept)
        return committed


class MarksForEver(MemoryStore):
    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        return await super().revoke(worker, replace(revocation, ttl=1e6), limit=limit)


class TheLastMarkCounts(MemoryStore):
    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        self._rows.marks._marks.clear()
        return await super().revoke(worker, revocation, limit=limit)


class ForgetsWhatIsOver(MemoryStore):
    async def revocations(self, worker: Worker, *, within: float) -> list[Mark]:
        marks = await super().revocations(worker, within=within)
        return [one for one in marks if not one.is_over]


class ShowsAllMarks(MemoryStore):
    async def revocations(self, worker: Worker, *, within: float) -> list[Mark]:
        return await super().revocations(worker, within=1e9)


class TakesAllAtOnce(MemoryStore):
    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        return await super().revoke(worker, revocation, limit=1000)


class SelectsByTheOwnerAlone(MemoryStore):
    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        if revocation.selection is not None:
            selection = replace(revocation.selection, worker_id=None)
            revocation = replace(revocation, selection=selection)
        return await super().revoke(worker, revocation, limit=limit)


class KeepsTheMessages(MemoryStore):
    """It only hides the row: whoever claims it next gets what belonged to the one before."""

    def __init__(self) -> None:
        super().__init__()
        self._hidden: dict[str, object] = {}

    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        self._hidden.update(self._rows)
        return await super().revoke(worker, revocation, limit=limit)

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        for write in batch.writes:
            hidden = self._hidden.get(write.session_id)
            row = self._rows.get(write.session_id)
            if row is not None and hidden is not None:
                row.messages.update(getattr(hidden, "messages", {}))
        return committed


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (KeepsTheRow, "the_row_of_a_revoked_session_goes"),
        (KeepsTheMessages, "what_belongs_to_a_revoked_session_goes_with_it"),
        (MarksNothing, "no_claim_brings_a_revoked_session_back"),
        (LetsTheOthersIn, "no_claim_brings_a_revoked_session_back"),
        (MarksForEver, "a_mark_ends_with_its_time"),
        (TheLastMarkCounts, "a_mark_ends_with_its_time"),
        (ForgetsWhatIsOver, "a_mark_ends_with_its_time"),
        (ShowsAllMarks, "marks_are_shown_by_their_age"),
        (TakesAllAtOnce, "a_selection_is_revoked_piece_by_piece"),
        (SelectsByTheOwnerAlone, "a_selection_is_revoked_piece_by_piece"),
    ],
)
async def test_a_broken_store_fails_the_check_of_its_rule(
    autojump_clock: MockClock, broken: type[MemoryStore], rule: str
) -> None:
    store = broken()
    [check] = [one for one in revocation_conformance if name(one) == rule]
    with pytest.raises(AssertionError):
        await check(lambda: store)
