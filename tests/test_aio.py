"""The facade for asyncio: what is its own, on every host."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import threading
import traceback
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
import trio_asyncio
from hosts import ASYNCIO

from trio_sessions import (
    InvalidSessionId,
    RegistryClosed,
    StoreUnavailable,
    open_registry,
)
from trio_sessions.aio import SessionRegistry, _guest, _steps, asyncio_transport
from trio_sessions.aio._guest import Guest
from trio_sessions.aio._service import join_host
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault, FaultyStore

pytestmark = pytest.mark.usefixtures("asyncio_debug")

Run = Callable[[Callable[[], Awaitable[object]]], Any]
GUESTS = ["asyncio", "uvloop"]


def idle_threads() -> set[threading.Thread]:
    """Return the threads that Trio keeps for a while, in case that it needs them again."""
    from trio._core._thread_cache import THREAD_CACHE

    return {worker._thread for worker in THREAD_CACHE._idle_workers}


def busy_threads() -> set[threading.Thread]:
    """Return Trio's threads that are at work."""
    others = set(threading.enumerate()) - {threading.main_thread()} - idle_threads()
    return {thread for thread in others if "Trio" in thread.name}


@pytest.fixture(scope="module", autouse=True)
def _files_that_stay_are_open() -> None:
    """Let each host open what it keeps for the life of the process."""

    async def main() -> None:
        async with SessionRegistry():
            pass

    for run in ASYNCIO.values():
        run(main)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Every test here must end with the threads and files that it began with."""
    gc.collect()
    gc.freeze()  # afterwards only what the test has made is looked at
    files, threads = len(os.listdir("/proc/self/fd")), busy_threads()
    yield
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= files
    assert busy_threads() <= threads


@pytest.fixture(params=list(ASYNCIO))
def run(request: pytest.FixtureRequest) -> Run:
    return ASYNCIO[request.param]


@pytest.fixture(params=GUESTS)
def run_guest(request: pytest.FixtureRequest) -> Run:
    return ASYNCIO[request.param]


class Connection:
    """A transport of asyncio."""

    def __init__(self) -> None:
        self.connected = True
        self.disconnects = 0

    async def is_connected(self) -> bool:
        return self.connected

    async def disconnect(self) -> None:
        self.disconnects += 1
        self.connected = False
        await asyncio.sleep(0)


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("it had to wait")


# ---- lifetime ----


def test_calls_about_one_session_are_carried_out_in_their_order(run: Run) -> None:
    """However many are made at once; Trio by itself starts tasks in any order."""

    async def main() -> None:
        store = MemoryStore()
        async with SessionRegistry(store) as registry:
            for _ in range(30):
                first, second = Connection(), Connection()
                calls = (
                    registry.add_session("s", first),
                    registry.remove_session("s"),
                    registry.add_session("s", second),
                    registry.remove_session("s", transport=first),
                    registry.set_session_owner("s", "alice"),
                    registry.set_session_owner("s", "bob"),
                    registry.broadcast("s", 1, durable=True),
                    registry.broadcast("s", 2, durable=True),
                    registry.broadcast("s", 3),
                )
                await asyncio.gather(*calls)
                assert await registry.get_session("s") is second
                assert (first.disconnects, second.disconnects) == (1, 0)
                assert await registry.get_session_owner("s") == "bob"
                async with registry.open_inbox("s") as inbox:
                    received = [await anext(inbox) for _ in range(3)]
                assert received == [1, 2, 3]
                await registry.remove_session("s")
            assert store._rows == {}

    run(main)


def test_it_is_opened_closed_and_opened_again(run: Run) -> None:
    """Twice in a row each is harmless; a transport is disconnected, and the rows are gone."""

    async def main() -> None:
        store = MemoryStore()
        registry = SessionRegistry(store)
        await registry.shutdown()
        await registry.initialize()
        await registry.initialize()
        first = registry.worker_id
        connection = Connection()
        await registry.add_session("s", connection)
        assert set(store._rows) == {"s"}
        await registry.shutdown()
        await registry.shutdown()
        assert connection.disconnects == 1
        assert store._rows == {}
        async with registry:
            assert registry.worker_id != first
            assert await registry.get_all_session_ids() == []
            await registry.add_session("s", connection)
        assert registry.statistics().closed

    run(main)


def test_two_tasks_may_initialize_and_shut_down_at_once(run: Run) -> None:
    """One does it, and the other waits for it."""

    async def main() -> None:
        registry = SessionRegistry()
        await asyncio.gather(registry.initialize(), registry.initialize())
        await registry.add_session("s", Connection())
        await asyncio.gather(registry.shutdown(), registry.shutdown())
        await asyncio.gather(registry.initialize(), registry.shutdown(), registry.initialize())
        await registry.cleanup()
        await registry.shutdown()

    run(main)


HARMLESS: list[Callable[[SessionRegistry], Any]] = [
    lambda r: r.remove_session("s"),
    lambda r: r.session_exists("s"),
]
"""What streams that are still open do when a gateway has shut down: no traceback for that."""

CALLS: list[Callable[[SessionRegistry], Any]] = [
    *HARMLESS,
    lambda r: r.add_session("s", Connection()),
    lambda r: r.get_session("s"),
    lambda r: r.get_all_session_ids(),
    lambda r: r.locate_session("s"),
    lambda r: r.cleanup(),
    lambda r: r.respond("server", {}, "s"),
    lambda r: r.broadcast("s", 1),
    lambda r: r.broadcast("s", 1, durable=True),
    lambda r: r.set_session_owner("s", "o"),
    lambda r: r.claim_session_owner("s", "o"),
    lambda r: r.get_session_owner("s"),
    lambda r: r.store_client_capabilities("s", {}),
    lambda r: r.get_client_capabilities("s"),
    lambda r: r.has_elicitation_capability("s"),
    lambda r: r.get_elicitation_capable_sessions(),
]


def test_without_initialize_every_call_says_what_to_do() -> None:
    """And the same after `shutdown`, but for what is harmless then."""

    async def main() -> None:
        registry = SessionRegistry()
        for calls in CALLS, [call for call in CALLS if call not in HARMLESS]:
            for call in calls:
                with pytest.raises(RegistryClosed, match="initialize"):
                    await call(registry)
            with pytest.raises(RegistryClosed, match="initialize"):
                registry.get_session_sync("s")
            with pytest.raises(RegistryClosed, match="initialize"):
                registry.register_respond_task("s", asyncio.create_task(asyncio.sleep(0)))
            with pytest.raises(RegistryClosed, match="initialize"):
                _ = registry.worker_id
            await registry.initialize()
            await registry.shutdown()
        with pytest.raises(RegistryClosed, match="initialize"):
            SessionRegistry().statistics()
        for harmless in HARMLESS:
            assert await harmless(registry) is None
        with pytest.raises(InvalidSessionId):
            await registry.session_exists("")

    ASYNCIO["asyncio"](main)


def test_settings_are_checked_when_it_is_built() -> None:
    """Without a loop, and before anything is opened."""
    with pytest.raises(ValueError, match="check_timeout"):
        SessionRegistry(check_timeout=0)
    with pytest.raises(ValueError, match="mysql"):
        SessionRegistry("mysql://host/db")


def test_what_initialize_raises_comes_out_bare_and_leaves_nothing(run: Run) -> None:
    """The next attempt may succeed."""

    async def main() -> None:
        store = FaultyStore(MemoryStore())
        store.fail(Fault.FAILS, "open")
        registry = SessionRegistry(store)
        with pytest.raises(StoreUnavailable) as caught:
            await registry.initialize()
        assert caught.value is store.error
        assert store.calls["close"] == 1
        with pytest.raises(RegistryClosed):
            await registry.cleanup()
        store.heal()
        async with registry:
            assert (await registry.cleanup()).checked == 0

    run(main)


def test_a_cancelled_initialize_leaves_nothing_open(run: Run) -> None:
    """It is cancelled in the middle of opening the store, and waits until that has ended."""

    async def main() -> None:
        store = FaultyStore(MemoryStore())
        store.fail(Fault.HANGS, "open")
        registry = SessionRegistry(store)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await registry.initialize()
        assert store.faults["open"] == 1
        assert store.calls["close"] == 1
        store.heal()
        async with registry:
            pass

    run(main)


def test_an_initialize_that_is_cancelled_at_once_leaves_nothing_open(run: Run) -> None:
    """Before Trio has even begun."""

    async def main() -> None:
        registry = SessionRegistry()
        for turns in range(12):
            task = asyncio.create_task(registry.initialize())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await registry.shutdown()

    run(main)


def test_a_cancelled_shutdown_goes_on_to_its_end(run: Run) -> None:
    """And then the cancellation is raised."""

    async def main() -> None:
        connection, asked, go_on = Connection(), asyncio.Event(), asyncio.Event()

        async def slowly() -> None:
            asked.set()
            await go_on.wait()
            connection.disconnects += 1

        connection.disconnect = slowly  # type: ignore[method-assign]
        registry = SessionRegistry()
        await registry.initialize()
        await registry.add_session("s", connection)
        task = asyncio.create_task(registry.shutdown())
        await asked.wait()
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()
        assert connection.disconnects == 1
        with pytest.raises(RegistryClosed):
            await registry.cleanup()

    run(main)


def test_registries_of_one_loop_share_it(run: Run) -> None:
    """One is shut down, and the other goes on; their sessions are known to both."""

    async def main() -> None:
        store = MemoryStore()
        one, two = SessionRegistry(store), SessionRegistry(store)
        async with two:
            async with one:
                await one.add_session("s", Connection())
                assert await two.locate_session("s") == one.worker_id
                assert await one.locate_session("s") == one.worker_id
            assert await two.session_exists("s") is False

    run(main)


def test_one_joins_while_the_other_leaves(run: Run) -> None:
    """The host that is ending is not used again; a new one begins."""

    async def main() -> None:
        one, two = SessionRegistry(), SessionRegistry()
        await one.initialize()
        for turns in range(24):
            task = asyncio.create_task(one.shutdown())
            for _ in range(turns):
                await asyncio.sleep(0)
            await two.initialize()
            await task
            await two.cleanup()
            one, two = two, one
        await one.shutdown()

    run(main)


def test_a_host_that_is_ending_is_not_joined(run_guest: Run) -> None:
    """Whoever comes waits for its end, and begins a new one."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        host = await join_host(loop)
        host.leave()
        another = await join_host(loop)
        assert another is not host
        another.leave()
        await another.wait_ended()

    run_guest(main)


