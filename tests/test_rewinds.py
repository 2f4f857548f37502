"""A database that has forgotten something removes nobody; a late statement does nothing."""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from backdoors import MemoryBackdoor
from conftest import Shared
from gates import GatedStore
from soak import longer
from trio.testing import MockClock

from trio_sessions import RowUnavailable, SessionRegistry, StoreUnavailable, open_registry
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import RowAnswers

INTERVAL = 1800.0


async def add(registry: SessionRegistry, ids: Iterable[str]) -> dict[str, FakeTransport]:
    transports = {session_id: FakeTransport() for session_id in ids}
    async with trio.open_nursery() as nursery:
        for session_id, transport in transports.items():
            nursery.start_soon(registry.add_session, session_id, transport)
    return transports


def names(amount: int, prefix: str = "s") -> list[str]:
    return [f"{prefix}{number:02}" for number in range(amount)]


@asynccontextmanager
async def keeping_all(
    shared: Shared, registry: SessionRegistry, caplog: pytest.LogCaptureFixture, *, rewinds: int = 1
) -> AsyncIterator[dict[str, FakeTransport]]:
    """Check after the block that nobody has gone, and that all rows are there."""
    transports: dict[str, FakeTransport] = {}
    yield transports
    assert sorted(await registry.get_all_session_ids()) == sorted(transports)
    assert sum(one.disconnects for one in transports.values()) == 0
    held = {one for one, holder in shared.backdoor.rows().items() if holder == registry.worker_id}
    assert held == set(transports)
    statistics = registry.statistics()
    assert (statistics.database_rewinds, statistics.removed_missing) == (rewinds, 0)
    errors = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert len(errors) == rewinds
    assert all("gone back" in one.getMessage() for one in errors)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
