"""What is asked of the store for those who read, and how much of it at once."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any, cast

import outcome
import pytest
import trio
from trio.testing import MockClock

from trio_sessions import open_registry
from trio_sessions._counters import Counters
from trio_sessions._entry import Entry
from trio_sessions._messages._inbox import Inbox
from trio_sessions._messages._inboxes import Inboxes
from trio_sessions._messages._reading import Reading
from trio_sessions._messages._receipts import Receipts
from trio_sessions._orders import Order
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable
from trio_sessions._writer import Writer
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.stores.memory._row import Message
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Holder, Stamp, StoredMessage, Wanted
from trio_sessions.writes import Acknowledge, Batch, Claim, Claimed, Committed, Outcome

pytestmark = pytest.mark.usefixtures("nothing_in_between")


class Asked(FaultyStore):
    """Notes what is fetched."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.fetched: list[Sequence[Wanted]] = []

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        self.fetched.append(wanted)
        return await super().fetch(worker, wanted)


async def read_all(store: Asked, *, while_away: float = 0.0) -> None:
    """Let ten sessions be read, for each of which another worker has stored two messages.

    Args:
        store: of whoever reads.
        while_away: seconds for which nothing can be fetched at first.
    """
    ids = [f"s{number}" for number in range(10)]
    async with (
        open_registry(store) as registry,
        open_registry(store._store) as other,
        AsyncExitStack() as inboxes,
    ):
        for one in ids:
            await registry.add_session(one, FakeTransport())
            for _ in range(2):
                await other.broadcast(one, 100 * "m")
        if while_away:
            store.fail(Fault.FAILS, "fetch")
        for one in ids:
            await inboxes.enter_async_context(registry.open_inbox(one))
        if while_away:
            await trio.sleep(while_away)
            store.heal()
            store.fetched.clear()
        with trio.fail_after(100):
            while registry.statistics().messages_in_memory < 2 * len(ids):
                await trio.sleep(0.1)


async def test_what_is_fetched_at_once_is_bounded_in_bytes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For all sessions together: each is asked for its part."""
    monkeypatch.setattr("trio_sessions._messages._reading._FETCHED", 1000)
    store = Asked(MemoryStore())
    await read_all(store)
    assert max(len(wanted) for wanted in store.fetched) > 1
    assert max(sum(one.size for one in wanted) for wanted in store.fetched) <= 1000


async def test_after_an_outage_many_sessions_share_a_fetch_again(
    autojump_clock: MockClock,
) -> None:
    """One that cannot be fetched is found by asking for ever fewer; that is no state to stay in."""
    store = Asked(MemoryStore())
    await read_all(store, while_away=30.0)
    sizes = [len(wanted) for wanted in store.fetched]
    assert sizes[:3] == [1, 2, 4]


async def test_a_look_that_failed_is_made_again_soon(autojump_clock: MockClock) -> None:
    """No bell has rung for what it would have found, and the next pass is far."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with open_registry(store, session_ttl=7200.0, cleanup_interval=3600.0) as registry:
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s") as inbox:
            await trio.sleep(10)
            memory._rows["s"].messages[7] = Message(
                payload='"silent"', stored_at=trio.current_time()
            )
            store.fail(Fault.FAILS, "waiting", times=1)
            await registry.cleanup()
            with trio.fail_after(10):
                assert await anext(inbox) == "silent"
        assert store.faults["waiting"] == 1


class Taken:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.orders: list[Order[Any]] = []

    def give(self, order: Order[Any]) -> None:
        self.orders.append(order)


def test_an_acknowledgement_is_bounded() -> None:
    """What is more follows in the next one: a batch may have as many sessions as writes."""
    writer = Taken()
    receipts = Receipts(cast("Writer", writer))
    inbox = Inbox("s", size=1000, message_ttl=60.0, storing={})
    inbox.open("reader", 0.0)
    for row in range(1200):
        asked = inbox.ask(1000, 0.0)
        assert asked is not None
        inbox.answer(asked, [StoredMessage(id=row, payload="1", age=0.0)], 0.0)
        assert inbox.take("reader", 0.0) is not None
        inbox.finish("reader")
        receipts.note(inbox)
    acknowledged: list[int] = []
    while writer.orders:
        order = writer.orders.pop()
        write = order.make()
        assert isinstance(write, Acknowledge)
        assert len(write.message_ids) <= 500
        acknowledged += write.message_ids
        order.conclude(outcome.Value(True))
    assert acknowledged == list(range(1200))


