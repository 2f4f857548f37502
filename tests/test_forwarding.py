"""Messages that were in memory when their session moved, on the way to its next holder."""

from dataclasses import replace

import pytest
import trio
from conftest import Shared
from readers import read
from trio.testing import MockClock

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions.abc import Worker
from trio_sessions.errors import RowLocked
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.writes import Batch, Committed, Send


class LockingStore(FaultyStore):
    """Answers messages as a database in which the rows of their sessions are locked."""

    locked = False

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        if not self.locked or not any(isinstance(one, Send) for one in batch.writes):
            return await super().commit(worker, batch)
        others = [one for one in batch.writes if not isinstance(one, Send)]
        committed = await super().commit(worker, replace(batch, writes=others))
        answers = iter(committed.answers)
        return replace(
            committed,
            answers=[
                RowLocked("locked") if isinstance(one, Send) else next(answers)
                for one in batch.writes
            ],
        )


async def test_what_was_locked_and_given_up_is_forwarded_again(
    autojump_clock: MockClock,
) -> None:
    """It was surely not stored, whatever became of the batch whose failure was its end."""
    shared = MemoryStore()
    store = LockingStore(shared)
    async with (
        open_registry(store, store_timeout=1.0) as a,
        open_registry(shared) as b,
        trio.open_nursery() as nursery,
    ):
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "once")
        await b.add_session("s", FakeTransport())
        store.locked = True
        nursery.start_soon(a.cleanup)
        await trio.sleep(0.5)
        store.fail(Fault.ANSWERS_LATE, "Claim", seconds=60.0, times=1)
        await a.add_session("t", FakeTransport())
        assert store.faults["Claim"] == 1
        await trio.sleep(5.0)
        store.locked = False
        await a.cleanup()
        assert a.statistics().messages_dropped == 0
        assert await read(b, "s", 1) == ["once"]
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("nothing_in_between")
@pytest.mark.parametrize("fault", [Fault.FAILS, Fault.COMMITS_THEN_FAILS])
async def test_what_is_forwarded_again_goes_before_what_is_sent_later(
    shared: Shared, fault: Fault
) -> None:
    """In an outage nothing was forwarded, or nobody can say; until that is known, it is refused."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b:
        await a.add_session("s", FakeTransport())
        for number in (1, 2):
            await a.broadcast("s", number)
        await b.add_session("s", FakeTransport())
        store.fail(fault)
        await a.remove_session("s")
        assert store.faults["Send"] >= 1
        store.heal()
        with pytest.raises(StoreUnavailable, match="before"):
            await a.broadcast("s", "too early")
        await a.add_session("t", FakeTransport())  # by its answer this worker knows
        await a.broadcast("s", 3)
        assert await read(b, "s", 3) == [1, 2, 3]
        await a.cleanup()
        await b.broadcast("s", "last", durable=True)
        assert await read(b, "s", 1) == ["last"]


async def test_what_waits_to_be_forwarded_goes_first_where_its_session_comes_back(
    shared: Shared,
) -> None:
    """What is sent then might go straight to the inbox in memory, and overtake it."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b:
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", 1)
        await b.add_session("s", FakeTransport())
        store.fail(Fault.FAILS, "Send")
        await a.cleanup()
        assert await a.get_session("s") is None
        store.heal()
        await a.add_session("s", FakeTransport())
        async with a.open_inbox("s") as inbox:
            await a.broadcast("s", 2)
            await a.broadcast("s", 3)
            with trio.fail_after(40):
                assert [await anext(inbox) for _ in range(3)] == [1, 2, 3]
        assert a.statistics().messages_dropped == 0


async def test_what_follows_a_locked_message_fails_with_it(autojump_clock: MockClock) -> None:
    """It has waited for less long, and would be stored when the lock goes."""
    shared = MemoryStore()
    store = LockingStore(shared)
    async with open_registry(store) as a, open_registry(shared) as b:

        async def is_refused() -> None:
            with pytest.raises(StoreUnavailable, match="before"):
                await a.broadcast("s", "refused")

        await a.add_session("s", FakeTransport())
        await a.broadcast("s", 1)
        await b.add_session("s", FakeTransport())
        store.locked = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.cleanup)
            await trio.sleep(1.9)
            nursery.start_soon(is_refused)
            await trio.sleep(0.5)
            store.locked = False
        await a.broadcast("s", 2)
        assert await read(b, "s", 2) == [1, 2]
        assert a.statistics().messages_dropped == 0


async def test_rows_go_before_what_was_in_memory_when_a_session_moves(shared: Shared) -> None:
    """Whoever sends to memory and to rows in turn, and needs the order, says ``durable`` always."""
    async with shared.open() as a, shared.open() as b:
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "memory")
        await a.broadcast("s", "row", durable=True)
        await b.add_session("s", FakeTransport())
        await a.broadcast("s", "behind the row")
        await a.cleanup()
        await a.broadcast("s", "later")
        assert await read(b, "s", 4) == ["row", "behind the row", "memory", "later"]
