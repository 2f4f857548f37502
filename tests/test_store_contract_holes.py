"""Stores that break the contract where many sessions, or a long time, are needed to see it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import store_conformance
from trio_sessions.types import RowAnswers, Sent, StoredMessage, Swept, Wanted
from trio_sessions.writes import Batch, Committed, Send


class _Renumbers(MemoryStore):
    """Gives a message that was stored another id, and overwrites what has it."""

    def number(self, earlier: Sequence[int]) -> int:
        raise NotImplementedError

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        answers = list(committed.answers)
        for place, (write, answer) in enumerate(zip(batch.writes, answers, strict=False)):
            if isinstance(write, Send) and isinstance(answer, Sent):
                messages = self._rows[write.session_id].messages
                message = messages.pop(answer.id)
                number = self.number(list(messages))
                messages[number] = message
                answers[place] = replace(answer, id=number)
        return replace(committed, answers=answers)


class NumbersByHowManyThereAre(_Renumbers):
    def number(self, earlier: Sequence[int]) -> int:
        return len(earlier) + 1


class NumbersAfterTheLastThatIsThere(_Renumbers):
    def number(self, earlier: Sequence[int]) -> int:
        return max(earlier, default=0) + 1


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
        workers, own = self._workers, durations["session_ttl"]

        def has_expired(who: str, last: float, now: float, session_ttl: float) -> bool:
            holder = workers._rows.get(who)
            if holder is not None and not holder.has_lapsed(now):
                return False
            its = workers.longest_ttl(own) if holder is None else holder.presence.session_ttl
            ttl = min(own, its)
            return now - last > ttl and now - workers._unbroken_since >= ttl

        workers.has_expired = has_expired  # type: ignore[method-assign]
        return await super().sweep(worker, **durations)


class SweepsOldRowsOfTheLiving(MemoryStore):
    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        for session_id, row in list(self._rows.items()):
            if trio.current_time() - row.last_accessed > 3 * durations["session_ttl"]:
                self._rows.take(session_id)
        return await super().sweep(worker, **durations)


class RenewsNotMany(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        before = {one: row.last_accessed for one, row in self._rows.items()}
        answers = await super().refresh(worker, session_ids)
        if len(session_ids) >= 5:
            for session_id in answers.held:
                self._rows[session_id].last_accessed = before[session_id]
        return answers


MUTANTS: list[tuple[Callable[[], MemoryStore], str]] = [
    (NumbersByHowManyThereAre, "a_new_message_overwrites_none"),
    (NumbersAfterTheLastThatIsThere, "a_new_message_overwrites_none"),
    (FetchesForTheFirst, "messages_of_several_sessions_are_fetched_at_once"),
    (WaitsForTwo, "messages_of_several_sessions_are_fetched_at_once"),
    (JudgesByTheShorterTtl, "a_visitor_judges_by_the_holder_s_lease"),
    (SweepsOldRowsOfTheLiving, "a_row_is_kept_as_long_as_its_worker_lives"),
    (RenewsNotMany, "many_rows_are_refreshed_at_once"),
]


@pytest.mark.parametrize(("mutant", "check"), MUTANTS)
async def test_the_contract_finds_what_few_sessions_do_not_show(
    autojump_clock: MockClock, mutant: Callable[[], MemoryStore], check: str
) -> None:
    """Each broken store fails the check of the rule that it breaks."""
    store = mutant()
    [found] = [c for c in store_conformance if c.__name__ == check]
    with pytest.raises(AssertionError):
        await found(lambda: store)
