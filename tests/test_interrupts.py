"""Ctrl-C in a Trio program: it arrives at checkpoints only, as a cancellation does."""

import contextlib
import inspect
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TypeVar

import pytest
import trio
from conftest import Shared
from presses import (
    at_each_point,
    ctrl_c_as_usual,
    let_children_have_ctrl_c,
    press_here,
    pressing,
)
from readers import finish_writing
from soak import SOAK, longer
from trio._core import _ki
from unmeasured import unmeasured

from trio_sessions import SessionRegistry, open_registry, serve_registry
from trio_sessions._background import Background
from trio_sessions._cleanup import Pass
from trio_sessions._keeper import Keeper
from trio_sessions._messages import Messages, OpenInbox
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.transports import StreamTransport

T = TypeVar("T")

BOUND = 30.0  # seconds for any life that was interrupted
two_stores = pytest.mark.parametrize(
    "shared", ["memory", "sqlite", pytest.param("postgresql", marks=longer)], indirect=True
)
"""Threads are the same on both databases."""


@pytest.fixture(autouse=True)
def pressable() -> Iterator[None]:
    """Whoever has started the tests may have SIGINT ignored."""
    with ctrl_c_as_usual():
        yield


class Life:
    """All that a program does with a registry, and what is left of it."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.store = FaultyStore(shared.make_store())
        self.registry: SessionRegistry | None = None
        self.transports: list[FakeTransport] = []
        self.handled: list[object] = []

    def transport(self) -> FakeTransport:
        self.transports.append(FakeTransport())
        return self.transports[-1]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[SessionRegistry]:
        async with self.shared.open(
            store=self.store, disconnect_timeout=1.0, check_timeout=1.0
        ) as self.registry:
            yield self.registry

    def deeds(self) -> Sequence[Callable[[SessionRegistry], Awaitable[object]]]:
        return (
            lambda registry: registry.add_session("a", self.transport()),
            lambda registry: registry.add_session("b", self.transport()),
            lambda registry: registry.add_session("b", self.transport()),
            lambda registry: registry.remove_session("b"),
            lambda registry: registry.add_session("c", self.transport()),
            lambda registry: registry.set_session_owner("a", "me"),
            lambda registry: registry.claim_session_owner("c", "me"),
            lambda registry: registry.store_client_capabilities("a", {"elicitation": {}}),
            lambda registry: registry.get_elicitation_capable_sessions(),
            lambda registry: registry.session_exists("elsewhere"),
            lambda registry: registry.broadcast("a", 1),
            lambda registry: registry.broadcast("a", 2, durable=True),
            self.read,
            lambda registry: registry.broadcast("a", 3),
            self.respond,
            self.disconnect_and_clean_up,
        )

    async def read(self, registry: SessionRegistry) -> None:
        async with registry.open_inbox("a") as inbox:
            async for message in inbox:
                if message == 2:
                    break

    async def respond(self, registry: SessionRegistry) -> None:
        async def handle(message: object, transport: object) -> None:
            self.handled.append(message)
            raise KeyError

        with contextlib.suppress(KeyError):
            await registry.respond("a", handle)

    async def disconnect_and_clean_up(self, registry: SessionRegistry) -> None:
        self.transports[-1].state = "closed"
        await registry.cleanup()

    async def run(self) -> None:
        async with self.open() as registry:
            for deed in self.deeds():
                await deed(registry)

    def check_over(self) -> None:
        """Nothing is left, as after a life that nobody has interrupted."""
        assert self.shared.backdoor.rows() == {}
        if self.registry is not None:
            assert self.registry.statistics().closed
            assert len(self.registry._house.table) == 0
            assert self.registry._house.background._jobs == {}
            assert not self.registry._house._departures._departing


# Code of the user's, and what calls it.
MAY_BE_INTERRUPTED = re.compile(r"testing/_transports\.py|^_unprotected |^interruptibly |handle")


def test_all_our_code_is_protected(shared: Shared) -> None:
    """Every point of ours in a whole life, but for the transports' own code."""
    life = Life(shared)
    seen: list[str] = []
    points = 0

    def notice(frame: FrameType) -> None:
        nonlocal points
        points += 1
        if not trio.lowlevel.currently_ki_protected():
            seen.append(
                f"{frame.f_code.co_qualname} in {frame.f_code.co_filename}:{frame.f_lineno}"
            )

    with at_each_point(notice):
        trio.run(life.run)
    assert sorted({point for point in seen if not MAY_BE_INTERRUPTED.search(point)}) == []
    assert points > 1000
    assert life.handled == [3]


