"""The edges of the asyncio side: task factories, threads, Ctrl-C, anyio, transports that misbehave.

What only a process of its own can show stands in test_aio_processes.py.
"""

import asyncio
import contextlib
import contextvars
import functools
import gc
import selectors
import signal
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
import uvloop
from presses import press_here

from trio_sessions import RegistryClosed, fingerprint
from trio_sessions.abc import Worker
from trio_sessions.aio import SessionRegistry
from trio_sessions.aio._life import _NEXT, Life, State
from trio_sessions.aio._service import Service
from trio_sessions.aio._sigint import Sigint
from trio_sessions.aio._steps import Steps
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.types import Swept

pytestmark = pytest.mark.usefixtures("asyncio_debug")

Loop = Callable[[], asyncio.AbstractEventLoop]
LOOPS: dict[str, Loop] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


def eager(loop_factory: Loop) -> Loop:
    def new_loop() -> asyncio.AbstractEventLoop:
        loop = loop_factory()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]  # 3.12
        return loop

    return new_loop


if sys.version_info >= (3, 12):
    LOOPS["asyncio, eager"] = eager(asyncio.SelectorEventLoop)


@pytest.fixture(params=list(LOOPS))
def new_loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    yield LOOPS[request.param]
    gc.collect()  # of a task that has failed asyncio warns when it is collected: now, not later


@pytest.fixture(autouse=True)
def _ctrl_c_is_pythons() -> Iterator[None]:
    """Whoever runs the tests may ignore it; and each test leaves what it found."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def run(new_loop: Loop, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await main()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(bounded())


class Connection:
    """A transport of asyncio that has to wait before it answers."""

    def __init__(self) -> None:
        self.open = True

    async def is_connected(self) -> bool:
        await asyncio.sleep(0.01)
        return self.open

    async def disconnect(self) -> None:
        await asyncio.sleep(0)
        self.open = False


# ---- task factories ----


def test_many_transports_that_wait_are_all_asked(new_loop: Loop) -> None:
    """Leaders do not nest, whatever the loop's factory does with a new task's first step."""

    async def main() -> None:
        connections = [Connection() for _ in range(200)]
        async with SessionRegistry() as registry:
            for number, connection in enumerate(connections):
                await registry.add_session(f"s{number}", connection)
            for _ in range(2):
                report = await registry.cleanup()
                assert (report.checked, report.refreshed) == (200, 200)
                assert report.check_failures == {}
        assert not any(connection.open for connection in connections)

    run(new_loop, main)


def test_transports_written_with_anyio_work(new_loop: Loop) -> None:
    """Their first step does not run inside of Trio's, which anyio would take for its loop."""

    class Anyios(Connection):
        async def is_connected(self) -> bool:
            with anyio.move_on_after(5):
                await anyio.sleep(0.001)
            return self.open

        async def disconnect(self) -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0.001)
            await anyio.to_thread.run_sync(lambda: None)
            self.open = False

    async def main() -> None:
        connections = [Anyios() for _ in range(3)]
        async with SessionRegistry() as registry:
            for number, connection in enumerate(connections):
                await registry.add_session(f"s{number}", connection)
            assert (await registry.cleanup()).check_failures == {}
            await registry.remove_session("s0")
            assert [connection.open for connection in connections] == [False, True, True]
        assert not any(connection.open for connection in connections)

    run(new_loop, main)