def test_one_of_two_that_join_is_cancelled(run: Run) -> None:
    """The other is opened all the same."""

    async def main() -> None:
        for turns in range(6):
            one, two = SessionRegistry(), SessionRegistry()
            tasks = [asyncio.create_task(r.initialize()) for r in (one, two)]
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[0].cancel()
            await asyncio.wait(tasks)
            await two.cleanup()
            await one.shutdown()
            await two.shutdown()

    run(main)


def test_one_that_is_open_cannot_be_used_on_another_loop() -> None:
    """Each loop, and each thread, needs a registry of its own."""

    async def main() -> None:
        registry = SessionRegistry()
        async with registry:

            def elsewhere() -> None:
                for call in (
                    registry.cleanup,
                    registry.initialize,
                    registry.shutdown,
                    partial(registry.broadcast, "s", 1),
                    registry.open_inbox("s").__aenter__,
                ):
                    with pytest.raises(RuntimeError, match="another event loop"):
                        ASYNCIO["asyncio"](call)

            await asyncio.to_thread(elsewhere)
            await registry.cleanup()
        await asyncio.get_running_loop().shutdown_default_executor()

    ASYNCIO["asyncio"](main)


async def test_in_a_trio_program_without_trio_asyncio_it_says_what_is_missing() -> None:
    """Trio runs already, and cannot be a guest as well."""
    loop = asyncio.SelectorEventLoop()
    try:
        with pytest.raises(RuntimeError, match="trio_asyncio"):
            from trio_sessions.aio._guest import guest_of

            guest_of(loop)
    finally:
        loop.close()


# ---- across the border ----


