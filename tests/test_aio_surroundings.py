"""The facade in what programs on asyncio bring with them: runners, threads, signals, contexts."""

import asyncio
import contextvars
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import sqlalchemy as sa
from backdoors import DatabaseBackdoor
from hosts import ASYNCIO, Run

import trio_sessions
from trio_sessions.aio import SessionRegistry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport


class Connection:
    def __init__(self) -> None:
        self.disconnects = 0
        self.sent: list[Any] = []

    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        self.disconnects += 1

    async def send(self, message: Any) -> None:
        self.sent.append(message)


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Any:
    if request.param == "asyncio":
        return asyncio.SelectorEventLoop
    return pytest.importorskip("uvloop", reason="no uvloop here").new_event_loop


@pytest.fixture(params=ASYNCIO)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a function of asyncio on one of the hosts."""
    return ASYNCIO[request.param]


# ---- runners ----


def test_it_stays_open_between_two_runs_of_a_runner(loop_factory: Any) -> None:
    """`asyncio.Runner.run` again and again: the loop rests in between, and passes go on after."""
    store, connection = MemoryStore(), Connection()
    registry = SessionRegistry(store, cleanup_interval=0.02, session_ttl=10.0)

    async def until_there_was_a_pass() -> None:
        before = registry.statistics().passes
        async with asyncio.timeout(20):
            while registry.statistics().passes == before:
                await asyncio.sleep(0.005)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(registry.initialize())
        runner.run(registry.add_session("s", connection))
        for _ in range(2):
            runner.run(until_there_was_a_pass())
        assert runner.run(registry.cleanup()).refreshed == 1
        runner.run(registry.shutdown())
        assert connection.disconnects == 1
        assert store._rows == {}
        runner.run(registry.initialize())
        runner.run(registry.shutdown())


def test_two_loops_of_a_thread_one_after_the_other_while_the_first_is_open(
    loop_factory: Any,
) -> None:
    """The second is told what to do, for this registry and for another; the first goes on."""
    registry, other = SessionRegistry(), SessionRegistry()
    with (
        asyncio.Runner(loop_factory=loop_factory) as first,
        asyncio.Runner(loop_factory=loop_factory) as second,
    ):
        first.run(registry.initialize())
        with pytest.raises(RuntimeError, match="another event loop: await its shutdown"):
            second.run(registry.initialize())
        with pytest.raises(RuntimeError, match=r"another event loop of this thread.*shutdown"):
            second.run(other.initialize())
        first.run(registry.add_session("s", Connection()))
        assert first.run(registry.cleanup()).refreshed == 1
        first.run(registry.shutdown())
        second.run(other.initialize())
        second.run(other.shutdown())


# ---- threads ----


def test_handlers_and_transports_may_use_the_executor(run: Run) -> None:
    """`loop.run_in_executor` where a message is answered, and where a connection is checked."""
    main_thread = threading.get_ident()

    class InThreads(Connection):
        async def is_connected(self) -> bool:
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(None, threading.get_ident) != main_thread
            return True

    class Answers(SessionRegistry):
        async def generate_response(
            self, message: Any, transport: Any, server_id: str | None, user: Any
        ) -> None:
            loop = asyncio.get_running_loop()
            await transport.send(await loop.run_in_executor(None, message.upper))

    async def main() -> None:
        connection = InThreads()
        async with Answers() as registry:
            await registry.add_session("s", connection)
            task = asyncio.create_task(registry.respond(None, None, "s"))
            for message in "abc":
                await registry.broadcast("s", message)
            assert (await registry.cleanup()).refreshed == 1
            async with asyncio.timeout(20):
                while connection.sent != ["A", "B", "C"]:
                    await asyncio.sleep(0.005)
            await registry.remove_session("s")
            await task

    run(main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_thread_of_anyio_may_call_it(backend: str) -> None:
    """`anyio.from_thread.run(registry.add_session, …)`, as a synchronous endpoint does."""

    async def main() -> None:
        connection: Any = Connection() if backend == "asyncio" else FakeTransport()
        opening: Any = SessionRegistry() if backend == "asyncio" else trio_sessions.open_registry()
        async with opening as registry:

            def endpoint() -> None:
                anyio.from_thread.run(registry.add_session, "s", connection)
                anyio.from_thread.run(registry.broadcast, "s", "message")
                assert anyio.from_thread.run(registry.cleanup).refreshed == 1
                anyio.from_thread.run(registry.remove_session, "s")

            await anyio.to_thread.run_sync(endpoint)
            assert connection.disconnects == 1

    anyio.run(main, backend=backend)


# ---- signals ----


def test_a_program_that_has_its_own_wakeup_fd_keeps_it(loop_factory: Any) -> None:
    """`signal.set_wakeup_fd` is the program's, or its loop's; ours never."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:

            async def main() -> None:
                async with SessionRegistry() as registry:
                    await registry.add_session("s", Connection())
                    await registry.cleanup()

            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.get_loop()
                had = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
                runner.run(main())
                assert signal.set_wakeup_fd(had) == theirs.fileno()
        finally:
            signal.set_wakeup_fd(before)


