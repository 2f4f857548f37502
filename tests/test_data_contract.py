"""The stores keep the part of the contract that is about data and adoption."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from conftest import Shared
from trio.testing import MockClock

from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore, data_conformance
from trio_sessions.writes import Batch, Claim, Claimed, Committed, Keep, SetData, SetOwner

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", data_conformance, ids=name)
async def test_our_stores_keep_it(database: Shared, check: Check) -> None:
    assert Part.DATA in database.make_store().parts
    await check(database.make_store)


@pytest.mark.parametrize("check", data_conformance, ids=name)
async def test_the_memory_store_keeps_it(autojump_clock: MockClock, check: Check) -> None:
    """And so does the fake that wraps it."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))


# ---- stores that break it ----


class Meddles(MemoryStore):
    """Changes each write before it is carried out, or rows afterwards."""

    def before(self, worker: Worker, write: Any) -> Any:
        return write

    def after(self, worker: Worker, write: Any, row: Any) -> None:
        """Change the row of a write."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [self.before(worker, write) for write in batch.writes]
        committed = await super().commit(worker, replace(batch, writes=writes))
        for write in batch.writes:
            row = self._rows.get(write.session_id)
            if row is not None:
                self.after(worker, write, row)
        return committed


class WritesNoDataWithTheRow(Meddles):
    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if isinstance(write, Claim) and isinstance(write.data, str):
            row.data = None


class TellsNoDataInTheAnswer(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        answers = [
            replace(one, data=None) if isinstance(one, Claimed) else one
            for one in committed.answers
        ]
        return replace(committed, answers=answers)


class KeepsDataThatAClaimTakesAway(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        is_claim = isinstance(write, Claim)
        return replace(write, data=Keep.AS_IS) if is_claim and write.data is None else write


class LetsTheHolderAloneReplace(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if isinstance(write, SetData) and row is not None and not row.is_of(worker):
            return replace(write, data=row.data)
        return write


class TakesTheOwnerAway(Meddles):
    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if isinstance(write, SetData):
            row.owner = row.capabilities = None


class TakesDataAwayWithTheOwner(Meddles):
    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if isinstance(write, SetOwner):
            row.data = None


class WritesForEverybody(Meddles):
    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if isinstance(write, SetData):
            for other in self._rows.values():
                other.data = write.data


class ParsesAndWritesAnew(Meddles):
    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if row.data is not None and row.data.count("[") < 100:
            row.data = json.dumps(json.loads(row.data))


class DoesNotCompare(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        return replace(write, only_if=Keep.AS_IS) if isinstance(write, SetData) else write


class ComparesWhatItMeans(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if (
            isinstance(write, SetData)
            and isinstance(write.only_if, str)
            and row is not None
            and row.data is not None
            and json.loads(write.only_if) == json.loads(row.data)
        ):
            return replace(write, only_if=row.data)
        return write


class ComparesBefore(MemoryStore):
    """What is compared may be another text when it is replaced."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        rows = self._rows
        fits = [
            one.session_id in rows and one.only_if == rows[one.session_id].data
            for one in batch.writes
            if isinstance(one, SetData)
        ]
        await trio.sleep(0.001)
        if fits == [True]:
            batch = replace(batch, writes=[replace(batch.writes[0], only_if=Keep.AS_IS)])  # type: ignore[call-arg]
        return await super().commit(worker, batch)


class KeepsDataOfTheDeleted(Meddles):
    def __init__(self) -> None:
        super().__init__()
        self._left: dict[str, Any] = {}

    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if row is not None:
            self._left[write.session_id] = row.data
        return write

    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if isinstance(write, Claim) and row.data is None:
            row.data = self._left.get(write.session_id)


