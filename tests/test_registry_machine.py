"""`RegistryMachine`: quiet about stores that keep the contract, loud about those that do not."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from machines import InMemory
from soak import SOAK, TIMES, longer

from trio_sessions.abc import SessionStore, Worker
from trio_sessions.revocation import Revocation, Revoked
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.stores.memory._revoked import Marks
from trio_sessions.testing import FakeTransport, RegistryMachine
from trio_sessions.types import RowAnswers, Sent, Stamp, StoredMessage, Swept, Wanted
from trio_sessions.writes import (
    Acknowledge,
    Batch,
    Claim,
    Claimed,
    Committed,
    Delete,
    Outcome,
    Send,
)

# Measuring would double the time of long searches; others reach the same code.
pytestmark = pytest.mark.no_cover

REMOVED = "has had its row confirmed|has removed session"
FORGOTTEN = f"{REMOVED}|a session of a namesake of .* is lost"
DEFAULT = settings.get_profile("default").max_examples
SEARCH_ONLY = (Phase.explicit, Phase.generate)


def search(
    machine: type[RegistryMachine],
    examples: int,
    phases: Sequence[Phase] = SEARCH_ONLY,
    steps: int = 25,
) -> None:
    """Play histories; raise what Hypothesis raises."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=phases,
        ),
    )


# ---- stores that keep the contract ----


@pytest.mark.timeout(120 * TIMES)
def test_in_memory_nothing_is_found() -> None:
    """With virtual time: pauses, leases that run out, and hours between."""
    search(InMemory, 8 * TIMES)


def machine_on(url: sa.URL) -> type[RegistryMachine]:
    class OnDatabase(RegistryMachine):
        def reset(self) -> None:
            backdoor = DatabaseBackdoor(url)
            with backdoor.engine.begin() as connection:
                for table in reversed(backdoor.sessions.metadata.sorted_tables):
                    if sa.inspect(connection).has_table(table.name):
                        connection.execute(sa.delete(table))
            backdoor.close()

        def make_store(self) -> SessionStore:
            return DatabaseStore(url)

    return OnDatabase


@pytest.mark.timeout(120 * TIMES)
def test_on_sqlite_nothing_is_found(tmp_path: Path) -> None:
    """In real time, with a file: no lease runs out."""
    search(machine_on(sa.make_url(f"sqlite:///{tmp_path / 'sessions.db'}")), 3 * TIMES)


@pytest.mark.timeout(120 * TIMES)
def test_on_postgresql_nothing_is_found(postgresql_schema: sa.URL) -> None:
    """In real time, with a server."""
    search(machine_on(postgresql_schema), 3 * TIMES)


class InMemoryInRealTime(InMemory):
    """Where time passes, and nothing is in a thread."""

    clock = "real"


@pytest.mark.parametrize("where", ["virtual time", "real time", "sqlite", "postgresql"])
def test_a_history_that_has_failed_is_played_again(
    where: str, request: pytest.FixtureRequest
) -> None:
    """Old writes of a new session arrive last, and then those of one that is held elsewhere."""
    machines: dict[str, Callable[[], type[RegistryMachine]]] = {
        "virtual time": lambda: InMemory,
        "real time": lambda: InMemoryInRealTime,
        "sqlite": lambda: machine_on(request.getfixturevalue("sqlite_url")),
        "postgresql": lambda: machine_on(request.getfixturevalue("postgresql_schema")),
    }
    state = machines[where]()()
    state.begin(seed=5, held_by={"a": 1}, batch_size=1, longer=1)
    state.old_writes_land(session="b", worker=1)
    state.old_writes_land(session="b", worker=0)
    assert "worker-0-1" in {worker.name for worker, _ in state._running.model.holders("b")}
    state.teardown()
    trio.run(trio.lowlevel.checkpoint)  # nothing is left of it


# ---- those that do not ----


class CallsAFailureGone(MemoryStore):
    """A refresh that fails is answered as if there were no rows."""

    refreshes = 0

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        answers = await super().refresh(worker, session_ids)
        self.refreshes += 1
        return dataclasses.replace(answers, held=frozenset()) if self.refreshes % 3 else answers