async def test_a_row_that_is_not_written_yet_is_written_for_whoever_reads(
    autojump_clock: MockClock,
) -> None:
    """At once, as nothing can be fetched without it, and the next pass may be far."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry, open_registry(store._store) as other:
        store.fail(Fault.FAILS, "commit")
        await registry.add_session("s", FakeTransport())
        store.heal()
        with trio.fail_after(1.0):
            async with registry.open_inbox("s"):
                while not await other.session_exists("s"):
                    await trio.sleep(0.05)


class Claiming(FaultyStore):
    """Notes when each session is claimed."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.claimed: list[tuple[str, float]] = []

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        now = trio.current_time()
        self.claimed += [(claim.session_id, now) for _, claim in batch.of(Claim)]
        return await super().commit(worker, batch)

    def take(self, session_id: str) -> list[float]:
        """Return when a session was claimed since this was last asked; of the others, forget it."""
        found = [when for name, when in self.claimed if name == session_id]
        self.claimed.clear()
        return found


def assert_pauses_grow(moments: list[float]) -> None:
    """From a tenth of a second to five, each with jitter of a half."""
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert len(pauses) > 7
    for number, pause in enumerate(pauses):
        about = min(0.1 * 2**number, 5.0)
        assert 0.5 * about - 0.001 <= pause <= 1.5 * about + 0.001


async def test_an_unwritten_row_is_tried_again_for_its_reader_and_for_nobody_else(
    autojump_clock: MockClock,
) -> None:
    """After pauses that grow (invariant 16); they begin anew with the next reader."""
    store = Claiming(MemoryStore())
    async with open_registry(store, session_ttl=7200.0, cleanup_interval=3600.0) as registry:
        store.fail(Fault.FAILS, "Claim")
        for name in ("left", "read"):
            await registry.add_session(name, FakeTransport())
        async with registry.open_inbox("read"):
            store.take("read")
            await trio.sleep(30)
            assert_pauses_grow(store.take("read"))
            async with registry.open_inbox("left"):
                await trio.sleep(30)
                assert_pauses_grow(store.take("left"))
            await trio.sleep(10)
            store.take("left")
            await trio.sleep(30)
            assert "left" not in {name for name, _ in store.claimed}
            assert len(store.take("read")) > 3, "the other one is tried as before"
            async with registry.open_inbox("left"):
                await trio.sleep(30)
                assert_pauses_grow(store.take("left"))
            store.heal()
            await trio.sleep(10)
            assert registry.statistics().unconfirmed == 1, "nobody reads it"
            store.take("read")
            await trio.sleep(30)
            assert store.claimed == [], "it is written"


class Tried:
    """Claims that nobody answers."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def write(self, entry: Entry) -> None:
        self.entries.append(entry)


async def test_a_row_that_is_lost_once_more_is_tried_at_once(autojump_clock: MockClock) -> None:
    """It was written since: the pause that led there is not waited for."""
    table, tried, counters = LocalTable(), Tried(), Counters()
    entry, _ = table.put("s", FakeTransport(), 0.0)
    inboxes = Inboxes(Settings(), counters)
    inboxes.of("s").open("reader", 0.0)
    nobody: Any = None
    parts: dict[str, Any] = {"claims": tried, "edge": nobody}
    reading = Reading(table=table, inboxes=inboxes, counters=counters, **parts)
    for _ in range(2):
        reading._write_rows([inboxes.of("s")])
        assert tried.entries == [entry], "once, and then there is a pause"
    entry.claim()
    holder = Holder(worker_id="w", incarnation="i")
    claimed = Claimed(
        outcome=Outcome.INSERTED, holder=holder, capabilities=None, born="b", dropped=0
    )
    entry.confirm(claimed, Stamp(history="h", beat=1))
    reading._write_rows([inboxes.of("s")])
    assert tried.entries == [entry]
    entry.forget()
    reading._write_rows([inboxes.of("s")])
    assert tried.entries == [entry, entry]


async def test_who_leaves_while_the_store_is_away_is_forgotten(autojump_clock: MockClock) -> None:
    """Many may come and go in a long outage."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, session_ttl=7200.0, cleanup_interval=3600.0) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail(Fault.FAILS, "fetch")
        async with registry.open_inbox("s"):
            await trio.sleep(10)
            wanted = registry._house.messages._reading._wanted
            assert [one.session_id for one in wanted] == ["s"]
            await registry.remove_session("s")
            assert not wanted


async def test_what_came_before_the_bell_was_open_is_looked_for(autojump_clock: MockClock) -> None:
    """For all sessions with a reader: nobody can say for whom it would have rung."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    store.fail(Fault.FAILS, "open_bell")
    async with open_registry(store) as holder, open_registry(memory) as sender:
        for session_id in "s", "t":
            await holder.add_session(session_id, FakeTransport())
        async with holder.open_inbox("s") as first, holder.open_inbox("t") as second:
            await trio.sleep(10)  # until nothing is looked for any more
            await sender.broadcast("s", 1)
            await sender.broadcast("t", 2)
            store.heal()
            with trio.fail_after(60):
                assert (await anext(first), await anext(second)) == (1, 2)
