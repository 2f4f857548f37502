"""Streams between workers: in order, with back-pressure, closed on both sides."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trio.testing
from callees import TOO_LONG, Handlers, by_lane, until_quiet, waiting
from conftest import Shared

from trio_sessions import (
    CallFailed,
    open_registry,
)
from trio_sessions._handlers import Last
from trio_sessions._mail._letters import seal
from trio_sessions._mail._outflow import Outflow
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore

WINDOW = 32


@pytest.fixture(params=["database", "sockets"])
def everywhere(everywhere: Shared, request: pytest.FixtureRequest) -> Iterator[Shared]:
    """By both lanes: a call by a worker's id goes by the database, its answer by a socket."""
    yield from by_lane(everywhere, request)


@pytest.fixture(params=["database", "sockets"])
def shared(shared: Shared, request: pytest.FixtureRequest) -> Iterator[Shared]:
    """Likewise."""
    yield from by_lane(shared, request)


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


async def test_a_stream_comes_whole_and_in_order(everywhere: Shared, handlers: Handlers) -> None:
    """Many at a time, each whole."""
    async with (
        everywhere.open(handlers=handlers.all(), worker_id="callee") as callee,
        everywhere.open() as caller,
    ):
        whole: list[list[Any]] = []

        async def read() -> None:
            async with caller.workers.stream("callee", "count", 200, timeout=30) as items:
                whole.append([item async for item in items])

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(read)
        assert whole == [list(range(200))] * 5
        await until_quiet(callee)
        assert waiting(caller) == (0, 0)


async def test_a_slow_consumer_holds_the_handler(shared: Shared, handlers: Handlers) -> None:
    """It is never further ahead than it may be."""
    async with (
        shared.open(handlers=handlers.all(), worker_id="callee"),
        shared.open() as caller,
        caller.workers.stream("callee", "count", 1000, timeout=30) as items,
    ):
        for number in range(100):
            assert await anext(items) == number
            assert handlers.yielded <= number + 1 + WINDOW
        await shared.settle()
        with trio.fail_after(TOO_LONG):
            while handlers.yielded < 100 + WINDOW // 2:
                await trio.sleep(0.01)
        await trio.sleep(0.2)
        assert handlers.yielded <= 100 + WINDOW


async def test_large_items_are_held_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their size together; the stream goes on as they are consumed."""
    monkeypatch.setattr("trio_sessions._mail._outflow._UNDER_WAY", 5000)
    monkeypatch.setattr("trio_sessions._mail._pending._TELL", 1000)
    yielded = 0

    async def large(payload: Any) -> AsyncIterator[Any]:
        nonlocal yielded
        for _ in range(payload):
            yielded += 1
            yield "x" * 1000

    store = MemoryStore()
    async with (
        open_registry(store, handlers={"large": large}, worker_id="w"),
        open_registry(store) as caller,
        caller.workers.stream("w", "large", 50, timeout=30) as items,
    ):
        await trio.testing.wait_all_tasks_blocked()
        assert yielded == 5
        with trio.fail_after(TOO_LONG):
            assert [len(item) async for item in items] == [1000] * 50


async def test_whoever_leaves_a_stream_cancels_the_handler(
    everywhere: Shared, handlers: Handlers
) -> None:
    async with (
        everywhere.open(handlers=handlers.all(), worker_id="callee") as callee,
        everywhere.open() as caller,
    ):
        async with caller.workers.stream("callee", "count_and_hang", 3, timeout=1000) as items:
            assert [await anext(items) for _ in range(3)] == [0, 1, 2]
        await handlers.until(handlers.ended, "count_and_hang")
        await until_quiet(callee)
        with pytest.raises(StopAsyncIteration):
            await anext(items)


async def test_a_handler_that_fails_is_heard_of_after_its_items(
    everywhere: Shared, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        everywhere.open(handlers=handlers.all(), worker_id="callee"),
        everywhere.open() as caller,
    ):
        seen: list[Any] = []
        with trio.fail_after(TOO_LONG), pytest.raises(CallFailed, match="LookupError: no more"):
            async with caller.workers.stream("callee", "count_and_fail", 70, timeout=30) as items:
                async for item in items:
                    seen.append(item)
        assert seen == list(range(70))
    assert "no more" in caplog.text
    caplog.clear()


async def test_a_stream_that_has_ended_stays_so(
    shared: Shared, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it is asked: a good end is the end, a bad one the same error."""
    async with (
        shared.open(handlers=handlers.all(), worker_id="callee"),
        shared.open() as caller,
    ):
        async with caller.workers.stream("callee", "count", 3, timeout=30) as items:
            assert [item async for item in items] == [0, 1, 2]
            for _ in range(3):
                assert await anext(items, "the end") == "the end"
        async with caller.workers.stream("callee", "count_and_fail", 1, timeout=30) as items:
            assert await anext(items) == 0
            for _ in range(3):
                with pytest.raises(CallFailed, match="no more"):
                    await anext(items)
    caplog.clear()


