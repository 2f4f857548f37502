"""Messages that were in memory when their session moved: what fails on the way to the next holder."""

from dataclasses import replace

import trio
from readers import read
from trio.testing import MockClock

from trio_sessions import open_registry
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
