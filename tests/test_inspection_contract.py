"""The stores keep the part of the contract that is for operators."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from conftest import Shared
from trio.testing import MockClock

from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo, WorkerState
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore, inspection_conformance
from trio_sessions.types import Begun, Presence, Swept

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", inspection_conformance, ids=name)
async def test_our_stores_keep_it(database: Shared, check: Check) -> None:
    assert Part.INSPECTION in database.make_store().parts
    await check(database.make_store)


@pytest.mark.parametrize("check", inspection_conformance, ids=name)
async def test_the_memory_store_keeps_it(autojump_clock: MockClock, check: Check) -> None:
    """And so does the fake that wraps it."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))


# ---- stores that break it ----


class EverybodyLives(MemoryStore):
    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        found = await super().list_workers(worker)
        return [replace(one, state=WorkerState.ALIVE) for one in found]


class SilenceIsDeath(MemoryStore):
    """After an outage it takes everybody for gone."""

    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        found = await super().list_workers(worker)
        return [
            replace(one, state=WorkerState.GONE) if one.silence > one.session_ttl else one
            for one in found
        ]


class KeepsWhoHasLeft(MemoryStore):
    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        row = self._workers._rows[worker.incarnation]
        swept = await super().delete_all(worker, limit=limit)
        self._workers._rows[worker.incarnation] = row
        return swept


class CountsAllRows(MemoryStore):
    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        found = await super().list_workers(worker)
        return [replace(one, sessions=len(self._rows)) for one in found]


class AnnouncesByStamping(MemoryStore):
    async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        row = self._workers._rows.get(worker.incarnation)
        if row is not None:
            row.stamp = replace(row.stamp, history="another")
        return await super().announce(worker, data=data, draining=draining)


class ForgetsToDrain(MemoryStore):
    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        return await super().begin(worker, history, replace(presence, draining=False), after=after)


class BeginsEachPageWithTheLast(MemoryStore):
    async def list_sessions(
        self, worker: Worker, selection: Selection, *, after: str, limit: int
    ) -> list[SessionInfo]:
        return await super().list_sessions(worker, selection, after=after[:-1], limit=limit)


class SelectsByEither(MemoryStore):
    async def list_sessions(
        self, worker: Worker, selection: Selection, *, after: str, limit: int
    ) -> list[SessionInfo]:
        if selection.owner is not None:
            selection = replace(selection, worker_id=None)
        return await super().list_sessions(worker, selection, after=after, limit=limit)


class _Describes(MemoryStore):
    def change(self, info: SessionInfo) -> SessionInfo:
        raise NotImplementedError

    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        info = await super().describe(worker, session_id)
        return None if info is None else self.change(info)


class CountsNoMessages(_Describes):
    def change(self, info: SessionInfo) -> SessionInfo:
        return replace(info, waiting=0)


class TakesTheRefreshForTheBirth(_Describes):
    def change(self, info: SessionInfo) -> SessionInfo:
        return replace(info, created=info.last_accessed)


class BelievesInTheUnknown(_Describes):
    def change(self, info: SessionInfo) -> SessionInfo:
        return replace(info, worker_state=info.worker_state or WorkerState.ALIVE)


class IsNeverInDoubt(MemoryStore):
    def _is_in_doubt(self, worker: Worker, now: float) -> bool:
        return False


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (EverybodyLives, "a_worker_without_stamps_is_late_and_then_gone"),
        (SilenceIsDeath, "an_outage_makes_nobody_gone"),
        (KeepsWhoHasLeft, "a_worker_that_has_left_is_not_listed"),
        (CountsAllRows, "every_worker_with_a_row_is_listed"),
        (AnnouncesByStamping, "what_a_worker_announces_is_listed"),
        (ForgetsToDrain, "what_a_worker_announces_is_listed"),
        (BeginsEachPageWithTheLast, "sessions_are_listed_by_id_page_by_page"),
        (SelectsByEither, "a_selection_leaves_the_others_out"),
        (CountsNoMessages, "a_session_is_described_in_one_answer"),
        (TakesTheRefreshForTheBirth, "a_session_is_described_in_one_answer"),
        (BelievesInTheUnknown, "a_holder_without_a_row_is_unknown"),
        (IsNeverInDoubt, "who_is_in_doubt_describes_nothing_as_absent"),
    ],
)
async def test_a_broken_store_fails_the_check_of_its_rule(
    autojump_clock: MockClock, broken: type[MemoryStore], rule: str
) -> None:
    store = broken()
    [check] = [one for one in inspection_conformance if name(one) == rule]
    with pytest.raises(AssertionError):
        await check(lambda: store)