@pytest.mark.parametrize(
    "protected", [SessionRegistry, OpenInbox, Background, Keeper, Pass, Messages, StreamTransport]
)
def test_every_function_of_what_users_call_or_what_starts_tasks_is_protected(
    protected: type,
) -> None:
    """A new method cannot be forgotten."""
    functions = [each for each in vars(protected).values() if inspect.isfunction(each)]
    assert functions
    for function in functions:
        code = inspect.unwrap(function).__code__
        assert _ki._CODE_KI_PROTECTION_STATUS_WMAP[code], function


def steps(shared: Shared) -> Iterator[int]:
    """Numbers of points to press at; all of them take minutes."""
    first = 1 if SOAK else random.Random(shared.name).randrange(1, 40)
    step = 1 if SOAK else 263 if shared.name == "memory" else 1201
    return iter(range(first, 100_000, step))


@pytest.mark.timeout(3600 if SOAK else 300)
@unmeasured
@two_stores
def test_ctrl_c_at_any_point_ends_the_program_in_order(shared: Shared) -> None:
    """Bare, in bounded time, and nothing is left: no row, no session, no job."""
    presses = 0
    trio.run(Life(shared).run)  # makes the tables
    for number in steps(shared):
        life = Life(shared)
        start = time.monotonic()
        with pressing(number) as where, contextlib.suppress(KeyboardInterrupt):
            trio.run(life.run)
            assert not where, where
        if not where:
            break
        presses += 1
        assert time.monotonic() - start < BOUND, where
        life.check_over()
        assert life.store.calls["close"] >= life.store.calls["open"], where
        assert [t.state for t in life.transports if t.checks] == ["closed"] * sum(
            t.checks > 0 for t in life.transports
        ), where
    assert presses >= 10


@pytest.mark.timeout(3600 if SOAK else 300)
@unmeasured
@two_stores
def test_who_catches_it_may_go_on(shared: Shared) -> None:
    """What was called then is as cancelled: the table and the rows agree, and passes converge."""
    presses = caught = 0

    async def live(life: Life) -> None:
        nonlocal caught
        async with life.open() as registry:
            for deed in life.deeds():
                with trio.move_on_after(0.5):  # it may wait for a message that was never sent
                    try:
                        await deed(registry)
                    except KeyboardInterrupt:
                        caught += 1
            await finish_writing(registry)
            report = await registry.cleanup()
            assert report.refresh_failures == report.check_failures == {}
            assert report.missing == ()
            assert set(shared.backdoor.rows()) == set(await registry.get_all_session_ids())
            held = [await registry.get_session(one) for one in shared.backdoor.rows()]
            for transport in life.transports:
                assert (transport.state == "connected") is (transport in held)

    trio.run(Life(shared).run)
    for number in steps(shared):
        life = Life(shared)
        start = time.monotonic()
        with pressing(number) as where, contextlib.suppress(KeyboardInterrupt):
            trio.run(live, life)
        if not where:
            break
        presses += 1
        assert time.monotonic() - start < BOUND, where
        life.check_over()
    assert presses >= 10
    assert caught >= 5


# ---- where it was seen ----


class Presses(FakeTransport):
    """Presses Ctrl-C in one of its methods, as often as told."""

    def __init__(self, method: str, times: int = 1, *, wait: bool = False) -> None:
        super().__init__()
        self.method, self.times, self.wait = method, times, wait
        self.pressed = 0

    async def _press(self, method: str) -> None:
        if method == self.method:
            for _ in range(self.times):
                if self.wait:
                    await trio.sleep(0.01)
                self.pressed += 1
                press_here()
            self.method = ""

    async def is_connected(self) -> bool:
        await self._press("is_connected")
        return await super().is_connected()

    async def disconnect(self, reason: object = None) -> None:
        await self._press("disconnect")
        await super().disconnect()


