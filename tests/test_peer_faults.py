"""Calls and streams under faults: answered, failed or cut off, but never lost in silence."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import trio.testing
from callees import TOO_LONG, Handlers, waiting
from conftest import Shared

from trio_sessions import (
    CallFailed,
    RegistryClosed,
    SessionRegistry,
    StoreUnavailable,
    WorkerGone,
    open_registry,
)
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault, FaultyStore

DEEP = "[" * 50_000 + "]" * 50_000


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


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
