"""Letters in the writer's batches: in order, beside what else is written, and at most once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Shared
from trio.testing import MockClock

from trio_sessions import StoreUnavailable
from trio_sessions._counters import Counters
from trio_sessions._edge import Edge
from trio_sessions._histories import Histories
from trio_sessions._posting import PostOrder
from trio_sessions._settings import Settings
from trio_sessions._witness import WentBack, Witness
from trio_sessions._writer import Writer
from trio_sessions.abc import Part
from trio_sessions.errors import NotSupported
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.testing._conformance._fleet import LONG, begin
from trio_sessions.testing._conformance._tools import Client, opened
from trio_sessions.writes import Delete, Post


@asynccontextmanager
async def writing(client: Client, **settings: Any) -> AsyncIterator[tuple[Writer, Edge, Counters]]:
    """Run a writer for a worker whose store is open."""
    witness, checked, counters = Witness(), Settings(**settings), Counters()
    edge = Edge(client.store, client.worker, witness, checked)
    presence = checked.presence()
    histories = Histories(edge=edge, witness=witness, presence=presence, counters=counters)
    await histories.begin()
    writer = Writer(edge, histories, rows=100, timeout=checked.store_timeout, counters=counters)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        yield writer, edge, counters
        await writer.finish(trio.current_time() + 10)


async def test_letters_leave_in_the_order_of_the_calls(shared: Shared) -> None:
    """However many, and whoever they are for; names that nobody can have spoil no batch."""
    async with opened(shared.make_store, "a", "b") as (a, b):
        await begin(b, cleanup_interval=LONG)
        async with writing(a) as (writer, edge, _):
            await edge.listen(["news"])
            orders = [
                writer.give(PostOrder(str(number), to="b" if number % 3 else "a"))
                for number in range(250)
            ]
            impossible = [
                writer.give(PostOrder("1", to=name)) for name in ("", "\0", "\ud800", "x" * 300)
            ]
            impossible += [writer.give(PostOrder("1", topic=one)) for one in ("", "\0", "\ud800")]
            published = writer.give(PostOrder('"ü"', topic="news"))
            assert [await order.wait() for order in orders] == [1] * 250
            assert [await order.wait() for order in impossible] == [0] * 7
            assert await published.wait() == 1
            mine = await edge.collect(limit=1000)
            assert mine == [*(str(number) for number in range(0, 250, 3)), '"ü"']
            await edge.unlisten(["news"])
            assert await writer.do(PostOrder("1", topic="news")) == 0
            assert await edge.expire_mail(older_than=LONG, limit=10) == 0
        theirs = await b.store.collect(b.worker, limit=1000, size=10**9)  # type: ignore[attr-defined]
        assert list(theirs) == [str(number) for number in range(250) if number % 3]


async def test_many_letters_make_few_batches(autojump_clock: MockClock) -> None:
    """What comes while one is under way makes the next."""
    store = FaultyStore(MemoryStore())
    async with opened(lambda: store, "a") as (a,), writing(a) as (writer, _, _):
        store.calls.clear()
        orders = [writer.give(PostOrder(str(number), to="a")) for number in range(100)]
        for order in orders:
            assert await order.wait() == 1
        assert store.calls["commit"] == 1


async def test_a_letter_whose_answer_was_lost_is_not_left_again(autojump_clock: MockClock) -> None:
    """Its sender is told that nothing is known."""
    store = FaultyStore(MemoryStore())
    async with opened(lambda: store, "a") as (a,), writing(a) as (writer, edge, _):
        store.fail(Fault.COMMITS_THEN_FAILS, "Post", times=1)
        with pytest.raises(StoreUnavailable):
            await writer.do(PostOrder("1", to="a"))
        assert store.faults["Post"] == 1
        assert await writer.do(PostOrder("2", to="a")) == 1
        assert await edge.collect(limit=10) == ["1", "2"]


async def test_letters_alone_rest_on_no_evidence(autojump_clock: MockClock) -> None:
    """They ask for no stamp, which would wait for the disk, and go out of a worker without a row.

    With anything else in their batch they do what it does: nothing, if the database went back.
    """
    memory = MemoryStore()
    async with opened(lambda: memory, "a", "b") as (a, b):
        await begin(b, cleanup_interval=LONG)
        async with writing(a) as (writer, edge, counters):
            before = memory._workers.seen(a.worker)
            assert await writer.do(PostOrder("1", to="b")) == 1
            assert memory._workers.seen(a.worker) == before
            memory._workers.remove(a.worker)
            assert await writer.do(PostOrder("2", to="b")) == 1
            assert counters.database_rewinds == 0
            with pytest.raises(WentBack):
                await edge.commit(
                    [Post(session_id="", to="b", payload="3"), Delete(session_id="s", up_to=1)],
                    trio.CancelScope,
                )
            assert await memory.collect(b.worker, limit=10, size=10**9) == ["1", "2"]


async def test_a_letter_that_was_withdrawn_is_not_left(autojump_clock: MockClock) -> None:
    """A caller that leaves takes back what has not left."""
    store = FaultyStore(MemoryStore())
    async with opened(lambda: store, "a") as (a,), writing(a) as (writer, edge, _):
        store.fail(Fault.BEGINS_LATE, "Post", seconds=5.0, times=1)
        first = writer.give(PostOrder("1", to="a"))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1.0):
            await writer.do(PostOrder("2", to="a"))
        assert await first.wait() == 1
        assert await writer.do(PostOrder("3", to="a")) == 1
        assert await edge.collect(limit=10) == ["1", "3"]


async def test_a_store_without_mail_says_so(autojump_clock: MockClock) -> None:
    """Before anything is asked of it."""

    class Without(MemoryStore):
        @property
        def parts(self) -> frozenset[Part]:
            return super().parts - {Part.MAIL}

    store = Without()
    async with opened(lambda: store, "a") as (a,), writing(a) as (_, edge, _):
        for operation in (
            lambda: edge.collect(limit=1),
            lambda: edge.listen(["x"]),
            lambda: edge.unlisten(["x"]),
            lambda: edge.expire_mail(older_than=1.0, limit=1),
        ):
            with pytest.raises(NotSupported, match="MailStore"):
                await operation()


async def test_a_registry_that_does_not_read_mail_is_not_disturbed_by_it(shared: Shared) -> None:
    """A worker that knows nothing of mail is rung for it, and goes on: messages arrive."""
    async with shared.open() as registry, opened(shared.make_store, "a") as (a,):
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s") as inbox:
            with trio.fail_after(30):
                for number in range(3):
                    answer = await a.write(PostOrder("1", to=registry.worker_id).make())
                    assert answer == 1
                    await registry.broadcast("s", number, durable=True)
                    async for message in inbox:
                        assert message == number
                        break