def test_an_error_comes_through_with_its_traceback_and_cause(run: Run) -> None:
    """It is the very error, and shows where in the core it was raised."""

    async def main() -> None:
        store = FaultyStore(MemoryStore())
        store.error = ZeroDivisionError("a bug of the store")
        async with SessionRegistry(store) as registry:
            store.fail(Fault.FAILS, "locate")
            with pytest.raises(StoreUnavailable) as caught:
                await registry.locate_session("elsewhere")
            assert caught.value.__cause__ is store.error
            frames = [f.name for f in traceback.extract_tb(caught.value.__traceback__)]
            assert {"main", "locate_session", "_ask"} <= set(frames)
            assert await registry.session_exists("elsewhere") is None
            store.heal()
            with pytest.raises(InvalidSessionId):
                await registry.locate_session("")

    run(main)


def test_a_cancelled_caller_cancels_trio_and_waits_for_it(run: Run) -> None:
    """When the caller goes on, the Trio side has ended."""

    async def main() -> None:
        ended = []

        class Slow(FaultyStore):
            async def locate(self, *args: Any) -> Any:
                try:
                    return await super().locate(*args)
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(0.05)  # is slow to end: what the test is about
                    ended.append(True)

        store = Slow(MemoryStore())
        async with SessionRegistry(store) as registry:
            store.fail(Fault.HANGS, "locate")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await registry.locate_session("elsewhere")
            assert ended == [True]
            task = asyncio.create_task(registry.locate_session("elsewhere"))
            while store.faults["locate"] < 2:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # again, while it waits for Trio
            await asyncio.wait([task])
            assert task.cancelled()
            assert ended == [True, True]
            store.heal()
            assert await registry.locate_session("elsewhere") is None

    run(main)


def test_a_failing_call_harms_no_other(run: Run) -> None:
    """While many fail, others succeed."""

    async def main() -> None:
        store = FaultyStore(MemoryStore())
        async with SessionRegistry(store) as registry:
            store.fail(Fault.FAILS, "locate")
            answers = await asyncio.gather(
                *(registry.locate_session(f"unknown {n}") for n in range(20)),
                *(registry.add_session(f"s{n}", Connection()) for n in range(20)),
                registry.cleanup(),
                return_exceptions=True,
            )
            assert [isinstance(a, StoreUnavailable) for a in answers[:20]] == [True] * 20
            assert answers[20:40] == [None] * 20
            store.heal()
            assert (await registry.cleanup()).refreshed == 20

    run(main)


def test_the_callers_context_is_seen_by_the_transport(run: Run) -> None:
    """`contextvars` go with the call, to Trio and back to asyncio."""
    variable = contextvars.ContextVar("variable", default="nobody")

    async def main() -> None:
        seen = []

        class Seeing(Connection):
            async def disconnect(self) -> None:
                seen.append(variable.get())

        async with SessionRegistry() as registry:
            await registry.add_session("s", Seeing())
            variable.set("caller")
            await registry.remove_session("s")
        assert seen == ["caller"]

    run(main)


def test_looking_at_local_sessions_does_not_cross(run: Run) -> None:
    """These coroutines never wait, so they cannot have asked Trio."""

    async def main() -> None:
        connection = Connection()
        async with SessionRegistry() as registry:
            await registry.add_session("s", connection)
            assert at_once(registry.get_session("s")) is connection
            assert at_once(registry.get_session("unknown")) is None
            assert registry.get_session_sync("s") is connection
            assert at_once(registry.session_exists("s")) is True
            assert at_once(registry.locate_session("s")) == registry.worker_id
            assert at_once(registry.get_all_session_ids()) == ["s"]
            assert at_once(registry.remove_session("unknown")) is None

    run(main)


def test_a_pass_crosses_in_batches(run: Run) -> None:
    """Hundreds of transports that answer at once cost a task or two of asyncio's."""
    tasks = set()

    class Counting(Connection):
        async def is_connected(self) -> bool:
            tasks.add(asyncio.current_task())
            return True

    async def main() -> None:
        async with SessionRegistry() as registry:
            for number in range(300):
                await registry.add_session(f"s{number}", Counting())
            report = await registry.cleanup()
            assert (report.checked, report.refreshed) == (300, 300)
            assert len(tasks) == 1
            assert tasks != {asyncio.current_task()}

    run(main)


# ---- crashes ----


class Fatal(BaseException):
    """What no `except Exception` may swallow."""


def test_when_the_core_crashes_everybody_is_told_why(run: Run) -> None:
    """Those who wait, and those who come later; it can be initialized again."""

    async def main() -> None:
        class Broken(Connection):
            async def is_connected(self) -> bool:
                raise Fatal

        store = FaultyStore(MemoryStore())
        registry = SessionRegistry(store)
        await registry.initialize()
        connection = Broken()
        await registry.add_session("s", connection)
        store.fail(Fault.HANGS, "locate")
        waiting = [
            asyncio.create_task(registry.locate_session("elsewhere")),
            asyncio.create_task(registry.respond("server", {}, "s")),
            asyncio.create_task(registry.cleanup()),
        ]
        await asyncio.wait(waiting)
        for task in (waiting[0], waiting[2]):
            error = task.exception()
            assert isinstance(error, RegistryClosed)
            assert "Fatal" in repr(error.__cause__)
        assert connection.disconnects == 1
        for call in CALLS:
            with pytest.raises(RegistryClosed, match="crashed with Fatal") as caught:
                await call(registry)
            assert isinstance(caught.value.__cause__, Fatal)
        await registry.shutdown()
        store.heal()
        async with registry:
            assert await registry.session_exists("s") is False

    run(main)


# Tasks that Trio does not unwind are closed by the garbage collector, and complain of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_when_trio_stops_in_the_middle_nobody_waits_for_ever(run_guest: Run) -> None:
    """A fault of Trio's own machinery unwinds no task, so none of ours can say that it ended."""

    async def main() -> None:
        store = FaultyStore(MemoryStore())
        registry = SessionRegistry(store)
        await registry.initialize()
        store.fail(Fault.HANGS, "locate")
        waiting = asyncio.create_task(registry.locate_session("elsewhere"))
        while not store.faults["locate"]:
            await asyncio.sleep(0)
        service = registry._service
        assert service is not None
        assert isinstance(service._host, Guest)
        service._host._steps.clock.deadline_to_sleep_time = lambda _: 1 / 0  # type: ignore[assignment]
        with pytest.raises(RegistryClosed) as caught:
            await registry.locate_session("elsewhere")
        assert isinstance(caught.value.__cause__, trio.TrioInternalError)
        await asyncio.wait([waiting], timeout=5)
        assert isinstance(waiting.exception(), RegistryClosed)
        with pytest.raises(RegistryClosed):
            await registry.cleanup()
        await registry.shutdown()
        store.heal()
        async with registry:
            await registry.cleanup()

    run_guest(main)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_trio_that_crashes_while_it_is_joined(run_guest: Run) -> None:
    """`initialize` says so, and may be tried again."""

    async def main() -> None:
        registry = SessionRegistry()
        task = asyncio.create_task(registry.initialize())
        while guest_or_none() is None:
            await asyncio.sleep(0)
        guest = guest_or_none()
        assert guest is not None
        guest._steps.clock.deadline_to_sleep_time = lambda _: 1 / 0  # type: ignore[assignment]
        await asyncio.wait([task])
        assert isinstance(task.exception(), RegistryClosed)
        async with registry:
            await registry.cleanup()

    run_guest(main)