class ForgetsClaims(MemoryStore):
    """A batch of claims is answered, and some of its rows are not on disk."""

    commits = 0

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        for write in batch.writes:
            self.commits += 1
            if isinstance(write, Claim) and self.commits % 3 == 0:
                self._rows.pop(write.session_id, None)
        return committed


class LosesLeases(MemoryStore):
    """A sweep goes by the age of the row, and not by the stamps of its holder."""

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
        old = trio.current_time() - 0.3 * session_ttl
        for session_id, row in list(self._rows.items()):
            if not row.is_of(worker) and row.last_accessed < old:
                del self._rows[session_id]
        return await super().sweep(
            worker,
            session_ttl=session_ttl,
            message_ttl=message_ttl,
            max_gap=max_gap,
            limit=limit,
            stamp=stamp,
        )


class Rewriting(MemoryStore):
    """Changes what is written before it is, or what is answered after it was."""

    def rewrite(self, worker: Worker, write: Any) -> Any:
        return write

    def written(self, worker: Worker, write: Any, answer: Any) -> None: ...

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [self.rewrite(worker, write) for write in batch.writes]
        committed = await super().commit(worker, dataclasses.replace(batch, writes=writes))
        for write, answer in zip(writes, committed.answers, strict=False):
            self.written(worker, write, answer)
        return committed


class LetsTheOlderClaimWin(Rewriting):
    """A claim counts from when it arrives, not from when its session was added."""

    def rewrite(self, worker: Worker, write: Any) -> Any:
        return dataclasses.replace(write, age=0.0) if isinstance(write, Claim) else write


class DropsMessages(Rewriting):
    """Of messages that are stored at once, only the last is kept."""

    def written(self, worker: Worker, write: Any, answer: Any) -> None:
        if isinstance(write, Send) and isinstance(answer, Sent) and answer.id % 2 == 0:
            del self._rows[write.session_id].messages[answer.id]


