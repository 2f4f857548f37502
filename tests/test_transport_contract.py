"""Our transports keep the contract, and the checks find those that break it."""

import inspect
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from peers import Fakes
from trio.testing import MockClock

from trio_sessions import open_registry
from trio_sessions.testing import (
    Connection,
    FakeTransport,
    conformance_tests,
    store_conformance,
    transport_conformance,
)
from trio_sessions.testing._conformance._transports import LIMIT
from trio_sessions.transports import StreamTransport

Connect = Callable[[], AbstractAsyncContextManager[Connection]]


class Streams:
    """A StreamTransport and the stream of its peer."""

    def __init__(self, ours: trio.abc.Stream, theirs: trio.abc.Stream) -> None:
        self.transport = StreamTransport(ours)
        self._theirs = theirs

    async def hang_up(self) -> None:
        await self._theirs.aclose()

    async def fall_silent(self) -> None:
        """It reads nothing anyway."""
        await trio.lowlevel.checkpoint()

    async def send(self) -> None:
        await self.transport.send(["hello"])

    async def close(self) -> None:
        await trio.aclose_forcefully(self._theirs)
        await self.transport.disconnect()


class Pinged(FakeTransport):
    """A fake that asks its peer, and waits for the answer or for its own end."""

    def __init__(self) -> None:
        super().__init__()
        self.is_silent = False
        self.over = trio.Event()

    async def is_connected(self) -> bool:
        if self.is_silent:
            await self.over.wait()
        return await super().is_connected()

    async def disconnect(self, reason: object = None) -> None:
        await super().disconnect()
        self.over.set()


class PingedFakes(Fakes):
    """A fake whose peer may be silent."""

    def __init__(self, transport: Pinged) -> None:
        super().__init__(transport)
        self.pinged = transport

    async def fall_silent(self) -> None:
        await trio.lowlevel.checkpoint()
        self.pinged.is_silent = True


@asynccontextmanager
async def on_a_socket() -> AsyncIterator[Connection]:
    streams = Streams(*map(trio.SocketStream, trio.socket.socketpair()))
    yield streams
    await streams.close()


@asynccontextmanager
async def in_memory() -> AsyncIterator[Connection]:
    streams = Streams(*trio.testing.memory_stream_pair())
    yield streams
    await streams.close()


def faking(make: Callable[[], FakeTransport] = FakeTransport) -> Connect:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Connection]:
        await trio.lowlevel.checkpoint()
        transport = make()
        yield PingedFakes(transport) if isinstance(transport, Pinged) else Fakes(transport)

    return connect


@pytest.fixture(
    params=[on_a_socket, in_memory, faking(), faking(Pinged)],
    ids=["socket", "memory", "fake", "pinged"],
)
def connect(request: pytest.FixtureRequest) -> Any:
    return request.param


test_our_transports_keep_the_contract = conformance_tests(transport_conformance)


# ---- broken ones ----


class SaysYes(FakeTransport):
    async def is_connected(self) -> Any:
        return "yes" if await super().is_connected() else False


class SaysNone(FakeTransport):
    async def is_connected(self) -> Any:
        return (await super().is_connected()) or None


class NoticesNothing(FakeTransport):
    async def is_connected(self) -> bool:
        return True


class ComesBack(FakeTransport):
    async def is_connected(self) -> bool:
        connected = await super().is_connected()
        return connected or self.checks % 2 == 0


class NeverAnswers(FakeTransport):
    async def is_connected(self) -> bool:
        await trio.sleep_forever()
        return True


class ClosesOnce(FakeTransport):
    async def disconnect(self, reason: object = None) -> None:
        if self.disconnects:
            raise trio.ClosedResourceError
        await super().disconnect()


class ClosesOnceAtOnce(FakeTransport):
    async def disconnect(self, reason: object = None) -> None:
        if self.disconnects and self.state == "connected":
            raise trio.BusyResourceError
        await super().disconnect()


class StaysOpen(FakeTransport):
    async def disconnect(self, reason: object = None) -> None:
        await trio.lowlevel.checkpoint()


class IgnoresItsCancellation(FakeTransport):
    async def disconnect(self, reason: object = None) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(3600)
        await super().disconnect()