@pytest.mark.parametrize("wait", [False, True])
def test_ctrl_c_during_a_pass(shared: Shared, wait: bool) -> None:  # noqa: FBT001 -- a parameter
    """In the first step of a call into a transport, or after it has waited."""
    transport = Presses("is_connected", wait=wait)

    async def main() -> None:
        async with shared.open() as registry:
            await registry.add_session("s", transport)
            await registry.cleanup()
            raise AssertionError("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert transport.pressed == transport.disconnects == 1
    assert shared.backdoor.rows() == {}


@pytest.mark.parametrize("times", [1, 2, 7])
@pytest.mark.parametrize("wait", [False, True])
def test_ctrl_c_while_closing(shared: Shared, times: int, wait: bool) -> None:  # noqa: FBT001
    """However often: closing goes on to its end, and then there is one KeyboardInterrupt."""
    transport = Presses("disconnect", times, wait=wait)
    other = FakeTransport()

    async def main() -> None:
        async with shared.open() as registry:
            await registry.add_session("s", transport)
            await registry.add_session("other", other)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert transport.pressed == times
    assert transport.state == other.state == "closed"
    assert shared.backdoor.rows() == {}


def test_ctrl_c_and_an_error_of_the_block() -> None:
    """Ctrl-C comes out, and the error is its cause."""
    error = KeyError("mine")

    async def main() -> None:
        async with open_registry() as registry:
            await registry.add_session("s", Presses("disconnect"))
            raise error

    with pytest.raises(KeyboardInterrupt) as caught:
        trio.run(main)
    assert caught.value.__cause__ is error


class PressingStore(FaultyStore):
    """Presses Ctrl-C before an operation, or after it."""

    def __init__(self, store: object, operation: str, when: str, times: int = 1) -> None:
        super().__init__(store)  # type: ignore[arg-type]
        self.operation, self.when, self.times = operation, when, times
        self.pressed = 0

    async def _through(self, name: str, operation: Callable[[], Awaitable[T]], *kinds: str) -> T:
        if (name, self.when) == (self.operation, "before"):
            self._press()
        try:
            return await super()._through(name, operation, *kinds)
        finally:
            if (name, self.when) == (self.operation, "after"):
                self._press()

    def _press(self) -> None:
        self.operation = ""
        for _ in range(self.times):
            self.pressed += 1
            press_here()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("operation", ["open", "sweep", "commit", "locate", "delete_all"])
def test_ctrl_c_in_the_store(shared: Shared, operation: str, when: str) -> None:
    """Also in one that waits in a nursery of its own, from which it would come in a group."""
    store = PressingStore(shared.make_store(), operation, when)

    async def main() -> None:
        async with shared.open(store=store) as registry:
            await registry.add_session("s", FakeTransport())
            await registry.locate_session("elsewhere")
            await registry.remove_session("s")

    trio.run(Life(shared).run)
    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert store.pressed == 1
    assert store.calls["close"] == 1
    assert shared.backdoor.rows() == {}


def test_ctrl_c_while_opening_fails() -> None:
    """Both at the same moment: Ctrl-C comes out."""
    store = PressingStore(MemoryStore(), "open", "after", times=3)
    store.fail(Fault.FAILS, "open")

    async def main() -> None:
        async with open_registry(store):
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert store.pressed == 3
    assert store.calls["close"] == 1


def test_a_handler_is_interrupted_wherever_it_is() -> None:
    """It is the user's code; its message is delivered again, as after a cancellation."""
    seen = []

    async def handle(message: object, transport: object) -> None:
        seen.append(message)
        assert not trio.lowlevel.currently_ki_protected()
        with pytest.raises(KeyboardInterrupt):  # at once, without a checkpoint
            press_here()
        raise KeyboardInterrupt

    async def main() -> None:
        async with open_registry() as registry:
            await registry.add_session("s", FakeTransport())
            await registry.broadcast("s", "message")
            with pytest.raises(KeyboardInterrupt):
                await registry.respond("s", handle)
            async with registry.open_inbox("s") as inbox:
                assert [await anext(aiter(inbox))] == seen == ["message"]

    trio.run(main)


def test_serve_registry_in_the_main_task() -> None:
    """Ctrl-C ends it, in order."""
    store = FaultyStore(MemoryStore())

    class PressesWhenStarted:
        def started(self, value: object = None) -> None:
            press_here()

    with pytest.raises(KeyboardInterrupt):
        trio.run(partial(serve_registry, store, task_status=PressesWhenStarted()))
    assert store.calls["close"] == 1


# ---- as users press it ----

PROGRAM = """
import logging, signal, sys, trio
from functools import partial
from trio_sessions import open_registry

class Connection:
    async def is_connected(self):
        await trio.lowlevel.checkpoint()
        return True
    async def disconnect(self):
        await trio.lowlevel.checkpoint()

async def live(registry, name):
    number = 0
    while True:
        number += 1
        session_id = f"{name}{number % 5}"
        await registry.add_session(session_id, Connection())
        await registry.broadcast(session_id, number)
        await registry.broadcast(session_id, number, durable=True)
        async with registry.open_inbox(session_id) as inbox:
            async for _ in inbox:
                break
        await registry.cleanup()
        if number % 3:
            await registry.remove_session(session_id)

@trio.lowlevel.enable_ki_protection  # `start_soon` itself is not
def start(nursery, registry):
    for name in "abc":
        nursery.start_soon(live, registry, name)

async def main():
    while True:
        async with open_registry(sys.argv[1]) as registry, trio.open_nursery() as nursery:
            start(nursery, registry)
            print("ready", flush=True)
            with trio.move_on_after(0.03):
                await live(registry, "main")
            nursery.cancel_scope.cancel()

logging.getLogger("trio_sessions").setLevel(logging.ERROR)  # messages are dropped
ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # for presses that come late
try:
    try:
        try:
            trio.run(main)
        finally:
            ignore()
    finally:
        ignore()
except* KeyboardInterrupt:  # the program's own nursery makes a group
    print("KeyboardInterrupt")
"""

# Python looks for signals between the call of an `__aexit__` and its first step.
BY_PYTHON = "ignore:coroutine 'OpenInbox.__aexit__' was never awaited:RuntimeWarning"


# A press that hits Python in a callback of the garbage collector is told there, and lost.
SWALLOWED = "Exception ignored in: <function _collection_gced"


def communicate(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Return what a program has printed; press again where Python has lost a press."""
    lost = 0
    while True:
        try:
            out, err = process.communicate(timeout=20)
            break
        except subprocess.TimeoutExpired as exc:
            told = (exc.stderr or b"").count(SWALLOWED.encode())
            if told <= lost:
                raise
            lost = told
            process.send_signal(signal.SIGINT)
    if SWALLOWED in err:
        assert err.count("Traceback") == err.count(SWALLOWED), err
        err = ""
    return out, err


@pytest.mark.parametrize(
    ("presses", "url"),
    [
        (1, "memory:"),
        (3, "sqlite:///sessions.db"),
        pytest.param(3, "memory:", marks=longer),
        pytest.param(1, "sqlite:///sessions.db", marks=longer),
    ],
)
@pytest.mark.timeout(3600 if SOAK else 300)
@unmeasured
def test_ctrl_c_at_random_moments(tmp_path: Path, url: str, presses: int) -> None:
    """A program that adds, removes, sends, passes, opens and closes all the time."""
    chance = random.Random() if SOAK else random.Random(f"{url} {presses}")
    for _ in range(100 if SOAK else 2):
        with subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", "-W", BY_PYTHON, "-c", PROGRAM, url],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                for _ in range(presses):
                    time.sleep(chance.uniform(0.0, 0.2 / presses))  # the moment is random
                    process.send_signal(signal.SIGINT)
                out, err = communicate(process)
            finally:
                process.kill()
        assert (process.returncode, out.replace("ready\n", ""), err) == (
            0,
            "KeyboardInterrupt\n",
            "",
        )
        if url != "memory:":
            with contextlib.closing(sqlite3.connect(tmp_path / "sessions.db")) as rows:
                assert rows.execute("SELECT count(*) FROM trio_sessions").fetchone() == (0,)


def test_the_programs_of_tests_can_be_interrupted() -> None:
    """Also if whoever starts the tests has SIGINT ignored, which children inherit."""
    program = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # taken back by the fixture
    for is_let, printed in ((False, "False\n"), (True, "True\n")):
        if is_let:
            let_children_have_ctrl_c()
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert ran.stdout == printed
