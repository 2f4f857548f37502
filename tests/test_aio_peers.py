"""Handlers, calls, streams and topics of programs on asyncio."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hosts import ASYNCIO, Run

from trio_sessions import CallFailed, RegistryClosed, WorkerGone
from trio_sessions.aio import SessionRegistry, Topics
from trio_sessions.aio._life import Life, State
from trio_sessions.stores.memory import MemoryStore

pytestmark = pytest.mark.usefixtures("asyncio_debug")

TOO_LONG = 30  # seconds

here = contextvars.ContextVar("here", default="nowhere")


@pytest.fixture(params=ASYNCIO)
def run(request: pytest.FixtureRequest) -> Run:
    return ASYNCIO[request.param]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TOO_LONG):
        while not condition():
            await asyncio.sleep(0.01)


class Handlers:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.tasks: set[Any] = set()

    def all(self) -> dict[str, Any]:
        names = ("echo", "hang", "fail", "cancelled", "count", "endless")
        return {name: getattr(self, name) for name in names}

    async def echo(self, payload: Any) -> Any:
        await asyncio.sleep(0)
        return payload

    async def hang(self, payload: Any) -> None:
        self.said.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # it may take its time
            self.said.append("ended")

    async def fail(self, payload: Any) -> None:
        raise LookupError("not here")

    async def cancelled(self, payload: Any) -> None:
        raise asyncio.CancelledError

    async def count(self, payload: Any) -> AsyncIterator[Any]:
        async with asyncio.timeout(60):  # which belongs to one task
            for number in range(payload):
                self.tasks.add(asyncio.current_task())
                await asyncio.sleep(0)
                yield number  # noqa: ASYNC101 -- the handler is one task from its start to its end

    async def endless(self, payload: Any) -> AsyncIterator[Any]:
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.said.append("ended")


def test_calls_and_streams_run_on_the_loop(run: Run) -> None:
    """A stream's handler in one task, from its beginning to its end."""

    async def main() -> None:
        handlers, store = Handlers(), MemoryStore()
        async with (
            SessionRegistry(store, worker_id="callee", handlers=handlers.all()),
            SessionRegistry(store) as caller,
        ):
            assert await caller.workers.call("callee", "echo", {"a": 1}, timeout=9) == {"a": 1}
            async with caller.workers.stream("callee", "count", 100, timeout=9) as items:
                assert [item async for item in items] == list(range(100))
            assert len(handlers.tasks) == 1
            with pytest.raises(CallFailed, match="LookupError: not here"):
                await caller.workers.call("callee", "fail", None, timeout=9)
            with pytest.raises(CallFailed, match="was cancelled"):
                await caller.workers.call("callee", "cancelled", None, timeout=9)
            with pytest.raises(WorkerGone):
                await caller.workers.call("nobody", "echo", None, timeout=9)
            with pytest.raises(TimeoutError):
                await caller.workers.call("callee", "hang", None, timeout=0.2)

    run(main)


def test_whoever_leaves_cancels_the_handler(run: Run) -> None:
    async def main() -> None:
        handlers, store = Handlers(), MemoryStore()
        async with (
            SessionRegistry(store, worker_id="callee", handlers=handlers.all()),
            SessionRegistry(store) as caller,
        ):
            call = asyncio.create_task(caller.workers.call("callee", "hang", 1, timeout=1000))
            await until(lambda: handlers.said == ["begun"])
            call.cancel()
            await until(lambda: handlers.said == ["begun", "ended"])
            assert (await asyncio.gather(call, return_exceptions=True))[0].__class__ is (
                asyncio.CancelledError
            )
            handlers.said.clear()
            async with caller.workers.stream("callee", "endless", 1, timeout=1000) as items:
                async for number in items:
                    if number == 100:
                        break
            await until(lambda: handlers.said == ["ended"])
            handlers.said.clear()
            async with aclosing(caller.workers.stream("callee", "endless", 1, timeout=9)) as items:
                assert await anext(items) == 0
            await until(lambda: handlers.said == ["ended"])

    run(main)


def test_shutdown_ends_what_is_under_way(run: Run) -> None:
    """The handlers here, the calls of ours, and the subscriptions."""

    async def main() -> None:
        handlers, store = Handlers(), MemoryStore()
        callee = SessionRegistry(store, worker_id="callee", handlers=handlers.all())
        async with SessionRegistry(store) as caller:
            async with callee:
                call = asyncio.create_task(caller.workers.call("callee", "hang", 1, timeout=1000))
                own = asyncio.create_task(callee.workers.call("callee", "hang", 1, timeout=1000))
                heard: list[Any] = []

                async def hear() -> str:
                    async with callee.topics.subscribe("t") as messages:
                        heard.append("subscribed")
                        async for message in messages:
                            heard.append(message)
                    return "ended"

                subscribed = asyncio.create_task(hear())
                await until(lambda: handlers.said.count("begun") == 2 and bool(heard))
                await caller.topics.publish("t", 1)
                await until(lambda: heard == ["subscribed", 1])
            assert handlers.said.count("ended") == 2
            with pytest.raises(WorkerGone, match="has closed"):
                await call
            with pytest.raises(RegistryClosed):
                await own
            assert await subscribed == "ended"
            with pytest.raises(RegistryClosed):
                await callee.workers.call("callee", "echo", 1, timeout=9)
            assert isinstance(caller.topics, Topics)

    run(main)


