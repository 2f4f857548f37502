"""Faults that the house has had, each with the input that showed it."""

import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Shared
from readers import finish_writing, read
from trio.testing import MockClock

from trio_sessions import (
    RowUnavailable,
    SessionRegistry,
    SessionsError,
    StoreUnavailable,
    open_registry,
)
from trio_sessions.abc import Bell, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Holder, RemovalReason, RowAnswers, StoredMessage, Wanted
from trio_sessions.writes import Acknowledge, Batch, Claim, Committed, Delete


class Locks(FaultyStore):
    """Some sessions' rows are locked by somebody, for as long as it takes."""

    def __init__(self, store: Any, *locked: str) -> None:
        super().__init__(store)
        self.locked = set(locked)

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        free = [one for one in batch.writes if one.session_id not in self.locked]
        self.calls["locked"] += len(batch.writes) - len(free)
        committed = await super().commit(worker, replace(batch, writes=free))
        answers = iter(committed.answers)
        return replace(
            committed,
            answers=[
                RowUnavailable("locked") if one.session_id in self.locked else next(answers)
                for one in batch.writes
            ],
        )


async def test_a_locked_row_is_not_written_without_a_pause(autojump_clock: MockClock) -> None:
    """Its inbox is open: it was written 29,000 times a second (invariant 16)."""
    store = Locks(MemoryStore(), "s")
    async with open_registry(store) as registry, trio.open_nursery() as nursery:
        nursery.start_soon(registry.add_session, "s", FakeTransport())
        await registry.add_session("other", FakeTransport())
        nursery.start_soon(registry.respond, "s", nothing)
        await trio.sleep(60)
        assert 5 < store.calls["locked"] < 500
        assert registry.statistics().unconfirmed == 1
        store.locked.clear()
        await trio.sleep(10)
        assert registry.statistics().unconfirmed == 0
        nursery.cancel_scope.cancel()


async def nothing(message: object, transport: object) -> None: ...


async def test_a_session_that_ended_elsewhere_leaves_nothing_to_the_next(
    everywhere: Shared,
) -> None:
    """It moved from A to B and was removed there; its id is added again at A (invariant 14)."""
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "of the older one")
        await b.add_session("s", FakeTransport())
        await b.remove_session("s")
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "of the next one")
        assert await read(a, "s", 1) == ["of the next one"]
        assert a.statistics().messages_dropped == 1
        assert a.statistics().messages_in_memory == 0


async def test_what_was_removed_and_added_again_in_an_outage_costs_one_batch(
    shared: Shared,
) -> None:
    """It was a deletion for each, one after the other."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        for number in range(300):
            await registry.add_session(f"s{number}", FakeTransport())
        await registry.set_session_owner("s7", "alice")
        store.fail()
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(registry.remove_session, f"s{number}")
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(registry.add_session, f"s{number}", FakeTransport())
        assert store.faults["Delete"] > 0
        store.heal()
        store.calls.clear()
        report = await registry.cleanup()
        assert len(report.restored) == 300
        assert store.calls["Delete"] == 0
        # A batch that a busy machine has made late goes once more.
        assert store.calls["commit"] == store.calls["Claim"] <= 2
        assert await registry.get_session_owner("s7") is None
        assert registry.statistics().leftover_rows == 0


async def test_a_message_in_hand_is_not_lost_when_its_session_goes_and_comes_back(
    everywhere: Shared,
) -> None:
    """From A to B and to A again, while A cannot acknowledge (invariant 15)."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        await b.broadcast("s", "in hand")
        with pytest.raises(KeyError):
            async with a.open_inbox("s") as inbox:
                with trio.fail_after(40):
                    assert await anext(inbox) == "in hand"
                await b.add_session("s", FakeTransport())
                store.fail(Fault.FAILS, "Acknowledge")
                assert (await a.cleanup()).missing == ("s",)
                await a.add_session("s", FakeTransport())
                store.heal()
                await trio.sleep(0.5)  # longer than what could not be acknowledged waits
                raise KeyError
        assert await read(a, "s", 1) == ["in hand"]