class IgnoresGenerations(Rewriting):
    """A claim that lands behind a later one of its worker is written all the same."""

    def rewrite(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if isinstance(write, Claim) and row is not None and row.is_of(worker):
            row.generation = min(row.generation, write.generation)
        return write


class DeletesAnyGeneration(Rewriting):
    """A deletion takes the row of whatever session of the worker has the id by now."""

    def rewrite(self, worker: Worker, write: Any) -> Any:
        return dataclasses.replace(write, up_to=2**40) if isinstance(write, Delete) else write


class ReversesMessages(MemoryStore):
    """What waits is handed out newest first."""

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        found = await super().fetch(worker, wanted)
        return {session_id: messages[::-1] for session_id, messages in found.items()}


class LosesOwners(Rewriting):
    """Who takes a session over begins without its owner."""

    def written(self, worker: Worker, write: Any, answer: Any) -> None:
        if isinstance(answer, Claimed) and answer.outcome is Outcome.TAKEN_OVER:
            self._rows[write.session_id].owner = None


class LetsRevokedComeBack(MemoryStore):
    """A claim does not look for marks."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        self._rows.marks = Marks()
        return await super().commit(worker, batch)


class RevokesHalf(MemoryStore):
    """Ids are marked, and their rows stay."""

    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        rows = dict(self._rows)
        revoked = await super().revoke(worker, revocation, limit=limit)
        self._rows.update(rows)
        self._rows.marks = Marks()
        return revoked


class SaysThatNothingIsLeft(MemoryStore):
    """A worker is not told of rows of its own."""

    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        await super().own_rows(worker, after=after, limit=limit)
        return []


class ForgetsWhatItCommitsAtOnce(MemoryStore):
    """Whatever waits for nothing is answered, and not done; the rest is."""

    def commit_at_once(self, worker: Worker, batch: Batch) -> Committed | None:
        committed = super().commit_at_once(worker, batch)
        for write in batch.writes:
            if isinstance(write, Claim):
                self._rows.take(write.session_id)
        return committed


class LetsTheOlderClaimWinAtOnce(MemoryStore):
    """As it came, and not as it was added: only where nothing is waited for."""

    def commit_at_once(self, worker: Worker, batch: Batch) -> Committed | None:
        writes = [
            dataclasses.replace(one, age=0.0) if isinstance(one, Claim) else one
            for one in batch.writes
        ]
        return super().commit_at_once(worker, dataclasses.replace(batch, writes=writes))


class DeletesAllOfItsName(MemoryStore):
    """A worker that leaves takes the rows of its namesake for its own."""

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        for row in self._rows.values():
            if row.worker_id == worker.worker_id:
                row.incarnation = worker.incarnation
        return await super().delete_all(worker, limit=limit)


class DeletesByName(MemoryStore):
    """A session that has moved to a namesake is deleted by whom it has left."""

    def _carry_out(self, worker: Worker, write: Any, now: float, **known: Any) -> Any:
        row = self._rows.get(write.session_id) if isinstance(write, Delete) else None
        if row is not None and row.worker_id == worker.worker_id:
            row.incarnation = worker.incarnation
        return super()._carry_out(worker, write, now, **known)


class CountsMessages(Rewriting):
    """A message is numbered by how many wait, and so takes the place of another one."""

    def rewrite(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id) if isinstance(write, Send) else None
        if row is not None:
            self._rows._message_ids.following = len(row.messages) + 1
        return write


class AcknowledgesAll(Rewriting):
    """What is acknowledged goes, and with it whatever has come since it was handed out."""

    def rewrite(self, worker: Worker, write: Any) -> Any:
        row = self._rows.get(write.session_id)
        if isinstance(write, Acknowledge) and row is not None:
            return dataclasses.replace(write, message_ids=(*write.message_ids, *row.messages))
        return write


class AcknowledgesAllThatWaits(AcknowledgesAll):
    """Likewise, where nothing is done at once."""

    def commit_at_once(self, worker: Worker, batch: Batch) -> None:
        return None


class SweepsByItsOwnTtl(MemoryStore):
    """A row expires by the TTL of who sweeps, although its holder has a longer one."""

    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        swept = await super().sweep(worker, **durations)
        old = trio.current_time() - durations["session_ttl"]
        for session_id, row in list(self._rows.items()):
            if max(row.last_accessed, self._workers._unbroken_since) < old:
                del self._rows[session_id]
        return swept


BROKEN = [
    (CallsAFailureGone, f"{REMOVED}|held by"),
    (LosesLeases, REMOVED),
    (AcknowledgesAllThatWaits, "are lost"),
    # The gate searches for this one when it looks at what is printed, below.
    pytest.param(ForgetsClaims, FORGOTTEN, marks=longer),
    # The gate plays a short history of each of these, below.
    pytest.param(IgnoresGenerations, "the row is gone", marks=longer),
    pytest.param(DeletesAnyGeneration, "the row is gone", marks=longer),
    pytest.param(ReversesMessages, "which were sent later", marks=longer),
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("store", "complaint"), BROKEN, ids=lambda one: getattr(one, "__name__", "")
)
def test_a_broken_store_is_found(store: type[MemoryStore], complaint: str) -> None:
    """Within the histories that Hypothesis plays by default, and it says what is wrong."""
    machine = type(f"On{store.__name__}", (InMemory,), {"make_shared": store})
    with pytest.raises(AssertionError, match=complaint) as found:
        search(machine, DEFAULT)
    assert any("state.begin(" in note for note in found.value.__notes__)


@pytest.mark.timeout(180)
def test_what_is_printed_is_short_and_fails_again_where_it_is_pasted() -> None:
    """Hypothesis shrinks it: to what a store that forgets claims must be asked for at least."""
    machine = type("OnForgetful", (InMemory,), {"make_shared": ForgetsClaims})
    with pytest.raises(AssertionError, match=FORGOTTEN) as found:
        # Shrinking a long history takes most of a minute.
        search(machine, DEFAULT, (*SEARCH_ONLY, Phase.shrink), steps=25 if SOAK else 4)
    code = [line for line in found.value.__notes__ if line.startswith("state")]
    assert len(code) <= 10  # four, if Hypothesis has the time
    with pytest.raises(AssertionError, match=FORGOTTEN):
        exec("\n".join(code), {machine.__name__: machine})
    trio.run(trio.lowlevel.checkpoint)


def older_claim(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={})
    state.outage(answers="none", workers=(0,))
    state.add(session="a", worker=0)
    state.add(session="a", worker=1)
    state.heal()


def begun(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})


def namesake(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.namesake(worker=0)


def messages(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.broadcast(worker=1, session="a", durable=True, count=2)
    state.read(session="a")


def old_writes(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.old_writes_land(session="a", worker=0)


def sent_and_read(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.send_and_read(count=2, session="a", worker=0)


def read_between(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.read_between(count=2, session="a", worker=1)


def visited(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 1}, longer=5)
    state.time_passes(leases=1.3)
    state.outage(answers="none", workers=(1,))
    state.time_passes(leases=1.3)
    state.heal()


def owner(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.set_owner(worker=0, session="a", owner="bob")
    state.move(session="a")


def revoked(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.revoke(session="a", worker=1)
    state.add(session="a", worker=1)


def revoked_elsewhere(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.revoke(session="a", worker=1)


def drained(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0})
    state.drain(worker=0)


def drained_with_an_owner(state: RegistryMachine) -> None:
    state.begin(batch_size=1, held_by={"a": 0, "b": 1})
    state.set_owner(worker=0, session="a", owner="bob")
    state.drain(worker=0)


@pytest.mark.parametrize(
    ("store", "history", "complaint"),
    [
        (SaysThatNothingIsLeft, drained, "has not waited for"),
        (LosesOwners, drained_with_an_owner, "the owner of session"),
        (LetsRevokedComeBack, revoked, "is revoked, and"),
        (RevokesHalf, revoked_elsewhere, "which was revoked, is held by"),
        (DeletesAllOfItsName, namesake, "the row is gone"),
        (DeletesByName, namesake, "a session of a namesake of worker-0-1 is lost"),
        (LetsTheOlderClaimWin, older_claim, REMOVED),
        (LetsTheOlderClaimWinAtOnce, older_claim, REMOVED),
        (ForgetsWhatItCommitsAtOnce, begun, REMOVED),
        (DropsMessages, messages, "are lost"),
        (CountsMessages, read_between, "are lost"),
        (AcknowledgesAll, read_between, "are lost"),
        (AcknowledgesAllThatWaits, read_between, "are lost"),
        (SweepsByItsOwnTtl, visited, REMOVED),
        (ReversesMessages, sent_and_read, "which were sent later"),
        (DeletesAnyGeneration, old_writes, "the row is gone"),
        (IgnoresGenerations, old_writes, "the row is gone"),
        (LosesOwners, owner, "the owner of session"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_history_that_was_pasted_finds_it_again(
    store: type[MemoryStore], history: Callable[[RegistryMachine], None], complaint: str
) -> None:
    """Of stores for which a search takes longer than the gate may; a whole store passes."""

    def play(make: Callable[[], SessionStore]) -> None:
        state = type("Machine", (InMemory,), {"make_shared": make})()
        history(state)  # as it is printed: nothing ends the run of Trio if it fails
        state.teardown()

    with pytest.raises(AssertionError, match=complaint):
        play(store)
    play(MemoryStore)
    trio.run(trio.lowlevel.checkpoint)


# ---- what it leaves ----


def test_a_transport_that_lies_is_found() -> None:
    """One that says it is disconnected when nobody has ended it would end live sessions."""

    class WithLiars(InMemory):
        def make_transport(self) -> FakeTransport:
            return FakeTransport("closed")

    machine = WithLiars()
    machine.begin(batch_size=1, held_by={"a": 0})
    with pytest.raises(AssertionError, match="make_transport"):
        machine.clean_up(worker=0)
    machine.teardown()


def test_a_row_can_be_deleted_by_a_hook_of_ones_own() -> None:
    """In place of the way by the contract, which takes the session over first."""
    deleted = list[str]()

    class WithHook(InMemory):
        async def delete_row(self, session_id: str) -> None:
            deleted.append(session_id)
            self.shared._rows.pop(session_id)  # type: ignore[attr-defined]

    machine = WithHook()
    machine.begin(batch_size=1, held_by={"a": 0})
    machine.row_vanishes(session="a")
    machine.clean_up(worker=0)
    machine.teardown()
    assert deleted == ["a"]


def test_nothing_is_left_of_a_history(sqlite_url: sa.URL) -> None:
    """No run of Trio, no open store and no row, whether it ended well or not."""
    stores = list[DatabaseStore]()

    class OnFile(RegistryMachine):
        def reset(self) -> None: ...

        def make_store(self) -> SessionStore:
            stores.append(DatabaseStore(sqlite_url))
            return stores[-1]

    for fails in (False, True):
        machine = OnFile()
        machine.begin(batch_size=1, held_by={"a": 0})
        machine.broadcast(worker=1, session="a", durable=True, count=2)
        if fails:
            try:
                raise KeyError
            except KeyError:
                machine.teardown()
        else:
            machine.teardown()
        assert [store._opened.is_open for store in stores] == [False] * len(stores)
        assert DatabaseBackdoor(sqlite_url).rows() == {}
        trio.run(trio.sleep, 0)
    busy = [one.name for one in threading.enumerate() if "trio_sessions" in one.name]
    assert busy == []


NO_SHARE = {"make_shared": MemoryStore}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (type("NoStore", (RegistryMachine,), {"reset": InMemory.reset, **NO_SHARE}), "make_store"),
        (type("NoReset", (RegistryMachine,), {}), "reset"),
        (type("NoClock", (InMemory,), {"clock": "sundial"}), "clock must be"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_is_not_defined_is_named(broken: type[RegistryMachine], message: str) -> None:
    """At the first step, in words that say what to do."""
    machine = broken()
    with pytest.raises((NotImplementedError, ValueError), match=message):
        machine.begin(batch_size=1, held_by={})
    machine.teardown()


def test_a_step_without_a_beginning_says_so() -> None:
    """Whoever writes a history by hand is told what is missing."""
    with pytest.raises(RuntimeError, match="begin"):
        InMemory().add(worker=0, session="a")


class NeverEmptied(InMemory):
    """Its store is that of the class."""

    shared = MemoryStore()

    def reset(self) -> None: ...


def test_a_reset_that_empties_nothing_is_found() -> None:
    """Before a history begins on what another one has left."""
    NeverEmptied.shared = MemoryStore()
    worker = Worker(worker_id="w", incarnation="1", limiter=trio.CapacityLimiter(1))
    claim = Batch(writes=[Claim(session_id="b", generation=1, age=0.0)])
    trio.run(NeverEmptied.shared.open, worker)
    trio.run(NeverEmptied.shared.commit, worker, claim)
    machine = NeverEmptied()
    with pytest.raises(RuntimeError, match=r"NeverEmptied.reset\(\) must empty .* 'b' is still"):
        machine.begin(batch_size=1, held_by={})


@pytest.mark.parametrize("ttl", [0.0, 60.0])
def test_a_reset_that_leaves_a_revocation_is_found(ttl: float) -> None:
    """It was the store's fault: "was refused as revoked by worker-0-1, and is not".

    Also one whose time is over: it means the sessions that were added before.
    """
    NeverEmptied.shared = MemoryStore()
    worker = Worker(worker_id="w", incarnation="1", limiter=trio.CapacityLimiter(1))

    async def revoke() -> None:
        await NeverEmptied.shared.open(worker)
        revocation = Revocation(session_ids=("a",), ttl=ttl)
        await NeverEmptied.shared.revoke(worker, revocation, limit=1)
        await NeverEmptied.shared.close(worker)

    trio.run(revoke)
    with pytest.raises(RuntimeError, match=r"reset\(\) must empty .* a revocation of 'a' is still"):
        NeverEmptied().begin(batch_size=1, held_by={"b": 0})


def test_stores_that_share_nothing_are_found() -> None:
    """It was the store's fault: "has had its row confirmed, but the row is gone"."""
    machine = type("Apart", (InMemory,), {"make_store": lambda _self: MemoryStore()})()
    with pytest.raises(RuntimeError, match="two workers see nothing of each other: make_store"):
        machine.begin(batch_size=1, held_by={"a": 0})


def test_a_reset_that_is_async_is_refused() -> None:
    """It would never be carried out."""

    async def reset(self: object) -> None: ...

    machine = type("ResetsLater", (InMemory,), {"reset": reset})()
    with pytest.raises(TypeError, match=r"ResetsLater.reset\(\) must not be async"):
        machine.begin(batch_size=1, held_by={})