def test_a_handler_that_refuses_to_end_holds_up_nothing(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        tasks: list[Any] = []

        async def refuses(payload: Any) -> None:
            tasks.append(asyncio.current_task())
            while not go_on.is_set():
                try:
                    await go_on.wait()
                except asyncio.CancelledError:
                    continue

        registry = SessionRegistry(
            worker_id="me", handlers={"refuses": refuses}, disconnect_timeout=0.1
        )
        async with registry:
            with pytest.raises(TimeoutError):
                await registry.workers.call("me", "refuses", 1, timeout=0.1)
            call = asyncio.create_task(registry.workers.call("me", "refuses", 1, timeout=100))
            await until(lambda: len(tasks) == 2)
        with pytest.raises(RegistryClosed):
            await call
        assert "ignores its cancellation" in caplog.text
        go_on.set()
        await asyncio.wait(tasks)

    with caplog.at_level(logging.ERROR):
        run(main)


def test_a_handler_has_the_context_of_the_opening(run: Run) -> None:
    """Not that of a request, be it the caller's or the one that opened the bell."""

    async def where(payload: Any) -> str:
        return here.get()

    async def main() -> None:
        here.set("opening")
        async with SessionRegistry(worker_id="me", handlers={"where": where}) as registry:
            here.set("request")
            assert await registry.workers.call("me", "where", None, timeout=9) == "opening"

    run(main)


def test_a_backlog_leaves_the_loop_its_turns(run: Run) -> None:
    """Whoever reads what has come already gives way to the others after each of it."""

    async def main() -> None:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with SessionRegistry() as registry, registry.topics.subscribe("t") as messages:
            for number in range(100):
                await registry.topics.publish("t", number)
            subscription: Any = messages
            await until(lambda: len(subscription._reader._waiting) == 100)
            turning = asyncio.create_task(turn())
            await asyncio.sleep(0)
            turns = 0
            assert [await anext(messages) for _ in range(100)] == list(range(100))
            assert turns >= 50
            turning.cancel()

    run(main)


def test_a_subscription_ends_as_soon_as_its_registry_closes(run: Run) -> None:
    """Also for who comes for the next message before the core has begun to close."""

    async def main() -> None:
        async with SessionRegistry() as registry, registry.topics.subscribe("t") as messages:
            await registry.topics.publish("t", 1)
            assert await anext(messages) == 1
            subscription: Any = messages
            service = subscription._service
            closing, service.life = service.life, Life(asyncio.get_running_loop())
            service.life.go(State.CLOSING)
            try:
                assert [message async for message in messages] == []
            finally:
                service.life = closing

    run(main)


def test_a_reader_that_is_cancelled_loses_nothing(run: Run) -> None:
    async def main() -> None:
        async with SessionRegistry() as registry, registry.topics.subscribe("t") as messages:
            for number in range(2):
                await registry.topics.publish("t", number)
            assert await anext(messages) == 0

            async def read() -> Any:
                return await anext(messages)

            reading = asyncio.create_task(read())
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert await anext(messages) == 1

    run(main)


def test_a_stream_that_has_ended_stays_so(run: Run) -> None:
    """A good end is the end, a bad one the same error; both of two readers hear of it."""

    async def main() -> None:
        async def fails(payload: Any) -> AsyncIterator[Any]:
            yield 0
            raise LookupError("no more")

        handlers = {**Handlers().all(), "fails": fails}
        async with SessionRegistry(worker_id="me", handlers=handlers) as registry:
            async with registry.workers.stream("me", "count", 3, timeout=9) as items:

                async def read() -> list[Any]:
                    return [item async for item in items]

                async with asyncio.timeout(TOO_LONG):
                    read_by = await asyncio.gather(read(), read())
                assert sorted([*read_by[0], *read_by[1]]) == [0, 1, 2]
                assert await anext(items, "the end") == "the end"
            async with registry.workers.stream("me", "fails", 3, timeout=9) as items:
                assert await anext(items) == 0
                for _ in range(3):
                    with pytest.raises(CallFailed, match="no more"):
                        await anext(items)

    run(main)
