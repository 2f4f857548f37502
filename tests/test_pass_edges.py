"""What a pass concludes at its edges, each as a promise of its own."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
import trio
from backdoors import MemoryBackdoor
from trio.testing import MockClock

from trio_sessions import OperationTooLong, RowUnavailable, StoreUnavailable, open_registry
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import RowAnswers

pytestmark = pytest.mark.usefixtures("nothing_in_between")


@pytest.mark.parametrize(
    ("error", "sweeps"),
    [(StoreUnavailable("it is away"), False), (RowUnavailable("this row is refused"), True)],
)
async def test_what_an_unwritten_row_s_claim_says_of_the_database(
    error: Exception, *, sweeps: bool
) -> None:
    """Where it is away nobody is judged; a row that is refused keeps nobody from the sweep."""
    store = FaultyStore(MemoryStore())
    store.error = error
    async with open_registry(store) as registry:
        store.fail(Fault.FAILS, "Claim")
        await registry.add_session("s", FakeTransport())
        store.calls.clear()
        report = await registry.cleanup()
        assert list(report.refresh_failures) == ["s"]
        assert (store.calls["sweep"], store.calls["stamp"]) == ((1, 0) if sweeps else (0, 1))
        assert registry.statistics().incomplete_passes == (not sweeps)


async def test_an_unwritten_session_that_leaves_during_a_pass_is_none_of_its_failures(
    autojump_clock: MockClock,
) -> None:
    """Why its row could not be written says nothing of the database as it is now."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, check_timeout=5.0) as registry:
        await registry.add_session("slow", FakeTransport("hangs"))
        store.fail(Fault.FAILS, "Claim")
        await registry.add_session("s", FakeTransport())
        store.heal()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.cleanup)
            await trio.sleep(1)
            await registry.remove_session("s")
        report = registry.statistics().last_report
        assert report is not None
        assert (report.checked, dict(report.refresh_failures)) == (2, {})
        assert registry.statistics().incomplete_passes == 0


class OneTakesForEver(FaultyStore):
    """Cannot refresh one row in time, whatever comes with it."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.asked: list[int] = []

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        self.asked.append(len(session_ids))
        if "s3" in session_ids:
            await trio.lowlevel.checkpoint()
            raise OperationTooLong("it took too long")
        return await super().refresh(worker, session_ids)


async def test_one_row_that_takes_for_ever_teaches_nothing_of_the_others() -> None:
    """It is found by halving; the next pass asks for as many at once as ever."""
    store = OneTakesForEver(MemoryStore())
    async with open_registry(store, batch_size=16) as registry:
        for number in range(16):
            await registry.add_session(f"s{number}", FakeTransport())
        for _ in range(2):
            store.asked.clear()
            report = await registry.cleanup()
            assert list(report.refresh_failures) == ["s3"]
            assert report.refreshed == 15
            assert store.asked == [16, 8, 8, 4, 4, 2, 1, 1, 2] or max(store.asked) == 16
            assert store.asked[0] == 16


async def test_where_one_row_takes_for_ever_nobody_is_swept() -> None:
    """Whatever is the matter with the database, it may have kept others from their leases."""
    memory = MemoryStore()
    store = OneTakesForEver(memory)
    async with open_registry(store) as registry:
        await registry.add_session("s3", FakeTransport())
        store.calls.clear()
        assert (await registry.cleanup()).refresh_failures.keys() == {"s3"}
        assert (store.calls["sweep"], store.calls["stamp"]) == (0, 1)
        assert registry.statistics().incomplete_passes == 1


class TakenLongAgo(OneTakesForEver):
    """Others hold all rows, and have since before the sessions came here."""

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        answers = await super().refresh(worker, session_ids)
        ages = dict.fromkeys(answers.held, 3600.0)
        return replace(answers, held=frozenset(), taken_over=answers.held, taken_ago=ages)


async def test_halves_are_told_since_when_others_hold_their_rows() -> None:
    """Else such an old row would be the mark of a newer connection, which the brake lets pass."""
    async with open_registry(TakenLongAgo(MemoryStore())) as registry:
        for number in range(16):
            await registry.add_session(f"s{number}", FakeTransport())
        report = await registry.cleanup()
        assert report.missing == ()
        assert sorted(report.held) == sorted(f"s{n}" for n in range(16) if n != 3)


@pytest.mark.parametrize("what", ["disconnected", "missing", "swept"])
async def test_each_of_what_a_pass_removes_is_told(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That there was nothing of the others keeps it from nobody; without any, nothing is told."""
    caplog.set_level(logging.INFO)
    store = MemoryStore()
    transport = FakeTransport()

    def told() -> list[str]:
        return [one for one in caplog.messages if one.startswith("removed ")]

    async with open_registry(store, session_ttl=20.0, cleanup_interval=10.0) as registry:
        await registry.add_session("s", transport)
        await registry.cleanup()
        assert told() == []
        if what == "disconnected":
            transport.state = "closed"
        elif what == "missing":
            MemoryBackdoor(store).delete("s")
        else:
            MemoryBackdoor(store).insert("stray", "nobody", age=1000.0)
            store._workers._unbroken_since -= 1000.0
        report = await registry.cleanup()
        counts = (len(report.disconnected), len(report.missing), report.expired)
        assert sum(counts) == 1
        assert told() == [
            "removed {} disconnected and {} missing sessions, swept {} expired rows".format(*counts)
        ]