def test_a_task_factory_of_the_programs_does_not_make_our_tasks() -> None:
    """One that fails, or runs first steps somewhere, is the program's affair."""

    def refuse(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> Any:
        coro.close()
        raise OSError("no tasks today")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        connection = Connection()
        async with SessionRegistry() as registry:
            await registry.add_session("s", connection)
            loop.set_task_factory(refuse)
            report = await registry.cleanup()
            await registry.remove_session("s")
            loop.set_task_factory(None)
        assert report.refreshed == 1
        assert report.check_failures == {}, "its check could not be made"
        assert not connection.open

    run(asyncio.SelectorEventLoop, main)


# ---- cancellation ----


class CountingSelector(selectors.DefaultSelector):
    polls = 0

    def select(self, timeout: float | None = None) -> Any:
        self.polls += 1
        return super().select(timeout)


class SlowStore(MemoryStore):
    """A store whose operations cannot be cut, as those in a thread."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.began = 0
        self._operation = operation

    async def open(self, worker: Any) -> None:
        await self._hold("open")
        await super().open(worker)

    async def locate(self, worker: Any, session_id: str) -> Any:
        await self._hold("locate")
        return await super().locate(worker, session_id)

    async def close(self, worker: Any) -> None:
        await self._hold("close")
        await super().close(worker)

    async def _hold(self, operation: str) -> None:
        if operation == self._operation:
            self.began += 1
            with trio.CancelScope(shield=True):
                await trio.sleep(0.3)


CALLS: dict[str, Callable[[SessionRegistry], Awaitable[object]]] = {
    "open": lambda registry: registry.initialize(),
    "locate": lambda registry: registry.locate_session("elsewhere"),
    "close": lambda registry: registry.shutdown(),
}


@pytest.mark.parametrize("operation", list(CALLS))
def test_a_call_that_is_cancelled_by_anyio_waits_without_spinning(operation: str) -> None:
    """anyio cancels again at each turn of the loop, which would then never rest."""
    selector = CountingSelector()

    async def main() -> None:
        store = SlowStore(operation)
        registry = SessionRegistry(store)
        if operation != "open":
            await registry.initialize()
        before = selector.polls
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.05, scope.cancel)
            await CALLS[operation](registry)
            raise AssertionError("it was to be cancelled")
        assert scope.cancelled_caught
        assert store.began == 1
        assert selector.polls - before < 100
        await registry.shutdown()

    run(lambda: asyncio.SelectorEventLoop(selector), main)


def test_a_shutdown_that_waits_for_its_turn_does_not_spin() -> None:
    """Another task shuts down; the one that waits for it is cancelled by anyio."""
    selector = CountingSelector()

    async def main() -> None:
        store = SlowStore("close")
        registry = SessionRegistry(store)
        await registry.initialize()
        first = asyncio.create_task(registry.shutdown())
        while not store.began:
            await asyncio.sleep(0)
        before = selector.polls
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(scope.cancel)
            await registry.shutdown()
        assert scope.cancelled_caught
        assert selector.polls - before < 100
        assert first.done()
        await first

    run(lambda: asyncio.SelectorEventLoop(selector), main)


@pytest.mark.parametrize("turns", range(6))
def test_a_task_ends_with_its_session_though_adding_it_again_was_cancelled(
    new_loop: Loop, turns: int
) -> None:
    """It is tied to the session, not to the call that added it last."""

    async def main() -> None:
        connection = Connection()
        async with SessionRegistry() as registry:
            await registry.add_session("s", connection)
            task = asyncio.create_task(asyncio.sleep(3600))
            registry.register_respond_task("s", task)
            again = asyncio.create_task(registry.add_session("s", connection))
            for _ in range(turns):
                await asyncio.sleep(0)
            again.cancel()
            await asyncio.wait([again])
            assert not task.done()
            await registry.remove_session("s")
            assert task.cancelled()
            assert registry._opened().respond_tasks._tied == {}

    run(new_loop, main)


# ---- threads ----


class Elsewhere:
    """A loop that another thread runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.Thread(target=loop.run_forever)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("new_loop", [LOOPS["asyncio"], LOOPS["uvloop"]])
@pytest.mark.parametrize("first_thread_ends", [False, True])
def test_a_loop_that_goes_on_in_another_thread(new_loop: Loop, *, first_thread_ends: bool) -> None:
    """Every call says what to do, and that works: Trio's run follows as far as its end."""
    store = MemoryStore()
    registry, connection, loop = SessionRegistry(store), Connection(), new_loop()

    def begin() -> None:
        loop.run_until_complete(registry.initialize())
        loop.run_until_complete(registry.add_session("s", connection))

    if first_thread_ends:
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join(20)
    else:
        begin()
    elsewhere = Elsewhere(loop)

    async def touch() -> None:
        registry.touch("s")

    async def tie() -> None:
        task = asyncio.current_task()
        assert task is not None
        registry.register_respond_task("s", task)

    for call in (
        touch,
        tie,
        lambda: registry.locate_session("elsewhere"),
        lambda: registry.add_session("t", Connection()),
        lambda: registry.broadcast("s", 1),
        registry.cleanup,
        registry.initialize,
    ):
        with pytest.raises(RuntimeError, match=r"another thread.*shutdown\(\)"):
            elsewhere.call(call())
    elsewhere.call(registry.shutdown())
    assert not connection.open
    assert store._rows == {}
    elsewhere.call(registry.initialize())
    assert elsewhere.call(registry.cleanup()).checked == 0
    elsewhere.call(registry.shutdown())
    elsewhere.stop()
    loop.close()

    async def main() -> None:  # this thread may begin anew
        async with registry:
            await registry.cleanup()

    run(asyncio.SelectorEventLoop, main)


def test_a_thread_without_a_loop_is_told_where_to_call(new_loop: Loop) -> None:
    """As that of a plain ``def`` endpoint, for the methods that are not awaited."""

    async def main() -> None:
        async with SessionRegistry() as registry:
            await registry.add_session("s", Connection())
            served = asyncio.create_task(asyncio.sleep(3600))
            for call in (
                lambda: registry.touch("s"),
                lambda: registry.register_respond_task("s", served),
                lambda: registry.register_respond_task("elsewhere", served),
            ):
                with pytest.raises(RuntimeError, match=r"this thread.*call_soon_threadsafe"):
                    await asyncio.to_thread(call)
            await registry.remove_session("s")
            assert not served.cancelling(), "it was tied from another thread"
            served.cancel()

    run(new_loop, main)


def test_a_pass_that_cannot_follow_its_loop_is_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker whose passes have stopped loses its lease: somebody should know."""
    registry, loop = (
        SessionRegistry(session_ttl=0.2, cleanup_interval=0.1),
        asyncio.SelectorEventLoop(),
    )
    loop.run_until_complete(registry.initialize())
    elsewhere = Elsewhere(loop)

    async def logged() -> None:
        async with asyncio.timeout(20):
            while "no pass runs any more" not in caplog.text:
                await asyncio.sleep(0.01)

    elsewhere.call(logged())
    elsewhere.call(registry.shutdown())
    elsewhere.stop()
    loop.close()

    async def main() -> None:  # only the main thread may put the handler of SIGINT back
        async with registry:
            pass

    run(asyncio.SelectorEventLoop, main)


def test_two_threads_that_open_one_registry_at_once() -> None:
    """One has it, the other is refused at once; nothing is orphaned."""
    both_claim = threading.Barrier(2)

    def hold(frame: Any, event: str, _: Any) -> None:
        """Keep a thread that takes the registry until the other one does, if it can."""
        if event == "call" and frame.f_code is Service.__init__.__code__:
            sys.setprofile(None)
            with contextlib.suppress(threading.BrokenBarrierError):
                both_claim.wait(0.2)

    store = MemoryStore()
    registry = SessionRegistry(store)
    barrier = threading.Barrier(2)
    results: list[RuntimeError | None] = []
    release = threading.Event()

    async def open_it() -> None:
        barrier.wait(20)
        sys.setprofile(hold)
        try:
            await registry.initialize()
        except RuntimeError as exc:
            results.append(exc)
            release.set()
        else:
            assert both_claim.broken, "both have claimed it"
            await registry.add_session("s", Connection())
            results.append(None)
            while not release.is_set():
                await asyncio.sleep(0.001)
            await registry.shutdown()
        finally:
            sys.setprofile(None)

    threads = [threading.Thread(target=lambda: asyncio.run(open_it())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert store._rows == {}
    refused = [each for each in results if each is not None]
    assert len(refused) == 1
    assert "another registry" in str(refused[0])


# ---- transports that end the program, or mean to ----


def system_exit() -> BaseException:
    return SystemExit(7)


def keyboard_interrupt() -> BaseException:
    return KeyboardInterrupt()


def group() -> BaseException:
    return BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [SystemExit(7)])])


def mixed() -> BaseException:
    return BaseExceptionGroup("", [GeneratorExit(), SystemExit(7)])


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("error", [system_exit, keyboard_interrupt, group, mixed])
def test_a_transport_that_exits_ends_the_program_as_any_task_does(
    new_loop: Loop, error: Callable[[], BaseException], *, waits: bool
) -> None:
    """The registry is closed on the way out, and nobody was removed for it."""
    store = MemoryStore()
    others = [Connection() for _ in range(3)]

    class Exits(Connection):
        async def is_connected(self) -> bool:
            if waits:
                await asyncio.sleep(0)
            raise error()

    async def main() -> None:
        async with SessionRegistry(store) as registry:
            for number, connection in enumerate(others):
                await registry.add_session(f"s{number}", connection)
            await registry.add_session("exits", Exits())
            await registry.cleanup()
            await asyncio.sleep(3600)

    with pytest.raises(KeyboardInterrupt if error is keyboard_interrupt else SystemExit):
        run(new_loop, main)
    assert store._rows == {}
    assert not any(connection.open for connection in others)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("how", ["closing", "a pass"])
def test_a_transport_that_exits_in_disconnect_leaves_no_other_open(
    new_loop: Loop, how: str, *, waits: bool
) -> None:
    """Each of the round is asked to disconnect, and then the program ends."""
    asked: list[str] = []
    dead = False

    class Leaves(Connection):
        def __init__(self, name: str) -> None:
            self.name = name

        async def is_connected(self) -> bool:
            return not dead

        async def disconnect(self) -> None:
            asked.append(self.name)
            if self.name == "exits":
                raise SystemExit(7)
            if waits:
                await asyncio.sleep(0)

    async def main() -> None:
        nonlocal dead
        async with SessionRegistry() as registry:
            for name in ("exits", "a", "b", "c", "d"):
                await registry.add_session(name, Leaves(name))
            if how == "a pass":
                dead = True
                await registry.cleanup()

    with pytest.raises(SystemExit):
        run(new_loop, main)
    assert sorted(asked) == ["a", "b", "c", "d", "exits"]


def test_a_transport_that_raises_generator_exit_fails_alone(new_loop: Loop) -> None:
    """It ends no other's check, and no registry."""

    class Raises(Connection):
        async def is_connected(self) -> bool:
            raise GeneratorExit

    async def main() -> None:
        async with SessionRegistry() as registry:
            await registry.add_session("raises", Raises())
            await registry.add_session("s", Connection())
            report = await registry.cleanup()
            assert report.refreshed == 2
            assert set(report.check_failures) == {"raises"}

    run(new_loop, main)


def test_while_a_crashed_registry_closes_its_callers_wait_for_the_reason(new_loop: Loop) -> None:
    """They are not told that somebody has shut it down."""

    class Fatal(BaseException):
        pass

    class Breaks(Connection):
        async def is_connected(self) -> bool:
            raise Fatal

        async def disconnect(self) -> None:
            await asyncio.sleep(0.05)

    async def main() -> None:
        async with SessionRegistry() as other:  # keeps Trio on this loop
            registry = SessionRegistry()
            await registry.initialize()
            await registry.add_session("s", Breaks())
            for message in ("while the pass ran", "crashed with Fatal"):
                with pytest.raises(RegistryClosed, match=message) as caught:
                    await registry.cleanup()
                assert isinstance(caught.value.__cause__, Fatal)
            await registry.shutdown()
            await other.cleanup()

    run(new_loop, main)


# ---- Ctrl-C ----


def pressed_in_trio() -> type[MemoryStore]:
    class Pressed(MemoryStore):
        """Ctrl-C comes in the middle of one of Trio's steps."""

        async def locate(self, worker: Any, session_id: str) -> Any:
            if session_id == "press":
                signal.raise_signal(signal.SIGINT)
            return await super().locate(worker, session_id)

    return Pressed


def test_ctrl_c_in_a_step_of_trios_cancels_the_main_task(new_loop: Loop) -> None:
    """As any first press under a Runner; the step is made to its end."""
    store = pressed_in_trio()()
    seen = []

    async def main() -> None:
        async with SessionRegistry(store) as registry:
            await registry.add_session("s", Connection())
            try:
                await registry.locate_session("press")
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                seen.append(await registry.session_exists("elsewhere"))
                raise

    with pytest.raises(KeyboardInterrupt):
        run(new_loop, main)
    assert seen == [False]
    assert store._rows == {}


def test_ctrl_c_without_a_runner_is_raised_between_two_steps() -> None:
    """What it hits is the loop, and not Trio: the registry goes on, and is shut down."""
    store = pressed_in_trio()()
    registry, loop = SessionRegistry(store), asyncio.SelectorEventLoop()
    loop.run_until_complete(registry.initialize())
    call = loop.create_task(registry.locate_session("press"))
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(call)
    assert loop.run_until_complete(call) is None
    assert loop.run_until_complete(registry.cleanup()).checked == 0
    loop.run_until_complete(registry.shutdown())
    loop.close()


def press_before_a_step(frame: Any, event: str, _: Any) -> None:
    """Press Ctrl-C when the loop has taken the callback that makes a step, and not called it yet.

    It is a profiler, for once.
    """
    if event == "call" and frame.f_code is asyncio.Handle._run.__code__:
        callback = frame.f_locals["self"]._callback
        if getattr(callback, "__func__", None) is Steps._make:
            sys.setprofile(None)
            press_here()


def test_a_press_that_takes_a_callback_of_ours_along_loses_no_step() -> None:
    """The loop had taken it when Ctrl-C was raised: nobody else would call it."""
    registry, loop = SessionRegistry(), asyncio.SelectorEventLoop()

    loop.run_until_complete(registry.initialize())
    call = loop.create_task(registry.locate_session("elsewhere"))
    sys.setprofile(press_before_a_step)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(call)
    finally:
        sys.setprofile(None)

    async def answered() -> bool:
        for _ in range(100):
            await asyncio.sleep(0)
        return call.done()

    assert loop.run_until_complete(answered())
    loop.run_until_complete(registry.shutdown())
    loop.close()


class PressedWhileClosing(MemoryStore):
    """Somebody presses Ctrl-C while it is asked for the last time, and it never answers."""

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        press_here()
        await trio.sleep_forever()
        raise AssertionError


def test_a_press_that_gives_up_the_rest_leaves_the_thread_as_good_as_new(new_loop: Loop) -> None:
    """The loop was closed with a registry open; its last steps are given up, and it is over."""
    registry, loop = SessionRegistry(PressedWhileClosing()), new_loop()
    loop.run_until_complete(registry.initialize())
    with pytest.warns(ResourceWarning, match="shutdown"):
        loop.close()

    async def main() -> None:
        with pytest.raises(RegistryClosed):
            await registry.locate_session("s")
        async with SessionRegistry() as other:
            await other.add_session("s", Connection())
            assert (await other.cleanup()).refreshed == 1

    with pytest.raises(RegistryClosed):
        registry.get_session_sync("s")
    trio.run(trio.sleep, 0)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


class SilentWhileClosing(MemoryStore):
    """A thread of Trio's never reports back from its last operation."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        await trio.to_thread.run_sync(self.release.wait)
        raise AssertionError


def test_last_steps_that_wait_for_a_silent_thread_are_given_up(
    new_loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread in which the loop was closed is as good as new then, too."""
    monkeypatch.setattr("trio_sessions.aio._steps._PATIENCE", 0.3)
    store = SilentWhileClosing()
    registry, loop = SessionRegistry(store), new_loop()
    loop.run_until_complete(registry.initialize())
    with pytest.warns(ResourceWarning, match="shutdown"):
        loop.close()

    async def main() -> None:
        async with SessionRegistry() as other:
            await other.add_session("s", Connection())
            assert (await other.cleanup()).refreshed == 1

    try:
        with pytest.raises(RegistryClosed):
            registry.get_session_sync("s")
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
    finally:
        store.release.set()


def test_a_press_is_held_at_most_twice() -> None:
    """A loop that never turns again can be ended all the same."""
    loop = asyncio.SelectorEventLoop()
    got = []
    sigint = Sigint(loop, Steps(loop))
    signal.signal(signal.SIGINT, lambda *args: got.append(args))
    sigint.wrap()
    frame = pressed_frame()
    try:
        for _ in range(2):
            sigint._handle(signal.SIGINT, frame)
        assert (got, sigint.held) == ([], 2)
        sigint._handle(signal.SIGINT, frame)
        assert len(got) == 1
        loop.run_until_complete(asyncio.sleep(0))
        assert len(got) == 3
        assert sigint.held == 0
        sigint._handle(signal.SIGINT, None)
        assert len(got) == 4
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop.close()


def pressed_frame() -> Any:
    """Return the frame of a function of ours that is under way."""
    frames: list[Any] = []

    class Id(str):
        __slots__ = ()

        def encode(self, *args: Any) -> bytes:
            frames.append(sys._getframe().f_back)
            return super().encode(*args)

    fingerprint(Id("s"))
    assert frames[0].f_globals["__name__"] == "trio_sessions.types"
    return frames[0]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_sigint_that_is_not_pythons_is_left_alone(handler: Any) -> None:
    """Programs under nohup, and shells' background jobs, ignore it."""

    async def main() -> None:
        async with SessionRegistry():
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler

    signal.signal(signal.SIGINT, handler)
    try:
        run(asyncio.SelectorEventLoop, main)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_handler_that_is_set_while_it_is_open_stays(new_loop: Loop) -> None:
    """As uvicorn's."""

    def handler(*_: object) -> None:
        pass

    async def main() -> None:
        before = None
        async with SessionRegistry():
            before = signal.signal(signal.SIGINT, handler)
        assert signal.signal(signal.SIGINT, before) is handler

    run(new_loop, main)
    # What was wrapped was the runner's, and the runner did not find it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_runner_that_is_used_again_leaves_the_default_handler() -> None:
    """The handler of its first use is nobody's in the second."""
    registry = SessionRegistry()

    async def shut_down() -> None:
        await registry.cleanup()
        await registry.shutdown()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(registry.initialize())
        runner.run(shut_down())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def press_in_a_run(runner: asyncio.Runner, press: Callable[[], Awaitable[object]]) -> None:
    """Press Ctrl-C in a run, which is cancelled by it, has time to tidy up, and ends."""
    seen: list[str] = []

    async def main() -> None:
        try:
            await press()
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            seen.append("tidied up")
            raise

    with pytest.raises(KeyboardInterrupt):
        runner.run(main())
    assert seen == ["tidied up"]


async def press_between() -> None:
    press_here()


@pytest.mark.parametrize("where", ["the loop", "trio"])
def test_ctrl_c_in_a_later_run_of_a_runner_cancels_that_run(new_loop: Loop, where: str) -> None:
    """Each run has its own main task, and none finds our wrapper in its way, nor loses a press."""
    registry = SessionRegistry(pressed_in_trio()())

    async def press() -> None:
        if where == "trio":
            await registry.locate_session("press")
        else:
            await press_between()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(registry.initialize())
        for _ in range(3):
            press_in_a_run(runner, press)
            assert len(asyncio.all_tasks(runner.get_loop())) == 1, "only ours, which keeps Trio"
            assert runner.run(registry.cleanup()).checked == 0
        with pytest.raises(KeyboardInterrupt):  # between two runs
            press_here()
        runner.run(registry.shutdown())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_in_which_the_registry_is_shut_down_has_ctrl_c_to_its_end(new_loop: Loop) -> None:
    """And the next one too, though a run before it has opened the registry."""
    registry = SessionRegistry()

    async def shut_down_and_press() -> None:
        await registry.shutdown()
        press_here()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(registry.initialize())
        for _ in range(2):
            press_in_a_run(runner, shut_down_and_press)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert asyncio.all_tasks(runner.get_loop()) == set()


def test_another_runner_has_ctrl_c_while_a_loop_at_rest_has_a_registry_open(new_loop: Loop) -> None:
    """It has found our wrapper, and neither a handler of its own nor the default one."""
    registry, loop = SessionRegistry(), new_loop()
    loop.run_until_complete(registry.initialize())
    with asyncio.Runner(loop_factory=new_loop) as runner:
        press_in_a_run(runner, press_between)
        assert asyncio.all_tasks(runner.get_loop()) == set()
    loop.run_until_complete(registry.shutdown())
    loop.close()


def test_a_second_press_in_a_later_run_is_raised(new_loop: Loop) -> None:
    """As in a first one; and the run after it is cancelled by its own first press."""
    registry = SessionRegistry()

    async def refuse() -> None:
        try:
            press_here()
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            press_here()
        raise AssertionError("not raised")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(registry.initialize())
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                runner.run(refuse())
            press_in_a_run(runner, press_between)
        runner.run(registry.shutdown())


def test_a_runner_that_ends_with_the_registry_open_leaves_the_default_handler() -> None:
    """The next one finds what it looks for, and takes Ctrl-C again."""

    async def leave_open() -> None:
        await SessionRegistry().initialize()

    async def main() -> None:
        handler = signal.getsignal(signal.SIGINT)
        assert isinstance(handler, functools.partial)

    run(asyncio.SelectorEventLoop, leave_open)
    gc.collect()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(asyncio.SelectorEventLoop, main)


# ---- contexts ----


def test_the_guest_run_keeps_no_context_of_who_opened_first(new_loop: Loop) -> None:
    """A registry that is opened in a request, and another that stays open."""

    class Request:
        pass

    request: contextvars.ContextVar[Request] = contextvars.ContextVar("request")

    async def main() -> None:
        registries, second = [SessionRegistry()], SessionRegistry()

        async def handle() -> "weakref.ref[Request]":
            value = Request()
            request.set(value)
            await registries[0].initialize()
            return weakref.ref(value)

        kept = await asyncio.create_task(handle())
        await second.initialize()
        await registries.pop().shutdown()
        await second.cleanup()
        gc.collect()
        assert kept() is None
        await second.shutdown()

    run(new_loop, main)


# ---- states ----


def test_a_life_goes_only_where_the_table_says() -> None:
    """And whoever waits for a state is told of it; asked to end is only who was asked."""
    for start in State:
        for to in State:
            loop = asyncio.SelectorEventLoop()
            life = Life(loop)
            life.state = start
            assert life.go(to) is (to in _NEXT[start])
            assert life.state is (to if to in _NEXT[start] else start)
            assert life.asked_to_end.is_set() is (
                to is State.CLOSING and start in {State.OPENING, State.OPEN}
            )
            loop.close()
    assert _NEXT[State.CLOSED] == set()
