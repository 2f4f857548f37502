"""Calls of workers that use little of it, and what is refused at the door."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio.testing
from callees import TOO_LONG, Handlers, until_quiet
from conftest import Shared

from trio_sessions import (
    CallFailed,
    MessageTooLarge,
    NotSupported,
    StoreUnavailable,
    open_registry,
)
from trio_sessions.abc import Bell, Part, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore
from trio_sessions.writes import Batch, Post


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


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