class NeedsTwentySeconds(FakeTransport):
    async def is_connected(self) -> bool:
        await trio.sleep(20)
        return await super().is_connected()


class ClosesForTwentySeconds(FakeTransport):
    async def disconnect(self, reason: object = None) -> None:
        await trio.sleep(20)
        await super().disconnect()


class ClosesWhenItIsCancelled(FakeTransport):
    async def is_connected(self) -> bool:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.state = "closed"
            raise
        return await super().is_connected()


class ClosesWhenItsWaitIsCancelled(FakeTransport):
    async def is_connected(self) -> bool:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            await trio.sleep(0.1)
        except trio.Cancelled:
            self.state = "closed"
            raise
        return await super().is_connected()


class HoldsTheThread(FakeTransport):
    async def is_connected(self) -> bool:
        time.sleep(0.3)  # noqa: ASYNC251 -- what it is about
        return await super().is_connected()


class WaitsForItsCheck(FakeTransport):
    """One lock for both; and who closes it stops what the check waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = trio.Lock()
        self.is_closing = False

    async def is_connected(self) -> bool:
        async with self.lock:
            await trio.sleep(0.1)
            while self.is_closing and self.state == "connected":
                await trio.sleep(1)
            return await super().is_connected()

    async def disconnect(self, reason: object = None) -> None:
        self.is_closing = True
        async with self.lock:
            await super().disconnect()


class IsBusyWithItsCheck(FakeTransport):
    def __init__(self) -> None:
        super().__init__()
        self.lock = trio.Lock()

    async def is_connected(self) -> bool:
        async with self.lock:
            await trio.sleep(0.1)
            return await super().is_connected()

    async def disconnect(self, reason: object = None) -> None:
        if self.lock.locked():
            raise trio.BusyResourceError
        await super().disconnect()


class SharesItsLock(Pinged):
    """One lock for both: found only where the check waits for a peer that does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = trio.Lock()

    async def is_connected(self) -> bool:
        async with self.lock:
            return await super().is_connected()

    async def disconnect(self, reason: object = None) -> None:
        async with self.lock:
            await super().disconnect()


class SaysThatItIsClosedAndIsNot(SharesItsLock):
    """Its check, which nobody ends, shows that the connection is still there."""

    async def disconnect(self, reason: object = None) -> None:
        self.state = "closed"
        await super().disconnect()


class WaitsForAFarewell(Pinged):
    """And is not closed where it is cancelled."""

    async def disconnect(self, reason: object = None) -> None:
        if self.is_silent:
            await trio.sleep_forever()
        await super().disconnect()


class TakesSilenceForAnEnd(Pinged):
    async def is_connected(self) -> bool:
        return not self.is_silent and await super().is_connected()


class TakesALostAnswerForAnEnd(Pinged):
    async def is_connected(self) -> bool:
        try:
            return await super().is_connected()
        except trio.Cancelled:
            self.state = "closed"
            self.over.set()
            raise


class LeavesATask(FakeTransport):
    async def is_connected(self) -> bool:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
        return await super().is_connected()


class LeavesATaskAtTheEnd(FakeTransport):
    async def disconnect(self, reason: object = None) -> None:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
        await super().disconnect()


class LosesInSilence(FakeTransport):
    async def send(self, message: object) -> None:
        if self.state == "connected":
            await super().send(message)