def guest_or_none() -> Guest | None:
    return _guest._this_thread.guest


def test_when_trio_itself_crashes_nobody_waits_for_ever(
    run_guest: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """An internal error of the guest run ends it at once, with no `finally` of ours."""

    async def broken() -> None:
        raise Fatal

    async def main() -> None:
        store = FaultyStore(MemoryStore())
        registry = SessionRegistry(store)
        await registry.initialize()
        store.fail(Fault.HANGS, "locate")
        waiting = asyncio.create_task(registry.locate_session("elsewhere"))
        while not store.faults["locate"]:
            await asyncio.sleep(0)
        trio.lowlevel.spawn_system_task(broken)
        await asyncio.wait([waiting], timeout=5)
        error = waiting.exception()
        assert isinstance(error, RegistryClosed)
        with pytest.raises(RegistryClosed) as caught:
            await registry.cleanup()
        assert isinstance(caught.value.__cause__, trio.TrioInternalError)
        await registry.shutdown()
        store.heal()
        async with registry:
            await registry.cleanup()

    run_guest(main)


# ---- transports ----


def test_a_transport_that_is_none_is_refused_at_the_door(run: Run) -> None:
    """The message names what it lacks."""

    async def main() -> None:
        async with SessionRegistry() as registry:
            with pytest.raises(TypeError, match="is_connected"):
                await registry.add_session("s", object())  # type: ignore[arg-type]
            assert await registry.get_all_session_ids() == []

    run(main)


def bad_answers() -> dict[str, Callable[[], Any]]:
    other_loop = asyncio.SelectorEventLoop()
    future = other_loop.create_future()
    other_loop.close()

    async def trio_sleep() -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def trio_checkpoint() -> bool:
        await trio.lowlevel.cancel_shielded_checkpoint()
        return False

    async def stubborn_trio() -> bool:
        while True:
            with contextlib.suppress(Exception):
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def of_another_loop() -> bool:
        await future
        return False

    async def raises() -> bool:
        await asyncio.sleep(0)
        raise OSError("broken")

    async def is_cancelled_from_within() -> bool:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def hangs() -> bool:
        await asyncio.get_running_loop().create_future()
        return False

    async def vague() -> Any:
        return None

    return {
        "not a coroutine": lambda: False,
        "trio_sleep": trio_sleep,
        "trio_checkpoint": trio_checkpoint,
        "stubborn_trio": stubborn_trio,
        "of_another_loop": of_another_loop,
        "raises": raises,
        "is_cancelled_from_within": is_cancelled_from_within,
        "hangs": hangs,
        "vague": vague,
    }


def test_what_a_transport_does_wrong_is_a_failure_of_its_own_check(run: Run) -> None:
    """Never a hang, never a removal, and no harm to the others."""
    expected = {
        "not a coroutine": TypeError,
        "trio_sleep": TypeError,
        "trio_checkpoint": TypeError,
        "stubborn_trio": TypeError,
        "of_another_loop": RuntimeError,
        "raises": OSError,
        "is_cancelled_from_within": RuntimeError,
        "hangs": TimeoutError,
        "vague": TypeError,
    }

    async def main() -> None:
        registry = SessionRegistry(check_timeout=0.1)
        async with registry:
            for name, method in bad_answers().items():
                connection = Connection()
                connection.is_connected = method  # type: ignore[method-assign]
                await registry.add_session(name, connection)
            await registry.add_session("fine", Connection())
            report = await registry.cleanup()
            failures = {name: type(error) for name, error in report.check_failures.items()}
            assert failures == expected
            told = str(report.check_failures["trio_checkpoint"])
            assert "asyncio" in told
            assert "trio" in told.partition("awaits")[2]
            assert report.disconnected == report.missing == ()
            assert report.refreshed == len(bad_answers()) + 1
            assert registry.statistics().stuck_calls == 0

    run(main)


def test_a_transport_may_return_any_awaitable(run: Run) -> None:
    """A future is as good as a coroutine."""

    async def main() -> None:
        connection = Connection()
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(True)
        connection.is_connected = lambda: answer  # type: ignore[method-assign, assignment, return-value]
        async with SessionRegistry() as registry:
            await registry.add_session("s", connection)
            assert not (await registry.cleanup()).check_failures

    run(main)


def test_a_transport_that_waits_has_a_deadline_of_its_own(run: Run) -> None:
    """Those that answer in time are heard, whatever the others do."""

    async def main() -> None:
        class Slow(Connection):
            def __init__(self, seconds: float, *, answer: bool) -> None:
                super().__init__()
                self.seconds, self.answer = seconds, answer

            async def is_connected(self) -> bool:
                await asyncio.sleep(self.seconds)
                return self.answer

        async with SessionRegistry(check_timeout=0.2) as registry:
            for number in range(30):
                await registry.add_session(f"alive{number}", Slow(0.01, answer=True))
                await registry.add_session(f"dead{number}", Slow(0.01, answer=False))
                await registry.add_session(f"slow{number}", Slow(3600, answer=False))
            report = await registry.cleanup()
            assert len(report.disconnected) == len(report.check_failures) == 30
            assert report.refreshed == 60
            assert report.duration < 2

    run(main)


def test_a_transport_that_refuses_its_cancellation_holds_up_nobody(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, not asked again, and named when the registry closes."""

    async def main() -> None:
        release, asked = asyncio.Event(), 0

        class Stubborn(Connection):
            async def is_connected(self) -> bool:
                nonlocal asked
                asked += 1
                while not release.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await release.wait()
                return False

        async with SessionRegistry(check_timeout=0.05) as registry:
            await registry.add_session("s", Stubborn())
            for _ in range(2):
                report = await registry.cleanup()
                assert isinstance(report.check_failures["s"], TimeoutError)
            assert asked == 1
            assert registry.statistics().stuck_calls == 1
        assert "ignore their cancellation" in caplog.text
        release.set()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)

    run(main)


# ---- responding ----


async def forever(*, ended: list[str]) -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        ended.append("ended")


def test_a_respond_task_ends_with_its_session(run: Run) -> None:
    """However that ends: removed, dead, taken over, or with the registry."""

    async def main() -> None:
        registry = SessionRegistry()
        await registry.initialize()
        for how in ("removed", "dead", "taken over", "shutdown"):
            ended: list[str] = []
            connection = Connection()
            await registry.add_session("s", connection)
            task = asyncio.create_task(forever(ended=ended))
            registry.register_respond_task("s", task)
            registry.register_respond_task("s", task)
            registry.register_respond_task("s", asyncio.create_task(forever(ended=ended)))
            await registry.add_session("s", connection)  # the same one again: it goes on
            assert not task.done()
            if how == "removed":
                await registry.remove_session("s")
            elif how == "dead":
                connection.connected = False
                assert (await registry.cleanup()).disconnected == ("s",)
            elif how == "taken over":
                await registry.add_session("s", Connection())
            else:
                await registry.shutdown()
            assert ended == ["ended", "ended"], how
            assert task.cancelled()
            assert connection.disconnects == 1
        assert registry.statistics().stuck_tasks == 0

    run(main)


def test_a_respond_task_that_refuses_to_die_is_reported(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The removal takes bounded time; the task is counted until it ends."""

    async def main() -> None:
        release = asyncio.Event()

        async def stubborn() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            raise OSError("too late")

        async with SessionRegistry(disconnect_timeout=0.05) as registry:
            await registry.add_session("s", Connection())
            task = asyncio.create_task(stubborn(), name="stubborn")
            registry.register_respond_task("s", task)
            await asyncio.sleep(0)
            await registry.remove_session("s")
            assert registry.statistics().stuck_tasks == 1
            release.set()
            await asyncio.wait([task])
            await asyncio.sleep(0)
            assert registry.statistics().stuck_tasks == 0
        assert "stubborn" in caplog.text
        assert "too late" in caplog.text

    run(main)


def test_a_task_that_removes_its_own_session_is_not_cancelled(run: Run) -> None:
    """It would wait for itself."""

    async def main() -> None:
        async with SessionRegistry() as registry:
            await registry.add_session("s", Connection())

            async def serve() -> str:
                await asyncio.sleep(0)
                await registry.remove_session("s")
                return "to its end"

            task = asyncio.create_task(serve())
            registry.register_respond_task("s", task)
            assert await task == "to its end"

    run(main)


def test_a_task_that_ends_by_itself_is_forgotten(run: Run) -> None:
    """Of two tasks of one session, the other stays tied."""

    async def main() -> None:
        ended: list[str] = []
        async with SessionRegistry() as registry:
            await registry.add_session("s", Connection())
            short = asyncio.create_task(asyncio.sleep(0))
            long = asyncio.create_task(forever(ended=ended))
            registry.register_respond_task("s", short)
            registry.register_respond_task("s", long)
            await short
            await asyncio.sleep(0)
            registry.register_respond_task("s", short)  # it has ended: nothing to tie
            await registry.remove_session("s")
            assert ended == ["ended"]
            await registry.add_session("t", Connection())
            short = asyncio.create_task(asyncio.sleep(0))
            registry.register_respond_task("t", short)
            await short
            await asyncio.sleep(0)
            assert registry._opened().respond_tasks._tied == {}

            async def shut_down() -> None:
                await registry.shutdown()

            task = asyncio.create_task(shut_down())
            registry.register_respond_task("t", task)
            await task  # it has not waited for itself
            late = asyncio.create_task(forever(ended=ended))
            with pytest.raises(RegistryClosed):
                registry.register_respond_task("t", late)
            await asyncio.wait([late])
            assert late.cancelled()

    run(main)


def test_a_task_for_a_session_that_is_gone_is_cancelled(run: Run) -> None:
    """A client that leaves at once leaves no task behind."""

    async def main() -> None:
        ended: list[str] = []
        async with SessionRegistry() as registry:
            task = asyncio.create_task(forever(ended=ended))
            await asyncio.sleep(0)
            registry.register_respond_task("s", task)
            await asyncio.wait([task])
            assert task.cancelled()
            with pytest.raises(TypeError, match=r"asyncio\.Task"):
                registry.register_respond_task("s", "task")  # type: ignore[arg-type]

    run(main)


class Answers(SessionRegistry):
    """Keeps what it was to answer."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.asked: list[Any] = []

    async def generate_response(
        self, message: Any, transport: Any, server_id: str | None, user: Any
    ) -> None:
        self.asked.append((message, transport, server_id, user))
        if message == "hang":
            await asyncio.get_running_loop().create_future()
        if message == 5:
            raise TypeError("5 has no method")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


def test_respond_answers_each_message_until_the_session_ends(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """From any worker; what fails is logged, and the next one follows."""

    async def main() -> None:
        store, connection, user = MemoryStore(), Connection(), object()
        async with Answers(store) as registry, SessionRegistry(store) as other:
            await registry.respond("server", user, "unknown")  # it has ended already
            await registry.add_session("s", connection)
            task = asyncio.create_task(registry.respond("server", user, session_id="s"))
            for message in ({"a": 1}, 5, "last"):
                await registry.broadcast("s", message)
            await other.broadcast(session_id="s", message="from elsewhere")
            await until(lambda: len(registry.asked) == 4)
            assert not task.done()
            await registry.remove_session("s")
            await asyncio.wait_for(task, 5)
            assert all(rest == [connection, "server", user] for _, *rest in registry.asked)
            messages = [message for message, *_ in registry.asked]
            messages.remove("from elsewhere")  # the order is that of each sender
            assert messages == [{"a": 1}, 5, "last"]
        assert "5 has no method" in caplog.text

    run(main)


def test_an_answer_whose_own_work_is_cancelled_has_failed(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """A pool that closes cancels what the answer awaits, and not the task that answers."""

    async def main() -> None:
        async with SessionRegistry() as registry:
            asked: list[Any] = []

            async def answer(message: Any, *args: Any) -> None:
                asked.append(message)
                if message == "cancelled":
                    work = asyncio.ensure_future(asyncio.sleep(60))
                    asyncio.get_running_loop().call_soon(work.cancel)
                    await work

            registry.generate_response = answer  # type: ignore[method-assign, assignment]
            await registry.add_session("s", Connection())
            task = asyncio.create_task(registry.respond(None, {}, "s"))
            await registry.broadcast("s", "cancelled")
            await registry.broadcast("s", "next")
            await until(lambda: asked == ["cancelled", "next"])
            assert not task.done()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        assert "failed, the next one follows" in caplog.text

    run(main)


def test_an_answer_that_cancels_its_own_task_ends_it(run: Run) -> None:
    """However many messages wait: it is not taken for the cancellation of something else."""

    async def main() -> None:
        async with SessionRegistry() as registry:
            asked: list[Any] = []

            async def answer(message: Any, *args: Any) -> None:
                asked.append(message)
                if message == "stop":
                    task.cancel()
                else:
                    await asyncio.sleep(0)

            registry.generate_response = answer  # type: ignore[method-assign, assignment]
            await registry.add_session("s", Connection())
            for message in ("stop", 1, 2):
                await registry.broadcast("s", message)
            task = asyncio.create_task(registry.respond(None, {}, "s"))
            await asyncio.wait([task], timeout=20)
            assert task.cancelled()
            async with registry.open_inbox("s") as inbox:
                assert [await anext(inbox) for _ in range(2)] == [1, 2]

    run(main)


def test_generate_response_may_be_set_on_the_instance(run: Run) -> None:
    """As gateways do in their tests."""

    async def main() -> None:
        async with SessionRegistry() as registry:
            asked: list[Any] = []

            async def answer(message: Any, *args: Any) -> None:
                asked.append(message)

            registry.generate_response = answer  # type: ignore[method-assign, assignment]
            await registry.add_session("s", Connection())
            task = asyncio.create_task(registry.respond(None, {}, "s"))
            await registry.broadcast("s", 1)
            await until(lambda: asked == [1])
            await registry.shutdown()
            await asyncio.wait_for(task, 5)

    run(main)


def test_a_respond_task_that_is_cut_has_not_answered(run: Run) -> None:
    """Its message is for the session's next inbox; those that wait are not lost."""

    async def main() -> None:
        async with Answers() as registry:
            await registry.add_session("s", Connection())
            for number in range(3):
                await registry.broadcast("s", "hang" if number == 0 else number)
            task = asyncio.create_task(registry.respond(None, {}, "s"))
            await until(lambda: len(registry.asked) == 1)
            task.cancel()
            await asyncio.wait([task])
            async with registry.open_inbox("s") as inbox:
                assert [await anext(inbox) for _ in range(3)] == ["hang", 1, 2]
            waiting = asyncio.create_task(registry.respond(None, {}, "s"))
            await asyncio.sleep(0.01)
            waiting.cancel()  # while it waits for a message
            await asyncio.wait([waiting])
            assert waiting.cancelled()

    run(main)


def test_a_local_message_does_not_cross(run: Run) -> None:
    """Neither its sender nor its reader waits."""

    async def main() -> None:
        async with SessionRegistry() as registry:
            await registry.add_session("s", Connection())
            async with registry.open_inbox("s") as inbox:
                await registry.broadcast("s", "first")
                assert await anext(inbox) == "first"
                assert at_once(registry.broadcast("s", "second")) is None
                following: Any = inbox.__anext__()
                assert at_once(following) == "second"

    run(main)


def test_an_inbox_ends_with_the_registry(run: Run) -> None:
    """And cannot be opened after it, also if it was made before."""

    async def main() -> None:
        registry = SessionRegistry()
        await registry.initialize()
        await registry.add_session("s", Connection())
        early = registry.open_inbox("s")
        async with registry.open_inbox("s") as inbox:
            await registry.broadcast("s", 1)
            assert await anext(inbox) == 1
            await registry.shutdown()
            with pytest.raises(StopAsyncIteration):
                await anext(inbox)
        with pytest.raises(RegistryClosed, match="initialize"):
            await early.__aenter__()
        with pytest.raises(RegistryClosed, match="initialize"):
            registry.open_inbox("s")

    run(main)


def test_a_message_is_handed_to_the_transport_unless_you_say_otherwise() -> None:
    """The default of `generate_response`; a transport without `send` is told so."""

    class Sends(Connection):
        def __init__(self) -> None:
            super().__init__()
            self.sent: list[object] = []

        async def send(self, message: object) -> None:
            self.sent.append(message)

    async def main() -> None:
        connection = Sends()
        await SessionRegistry().generate_response({"a": 1}, connection, "server", {})
        assert connection.sent == [{"a": 1}]
        with pytest.raises(TypeError, match="generate_response"):
            await SessionRegistry().generate_response({"a": 1}, Connection(), "server", {})

    ASYNCIO["asyncio"](main)


def test_a_task_is_tied_to_a_session_and_not_to_its_transport(run: Run) -> None:
    """Two sessions may share a connection: removing one leaves the other's task alone."""

    async def main() -> None:
        ended: list[str] = []
        async with SessionRegistry() as registry:
            connection = Connection()
            for session_id in ("a", "b"):
                await registry.add_session(session_id, connection)
            task = asyncio.create_task(forever(ended=ended))
            registry.register_respond_task("a", task)
            await asyncio.sleep(0)
            await registry.remove_session("b")
            assert not task.done()
            with pytest.raises(TypeError, match="instance"):
                await registry.add_session("c", Connection)  # type: ignore[arg-type]
        assert ended == ["ended"]

    run(main)


def test_a_late_task_that_refuses_to_die_is_reported(run: Run) -> None:
    """Its session was gone when it was registered."""

    async def main() -> None:
        release = asyncio.Event()

        async def stubborn() -> None:
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        async with SessionRegistry(disconnect_timeout=0.05) as registry:
            task = asyncio.create_task(stubborn())
            await asyncio.sleep(0)
            registry.register_respond_task("gone", task)
            async with asyncio.timeout(20):
                while not registry.statistics().stuck_tasks:
                    await asyncio.sleep(0.01)
            release.set()
            await asyncio.wait([task])

    run(main)


def test_a_task_ends_when_its_session_is_added_again_and_removed(run: Run) -> None:
    """The same transport again, and a removal that comes between."""

    async def main() -> None:
        ended: list[str] = []
        async with SessionRegistry() as registry:
            connection = Connection()
            await registry.add_session("s", connection)
            task = asyncio.create_task(forever(ended=ended))
            registry.register_respond_task("s", task)
            await asyncio.sleep(0)
            again = asyncio.create_task(registry.add_session("s", connection))
            await asyncio.sleep(0)
            await asyncio.gather(again, registry.remove_session("s"))
            async with asyncio.timeout(5):
                await asyncio.wait([task])
            assert ended == ["ended"]

    run(main)


def test_a_pass_that_is_cut_by_shutdown_says_so(run: Run) -> None:
    """In words that fit a program on asyncio."""

    async def main() -> None:
        connection, asked = Connection(), asyncio.Event()

        async def hang() -> bool:
            asked.set()
            await asyncio.get_running_loop().create_future()
            return True

        connection.is_connected = hang  # type: ignore[method-assign]
        registry = SessionRegistry()
        await registry.initialize()
        await registry.add_session("s", connection)
        task = asyncio.create_task(registry.cleanup())
        await asked.wait()
        await registry.shutdown()
        await asyncio.wait([task])
        with pytest.raises(RegistryClosed, match="initialize"):
            task.result()

    run(main)


def test_a_fork_without_an_open_registry_concerns_nobody() -> None:
    """What runs in a child finds nothing to abandon."""
    _guest._abandon_in_a_forked_child()
    assert guest_or_none() is None


def test_a_crashed_registry_closes_before_it_opens_again(run: Run) -> None:
    """Neither `shutdown` nor `initialize` returns while it is still closing."""

    class Broken(Connection):
        async def is_connected(self) -> bool:
            raise Fatal

        async def disconnect(self) -> None:
            await asyncio.sleep(0.1)
            self.disconnects += 1

    async def main() -> None:
        for reopen in (False, True):
            registry, connection = SessionRegistry(), Broken()
            await registry.initialize()
            await registry.add_session("s", connection)
            with pytest.raises(RegistryClosed):
                await registry.cleanup()
            await (registry.initialize() if reopen else registry.shutdown())
            assert connection.disconnects == 1
            await registry.shutdown()

    run(main)


def test_a_shutdown_that_is_cancelled_in_the_queue_still_waits(run: Run) -> None:
    """Two close at once; the one that waits for its turn is cancelled."""

    async def main() -> None:
        connection, asked, go_on = Connection(), asyncio.Event(), asyncio.Event()

        async def slowly() -> None:
            asked.set()
            await go_on.wait()

        connection.disconnect = slowly  # type: ignore[method-assign]
        registry = SessionRegistry()
        await registry.initialize()
        await registry.add_session("s", connection)
        first, second = (asyncio.create_task(registry.shutdown()) for _ in range(2))
        await asked.wait()
        second.cancel()
        await asyncio.sleep(0.01)
        assert not second.done()
        go_on.set()
        await asyncio.wait([first, second])
        assert second.cancelled()

    run(main)


# ---- the end of the loop ----


@pytest.mark.parametrize("factory", GUESTS)
@pytest.mark.parametrize("method", ["remove_session", "shutdown", "cleanup"])
def test_a_loop_that_ends_during_a_call_ends(
    factory: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever was about to begin: asyncio never runs a task that it cancels before its start."""
    caplog.set_level(logging.CRITICAL)
    for turns in range(8):
        store, connection = MemoryStore(), Connection()
        registry = SessionRegistry(store)

        async def main() -> None:
            await registry.initialize()  # noqa: B023 -- awaited within the loop
            await registry.add_session("s", connection)  # noqa: B023
            arguments = ["s"] if method == "remove_session" else []
            call = getattr(registry, method)(*arguments)  # noqa: B023
            asyncio.create_task(call)  # noqa: RUF006 -- left alone is the case
            for _ in range(turns):  # noqa: B023
                await asyncio.sleep(0)

        with asyncio.Runner(loop_factory=new_loop(factory)) as runner:
            runner.run(main())
        assert connection.disconnects == 1
        assert store._rows == {}


@pytest.mark.parametrize("factory", GUESTS)
def test_a_loop_that_tidies_up_closes_the_registry(
    factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`asyncio.run` cancels all tasks: transports are disconnected and rows deleted."""
    store, connection = MemoryStore(), Connection()
    registry = SessionRegistry(store)

    async def main() -> None:
        await registry.initialize()
        await registry.add_session("s", connection)
        assert set(store._rows) == {"s"}

    def run() -> None:
        with asyncio.Runner(loop_factory=new_loop(factory)) as runner:
            runner.run(main())

    for _ in range(2):  # the same thread, and the same registry, once more
        caplog.clear()
        run()
        assert store._rows == {}
        assert "shutdown" in caplog.text
    assert connection.disconnects == 2
    trio.run(trio.sleep, 0)  # this thread can still start Trio


@pytest.mark.parametrize("factory", GUESTS)
def test_a_loop_that_ends_while_the_registry_opens(
    factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However far it has come: nothing stays open, and the next loop can open it."""
    caplog.set_level(logging.CRITICAL)
    store = MemoryStore()
    registry = SessionRegistry(store)
    for turns in range(10):

        async def main() -> None:
            asyncio.create_task(registry.initialize())  # noqa: RUF006 -- left alone is the case
            for _ in range(turns):  # noqa: B023 -- awaited within the loop
                await asyncio.sleep(0)

        with asyncio.Runner(loop_factory=new_loop(factory)) as runner:
            runner.run(main())
        loop = new_loop(factory)()
        loop.run_until_complete(main())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # asyncio has a word on each task that never ran
            loop.close()
            del loop
            gc.collect()
        assert guest_or_none() is None
    trio.run(trio.sleep, 0)

    async def again() -> None:
        async with registry:
            await registry.cleanup()

    ASYNCIO[factory](again)


def new_loop(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.SelectorEventLoop,
        "uvloop": uvloop.new_event_loop,
    }
    return factories[name]


@pytest.mark.parametrize("factory", GUESTS)
def test_a_loop_that_is_just_closed_is_warned_of(
    factory: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows are deleted all the same, and the thread is as good as new."""
    store, connection = MemoryStore(), Connection()
    registry = SessionRegistry(store)

    async def main() -> None:
        await registry.initialize()
        await registry.add_session("s", connection)

    loop = new_loop(factory)()
    loop.run_until_complete(main())
    with pytest.warns(ResourceWarning, match="shutdown"):
        loop.close()
    assert store._rows == {}
    assert connection.disconnects == 0  # its loop is closed
    trio.run(trio.sleep, 0)
    caplog.set_level(logging.CRITICAL)
    del loop
    gc.collect()  # asyncio's word about the task that was pending

    async def again() -> None:
        async with registry:
            await registry.add_session("s", Connection())

    ASYNCIO[factory](again)


def test_a_loop_that_is_closed_with_a_thread_at_work(tmp_path: Any) -> None:
    """The answer of the database comes when there is no loop any more."""
    registry = SessionRegistry(f"sqlite:///{tmp_path / 'sessions.db'}")
    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(registry.initialize())
    loop.run_until_complete(registry.add_session("s", Connection()))
    task = loop.create_task(registry.cleanup())
    loop.run_until_complete(asyncio.sleep(0))
    with pytest.warns(ResourceWarning):
        loop.close()
    task.get_coro().close()
    del task
    import sqlite3

    with sqlite3.connect(tmp_path / "sessions.db") as connection:
        assert connection.execute("SELECT count(*) FROM trio_sessions").fetchone() == (0,)
    connection.close()


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_loop_that_another_thread_closes(caplog: pytest.LogCaptureFixture) -> None:
    """Only the thread itself can end its guest run: it does so before it begins a new one."""
    store = MemoryStore()
    registry = SessionRegistry(store)

    async def main() -> None:
        await registry.initialize()
        await registry.add_session("s", Connection())

    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(main())
    with pytest.warns(ResourceWarning):
        in_a_thread(loop.close)
    assert set(store._rows) == {"s"}
    other = SessionRegistry(store)

    async def again() -> None:
        async with other:
            assert await other.session_exists("s") is False

    with pytest.warns(ResourceWarning):
        ASYNCIO["asyncio"](again)


def test_a_loop_that_is_only_stopped_keeps_the_thread() -> None:
    """Another loop of the same thread is told so; the first can go on."""
    registry, other = SessionRegistry(), SessionRegistry()
    loop = asyncio.SelectorEventLoop()
    loop.run_until_complete(registry.initialize())

    async def main() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await other.initialize()

    ASYNCIO["asyncio"](main)
    loop.run_until_complete(registry.add_session("s", Connection()))
    loop.run_until_complete(registry.shutdown())
    loop.close()


def test_leaving_trio_asyncio_with_the_registry_open_closes_it() -> None:
    """Its tasks are cancelled there, ours among them."""
    store, connection = MemoryStore(), Connection()

    async def main() -> None:
        registry = SessionRegistry(store)
        await registry.initialize()
        await registry.add_session("s", connection)

    ASYNCIO["trio-asyncio"](main)
    assert store._rows == {}


# ---- the waiting ----


def test_without_a_look_into_trio_a_thread_waits(
    run_guest: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """What Trio does not promise may be gone in its next version: all works, only slower."""

    def moved_away(guest_tick: object) -> bool:
        raise AttributeError("unrolled_run_next_send")

    monkeypatch.setattr(_steps, "_has_events", moved_away)

    async def main() -> None:
        registry = SessionRegistry(f"sqlite:///{tmp_path / 'sessions.db'}", check_timeout=0.1)
        async with registry:
            dead = Connection()
            await registry.add_session("alive", Connection())
            await registry.add_session("dead", dead)
            dead.connected = False
            report = await registry.cleanup()
            assert report.disconnected == ("dead",)
            assert report.refreshed == 1
            await asyncio.sleep(0.01)
            assert await registry.session_exists("elsewhere") is False

    run_guest(main)


def test_a_busy_trio_gives_asyncio_its_turn(run_guest: Run) -> None:
    """A Trio task that never waits for long does not hold the loop."""

    async def main() -> None:
        turns = 0

        class Busy(FaultyStore):
            async def locate(self, *args: Any) -> Any:
                while turns < 5:
                    await trio.lowlevel.checkpoint()
                return await super().locate(*args)

        async with SessionRegistry(Busy(MemoryStore())) as registry:
            task = asyncio.create_task(registry.locate_session("elsewhere"))
            while not task.done():
                await asyncio.sleep(0)
                turns += 1
            assert await task is None
        assert turns >= 5

    run_guest(main)


# ---- transports of asyncio in a Trio program ----


async def test_a_trio_registry_takes_transports_of_asyncio() -> None:
    """By trio-asyncio: asked, disconnected, and cancelled at their deadline."""

    class Hangs(Connection):
        cancelled = False

        async def is_connected(self) -> bool:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return True

    async with trio_asyncio.open_loop():
        alive, dead, hangs = Connection(), Connection(), Hangs()
        async with open_registry(check_timeout=0.1) as registry:
            for name, connection in (("alive", alive), ("dead", dead), ("hangs", hangs)):
                await registry.add_session(name, asyncio_transport(connection))
            dead.connected = False
            report = await registry.cleanup()
            assert report.disconnected == ("dead",)
            assert isinstance(report.check_failures["hangs"], TimeoutError)
            assert hangs.cancelled
            assert report.refreshed == 2
        assert (alive.disconnects, dead.disconnects, hangs.disconnects) == (1, 1, 1)


async def test_a_transport_of_asyncio_needs_a_loop() -> None:
    """And has to be one."""
    with pytest.raises(RuntimeError, match="open_loop"):
        asyncio_transport(Connection())
    async with trio_asyncio.open_loop():
        with pytest.raises(TypeError, match="is_connected"):
            asyncio_transport(object())  # type: ignore[arg-type]
