"""`RegistryMachine`: a history is one run, and a store that keeps the contract is not accused."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

import pytest
import trio
from hypothesis import Phase
from machines import InMemory

from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import RegistryMachine
from trio_sessions.testing._machine._lines import Line
from trio_sessions.types import RowAnswers, Stamp, Swept
from trio_sessions.writes import Batch, Claim, Committed

pytestmark = pytest.mark.no_cover

SEEDS = range(8)


def trace(seed: int) -> list[str]:
    """Play a history, and return which operations of the store have begun, and when."""
    operations = list[str]()

    class Traced(MemoryStore):
        async def commit(self, worker: Worker, batch: Batch) -> Committed:
            operations.append(f"{trio.current_time()} {worker.worker_id} {batch.writes}")
            return await super().commit(worker, batch)

        async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
            operations.append(f"{trio.current_time()} {worker.worker_id} {session_ids}")
            return await super().refresh(worker, session_ids)

    class OnTraced(InMemory):
        make_shared = Traced

    state = OnTraced()
    state.begin(batch_size=1, held_by={"a": 0, "b": 1}, seed=seed)
    state.move(session="a")
    state.broadcast(worker=0, session="a", durable=True, count=3)
    state.outage(answers="late", workers=(0, 1))
    state.time_passes(leases=0.7)
    state.respond(session="a")
    state.heal()
    state.teardown()
    return operations


def test_a_history_is_a_function_of_its_seed() -> None:
    """Words, delays and the order of tasks: so a history that was pasted fails each time."""
    first = trace(3)
    assert trace(3) == first
    assert trace(4) != first


def test_a_transport_that_a_pass_has_just_ended_is_not_added_again() -> None:
    """The worker's own pass may have removed it since the machine has looked."""
    state = InMemory()
    state.begin(batch_size=1, held_by={"a": 0, "b": 0})
    state.row_vanishes(session="b")
    driver, fleet = state._driver, state._fleet
    assert driver is not None
    assert fleet is not None
    line = fleet.model.workers["worker-0-1"].holds["b"].line
    driver.call(fleet._live[0].registry.cleanup)  # as one of its own, which the machine sees later
    assert isinstance(line, Line)
    assert line.disconnects == 1
    state.add_again(worker=0, session="b")
    assert "b" not in fleet.model.workers["worker-0-1"].holds
    state.teardown()


def test_a_worker_may_act_on_what_it_asked_before_it_lost_the_store() -> None:
    """An answer is on its way when the outage begins: it is as good as any."""
    removed = 0
    for seed in SEEDS:
        state = InMemory()
        state.begin(batch_size=1, held_by={"a": 0}, seed=seed)
        state.row_vanishes(session="a")
        state.outage(answers="late", workers=(0,))
        state.time_passes(leases=0.45)
        state.add_again(worker=1, session="a")
        state.outage(answers="none", workers=(0,))
        before = state._running.model.workers["worker-0-1"].holds.get("a")
        state.outage(answers="none", workers=(0,))
        state.clean_up(worker=0)
        after = state._running.model.workers["worker-0-1"].holds.get("a")
        removed += before is not None and after is None
        state.teardown()
    assert removed > 0  # it has happened


def test_a_history_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """In a run of faults every line is expected; what was said before is said again after it."""
    state = InMemory()
    state.begin(batch_size=1, held_by={"a": 0})
    state.outage(answers="none", workers=(0, 1))
    state.time_passes(leases=1.3)
    state.heal()
    state.teardown()
    assert caplog.records == []
    logging.getLogger("trio_sessions.registry").warning("as before")
    assert [one.message for one in caplog.records] == ["as before"]


class KeepsWhatWasLeft(MemoryStore):
    """A claim in place of an ended session takes its row as it is."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [
            dataclasses.replace(write, ended=0) if isinstance(write, Claim) else write
            for write in batch.writes
        ]
        return await super().commit(worker, dataclasses.replace(batch, writes=writes))


@pytest.mark.parametrize("what", ["owner", "messages"])
def test_what_an_earlier_session_has_left_is_noticed(what: str) -> None:
    """Whatever is in doubt because the store was away: of that the new session has nothing."""

    def play(make: Callable[[], SessionStore]) -> None:
        state = type("Machine", (InMemory,), {"make_shared": make})()
        state.begin(batch_size=1, held_by={"a": 0})
        if what == "owner":
            state.set_owner(owner="alice", session="a", worker=0)
        else:
            state.broadcast(worker=1, session="a", durable=True, count=2)
        state.outage(answers="none", workers=(0,))
        state.remove(session="a", worker=0)
        state.add(session="a", worker=0)
        state.heal()
        state.clean_up(worker=0)
        state.read(session="a")
        state.teardown()

    play(MemoryStore)
    with pytest.raises(AssertionError, match="earlier one of its id"):
        play(KeepsWhatWasLeft)


class ForgetsTheOutage(MemoryStore):
    """A sweep does not ask since when the fleet has been heard without a gap."""

    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
        stamp: Stamp | None = None,
    ) -> Swept:
        for session_id, row in list(self._rows.items()):
            if not row.is_of(worker) and trio.current_time() - row.last_accessed > session_ttl:
                del self._rows[session_id]
        return await super().sweep(
            worker,
            session_ttl=session_ttl,
            message_ttl=message_ttl,
            max_gap=max_gap,
            limit=limit,
            stamp=stamp,
        )


def test_an_outage_of_all_expires_nobody() -> None:
    """However long it was: whoever sweeps first has not heard the others for as long."""

    def play(make: Callable[[], SessionStore]) -> None:
        state = type("Machine", (InMemory,), {"make_shared": make})()
        state.begin(batch_size=1, held_by={"a": 0, "b": 1})
        state.long_outage()
        state.teardown()

    play(MemoryStore)
    with pytest.raises(AssertionError, match="has removed session"):
        play(ForgetsTheOutage)


def test_who_was_revoked_may_hear_of_it_after_a_pass() -> None:
    """Its row is written anew by a claim that was on its way until the id was no longer refused."""
    state = InMemory()
    state.begin(batch_size=1, held_by={"b": 0})
    state.pause(workers=(0,))
    state.add_again(session="b", worker=0)
    state.revoke(session="b", worker=1)
    state.change_transport(session="a", to="lives", worker=0)
    state.heal()
    assert "b" in state._running.model.workers["worker-0-1"].holds, "it was let in"
    state.teardown()


def test_settings_are_those_of_a_search_that_ends() -> None:
    """One failure is shrunk, not several, and not explained line by line; ``settings`` replaces."""

    class Mine(InMemory): ...

    mine = Mine.TestCase.settings
    assert not mine.report_multiple_bugs
    assert Phase.explain not in mine.phases
    assert mine.deadline is None
    assert RegistryMachine.TestCase.settings.report_multiple_bugs  # Hypothesis' own are untouched


def test_an_error_of_the_store_is_told_with_the_history() -> None:
    """It is logged by the registry, which takes it for an outage; nobody would see it."""

    class Mistaken(MemoryStore):
        async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
            raise LookupError("a mistake")

    state = type("Machine", (InMemory,), {"make_shared": Mistaken})()
    state.begin(batch_size=1, held_by={"a": 0})
    with pytest.raises(AssertionError, match="raised LookupError: a mistake") as found:
        state.row_vanishes(session="a")
        state.clean_up(worker=0)
    assert any("LookupError: a mistake" in note for note in found.value.__notes__)
    assert logging.getLogger("trio_sessions").propagate