async def test_a_stream_that_has_ended_is_not_looked_after(handlers: Handlers) -> None:
    """Though its items are still to be consumed; there is nothing to beat, or to look for."""
    store = MemoryStore()
    async with (
        open_registry(store, handlers=handlers.all(), worker_id="callee"),
        open_registry(store) as caller,
        caller.workers.stream("callee", "count", 3, timeout=30) as items,
    ):
        assert await anext(items) == 0
        await until_quiet(caller)
        assert caller._house._mail._calling.pause is None
        assert [item async for item in items] == [1, 2]


async def test_a_last_item_comes_with_the_end_in_one_letter() -> None:
    """A handler that knows its last item is not asked for another one, and is closed."""
    went_on, closed = [], []

    async def few(payload: Any) -> AsyncIterator[Any]:
        try:
            await trio.lowlevel.checkpoint()
            yield Last([payload])
            went_on.append(payload)
        finally:
            closed.append(payload)

    store = FaultyStore(MemoryStore())
    async with (
        open_registry(store, worker_id="caller") as caller,
        open_registry(store, worker_id="callee", handlers={"few": few}),
    ):
        async with caller.workers.stream("callee", "few", 1, timeout=TOO_LONG) as items:
            assert [item async for item in items] == [[1]]  # the first call writes more
        store.calls.clear()
        async with caller.workers.stream("callee", "few", 2, timeout=TOO_LONG) as items:
            assert [item async for item in items] == [[2]]
        assert store.calls["Post"] == 2
        assert await anext(items, None) is None
    assert (went_on, closed) == ([], [1, 2])


async def test_two_readers_of_one_stream_share_it(handlers: Handlers) -> None:
    """Each item goes to one of them, and the end to both."""
    go_on = trio.Event()
    heard: list[Any] = []

    async def slow(payload: Any) -> AsyncIterator[Any]:
        yield 0
        yield 1
        await go_on.wait()
        yield 2
        yield 3

    store = MemoryStore()
    async with (
        open_registry(store, handlers={"slow": slow}, worker_id="callee"),
        open_registry(store) as caller,
        caller.workers.stream("callee", "slow", None, timeout=30) as items,
    ):

        async def read() -> None:
            async for item in items:
                heard.append(item)

        with trio.fail_after(TOO_LONG):
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(read)
                    await trio.testing.wait_all_tasks_blocked()
                go_on.set()
    assert sorted(heard) == [0, 1, 2, 3]


async def test_a_stream_without_a_block_is_closed_by_hand(handlers: Handlers) -> None:
    """And one that is forgotten is left, too."""
    async with open_registry(handlers=handlers.all(), worker_id="w") as registry:
        items = registry.workers.stream("w", "count_and_hang", 2, timeout=1000)
        assert [await anext(items), await anext(items)] == [0, 1]
        await items.aclose()
        await handlers.until(handlers.ended, "count_and_hang")
        assert [n async for n in registry.workers.stream("w", "count", 3, timeout=9)] == [0, 1, 2]
        handlers.ended.clear()
        forgotten = registry.workers.stream("w", "count_and_hang", 2, timeout=1000)
        assert await anext(forgotten) == 0
        del forgotten
        await handlers.until(handlers.ended, "count_and_hang")
        assert waiting(registry) == (0, 0)


async def test_a_silent_handler_is_alive(shared: Shared, handlers: Handlers) -> None:
    """Longer than the timeout: the worker says that it runs."""
    async with (
        shared.open(handlers=handlers.all(), worker_id="callee") as callee,
        shared.open() as caller,
        caller.workers.stream("callee", "count_and_hang", 1, timeout=2) as items,
    ):
        assert await anext(items) == 0
        with trio.move_on_after(5) as scope:
            await anext(items)
        assert scope.cancelled_caught
        assert waiting(callee) == (0, 1)


async def test_a_short_timeout_beside_a_long_one(handlers: Handlers) -> None:
    """The signs of life come as often as the shortest needs them."""
    async with (
        open_registry(handlers=handlers.all(), worker_id="w") as registry,
        registry.workers.stream("w", "count_and_hang", 1, timeout=1000) as long,
    ):
        assert await anext(long) == 0
        await trio.sleep(0.1)
        async with registry.workers.stream("w", "count_and_hang", 1, timeout=0.6) as short:
            assert await anext(short) == 0
            with trio.move_on_after(1.5) as scope:
                await anext(short)
            assert scope.cancelled_caught


