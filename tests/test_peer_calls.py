"""Calls and streams between workers: answered, failed or cut off, but never lost in silence."""

import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio.testing
from conftest import Shared

from trio_sessions import (
    CallFailed,
    MessageTooLarge,
    NotSupported,
    RegistryClosed,
    SessionRegistry,
    StoreUnavailable,
    WorkerGone,
    open_registry,
)
from trio_sessions._handlers import Last
from trio_sessions.abc import Bell, Part, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.writes import Batch, Post

TOO_LONG = 30  # seconds
WINDOW = 32
DEEP = "[" * 50_000 + "]" * 50_000


class Handlers:
    """What may be called in these tests, and what has become of it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.yielded = 0

    def all(self) -> dict[str, Callable[[Any], Any]]:
        names = ("echo", "fail", "hang", "huge", "count", "count_and_fail", "count_and_hang")
        return {name: getattr(self, name) for name in names}

    async def echo(self, payload: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return payload

    async def fail(self, payload: Any) -> Any:
        raise LookupError(f"no {payload}")

    async def hang(self, payload: Any) -> Any:
        self.begun.append("hang")
        try:
            await trio.sleep_forever()
        finally:
            self.ended.append("hang")

    async def huge(self, payload: Any) -> Any:
        return "x" * payload

    async def count(self, payload: Any) -> AsyncIterator[Any]:
        self.begun.append("count")
        try:
            for number in range(payload):
                self.yielded += 1
                yield number
        finally:
            self.ended.append("count")

    async def count_and_fail(self, payload: Any) -> AsyncIterator[Any]:
        for number in range(payload):
            yield number
        raise LookupError("no more")

    async def count_and_hang(self, payload: Any) -> AsyncIterator[Any]:
        self.begun.append("count_and_hang")
        try:
            for number in range(payload):
                yield number
            await trio.sleep_forever()
        finally:
            self.ended.append("count_and_hang")

    async def until(self, what: list[str], name: str) -> None:
        with trio.fail_after(TOO_LONG):
            while name not in what:
                await trio.sleep(0.01)


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


def waiting(registry: SessionRegistry) -> tuple[int, int]:
    """Return how many calls are under way there: of its own, and of others."""
    mail = registry._house._mail
    return len(mail._calling._pending), len(mail._serving._running)


async def until_quiet(registry: SessionRegistry) -> None:
    """Wait until nothing is under way there."""
    with trio.fail_after(TOO_LONG):
        while waiting(registry) != (0, 0):
            await trio.sleep(0.01)


# ---- calls ----


async def test_a_call_is_answered(everywhere: Shared, handlers: Handlers) -> None:
    """By the worker's id, by its incarnation, and by the caller itself; as any JSON value."""
    async with (
        everywhere.open(handlers=handlers.all(), worker_id="callee") as callee,
        everywhere.open(worker_id="caller") as caller,
    ):
        [incarnation] = [
            one.incarnation for one in await caller.workers.list() if one.worker_id == "callee"
        ]
        with trio.fail_after(TOO_LONG):
            values: tuple[Any, ...] = ({"a": [1, 2.5, "ü"]}, None, "", 2**70, [[]])
            for to in ("callee", incarnation):
                for value in values:
                    assert await caller.workers.call(to, "echo", value, timeout=10) == value
                    assert await callee.workers.call(to, "echo", value, timeout=10) == value
        assert waiting(caller) == (0, 0)
        await until_quiet(callee)


async def test_calling_oneself_needs_no_database(handlers: Handlers) -> None:
    store = FaultyStore(MemoryStore())
    async with open_registry(store, handlers=handlers.all(), worker_id="me") as registry:
        store.fail()
        assert await registry.workers.call("me", "echo", 1, timeout=5) == 1
        async with registry.workers.stream("me", "count", 100, timeout=5) as items:
            assert [item async for item in items] == list(range(100))
        assert store.calls["commit"] == 0