@pytest.mark.parametrize("durable", [False, True])
async def test_what_a_former_reader_could_not_finish_goes_before_what_follows(
    everywhere: Shared,
    durable: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """The session was added again meanwhile, on the same worker."""
    async with everywhere.open() as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        for number in (1, 2):
            await registry.broadcast("s", number, durable=durable)
        received: list[Any] = []

        async def read_next() -> None:
            received.extend(await read(registry, "s", 2))

        with pytest.raises(KeyError):
            async with registry.open_inbox("s") as inbox:
                with trio.fail_after(40):
                    assert await anext(inbox) == 1
                await registry.add_session("s", FakeTransport())
                nursery.start_soon(read_next)
                await everywhere.settle()
                assert received == []
                raise KeyError
        with trio.fail_after(40):
            while not received:
                await trio.sleep(0.005)
        assert received == [1, 2]


@pytest.mark.parametrize("durable", [False, True])
async def test_a_former_reader_that_does_not_finish_holds_up_the_next_for_a_while_only(
    autojump_clock: MockClock,
    durable: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """Then its message is dropped, if it is not handled after all, and counted."""
    store = MemoryStore()
    async with open_registry(store, disconnect_timeout=3.0) as registry:
        await registry.add_session("s", FakeTransport())
        for number in (1, 2):
            await registry.broadcast("s", number, durable=durable)
        with pytest.raises(KeyError):
            async with registry.open_inbox("s") as inbox:
                assert await anext(inbox) == 1
                await registry.add_session("s", FakeTransport())
                start = trio.current_time()
                assert await read(registry, "s", 1) == [2]
                assert trio.current_time() - start == 3.0
                raise KeyError
        assert registry.statistics().messages_dropped == 1
        await registry.broadcast("s", 3)
        assert await read(registry, "s", 1) == [3]
        await finish_writing(registry)
        await trio.sleep(0.1)
        assert store._rows["s"].messages == {}


async def test_closing_with_many_calls_under_way_takes_one_timeout(
    autojump_clock: MockClock,
) -> None:
    """It took three, when the database is silent."""
    store = FaultyStore(MemoryStore())
    ended: list[Any] = []

    async def call(function: Any, *args: Any) -> None:
        try:
            ended.append(await function(*args))
        except SessionsError as exc:
            ended.append(exc)

    async with trio.open_nursery() as nursery:
        async with open_registry(store, store_timeout=10.0) as registry:
            for number in range(100):
                await registry.add_session(f"s{number}", FakeTransport())
            nursery.start_soon(registry.respond, "s0", nothing)
            await trio.testing.wait_all_tasks_blocked()
            store.fail(Fault.HANGS)
            for number in range(100):
                for function, *args in (
                    (registry.add_session, f"t{number}", FakeTransport()),
                    (registry.remove_session, f"s{number}"),
                    (registry.set_session_owner, f"s{number}", "alice"),
                    (registry.claim_session_owner, f"s{number}", "alice"),
                    (registry.store_client_capabilities, f"s{number}", {}),
                    (registry.broadcast, f"elsewhere {number}", "message"),
                    (registry.locate_session, f"elsewhere {number}"),
                    (registry.get_client_capabilities, f"elsewhere {number}"),
                    (registry.get_session_owner, f"elsewhere {number}"),
                ):
                    nursery.start_soon(call, function, *args)
            await trio.testing.wait_all_tasks_blocked()
            start = trio.current_time()
        assert trio.current_time() - start <= 10.0
        await trio.testing.wait_all_tasks_blocked()
        assert len(ended) == 900
    assert trio.current_time() - start <= 10.0
    assert store.faults["commit"] > 0


async def test_what_a_pass_has_removed_is_counted_though_it_is_cut(
    autojump_clock: MockClock,
) -> None:
    """It was counted at the end of the pass: of one that is cut, by one counter of two."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, store_timeout=10.0) as registry:
        await registry.add_session("gone", FakeTransport("closed"))
        await registry.add_session("stays", FakeTransport())
        store.fail(Fault.HANGS, "refresh")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.cleanup)
            await trio.sleep(1)
            assert registry.get_session_sync("gone") is None
            statistics = registry.statistics()
            nursery.cancel_scope.cancel()
    assert statistics.passes == 1
    assert statistics.removals[RemovalReason.DISCONNECTED] == 1
    assert statistics.removed_disconnected == 1


class NeverCloses(FaultyStore):
    """Hangs in `close`, too."""

    async def close(self, worker: Worker) -> None:
        await trio.sleep_forever()


@pytest.mark.parametrize("is_silent", [False, True])
async def test_a_store_that_does_not_close_is_left_in_one_timeout_and_a_quarter(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    is_silent: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """Closing is one bound for the whole: it was two, for a store whose `close` hangs as well."""
    store = NeverCloses(MemoryStore())
    async with open_registry(store, store_timeout=10.0) as registry:
        await registry.add_session("s", FakeTransport())
        if is_silent:
            store.fail(Fault.HANGS)
        start = trio.current_time()
    assert trio.current_time() - start <= (12.5 if is_silent else 10.0) + 0.1
    assert "the store did not close in time" in caplog.text


class Weighs(FaultyStore):
    """Notes how large the capabilities of a batch are together."""

    heaviest = 0

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        claims = [one for _, one in batch.of(Claim)]
        weight = sum(len(one.capabilities.encoded) for one in claims if one.capabilities)
        self.heaviest = max(self.heaviest, weight)
        return await super().commit(worker, batch)


async def test_what_is_noted_in_an_outage_makes_no_batch_too_large() -> None:
    """A batch that the database cannot take would fail in every pass, whole."""
    store = Weighs(MemoryStore())
    async with open_registry(store) as registry:
        store.fail()
        for number in range(30):
            await registry.add_session(f"s{number}", FakeTransport())
            await registry.store_client_capabilities(f"s{number}", {"x": "y" * 1_000_000})
        store.heal()
        store.heaviest = 0
        assert len((await registry.cleanup()).restored) == 30
        assert 0 < store.heaviest <= 8 * 1024 * 1024
        assert len(await registry.get_client_capabilities("s7") or {}) == 1


class SlowNetwork(MemoryStore):
    """Each operation takes a token of the limiter, as a thread does, and half a second."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.longest = 0.0

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        self.asked += 1
        async with worker.limiter:
            with trio.CancelScope(shield=True):  # a thread cannot be cancelled
                await trio.sleep(0.5)
            return await super().locate(worker, session_id)

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        start = trio.current_time()
        async with worker.limiter:
            await trio.sleep(0.5)
            answers = await super().refresh(worker, session_ids)
        self.longest = max(self.longest, trio.current_time() - start)
        return answers

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        start = trio.current_time()
        async with worker.limiter:
            await trio.sleep(0.5)
            committed = await super().commit(worker, batch)
        if any(batch.of(Claim)):
            self.longest = max(self.longest, trio.current_time() - start)
        return committed


async def test_a_flood_of_questions_delays_no_refresh(autojump_clock: MockClock) -> None:
    """Their callers leave after a second; what nobody waits for is not asked (invariant 17)."""
    store = SlowNetwork()

    async def ask(number: int) -> None:
        with trio.move_on_after(1):
            await registry.locate_session(f"elsewhere {number}")

    async with (
        open_registry(store, session_ttl=20.0, cleanup_interval=5.0) as registry,
        trio.open_nursery() as nursery,
    ):
        await registry.add_session("s", FakeTransport())
        for number in range(80 * 60):
            nursery.start_soon(ask, number)
            await trio.sleep(1 / 80)
        nursery.start_soon(registry.add_session, "t", FakeTransport())
        await trio.sleep(2)
        assert registry.statistics().unconfirmed == 0
        assert store.longest <= 1.1
        assert store.asked <= 36 * 61
        assert registry.statistics().passes >= 12
        assert registry.statistics().incomplete_passes == 0
        assert registry.statistics().operations_waiting < 100


class LocksAcknowledgements(FaultyStore):
    """Nothing can be acknowledged of some sessions, for as long as it takes."""

    def __init__(self, store: Any, *locked: str) -> None:
        super().__init__(store)
        self.locked = set(locked)
        self.asked: Counter[str] = Counter()
        self.written: list[tuple[float, str, type[object]]] = []
        self.batches = 0
        """Those in which something was acknowledged."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        await trio.sleep(0.002)
        held = [
            isinstance(one, Acknowledge) and one.session_id in self.locked for one in batch.writes
        ]
        self.asked.update(one.session_id for _, one in batch.of(Acknowledge))
        self.batches += any(True for _ in batch.of(Acknowledge))
        free = [one for one, is_held in zip(batch.writes, held, strict=True) if not is_held]
        committed = await super().commit(worker, replace(batch, writes=free))
        answers = iter(committed.answers)
        now = trio.current_time()
        self.written.extend((now, one.session_id, type(one)) for one in free)
        return replace(
            committed,
            answers=[RowUnavailable("locked") if is_held else next(answers) for is_held in held],
        )

    def acknowledged(self, session_id: str) -> list[float]:
        """Return when something was acknowledged of a session."""
        return [
            moment
            for moment, one, kind in self.written
            if kind is Acknowledge and one == session_id
        ]


@asynccontextmanager
async def responding(registry: SessionRegistry, session_ids: Sequence[str]) -> AsyncIterator[None]:
    """Hold sessions, and handle their messages."""
    async with trio.open_nursery() as nursery:
        for session_id in session_ids:
            nursery.start_soon(registry.add_session, session_id, FakeTransport())
        await trio.sleep(1)
        for session_id in session_ids:
            nursery.start_soon(registry.respond, session_id, nothing)
        await trio.sleep(1)
        yield
        nursery.cancel_scope.cancel()


async def sessions_with_messages(registry: SessionRegistry) -> list[str]:
    """Return the sessions of a worker for which messages are stored."""
    edge = registry._house._edge
    return await edge._store.waiting(edge.worker)


async def test_a_locked_row_is_waited_for_by_no_other_acknowledgement(
    autojump_clock: MockClock,
) -> None:
    """All waited for it, and then for a pause: 2 to 9 s for each round, whatever came."""
    shared = MemoryStore()
    store = LocksAcknowledgements(shared, "locked")
    async with (
        open_registry(store) as a,
        open_registry(shared) as b,
        responding(a, ["locked", "free"]),
    ):
        await b.broadcast("locked", 0)
        sent = []
        for number in range(300):
            await trio.sleep(0.1)
            sent.append(trio.current_time())
            await b.broadcast("free", number)
        await trio.sleep(0.1)
        done = store.acknowledged("free")
        assert len(done) == len(sent)
        assert all(after - before < 0.05 for before, after in zip(sent, done, strict=True))
        assert 5 < store.asked["locked"] < 200
        assert store.acknowledged("locked") == []
        store.locked.clear()
        await trio.sleep(10)
        assert len(store.acknowledged("locked")) == 1
        assert await sessions_with_messages(a) == []


async def test_many_locked_rows_are_in_no_other_acknowledgements_way(
    autojump_clock: MockClock,
) -> None:
    """A thousand of them were what was acknowledged, again and again, and nothing else."""
    shared = MemoryStore()
    locked = [f"locked {number}" for number in range(1000)]
    store = LocksAcknowledgements(shared, *locked)
    async with (
        open_registry(store) as a,
        open_registry(shared) as b,
        responding(a, [*locked, "free"]),
    ):
        async with trio.open_nursery() as nursery:
            for session_id in locked:
                nursery.start_soon(b.broadcast, session_id, 0)
        await trio.sleep(4)
        start = trio.current_time()
        await b.broadcast("free", 0)
        await trio.sleep(1)
        assert len(done := store.acknowledged("free")) == 1
        assert done[0] - start < 0.1
        assert all(5 < store.asked[one] < 50 for one in locked)


async def test_what_is_handled_at_one_moment_is_acknowledged_in_one_batch(
    autojump_clock: MockClock,
) -> None:
    """Also after an outage, and then it is not asked for each session at a moment of its own."""
    shared = MemoryStore()
    sessions = [f"s{number}" for number in range(500)]
    store = LocksAcknowledgements(shared)
    async with (
        open_registry(store) as a,
        open_registry(shared) as b,
        responding(a, sessions),
    ):
        async with trio.open_nursery() as nursery:
            for session_id in sessions:
                nursery.start_soon(b.broadcast, session_id, 0)
        await trio.sleep(1)
        assert sum(store.asked.values()) == 500
        assert store.batches <= 3
        store.fail(Fault.FAILS, "Acknowledge")
        async with trio.open_nursery() as nursery:
            for session_id in sessions:
                nursery.start_soon(b.broadcast, session_id, 1)
        await trio.sleep(30)
        assert 5 <= store.faults["Acknowledge"] <= 25
        store.heal()
        store.batches = 0
        await trio.sleep(10)
        assert len(store.acknowledged("s7")) == 2
        assert store.batches <= 8


async def test_what_was_handled_while_its_acknowledgement_waits_goes_with_it(
    autojump_clock: MockClock,
) -> None:
    """There is one order for each inbox, however many messages are handled meanwhile."""
    shared = MemoryStore()
    store = LocksAcknowledgements(shared, "s")
    async with (
        open_registry(store) as a,
        open_registry(shared) as b,
        responding(a, ["s"]),
    ):
        for number in range(50):
            await b.broadcast("s", number)
            await trio.sleep(0.01)
            assert a.statistics().operations_waiting <= 1
        assert store.asked["s"] > 1
        store.locked.clear()
        await trio.sleep(1)
        assert len(store.acknowledged("s")) == 1
        assert await sessions_with_messages(a) == []


async def test_the_last_acknowledgement_goes_before_the_deletion_and_after_all_others(
    autojump_clock: MockClock,
) -> None:
    """One was under way and its row locked: it is not repeated after the last (invariant 15)."""
    shared = MemoryStore()
    store = LocksAcknowledgements(shared, "s")
    async with (
        open_registry(store) as a,
        open_registry(shared) as b,
        responding(a, ["s"]),
    ):
        await b.broadcast("s", 1)
        await trio.sleep(0.5)
        assert store.asked["s"] > 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.remove_session, "s")
            await trio.sleep(0.5)
            store.locked.clear()
        await a.add_session("s", FakeTransport())
        await trio.sleep(30)
        assert [kind for _, one, kind in store.written if one == "s"] == [
            Claim,
            Acknowledge,
            Delete,
            Claim,
        ]


class BreakingBell:
    """Answers so often, each after a while, and breaks."""

    def __init__(self, answers: int, seconds: float) -> None:
        self._answers = answers
        self._seconds = seconds

    async def wait(self) -> frozenset[str] | None:
        await trio.sleep(self._seconds)
        if not self._answers:
            raise StoreUnavailable("the bell broke")
        self._answers -= 1
        return None


class BreakingBells(FaultyStore):
    """Each of its bells breaks."""

    def __init__(self, store: Any, answers: int, seconds: float) -> None:
        super().__init__(store)
        self._bell = answers, seconds

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        self.calls["open_bell"] += 1
        yield BreakingBell(*self._bell)


@pytest.mark.parametrize(
    ("answers", "seconds", "often"),
    [(0, 0.0, range(5, 30)), (1, 0.0, range(200, 900)), (0, 6.0, range(8, 12))],
    ids=["at once", "after an answer", "after a while"],
)
async def test_a_bell_that_breaks_at_once_is_opened_after_a_pause_that_grows(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    answers: int,
    seconds: float,
    often: range,
) -> None:
    """It was 600 times a minute, with a warning each (invariant 16).

    One that has worked, or has lived for a while, is opened again soon.
    """
    store = BreakingBells(MemoryStore(), answers, seconds)
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s"):
            await trio.sleep(60)
        assert store.calls["open_bell"] in often
    warnings = [one for one in caplog.records if one.levelno == logging.WARNING]
    worked = answers or seconds
    assert len(warnings) >= store.calls["open_bell"] - 1 if worked else len(warnings) == 1


class SlowFetch(Locks):
    """A fetch takes a moment, in which more comes."""

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        await trio.sleep(0.05)
        return await super().fetch(worker, wanted)


async def test_an_unwritten_row_is_written_while_others_get_messages_all_the_time(
    autojump_clock: MockClock,
) -> None:
    """It was tried only while nothing was to be fetched, so by the next pass."""
    shared = MemoryStore()
    store = SlowFetch(shared, "locked")
    async with (
        open_registry(store, session_ttl=1000.0, cleanup_interval=300.0) as a,
        open_registry(shared, session_ttl=1000.0, cleanup_interval=300.0) as b,
        responding(a, ["busy", "locked"]),
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            while True:
                await b.broadcast("busy", 0)
                await trio.sleep(0.01)

        nursery.start_soon(send)
        await trio.sleep(10)
        assert store.calls["locked"] > 1
        assert a.statistics().unconfirmed == 1
        passes = a.statistics().passes
        store.locked.clear()
        await trio.sleep(10)
        assert a.statistics().passes == passes
        assert a.statistics().unconfirmed == 0
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_acknowledged_is_bounded(autojump_clock: MockClock) -> None:
    """Rows wait in the store, not in memory; and all arrive when it can be again."""
    shared = MemoryStore()
    store = FaultyStore(shared)
    async with (
        open_registry(store) as a,
        open_registry(shared) as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        got: list[object] = []

        async def read_all() -> None:
            async with a.open_inbox("s") as inbox:
                async for message in inbox:
                    got.append(message)

        nursery.start_soon(read_all)
        store.fail(Fault.FAILS, "Acknowledge")
        for number in range(3000):
            await b.broadcast("s", number)
        await trio.sleep(30)
        assert store.faults["Acknowledge"] > 0
        assert 2000 <= len(got) <= 2100
        store.heal()
        await trio.sleep(30)
        assert got == list(range(3000))
        nursery.cancel_scope.cancel()