async def test_a_lost_letter_is_an_error_and_no_gap(handlers: Handlers) -> None:
    """Items, or the end, that never arrive."""
    store = MemoryStore()
    async with (
        open_registry(store, handlers=handlers.all(), worker_id="w") as callee,
        open_registry(store) as caller,
    ):
        for lost in ("items", "end"):
            receive = caller._house._mail._office.receive
            left = [1]

            def lose(
                text: str, lost: str = lost, left: list[int] = left, receive: Any = receive
            ) -> None:
                if json.loads(text)[0][0] in {lost, "last"} and left:
                    left.pop()
                else:
                    receive(text)

            caller._house._mail._office.receive = lose  # type: ignore[method-assign]
            seen: list[Any] = []
            with trio.fail_after(TOO_LONG), pytest.raises(CallFailed, match="lost"):
                async with caller.workers.stream("w", "count", 100, timeout=1000) as items:
                    async for item in items:
                        seen.append(item)
            assert not left
            assert seen == list(range(len(seen)))
            caller._house._mail._office.receive = receive  # type: ignore[method-assign]
            await until_quiet(callee)  # an end on its way would be taken for the next stream's


@pytest.mark.parametrize("name", ["count_and_hang", "count"])
async def test_items_that_were_lost_are_missed_though_none_follow(
    autojump_clock: trio.testing.MockClock, handlers: Handlers, name: str
) -> None:
    """Found by the fleet: a window of items went down with a fail-over, and both sides waited.

    The handler may have nothing more to say, or may wait for what it said to be consumed.
    """
    store = MemoryStore()
    async with (
        open_registry(store, handlers=handlers.all(), worker_id="w") as callee,
        open_registry(store) as caller,
    ):
        receive = caller._house._mail._office.receive

        def lose(text: str) -> None:
            if json.loads(text)[0][0] != "items":
                receive(text)

        caller._house._mail._office.receive = lose  # type: ignore[method-assign]
        with trio.fail_after(TOO_LONG), pytest.raises(CallFailed, match="were lost"):
            async with caller.workers.stream("w", name, 2 * WINDOW, timeout=1000) as items:
                await anext(items)
        await until_quiet(callee)


async def test_a_letter_that_comes_again_calls_nothing(handlers: Handlers) -> None:
    """Found by the fleet: a database that went back brought it again, when it had been answered."""
    store = MemoryStore()
    async with (
        open_registry(store, handlers=handlers.all(), worker_id="w") as callee,
        open_registry(store) as caller,
    ):
        office = callee._house._mail._office
        receive, letters = office.receive, list[str]()

        def note(text: str) -> None:
            letters.append(text)
            receive(text)

        office.receive = note  # type: ignore[method-assign]
        async with caller.workers.stream("w", "count", 3, timeout=TOO_LONG) as items:
            assert [item async for item in items] == [0, 1, 2]
        await until_quiet(callee)
        for letter in letters:
            receive(letter)
        assert waiting(callee) == (0, 0)
        assert handlers.begun == ["count"]


async def test_an_answer_that_was_lost_is_missed(handlers: Handlers) -> None:
    """Not for the whole timeout: the worker is asked, and knows nothing of the call."""
    store = MemoryStore()
    async with (
        open_registry(store, handlers=handlers.all(), worker_id="w"),
        open_registry(store) as caller,
    ):
        receive = caller._house._mail._office.receive

        def lose(text: str) -> None:
            if json.loads(text)[0][0] != "answer":
                receive(text)

        caller._house._mail._office.receive = lose  # type: ignore[method-assign]
        with trio.fail_after(TOO_LONG), pytest.raises(CallFailed, match="was lost"):
            await caller.workers.call("w", "echo", 1, timeout=1000)


class Withheld:
    """A sender that leaves nothing for which somebody waits."""

    def __init__(self) -> None:
        self.left: list[str] = []

    def is_near(self, to: str) -> bool:
        return False

    async def deliver(self, to: str, text: str, order: None) -> None:
        await trio.sleep_forever()

    def post_soon(self, to: str, text: str) -> None:
        self.left.append(text)


async def test_what_was_being_left_when_the_callee_closed_is_left_after_all() -> None:
    """Else its caller would believe that items were lost, for those behind them have come."""
    sender: Any = Withheld()
    outflow = Outflow(sender, "caller", 7, 10)
    for item in ("1", "2"):
        outflow.put(item)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outflow.send)
        await trio.testing.wait_all_tasks_blocked()
        outflow.put("3")
        nursery.cancel_scope.cancel()
    outflow.flush()
    expected = [seal("items", 7, 0, contents="[1,2]"), seal("items", 7, 2, contents="[3]")]
    assert sender.left == expected