async def test_what_a_handler_raises_arrives(
    everywhere: Shared, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    """Its type and message, no traceback; that is in the callee's log."""
    async with (
        everywhere.open(handlers=handlers.all(), worker_id="callee") as callee,
        everywhere.open() as caller,
    ):
        with pytest.raises(CallFailed, match=r"'fail' at worker 'callee' .*LookupError: no b"):
            await caller.workers.call("callee", "fail", "b", timeout=10)
        assert "LookupError: no b" in caplog.text
        assert await caller.workers.call("callee", "echo", 1, timeout=10) == 1
        await until_quiet(callee)
        caplog.clear()


@pytest.mark.parametrize(
    ("name", "payload", "says"),
    [
        ("nothing", 1, "no handler of the name 'nothing'"),
        ("count", 1, r"is for workers\.stream\(\)"),
        ("huge", 2000, "MessageTooLarge: the answer of 'huge'"),
    ],
)
async def test_what_cannot_be_answered_fails(
    handlers: Handlers, name: str, payload: Any, says: str
) -> None:
    store = MemoryStore()
    async with (
        open_registry(store, handlers=handlers.all(), worker_id="w", max_message_bytes=1000),
        open_registry(store) as caller,
    ):
        with pytest.raises(CallFailed, match=says):
            await caller.workers.call("w", name, payload, timeout=5)


async def test_an_error_that_cannot_be_shown_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text raises, or is no UTF-8; then no report of this test may have it, either."""
    logged: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("trio_sessions.mail"),
        "handle",
        lambda record: logged.append(record.getMessage()),
    )

    class BadError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    async def bad(payload: Any) -> None:
        raise BadError if payload else ValueError("\udcff" * 5000)

    async with open_registry(handlers={"bad": bad}, worker_id="w") as registry:
        with pytest.raises(CallFailed, match="BadError: it cannot be shown"):
            await registry.workers.call("w", "bad", 1, timeout=5)
        with pytest.raises(CallFailed, match=r"ValueError: \?\?\?"):
            await registry.workers.call("w", "bad", 0, timeout=5)
    assert len(logged) == 2
    assert all("'bad' failed" in one for one in logged)


async def test_nobody_there_is_said_at_once(everywhere: Shared) -> None:
    async with everywhere.open() as caller:
        with trio.fail_after(TOO_LONG), pytest.raises(WorkerGone, match="'nobody'"):
            await caller.workers.call("nobody", "echo", 1, timeout=1000)
        with trio.fail_after(TOO_LONG), pytest.raises(WorkerGone, match="'nobody'"):
            async with caller.workers.stream("nobody", "echo", 1, timeout=1000):
                raise AssertionError("it is not open")
        assert waiting(caller) == (0, 0)


async def test_the_timeout_ends_both_sides(everywhere: Shared, handlers: Handlers) -> None:
    async with (
        everywhere.open(handlers=handlers.all(), worker_id="callee") as callee,
        everywhere.open() as caller,
    ):
        with pytest.raises(TimeoutError, match=r"'hang' at worker 'callee'.*0\.3 seconds"):
            await caller.workers.call("callee", "hang", 1, timeout=0.3)
        if handlers.begun:
            await handlers.until(handlers.ended, "hang")
        assert waiting(caller)[0] == 0
        assert waiting(callee)[0] == 0


async def test_a_caller_that_leaves_cancels_the_handler(
    everywhere: Shared, handlers: Handlers
) -> None:
    """Its `finally` runs."""
    async with (
        everywhere.open(handlers=handlers.all(), worker_id="callee"),
        everywhere.open() as caller,
        trio.open_nursery() as nursery,
    ):
        call = partial(caller.workers.call, "callee", "hang", 1, timeout=1000)
        nursery.start_soon(call)
        await handlers.until(handlers.begun, "hang")
        assert not handlers.ended
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await handlers.until(handlers.ended, "hang")


async def test_a_callee_that_closes_tells_its_callers(shared: Shared, handlers: Handlers) -> None:
    """Of calls and of streams, without waiting for stamps; the handlers' `finally` runs."""
    errors: list[Exception] = []
    callee_store = shared.make_store()

    async def call() -> None:
        try:
            await caller.workers.call("callee", "hang", 1, timeout=1000)
        except WorkerGone as exc:
            errors.append(exc)

    async def stream() -> None:
        items = caller.workers.stream("callee", "count_and_hang", 5, timeout=1000)
        async with items:
            try:
                assert [await anext(items) for _ in range(5)] == list(range(5))
                await anext(items)
            except WorkerGone as exc:
                errors.append(exc)

    async with shared.open() as caller, trio.open_nursery() as nursery:
        async with shared.open(store=callee_store, handlers=handlers.all(), worker_id="callee"):
            nursery.start_soon(call)
            nursery.start_soon(stream)
            await handlers.until(handlers.begun, "hang")
            await handlers.until(handlers.begun, "count_and_hang")
        assert sorted(handlers.ended) == ["count_and_hang", "hang"]
        with trio.fail_after(TOO_LONG):
            while len(errors) < 2:
                await trio.sleep(0.01)
    assert [str(error).endswith("the worker has closed") for error in errors] == [True, True]


async def test_a_caller_that_closes_lets_go(everywhere: Shared, handlers: Handlers) -> None:
    """Its own tasks get `RegistryClosed`, and the handler is cancelled."""
    async with everywhere.open(handlers=handlers.all(), worker_id="callee"):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(RegistryClosed):
                    await caller.workers.call("callee", "hang", 1, timeout=1000)

            async with everywhere.open() as caller:
                nursery.start_soon(call)
                await handlers.until(handlers.begun, "hang")
        await handlers.until(handlers.ended, "hang")
        with pytest.raises(RegistryClosed):
            await caller.workers.call("callee", "echo", 1, timeout=1)


async def test_two_hundred_calls_at_once(shared: Shared, handlers: Handlers) -> None:
    answers: dict[int, Any] = {}
    async with (
        shared.open(handlers=handlers.all(), worker_id="callee"),
        shared.open() as caller,
    ):

        async def call(number: int) -> None:
            answers[number] = await caller.workers.call("callee", "echo", number, timeout=60)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(call, number)
    assert answers == {number: number for number in range(200)}


async def test_a_busy_worker_says_so(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trio_sessions._mail._serving._MOST", 3)
    async with (
        open_registry(handlers=handlers.all(), worker_id="w") as registry,
        trio.open_nursery() as nursery,
    ):
        for _ in range(3):
            nursery.start_soon(partial(registry.workers.call, "w", "hang", 1, timeout=1000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(CallFailed, match="busy"):
            await registry.workers.call("w", "echo", 1, timeout=5)
        nursery.cancel_scope.cancel()


# ---- streams ----


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
                if json.loads(text)[0][0] == lost and left:
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
        await trio.testing.wait_all_tasks_blocked()
        assert waiting(callee) == (0, 0)


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


# ---- faults ----


async def test_an_outage_in_the_middle_of_a_call_and_a_stream(shared: Shared) -> None:
    """Of either side: it is waited for, and nothing is missing afterwards, nor twice."""
    go_on = trio.Event()

    async def late(payload: Any) -> Any:
        await go_on.wait()
        return payload

    async def half(payload: Any) -> AsyncIterator[Any]:
        for number in range(payload):
            if number == payload // 2:
                await go_on.wait()
            yield number

    callee_store, caller_store = (FaultyStore(shared.make_store()) for _ in range(2))
    answers: list[Any] = []
    async with (
        shared.open(store=callee_store, handlers={"late": late, "half": half}, worker_id="callee"),
        shared.open(store=caller_store) as caller,
    ):

        async def call() -> None:
            answers.append(await caller.workers.call("callee", "late", "answer", timeout=60))

        with trio.fail_after(60):
            async with (
                trio.open_nursery() as nursery,
                caller.workers.stream("callee", "half", 60, timeout=60) as items,
            ):
                nursery.start_soon(call)
                seen = [await anext(items) for _ in range(30)]
                callee_store.fail()
                caller_store.fail()
                go_on.set()
                while not callee_store.faults["commit"]:
                    await trio.sleep(0.01)
                assert not answers
                callee_store.heal()
                caller_store.heal()
                seen += [item async for item in items]
        assert (seen, answers) == (list(range(60)), ["answer"])


async def test_a_letter_whose_answer_was_lost_is_left_again_and_counts_once(
    handlers: Handlers,
) -> None:
    store = MemoryStore()
    faulty = FaultyStore(store)
    async with (
        open_registry(faulty, handlers=handlers.all(), worker_id="w"),
        open_registry(store) as caller,
    ):
        faulty.fail(Fault.COMMITS_THEN_FAILS, "Post", times=3)
        async with caller.workers.stream("w", "count", 100, timeout=30) as items:
            assert [item async for item in items] == list(range(100))
        assert faulty.faults["Post"] == 3


async def test_without_the_database_a_call_says_so(shared: Shared, handlers: Handlers) -> None:
    faulty = FaultyStore(shared.make_store())
    async with (
        shared.open(handlers=handlers.all(), worker_id="callee"),
        shared.open(store=faulty) as caller,
    ):
        faulty.fail()
        with pytest.raises(StoreUnavailable):
            await caller.workers.call("callee", "echo", 1, timeout=30)
        with pytest.raises(StoreUnavailable):
            async with caller.workers.stream("callee", "count", 1, timeout=30):
                pass
        faulty.heal()
        assert await caller.workers.call("callee", "echo", 1, timeout=30) == 1
        assert waiting(caller) == (0, 0)


async def test_a_worker_that_is_late_is_given_up_on_both_sides(shared: Shared) -> None:
    """Paused, as by SIGSTOP: who called it is told within its stamps, and its own calls end."""
    handlers = Handlers()
    paused = FaultyStore(shared.make_store())
    short = {"session_ttl": 600.0, "cleanup_interval": 0.2}
    async with (
        shared.open(store=paused, handlers=handlers.all(), worker_id="paused", **short) as one,
        shared.open(handlers=handlers.all(), worker_id="other", **short) as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(partial(_expect_gone_or_closed, one, "other", "hang"))
        await handlers.until(handlers.begun, "hang")
        seen: list[Exception] = []

        async def call() -> None:
            with pytest.raises(WorkerGone, match="does not live any more"):
                await other.workers.call("paused", "hang", 1, timeout=1000)
            seen.append(WorkerGone())

        async def stream() -> None:
            with pytest.raises(WorkerGone, match="does not live any more"):
                async with other.workers.stream("paused", "count_and_hang", 1, timeout=1000) as s:
                    async for _ in s:
                        pass
            seen.append(WorkerGone())

        nursery.start_soon(call)
        nursery.start_soon(stream)
        await handlers.until(handlers.begun, "count_and_hang")
        with trio.fail_after(TOO_LONG):
            while handlers.begun.count("hang") < 2:
                await trio.sleep(0.01)
        paused.pause()
        try:
            with trio.fail_after(15):
                while len(seen) < 2 or handlers.ended.count("hang") < 1:
                    await trio.sleep(0.01)
        finally:
            paused.resume()
        nursery.cancel_scope.cancel()


async def _expect_gone_or_closed(registry: SessionRegistry, to: str, name: str) -> None:
    try:
        await registry.workers.call(to, name, 1, timeout=1000)
    except (WorkerGone, CallFailed, RegistryClosed):
        return
    raise AssertionError("it was answered")


async def test_short_calls_ask_nobody_who_lives(handlers: Handlers) -> None:
    """One that lasts asks once a second, for all of them."""
    store = FaultyStore(MemoryStore())
    async with (
        open_registry(store._store, handlers=handlers.all(), worker_id="w"),
        open_registry(store) as caller,
    ):
        for _ in range(20):
            await caller.workers.call("w", "echo", 1, timeout=5)
        assert store.calls["living"] == 0
        with trio.move_on_after(3.5):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(partial(caller.workers.call, "w", "hang", 1, timeout=1000))
        assert 1 <= store.calls["living"] <= 3


async def test_a_letter_that_cannot_be_read_ends_nothing(
    shared: Shared, handlers: Handlers, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a later version, or garbage."""
    garbage = [
        "null",
        "[]",
        "[[],1]",
        '["call",1]',
        '[["call","a",1],1]',
        '[["later","a"],1]',
        '[["beat","x"],{"a":1}]',
        '[["beat","x"],[[1],"x",[1,"y"]]]',
        '[["alive","x"],[[[1]],[{}]]]',
        '[["alive","x"],[1]]',
        '[["items",1,0],7]',
        '[["answer",[1]],7]',
        '[["failed",99,0],7]',
        f"[{DEEP},null]",
        f'[["moved"],{DEEP}]',
        f'[["said"],{DEEP}]',
        '[["said"],{"s":"data"}]',
        '[["said"],[1,["s"],["s",1],["s","data"],["s","of a later version"]]]',
        f'[["beat","x"],{DEEP}]',
    ]
    async with (
        shared.open(handlers=handlers.all(), worker_id="callee") as callee,
        shared.open() as caller,
    ):
        for one in (*garbage, '[["beat","x"],[1,}]', "no JSON at all"):
            callee._house._mail._office.receive(one)
        for one in garbage:
            assert await caller._house._mail._sender.post("callee", one)
        assert await caller.workers.call("callee", "echo", 1, timeout=30) == 1
    assert "a letter was dropped" in caplog.text
    caplog.clear()


@pytest.mark.parametrize(
    "letter",
    [
        '[["answer",1],no JSON]',
        '[["answer",1],]]',
        f'[["failed",1,0],{{"type":{DEEP},"message":{DEEP}}}]',
        '[["failed",1,0],no JSON]',
    ],
)
async def test_an_answer_that_cannot_be_read_is_a_failure(handlers: Handlers, letter: str) -> None:
    """The handler has run, and nobody can say what came of it."""
    async with (
        open_registry(handlers=handlers.all(), worker_id="w") as registry,
        trio.open_nursery() as nursery,
    ):

        async def call() -> None:
            with trio.fail_after(TOO_LONG), pytest.raises(CallFailed, match="'hang' at worker 'w'"):
                await registry.workers.call("w", "hang", 1, timeout=1000)
            nursery.cancel_scope.cancel()

        nursery.start_soon(call)
        await handlers.until(handlers.begun, "hang")
        registry._house._mail._office.receive(letter)


# ---- workers that use little of it ----


async def test_whoever_reads_an_inbox_answers_calls(everywhere: Shared) -> None:
    """It hears the bell, so the first letter to it starts the mail."""
    async with everywhere.open(worker_id="reader") as reader, everywhere.open() as caller:
        await reader.add_session("s", FakeTransport())
        async with reader.open_inbox("s"):
            with trio.fail_after(TOO_LONG), pytest.raises(CallFailed, match="no handler"):
                await caller.workers.call("reader", "echo", 1, timeout=1000)


async def test_whoever_reads_an_inbox_is_told_of_a_move(everywhere: Shared) -> None:
    """At once, as one that uses mail by itself."""
    async with everywhere.open() as older, everywhere.open() as newer:
        await older.add_session("s", FakeTransport())
        await older.add_session("other", FakeTransport())
        async with older.open_inbox("other"):
            with trio.fail_after(TOO_LONG):
                while not older.health().bell_alive:
                    await trio.sleep(0.01)
            assert await newer.adopt_session("s", FakeTransport(), from_worker=older.worker_id)
            with trio.fail_after(TOO_LONG):
                while older.get_session_sync("s") is not None:
                    await trio.sleep(0.01)


async def test_whoever_reads_an_inbox_only_asks_for_no_letters() -> None:
    """Neither when its bell is opened, nor when it rings for messages."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s") as inbox:
            await registry.broadcast("s", {"a": 1})
            with trio.fail_after(TOO_LONG):
                assert await anext(inbox) == {"a": 1}
            await trio.testing.wait_all_tasks_blocked()
        assert not {"collect", "living", "expire_mail"} & set(store.calls)


async def test_an_adopter_deletes_the_letters_that_nobody_collects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It leaves them, so it sees to it; and hears no bell for that."""
    monkeypatch.setattr("trio_sessions._mail._office._OLD", 0.1)
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with (
        open_registry(memory) as older,
        open_registry(store, cleanup_interval=0.2) as newer,
    ):
        for name in ("s", "t"):
            await older.add_session(name, FakeTransport())
            assert await newer.adopt_session(name, FakeTransport(), from_worker=older.worker_id)
        with trio.fail_after(TOO_LONG):
            while not memory._mail._letters:
                await trio.sleep(0.01)
            while memory._mail._letters:
                await trio.sleep(0.01)
        assert store.calls["expire_mail"] >= 1
        assert not {"open_bell", "collect", "living"} & set(store.calls)


async def test_a_full_box_is_no_dead_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """It collects nothing just now: ask again."""
    monkeypatch.setattr("trio_sessions.stores.memory._mail._MOST", 1)
    store = MemoryStore()
    async with open_registry(store, worker_id="full"), open_registry(store) as caller:
        assert await caller._house._mail._sender.post("full", "[]")
        with pytest.raises(StoreUnavailable, match="does not collect"):
            await caller.workers.call("full", "echo", 1, timeout=5)


async def test_calling_oneself_needs_no_store_for_mail() -> None:
    """As another worker would be told: what this one does not have, it cannot call."""

    class Plain(FaultyStore):
        @property
        def parts(self) -> frozenset[Part]:
            return super().parts - {Part.MAIL}

    store = Plain(MemoryStore())
    async with open_registry(store, worker_id="me") as registry:
        with pytest.raises(CallFailed, match="no handler"):
            await registry.workers.call("me", "echo", 1, timeout=5)
        with pytest.raises(CallFailed, match="no handler"):
            async with registry.workers.stream("me", "echo", 1, timeout=5) as items:
                await anext(items)
        with pytest.raises(NotSupported, match="MailStore"):
            await registry.workers.call("another", "echo", 1, timeout=5)
        await trio.testing.wait_all_tasks_blocked()
        assert "open_bell" not in store.calls


class Deaf(FaultyStore):
    """Its bell never rings."""

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        await trio.lowlevel.checkpoint()
        yield self

    async def wait(self) -> frozenset[str] | None:
        await trio.sleep_forever()
        raise AssertionError("unreachable")


@pytest.mark.parametrize("deaf", ["caller", "callee", "both"])
async def test_letters_that_the_bell_does_not_ring_for_are_found(
    handlers: Handlers, deaf: str, autojump_clock: trio.testing.MockClock
) -> None:
    """LISTEN broke without a word, or others do not notify: it takes seconds, and is answered."""
    store = MemoryStore()
    callee = store if deaf == "caller" else Deaf(store)
    async with (
        open_registry(callee, handlers=handlers.all(), worker_id="w"),
        open_registry(store if deaf == "callee" else Deaf(store)) as caller,
    ):
        await trio.sleep(100)
        with trio.fail_after(11):
            assert await caller.workers.call("w", "echo", 1, timeout=30) == 1
        with trio.fail_after(60):
            async with caller.workers.stream("w", "count_and_hang", 100, timeout=15) as items:
                for number in range(100):
                    assert await anext(items) == number


async def test_a_message_that_the_bell_does_not_ring_for_is_found(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """That of a topic, before its letter is too old."""
    store = MemoryStore()
    async with (
        open_registry(Deaf(store)) as deaf,
        open_registry(store) as publisher,
        deaf.topics.subscribe("t") as messages,
    ):
        await trio.sleep(100)
        await publisher.topics.publish("t", 1)
        with trio.fail_after(6):
            assert await anext(messages) == 1


@pytest.mark.parametrize("kind", ["call", "stream"])
async def test_a_worker_that_collects_no_letters_is_named_as_the_reason(
    kind: str, autojump_clock: trio.testing.MockClock
) -> None:
    """It lives, and has nothing that could be called; it cannot say so itself."""
    store = MemoryStore()
    async with open_registry(store, worker_id="w"), open_registry(store) as caller:
        with pytest.raises(TimeoutError, match="a worker without handlers collects no letters"):
            if kind == "call":
                await caller.workers.call("w", "echo", 1, timeout=30)
            else:
                async with caller.workers.stream("w", "count", 1, timeout=30) as items:
                    await anext(items)


async def test_a_worker_that_runs_a_call_is_not_said_to_collect_no_letters(
    handlers: Handlers, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    async with (
        open_registry(store, worker_id="w", handlers=handlers.all()),
        open_registry(store) as caller,
    ):
        with pytest.raises(TimeoutError, match=r"within 30 seconds$"):
            await caller.workers.call("w", "hang", 1, timeout=30)


async def test_old_letters_are_deleted_where_mail_is_used(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nowhere else."""
    monkeypatch.setattr("trio_sessions._mail._office._OLD", 0.1)
    monkeypatch.setattr("trio_sessions._mail._office._EXPIRED", 2)
    store = MemoryStore()
    used, unused = FaultyStore(store), FaultyStore(store)
    async with (
        open_registry(used, handlers=handlers.all(), cleanup_interval=0.3),
        open_registry(unused, cleanup_interval=0.3, worker_id="never looks") as registry,
    ):
        for _ in range(5):
            write = Post(session_id="", payload="[]", to="never looks")
            worker = registry._house._edge.worker
            await store.commit(worker, Batch(writes=[write]))
        assert sum(map(len, store._mail._letters.values())) == 5
        with trio.fail_after(TOO_LONG):
            while store._mail._letters:
                await trio.sleep(0.01)
        assert used.calls["expire_mail"] >= 3
        assert unused.calls["expire_mail"] == 0


async def test_whenever_callers_leave_nothing_is_left_over(
    everywhere: Shared, handlers: Handlers
) -> None:
    """Cut at any moment, calls and streams, by leaving and by timeouts; others are answered."""
    moments = random.Random(13)
    answered = []
    async with (
        everywhere.open(handlers=handlers.all(), worker_id="callee") as callee,
        everywhere.open() as caller,
    ):

        async def call(number: int) -> None:
            name = moments.choice(["echo", "hang"])
            with trio.move_on_after(moments.random() * 0.3):
                if name == "echo":
                    answer = await caller.workers.call("callee", name, number, timeout=10)
                    assert answer == number
                    answered.append(number)
                else:
                    with pytest.raises(TimeoutError):
                        timeout = 0.01 + moments.random() * 0.2
                        await caller.workers.call("callee", name, number, timeout=timeout)

        async def stream(number: int) -> None:
            with trio.move_on_after(moments.random() * 0.3):
                async with caller.workers.stream("callee", "count", 500, timeout=10) as items:
                    expected = 0
                    async for item in items:
                        assert item == expected
                        expected += 1
                        if moments.random() < 0.01:
                            break

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(moments.choice([call, stream]), number)
        assert await caller.workers.call("callee", "echo", "last", timeout=30) == "last"
        await until_quiet(caller)
        await until_quiet(callee)


# ---- what is refused at the door ----


@pytest.mark.parametrize(
    ("handlers", "error"),
    [
        ([], TypeError),
        ({"x": 7}, TypeError),
        ({"x": print}, TypeError),
        ({"x": Handlers}, TypeError),
        ({"": Handlers().echo}, ValueError),
        ({7: Handlers().echo}, TypeError),
    ],
)
def test_bad_handlers_are_refused_by_name(handlers: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="handlers"):
        open_registry(handlers=handlers)


def test_handlers_may_be_any_kind_of_async_callable() -> None:
    class Answers:
        async def __call__(self, payload: Any) -> Any: ...

    class Yields:
        async def __call__(self, payload: Any) -> AsyncIterator[Any]:
            yield payload

    one = Handlers()
    open_registry(
        handlers={
            "method": one.echo,
            "partial": partial(one.echo),
            "object": Answers(),
            "stream": one.count,
            "partial stream": partial(one.count),
            "object stream": Yields(),
        }
    )


@pytest.mark.parametrize(
    ("arguments", "timeout", "error", "names"),
    [
        (("", "n", 1), 1, ValueError, "worker_id"),
        ((7, "n", 1), 1, TypeError, "worker_id"),
        (("w", "", 1), 1, ValueError, "name"),
        (("w", "n", 1), 0, ValueError, "timeout"),
        (("w", "n", 1), "1", TypeError, "timeout"),
        (("w", "n", object()), 1, TypeError, "payload"),
        (("w", "n", "x" * 100), 1, MessageTooLarge, "payload"),
    ],
)
async def test_bad_arguments_are_refused_by_name(
    arguments: Any, timeout: Any, error: type[Exception], names: str
) -> None:
    async with open_registry(max_message_bytes=50) as registry:
        with pytest.raises(error, match=names):
            await registry.workers.call(*arguments, timeout=timeout)
        with pytest.raises(error, match=names):
            registry.workers.stream(*arguments, timeout=timeout)