async def test_a_database_that_went_back_and_then_away_costs_nobody_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pass says so, judges nobody and sweeps nothing; the next one writes the rows anew."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        MemoryBackdoor(memory).forget_workers()
        MemoryBackdoor(memory).delete("s")
        store.fail(Fault.FAILS, "begin")
        store.calls.clear()
        report = await registry.cleanup()
        assert (report.missing, report.restored, store.calls["sweep"]) == ((), (), 0)
        assert "the database went back, and cannot be reached now" in caplog.text
        assert registry.statistics().incomplete_passes == 1
        store.heal()
        assert (await registry.cleanup()).restored == ("s",)


async def test_what_the_first_pass_drops_is_told(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with open_registry(store) as holder:
        await holder.add_session("s", FakeTransport())
        await holder.broadcast("s", 1, durable=True)
        MemoryBackdoor(store).age_messages(1_000_000.0)
        caplog.clear()
        async with open_registry(store) as other:
            await other.cleanup()
            [told] = [one for one in caplog.messages if "were dropped" in one]
            assert told.startswith("1 messages were dropped")


class WrittenAnewMeanwhile(FaultyStore):
    """Refreshes one row at a time, and lets what is missing be written before that is answered."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.write: Callable[[], Awaitable[None]] | None = None

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        if self.write is not None and len(session_ids) > 1:
            await trio.lowlevel.checkpoint()
            raise OperationTooLong("too many")
        answers = await super().refresh(worker, session_ids)
        if self.write is not None and not answers.held:
            await self.write()
        return answers


async def test_halves_of_a_chunk_are_judged_by_the_older_of_their_answers() -> None:
    """What is confirmed after the first half was read cannot be missing in it."""
    memory = MemoryStore()
    store = WrittenAnewMeanwhile(memory)
    transports = {name: FakeTransport() for name in ("a", "b")}
    async with open_registry(store) as registry:
        for name, transport in transports.items():
            await registry.add_session(name, transport)
        house = registry._house
        entry = house.table.get("a")
        assert entry is not None

        async def write() -> None:
            store.write = None
            assert house.passes._claims.write_anew(entry)
            await entry.answered()

        store.write = write
        MemoryBackdoor(memory).delete("a")
        one = house.passes.new_pass()
        report = await one.run()
        assert (report.missing, list(report.refresh_failures)) == ((), ["a"])
        assert [transport.disconnects for transport in transports.values()] == [0, 0]


async def test_what_was_missing_before_a_rewind_is_not_removed_after_it() -> None:
    """Also if the rewind is found out when all rows have been asked for, before the removals."""
    store = MemoryStore()
    backdoor = MemoryBackdoor(store)
    async with open_registry(store) as registry:
        transports = {name: FakeTransport() for name in ("gone", "moved", "stays")}
        for name, transport in transports.items():
            await registry.add_session(name, transport)
        await registry.cleanup()
        backdoor.delete("gone")
        backdoor.give("moved", "another")
        one = registry._house.passes.new_pass()
        restore = one._restore_the_forgotten

        async def go_back_and_restore() -> None:
            backdoor.go_back(None)
            await restore()

        one._restore_the_forgotten = go_back_and_restore  # type: ignore[method-assign]
        restorer_ensures = one._notice_rewinds

        async def notice() -> None:
            with trio.move_on_after(1):
                try:
                    await registry._house._edge.stamp(passed=False)
                except StoreUnavailable:
                    await restorer_ensures()

        one._notice_rewinds = notice  # type: ignore[method-assign]
        report = await one.run()
        assert registry.statistics().database_rewinds == 1
        assert (report.missing, report.held) == ((), ())
        assert sorted(report.restored) == ["gone", "moved", "stays"]
        assert backdoor.rows().keys() == {"gone", "moved", "stays"}
        assert not any(one.disconnects for one in transports.values())


async def test_how_many_messages_were_dropped_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the pass after it; one after which nothing was dropped says nothing."""

    def told() -> list[str]:
        return [one for one in caplog.messages if "were dropped" in one]

    async with open_registry(MemoryStore()) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", 1, durable=True)
        await registry.cleanup()
        assert told() == []
        await registry.remove_session("s")
        for _ in range(2):
            await registry.cleanup()
            assert registry.statistics().messages_dropped == 1
            [line] = told()
            assert line.startswith("1 messages were dropped")