def test_a_handler_of_the_loop_gets_its_signal(loop_factory: Any) -> None:
    """`loop.add_signal_handler`, which has the wakeup fd, while a registry is open."""

    async def main() -> None:
        got = asyncio.Event()
        async with SessionRegistry() as registry, asyncio.timeout(20):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, got.set)
            await registry.add_session("s", Connection())
            os.kill(os.getpid(), signal.SIGUSR1)
            await got.wait()
            assert (await registry.cleanup()).refreshed == 1

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


# ---- contexts ----


class Request:
    """What only the variables of a request refer to."""


def test_a_requests_variables_end_with_the_request(run: Run) -> None:
    """Whatever it was the first to ask for: what goes on is in the opening's context."""
    variable: contextvars.ContextVar[Request] = contextvars.ContextVar("variable")

    async def serve(registry: SessionRegistry) -> "weakref.ref[Request]":
        request = Request()
        variable.set(request)
        await registry.add_session("s", Connection())
        await registry.broadcast("s", "message", durable=True)
        async with registry.open_inbox("s") as inbox:
            assert await anext(aiter(inbox)) == "message"
        await registry.cleanup()
        return weakref.ref(request)

    async def main() -> None:
        async with SessionRegistry() as registry:
            request = await asyncio.create_task(serve(registry))
            async with asyncio.timeout(5):
                while request() is not None:
                    await asyncio.sleep(0.005)
                    gc.collect()

    run(main)


# ---- processes ----

PROGRAM = """
import asyncio, logging, multiprocessing, sys
from trio_sessions.aio import SessionRegistry

logging.getLogger("asyncio").setLevel(logging.ERROR)  # a slow machine is no news

class Connection:
    async def is_connected(self): return True
    async def disconnect(self): pass

registry = SessionRegistry(sys.argv[1] if len(sys.argv) > 1 else "memory:")  # at import, in each

def work(url, name):
    async def main():
        async with SessionRegistry(url) as mine:
            await mine.add_session(name, Connection())
            assert (await mine.cleanup()).refreshed == 1
            assert await mine.session_exists("parent") is True
    asyncio.run(main())

async def main(url):
    async with registry:
        await registry.add_session("parent", Connection())
        spawn = multiprocessing.get_context("spawn")
        workers = [spawn.Process(target=work, args=(url, f"child{n}")) for n in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            await asyncio.to_thread(worker.join)
            assert worker.exitcode == 0
        report = await registry.cleanup()
        print(report.refreshed, report.missing)

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


def test_workers_that_are_spawned_while_it_is_open(tmp_path: Path) -> None:
    """As a server with ``--reload`` or ``--workers`` does: each child imports the program anew."""
    url = sa.make_url(f"sqlite:///{tmp_path / 'sessions.db'}")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", program, url.render_as_string()],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "1 ()\n", "")
    backdoor = DatabaseBackdoor(url)
    assert backdoor.rows() == {}
    backdoor.close()


# ---- timers of the loop ----


class _HastyLoop(asyncio.SelectorEventLoop):
    """Counts its timers, and lets each come 5 ms early, as loops may that count in ticks."""

    timers = 0

    def call_later(  # type: ignore[override]  # handed on as it is
        self, delay: float, *args: Any, **kwargs: Any
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_later(max(0.0, delay - 0.005), *args, **kwargs)


def test_a_timer_that_comes_early_is_set_again() -> None:
    """Passes go on by deadlines, and nothing else wakes Trio here."""

    async def main() -> None:
        async with SessionRegistry(session_ttl=60.0, cleanup_interval=0.03) as registry:
            while registry.statistics().passes < 5:
                await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=_HastyLoop) as runner:
        runner.run(asyncio.wait_for(main(), 20))


@pytest.mark.usefixtures("nothing_in_between")
def test_calls_set_no_timer_each() -> None:
    """The one that is set comes first, and finds out what is next."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _HastyLoop)
        async with SessionRegistry(session_ttl=7200.0, cleanup_interval=3600.0) as registry:
            await registry.locate_session("nobody")
            before = loop.timers
            for _ in range(100):
                await registry.locate_session("nobody")
            assert loop.timers - before < 10

    with asyncio.Runner(loop_factory=_HastyLoop) as runner:
        runner.run(main())