class SpeaksOfTheEnded(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        return replace(write, ended=0) if isinstance(write, SetData) else write


class LosesDataInATakeover(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if isinstance(write, Claim) and row is not None and not row.is_of(worker):
            row.data = None
        return write


class LetsTheLostBring(Meddles):
    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if isinstance(write, Claim) and isinstance(write.data, str):
            row.data = write.data


class DescribesNoData(MemoryStore):
    async def describe(self, worker: Worker, session_id: str) -> Any:
        told = await super().describe(worker, session_id)
        return None if told is None else replace(told, data=None)


class AdoptsOnlyWhatWasTakenEarlier(Meddles):
    """It heeds who is newer, as with other claims."""

    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if isinstance(write, Claim) and write.only_from is not None and row is not None:
            is_newer = trio.current_time() - write.age < row.taken_at
            return replace(write, only_from=None) if is_newer else write
        return write


class AdoptsByTheIncarnationAlone(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        is_named = row is not None and row.incarnation == getattr(write, "only_from", None)
        if isinstance(write, Claim) and write.only_from is not None and not is_named:
            return replace(write, only_from="nobody at all")
        return write


class AdoptsWithoutMessages(Meddles):
    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if isinstance(write, Claim) and write.only_from is not None:
            row.messages.clear()


class AdoptsFromAnybody(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if isinstance(write, Claim) and write.only_from is not None and row is not None:
            return replace(write, only_from=row.incarnation)
        return write


class AdoptsItsOwn(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if isinstance(write, Claim) and row is not None and row.is_of(worker):
            return replace(write, only_from=None)
        return write


class AdoptsWhoIsNotThere(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        if isinstance(write, Claim) and write.session_id not in self._rows:
            return replace(write, only_from=None)
        return write


class AdoptsByAnOldLook(MemoryStore):
    """Who has looked takes the session over, whoever has done so meanwhile."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = list(batch.writes)
        for place, write in enumerate(writes):
            row = self._rows.get(write.session_id)
            if isinstance(write, Claim) and write.only_from is not None and row is not None:
                named = {row.worker_id, row.incarnation}
                if write.only_from in named and not row.is_of(worker):
                    writes[place] = replace(write, only_from=None, age=-1000.0)
        await trio.sleep(0.001)
        return await super().commit(worker, replace(batch, writes=writes))


class AdoptsOnce(Meddles):
    """An attempt that is repeated is told that it is not adopted."""

    def before(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if (
            isinstance(write, Claim)
            and write.only_from is not None
            and row is not None
            and row.is_of(worker)
        ):
            return replace(write, generation=write.generation + 100)
        return write


class AdoptsForEver(Meddles):
    def after(self, worker: Worker, write: Any, row: Any) -> None:
        if isinstance(write, Claim) and write.only_from is not None:
            row.taken_at = trio.current_time() - 1e6


class AdoptsInDoubt(MemoryStore):
    def _is_in_doubt(self, worker: Worker, now: float) -> bool:
        return False


class AdoptsWhoWasRevoked(Meddles):
    def before(self, worker: Worker, write: Any) -> Any:
        if isinstance(write, Claim) and write.only_from is not None:
            self._rows.marks._marks.clear()
        return write


BROKEN = [
    (WritesNoDataWithTheRow, "data_is_written_with_the_row"),
    (TellsNoDataInTheAnswer, "data_is_written_with_the_row"),
    (KeepsDataThatAClaimTakesAway, "data_is_written_with_the_row"),
    (LetsTheHolderAloneReplace, "anybody_replaces_data"),
    (TakesTheOwnerAway, "anybody_replaces_data"),
    (TakesDataAwayWithTheOwner, "anybody_replaces_data"),
    (WritesForEverybody, "anybody_replaces_data"),
    (ParsesAndWritesAnew, "texts_are_kept_as_they_are"),
    (DoesNotCompare, "data_is_compared_and_replaced_in_one_step"),
    (ComparesWhatItMeans, "data_is_compared_and_replaced_in_one_step"),
    (ComparesBefore, "of_many_that_compare_at_once_one_wins"),
    (KeepsDataOfTheDeleted, "data_goes_with_the_session"),
    (SpeaksOfTheEnded, "data_goes_with_the_session"),
    (LosesDataInATakeover, "a_takeover_keeps_or_brings_data"),
    (LetsTheLostBring, "a_takeover_keeps_or_brings_data"),
    (WritesForEverybody, "one_batch_carries_all_kinds_of_data"),
    (DescribesNoData, "whoever_describes_a_session_tells_its_data"),
    (AdoptsOnlyWhatWasTakenEarlier, "whoever_adopts_gets_all_of_a_session"),
    (AdoptsByTheIncarnationAlone, "whoever_adopts_gets_all_of_a_session"),
    (AdoptsWithoutMessages, "whoever_adopts_gets_all_of_a_session"),
    (AdoptsFromAnybody, "nobody_is_adopted_from_another"),
    (AdoptsItsOwn, "nobody_is_adopted_from_another"),
    (AdoptsWhoIsNotThere, "who_is_not_there_cannot_be_adopted"),
    (AdoptsByAnOldLook, "of_many_who_adopt_one_wins"),
    (AdoptsOnce, "an_adoption_may_be_asked_for_again"),
    (AdoptsForEver, "whoever_is_adopted_may_come_back"),
    (AdoptsInDoubt, "in_doubt_nobody_is_adopted"),
    (AdoptsWhoWasRevoked, "a_revoked_session_is_not_adopted"),
    (AdoptsWhoIsNotThere, "adoptions_share_a_batch_with_claims"),
]


@pytest.mark.parametrize(("broken", "rule"), BROKEN)
async def test_a_broken_store_fails_the_check_of_its_rule(
    autojump_clock: MockClock, broken: type[MemoryStore], rule: str
) -> None:
    store = broken()
    [check] = [one for one in data_conformance if name(one) == rule]
    with pytest.raises(AssertionError):
        await check(lambda: store)


def test_each_rule_has_a_store_that_breaks_it() -> None:
    assert {rule for _, rule in BROKEN} == {name(one) for one in data_conformance}
