"""Calls and streams between workers: answered, failed or cut off, but never lost in silence."""

import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio.testing
from callees import TOO_LONG, Handlers, by_lane, until_quiet, waiting
from conftest import Shared

from trio_sessions import (
    CallFailed,
    RegistryClosed,
    WorkerGone,
    open_registry,
)
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore


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