async def test_emptied_tables_are_filled_again(
    shared: Shared, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In the pass that notices it, with owners and capabilities as this worker knows them."""
    async with shared.open(batch_size=batch_size) as a:
        async with keeping_all(shared, a, caplog) as transports:
            transports |= await add(a, names(20))
            await a.set_session_owner("s00", "set")
            assert await a.claim_session_owner("s01", "claimed") == "claimed"
            await a.store_client_capabilities("s02", {"elicitation": {}})
            shared.backdoor.go_back(None)
            report = await a.cleanup()
            assert sorted(report.restored) == sorted(transports)
            assert (report.missing, report.held, dict(report.refresh_failures)) == ((), (), {})
            report = await a.cleanup()
            assert (report.refreshed, report.restored) == (20, ())
        owners = {name: owner for name, owner in shared.backdoor.owners().items() if owner}
        assert owners == {"s00": "set", "s01": "claimed"}
        assert await a.get_client_capabilities("s02") == {"elicitation": {}}


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
@pytest.mark.parametrize("lost", [1, 12])
async def test_an_older_copy_is_brought_up_to_date(
    shared: Shared, lost: int, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if a single commit is lost, and chunks of the pass follow each other."""
    async with (
        shared.open(batch_size=batch_size) as a,
        keeping_all(shared, a, caplog) as transports,
    ):
        transports |= await add(a, names(12))
        await a.set_session_owner("s00", "before")
        copy = shared.backdoor.copy()
        transports |= await add(a, names(lost, "t"))
        shared.backdoor.go_back(copy)
        report = await a.cleanup()
        assert (report.missing, report.held) == ((), ())
        assert set(report.restored) >= set(names(lost, "t"))
        assert (await a.cleanup()).refreshed == 12 + lost
        assert shared.backdoor.owners()["s00"] == "before"


@pytest.mark.parametrize("batch_size", [1, 7])
async def test_a_lost_commit_is_noticed_though_answers_are_lost(
    shared: Shared, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A beat that catches up again, because something was committed and nobody was told."""
    store = FaultyStore(shared.make_store())
    async with (
        shared.open(store=store, batch_size=batch_size) as a,
        keeping_all(shared, a, caplog) as transports,
    ):
        transports |= await add(a, names(20))
        copy = shared.backdoor.copy()
        await a.set_session_owner("s00", "lost")
        shared.backdoor.go_back(copy)
        for operations in (("sweep",), ("commit",), ("stamp",), ("begin",)):
            store.fail(Fault.COMMITS_THEN_FAILS, *operations)
            await a.cleanup()
        store.heal()
        assert (await a.cleanup()).missing == ()
        assert (await a.cleanup()).refreshed == 20
        assert shared.backdoor.owners()["s00"] == "lost", "the worker knows of it"


@pytest.mark.usefixtures("nothing_in_between")
@pytest.mark.parametrize("batch_size", [1, pytest.param(7, marks=longer), 1000])
async def test_a_beat_that_is_counted_twice_unseen(shared: Shared, batch_size: int) -> None:
    """The database forgets one commit, and counts its beat again, for who is not answered."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store, batch_size=batch_size) as a:
        transports = await add(a, names(12))
        stamp = store.hold("sweep")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.cleanup)
            await stamp.reached.wait()
            copy = shared.backdoor.copy()
            transports |= await add(a, ["new"])
            shared.backdoor.go_back(copy)
            store.fail(Fault.COMMITS_THEN_FAILS, "sweep")
            stamp.open()
        assert store.faults["sweep"] == 1
        store.heal()
        assert shared.backdoor.rows().keys() == set(names(12))
        report = await a.cleanup()
        assert (report.missing, report.held, list(report.refresh_failures)) == ((), (), ["new"])
        with trio.fail_after(40):  # for the claim that the pass has asked for
            while shared.backdoor.rows().keys() != transports.keys():
                await trio.sleep(0.01)
        await a.cleanup()
        assert (await a.cleanup()).refreshed == 13
        assert a.statistics().database_rewinds == 0, "nobody can tell, and it does no harm"
        assert sum(one.disconnects for one in transports.values()) == 0


@pytest.mark.parametrize("batch_size", [1, 7])
async def test_workers_alone_are_forgotten(
    shared: Shared, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Their rows are witnesses: without them nothing is believed."""
    async with (
        shared.open(batch_size=batch_size) as a,
        keeping_all(shared, a, caplog) as transports,
    ):
        transports |= await add(a, names(12))
        shared.backdoor.forget_workers()
        assert (await a.cleanup()).missing == ()
        assert (await a.cleanup()).refreshed == 12
        assert a.worker_id in shared.backdoor.workers()


@pytest.mark.parametrize("batch_size", [1, pytest.param(7, marks=longer), 1000])
async def test_the_next_batch_notices_it(
    shared: Shared, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes again in the new history, and all rows follow, without any pass or stamp."""
    store = FaultyStore(shared.make_store())
    async with (
        shared.open(store=store, batch_size=batch_size) as a,
        keeping_all(shared, a, caplog) as transports,
    ):
        transports |= await add(a, names(12))
        store.fail(Fault.HANGS, "stamp")
        shared.backdoor.go_back(None)
        transports |= await add(a, ["new"])
        assert a.statistics().database_rewinds == 1
        with trio.fail_after(40):
            while len(shared.backdoor.rows()) < 13:
                await trio.sleep(0.01)
        assert a.statistics().passes == 1
        store.heal()


async def test_the_stamp_between_passes_notices_it(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Within five seconds, also where passes are far apart."""
    store = MemoryStore()
    async with open_registry(store, session_ttl=3600.0, cleanup_interval=INTERVAL) as a:
        transports = await add(a, names(12))
        store._rows.clear()
        store._workers._rows.clear()
        await trio.sleep(5.5)
        assert store._rows.keys() == transports.keys()
        assert a.statistics().database_rewinds == 1


async def test_a_claim_that_waits_for_a_history_grows_older(autojump_clock: MockClock) -> None:
    """It says how long ago its session was added; it must not win over who came meanwhile."""
    memory = MemoryStore()
    store = GatedStore(memory)
    async with open_registry(store, session_ttl=3600.0) as a, trio.open_nursery() as nursery:
        memory._workers._rows.clear()
        begin = store.hold("begin")
        start = trio.current_time()
        nursery.start_soon(a.add_session, "s", FakeTransport())
        await begin.reached.wait()
        await trio.sleep(5)
        begin.open()
        while "s" not in memory._rows:
            await trio.sleep(0.1)
        assert memory._rows["s"].taken_at - start < 1


async def test_a_pass_tells_of_what_was_restored_before_it(shared: Shared) -> None:
    """What a batch has noticed is in the report of the next pass."""
    async with shared.open() as a:
        await add(a, names(12))
        shared.backdoor.go_back(None)
        await add(a, ["new"])
        assert set((await a.cleanup()).restored) >= set(names(12))
        assert (await a.cleanup()).restored == ()


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("first", ["a", "b"])
async def test_a_session_that_has_moved_since_the_copy(
    shared: Shared, first: str, batch_size: int
) -> None:
    """The copy says A, and B holds it: B keeps it, and A deletes nothing of B's."""
    async with shared.open(batch_size=batch_size) as a, shared.open(batch_size=batch_size) as b:
        await add(a, ["s"])
        copy = shared.backdoor.copy()
        transport = FakeTransport()
        await b.add_session("s", transport)
        await b.set_session_owner("s", "b's")
        assert (await a.cleanup()).taken_over == ("s",)
        shared.backdoor.go_back(copy)
        for _ in range(3):
            for one in (a, b) if first == "a" else (b, a):
                report = await one.cleanup()
                assert (report.missing, report.held) == ((), ())
        assert shared.backdoor.rows() == {"s": b.worker_id}
        assert shared.backdoor.owners() == {"s": "b's"}
        assert transport.disconnects == 0
        assert await b.get_session("s") is transport


async def test_what_others_hold_is_unknown_while_it_is_restored(shared: Shared) -> None:
    """Nobody is told that a live session does not exist, and nobody wins it."""
    async with shared.open() as a, shared.open() as b:
        await add(a, ["unowned"])
        copy = shared.backdoor.copy()
        await add(a, ["s"])
        await add(b, ["own"])  # so that b has a stamp that the copy lacks
        shared.backdoor.go_back(copy)
        assert await b.claim_session_owner("unowned", "thief") is None
        assert b.statistics().database_rewinds == 1
        assert await b.session_exists("s") is None
        assert await b.session_exists("unowned") is True
        assert await b.claim_session_owner("s", "thief") is None
        with pytest.raises(StoreUnavailable, match="restored, replaced or failed over"):
            await b.broadcast("s", "message")
        await a.cleanup()
        assert await b.session_exists("s") is True
        await b.broadcast("s", "message")
        assert await a.claim_session_owner("s", "owner") == "owner"
        assert await b.claim_session_owner("s", "thief") == "owner"


@pytest.mark.usefixtures("nothing_in_between")
async def test_what_strangers_have_made_anew_says_nothing(database: Shared) -> None:
    """The database is empty, and vouched for by somebody who has come since."""
    async with database.open() as a, database.open() as b:
        await add(a, ["s"])
        database.backdoor.go_back(None)
        async with database.open() as stranger:
            await stranger.cleanup()
            assert await stranger.session_exists("s") is False
            assert await b.session_exists("s") is None
            with pytest.raises(StoreUnavailable, match="restored, replaced or failed over"):
                await b.get_client_capabilities("s")
            with pytest.raises(StoreUnavailable, match="restored, replaced or failed over"):
                await b.get_elicitation_capable_sessions()
        await a.cleanup()
        assert await b.session_exists("s") is True


@pytest.mark.parametrize("batch_size", [1, pytest.param(7, marks=longer), 1000])
async def test_a_lease_that_was_lost_is_no_rewind(
    shared: Shared, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Who wakes after others have swept its rows believes them, and no brake holds anybody."""
    async with shared.open(batch_size=batch_size) as a, shared.open() as b:
        await b.cleanup()
        transports = await add(a, names(12))
        shared.backdoor.age(4000.0)
        shared.backdoor.age_workers(4000.0, a.worker_id)
        assert (await b.cleanup()).expired == 12
        late = FakeTransport()
        await a.add_session("late", late)
        report = await a.cleanup()
        assert sorted(report.taken_over) == sorted(transports)
        assert (report.held, a.statistics().database_rewinds) == ((), 0)
        assert all(one.disconnects == 1 for one in transports.values())
        assert (late.disconnects, shared.backdoor.rows()) == (0, {"late": a.worker_id})
        assert "has lost its lease" in caplog.text
        assert await b.session_exists("nobody") is False, "there is no doubt"


@pytest.mark.parametrize("batch_size", [1, pytest.param(7, marks=longer), 1000])
async def test_a_lease_that_was_lost_before_says_nothing_of_a_rewind(
    shared: Shared, batch_size: int
) -> None:
    """The copy is of a moment at which it slept, and still says that it was swept."""
    async with shared.open(batch_size=batch_size) as a, shared.open() as b:
        await b.cleanup()
        await add(a, ["swept"])
        shared.backdoor.age(4000.0)
        shared.backdoor.age_workers(4000.0, a.worker_id)
        assert (await b.cleanup()).expired == 1
        copy = shared.backdoor.copy()
        assert (await a.cleanup()).taken_over == ("swept",)
        transports = await add(a, names(20))
        assert (await a.cleanup()).refreshed == 20
        shared.backdoor.go_back(copy)
        for _ in range(2):
            report = await a.cleanup()
            assert (report.missing, report.held) == ((), ())
        assert a.statistics().database_rewinds == 1
        assert sum(one.disconnects for one in transports.values()) == 0
        assert shared.backdoor.rows().keys() == transports.keys()


class ForgetsStepByStep(FaultyStore):
    """Its rows are emptied before the first chunk of a pass is asked for, its workers after it."""

    def __init__(self, store: SessionStore, shared: Shared) -> None:
        super().__init__(store)
        self.shared = shared
        self.steps: list[Callable[[], None]] = []
        self.turn = trio.Lock()

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        async with self.turn:
            if self.steps:
                self.steps.pop(0)()
            return await super().refresh(worker, session_ids)


@pytest.mark.parametrize("batch_size", [1, 7])  # in several chunks
@pytest.mark.parametrize("is_moved", [False, True])
async def test_what_was_answered_before_a_rewind_was_noticed_removes_nobody(
    shared: Shared, batch_size: int, *, is_moved: bool
) -> None:
    """Nor in the pass that notices it: neither what is missing nor what another one holds."""
    store = ForgetsStepByStep(shared.make_store(), shared)
    async with shared.open(store=store, batch_size=batch_size) as a:
        transports = await add(a, names(9))
        await a.cleanup()

        def forget() -> None:
            for session_id in names(9):
                if is_moved:
                    shared.backdoor.give(session_id, "another")
                else:
                    shared.backdoor.delete(session_id)

        store.steps = [forget, shared.backdoor.forget_workers]
        report = await a.cleanup()
        assert store.steps == []
        assert (report.missing, report.held) == ((), ())
        assert sum(one.disconnects for one in transports.values()) == 0
        if not is_moved:
            assert sorted(report.restored) == names(9)
            assert shared.backdoor.rows().keys() == set(names(9))


async def test_a_row_that_a_late_statement_has_written_goes(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """No session here has it: the pass finds it, by counting, and says how many there were."""
    caplog.set_level(logging.INFO, "trio_sessions")
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a:
        await add(a, names(3))
        await a.cleanup()
        assert store.calls["own_rows"] == 0
        shared.backdoor.insert_late("late", like="s00")
        report = await a.cleanup()
        assert (report.refreshed, store.calls["own_rows"] > 0) == (3, True)
        assert shared.backdoor.rows().keys() == set(names(3))
        assert "found 1 rows that late statements have written" in caplog.messages
        store.calls.clear()
        await a.cleanup()
        assert store.calls["own_rows"] == 0


async def test_what_is_left_over_is_not_looked_for_and_hides_no_stray() -> None:
    """Nor does a session hide one whose row could not be written."""
    shared = MemoryStore()
    store = FaultyStore(shared)
    store.error = RowUnavailable("refused")
    async with open_registry(store) as a:
        await add(a, names(3))
        store.fail(Fault.FAILS, "Delete")
        await a.remove_session("s02")
        store.calls.clear()
        await a.cleanup()
        assert (a.statistics().leftover_rows, store.calls["own_rows"]) == (1, 0)
        store.fail(Fault.FAILS, "Claim")
        await add(a, ["unwritten"])
        MemoryBackdoor(shared).insert_late("late", like="s00")
        await a.cleanup()
        assert shared._rows.keys() == {"s00", "s01"}
        assert a.statistics().unconfirmed == 1


async def test_messages_are_delivered_at_least_once(shared: Shared) -> None:
    """What was fetched is not lost with its row, and an id used again is another message."""
    async with shared.open() as a, shared.open() as b:
        await add(a, ["s"])
        empty = shared.backdoor.copy()
        async with a.open_inbox("s") as inbox:
            for number in range(3):
                await b.broadcast("s", f"old {number}")
            assert await anext(inbox) == "old 0"
            with trio.fail_after(40):
                while a.statistics().messages_in_memory < 2:
                    await trio.sleep(0.01)
            await add(a, ["a stamp that is lost"])
            shared.backdoor.go_back(empty)
            shared.backdoor.number_messages_anew()
            await a.cleanup()
            await b.cleanup()
            for number in range(3):
                await b.broadcast("s", f"new {number}")
            await a.cleanup()  # the bell of a file goes by ids, and these are no higher
            received = []
            with trio.fail_after(40):
                while "new 2" not in received:
                    received.append(await anext(inbox))
        assert received == ["old 1", "old 2", "new 0", "new 1", "new 2"]
        assert a.statistics().messages_dropped == 0