class LosesInSilenceOnceItIsClosed(FakeTransport):
    async def send(self, message: object) -> None:
        if not self.disconnects:
            await super().send(message)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (SaysYes, "the_answer_is_exactly_true"),
        (NeverAnswers, "the_answer_is_exactly_true"),
        (SaysNone, "a_peer_that_goes_is_noticed"),
        (NoticesNothing, "a_peer_that_goes_is_noticed"),
        (ComesBack, "false_is_final"),
        (ClosesOnce, "disconnecting_twice_is_harmless"),
        (ClosesOnceAtOnce, "disconnecting_twice_is_harmless"),
        (StaysOpen, "disconnecting_twice_is_harmless"),
        (IgnoresItsCancellation, "a_call_that_is_cancelled_ends"),
        (NeedsTwentySeconds, "the_answer_is_exactly_true"),
        (ClosesForTwentySeconds, "disconnecting_twice_is_harmless"),
        (ClosesWhenItIsCancelled, "a_check_that_is_cancelled_changes_nothing"),
        (ClosesWhenItsWaitIsCancelled, "a_check_that_is_cancelled_changes_nothing"),
        (HoldsTheThread, "a_check_holds_nobody_up"),
        (WaitsForItsCheck, "disconnecting_during_a_check_ends_both"),
        (IsBusyWithItsCheck, "disconnecting_during_a_check_ends_both"),
        (SharesItsLock, "a_silent_peer_is_left"),
        (SaysThatItIsClosedAndIsNot, "a_silent_peer_is_left"),
        (WaitsForAFarewell, "a_silent_peer_is_left"),
        (TakesSilenceForAnEnd, "a_silent_peer_has_not_gone"),
        (TakesALostAnswerForAnEnd, "a_silent_peer_has_not_gone"),
        (LeavesATask, "no_task_is_left"),
        (LeavesATaskAtTheEnd, "no_task_is_left"),
        (LosesInSilence, "a_send_to_a_peer_that_has_gone_raises"),
        (LosesInSilenceOnceItIsClosed, "a_send_to_a_peer_that_has_gone_raises"),
    ],
)
def test_the_contract_finds_a_transport_that_breaks_it(
    broken: type[FakeTransport], check: str
) -> None:
    """Each broken transport fails the check that is there for its fault."""
    [found] = [one for one in transport_conformance if one.__name__ == check]
    with pytest.RaisesGroup(
        pytest.RaisesExc((AssertionError, trio.ClosedResourceError, trio.BusyResourceError)),
        allow_unwrapped=True,
        flatten_subgroups=True,
    ):
        trio.run(found, faking(broken), clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    "broken", [SharesItsLock, SaysThatItIsClosedAndIsNot, WaitsForAFarewell, TakesSilenceForAnEnd]
)
def test_only_a_silent_peer_shows_it(broken: type[Pinged]) -> None:
    """Every other check is passed by these; and so are these, where no peer can be silent."""

    @asynccontextmanager
    async def never_silent() -> AsyncIterator[Connection]:
        await trio.lowlevel.checkpoint()
        yield Fakes(broken())

    for check in transport_conformance:
        trio.run(check, never_silent, clock=MockClock(autojump_threshold=0))


def test_a_transport_has_the_time_that_a_registry_gives_it() -> None:
    """By default, to each of both calls."""
    settings = inspect.signature(open_registry).parameters
    defaults = [settings[name].default for name in ("check_timeout", "disconnect_timeout")]
    assert defaults == [LIMIT, LIMIT]


# ---- as tests of pytest ----

FILE = """
import pytest
from dataclasses import replace
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import conformance_tests, row_conformance

class Believes(MemoryStore):
    async def refresh(self, worker, session_ids):
        answers = await super().refresh(worker, session_ids)
        return replace(answers, held=frozenset(session_ids))

@pytest.fixture
def make_store():
    store = Believes()
    return lambda: store

CHECKS = [one for one in row_conformance if "what_is_not" in one.__name__]
CHECKS += [one for one in row_conformance if "nothing_asked" in one.__name__]
test_it = conformance_tests(CHECKS)
"""


@pytest.mark.parametrize("plugin", [("-p", "no:trio"), ("-o", "trio_mode=true")])
def test_one_line_runs_the_checks(tmp_path: Path, plugin: tuple[str, str]) -> None:
    """Each is a case by its name, and says which rule is broken; with and without a plugin."""
    (tmp_path / "test_file.py").write_text(FILE, "utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", *plugin, "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 passed" in ran.stdout, ran.stdout
    assert "test_it[nothing_asked_is_nothing_done] PASSED" in ran.stdout
    assert "test_it[what_is_not_there_is_in_no_field] FAILED" in ran.stdout
    assert "The rule of what_is_not_there_is_in_no_field: What is not there" in ran.stdout


@pytest.mark.parametrize("checks", [[], [*store_conformance, *transport_conformance]])
def test_checks_of_different_kinds_make_no_test(checks: list[Any]) -> None:
    """Nor do none at all."""
    with pytest.raises(ValueError, match="checks must be of one kind"):
        conformance_tests(checks)
