"""Rounds of calls into transports: whatever ends a leader ends its round."""

import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import outcome
import pytest
import trio
import trio.lowlevel
import trio.testing

from trio_sessions import open_registry
from trio_sessions._calls import TrioHost
from trio_sessions._entry import Entry
from trio_sessions._rounds import Answer, Round
from trio_sessions._running import Running, Scope
from trio_sessions.testing import FakeTransport

Task = Callable[[], Coroutine[Any, Any, None]]


class Waiting(FakeTransport):
    """A transport that answers after a while."""

    async def is_connected(self) -> bool:
        await trio.sleep(0.01)
        return await super().is_connected()


class Host(TrioHost):
    """A host that does to the task with a given number what a test wants."""

    def __init__(self, nursery: trio.Nursery, number: int, do: Callable[[Task], None]) -> None:
        super().__init__()
        self._nursery = nursery
        self._number = number
        self._do = do
        self.started = 0

    def start(self, task: Task) -> None:
        self.started += 1
        if self.started == self._number:
            self._do(task)
        else:
            super().start(task)


def lose(task: Task) -> None:
    """Never run it."""


def refuse(task: Task) -> None:
    raise OSError("no more tasks")


def entries(*transports: FakeTransport) -> list[Entry]:
    return [Entry(f"s{number}", each, 1, 0.0) for number, each in enumerate(transports)]


def errors(answers: dict[Entry, Answer]) -> list[object]:
    return [
        answer.error if isinstance(answer, outcome.Error) else answer for answer in answers.values()
    ]


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_leader_that_is_lost_does_not_stall_the_round(
    number: int, autojump_clock: trio.testing.MockClock
) -> None:
    """What it would have called is unknown, after a bounded time; the others have answered."""
    asked = entries(*(Waiting() for _ in range(4)))
    running = Running()
    async with trio.open_nursery() as nursery:
        host = Host(nursery, number, lose)
        with trio.fail_after(13):
            answers = errors(await Round(host, running, "is_connected", asked, 1.0).ask())
    assert host.started == number
    assert answers[: number - 1] == [True] * (number - 1)
    assert [type(each) for each in answers[number - 1 :]] == [TimeoutError] * (5 - number)
    assert not running.calls


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_leader_that_cannot_be_started_ends_the_round(
    number: int, autojump_clock: trio.testing.MockClock
) -> None:
    """At once, as far as it leads; the calls under way go on to their answers."""
    asked = entries(*(Waiting() for _ in range(4)))
    async with trio.open_nursery() as nursery:
        host = Host(nursery, number, refuse)
        start = trio.current_time()
        answers = errors(await Round(host, Running(), "is_connected", asked, 1.0).ask())
        assert trio.current_time() - start < 0.1
    assert answers[: number - 1] == [True] * (number - 1)
    assert len(answers) == 4
    for error in answers[number - 1 :]:
        assert isinstance(error, RuntimeError)
        assert isinstance(error.__cause__, OSError)


async def test_a_failure_in_the_leading_is_logged_and_ends_the_round(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends neither the host nor the one who asks."""

    class Broken(Host):
        @contextlib.contextmanager
        def scope(self) -> Iterator[Scope]:
            if self.started == 2:
                raise MemoryError("no scope")
            with trio.CancelScope() as scope:
                yield scope

    asked = entries(*(Waiting() for _ in range(3)))
    async with trio.open_nursery() as nursery:
        answers = errors(
            await Round(Broken(nursery, 0, lose), Running(), "is_connected", asked, 1.0).ask()
        )
    assert answers[0] is True
    assert [type(each) for each in answers[1:]] == [RuntimeError] * 2
    assert "no scope" in caplog.text


async def test_leaders_that_are_cut_off_end_the_round(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The host's nursery is cancelled under a round: nobody waits for the rest."""
    asked = entries(*(Waiting() for _ in range(50)))
    answers: list[object] = []

    async def ask(host: TrioHost) -> None:
        answers.extend(errors(await Round(host, Running(), "is_connected", asked, 1.0).ask()))

    async with trio.open_nursery() as nursery, trio.open_nursery() as calls:
        nursery.start_soon(ask, Host(calls, 0, lose))
        await trio.testing.wait_all_tasks_blocked()
        calls.cancel_scope.cancel()
    assert len(answers) == 50
    assert not any(isinstance(each, bool) for each in answers)


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("kind", [GeneratorExit, "asyncio.CancelledError"])
async def test_a_transport_that_raises_what_ends_coroutines_fails_alone(
    kind: Any, *, waits: bool
) -> None:
    """It says nothing about the registry, or the others."""
    import asyncio

    error = asyncio.CancelledError if kind == "asyncio.CancelledError" else kind

    class Raising(FakeTransport):
        async def is_connected(self) -> bool:
            if waits:
                await trio.lowlevel.checkpoint()
            raise error

    async with open_registry() as registry:
        for number in range(3):
            await registry.add_session(f"s{number}", FakeTransport())
        await registry.add_session("raising", Raising())
        report = await registry.cleanup()
        assert report.refreshed == 4
        assert set(report.check_failures) == {"raising"}
        assert "cancelled from elsewhere" in str(report.check_failures["raising"])


async def test_a_transport_of_another_library_is_told_so() -> None:
    """Trio would end the task that awaits a future of asyncio's, and with it the whole run."""
    import asyncio

    loop = asyncio.SelectorEventLoop()
    futures = []

    class Foreign(FakeTransport):
        async def is_connected(self) -> bool:
            futures.append(loop.create_future())
            await futures[-1]
            return True

    class Bare(FakeTransport):
        async def is_connected(self) -> bool:
            await asyncio.sleep(0)
            return True

    try:
        async with open_registry() as registry:
            await registry.add_session("foreign", Foreign())
            await registry.add_session("bare", Bare())
            await registry.add_session("s", FakeTransport())
            report = await registry.cleanup()
            assert report.refreshed == 3
            for session_id in ("foreign", "bare"):
                assert "trio_sessions.aio" in str(report.check_failures[session_id])
    finally:
        loop.close()


def test_ctrl_c_ends_a_transport_that_keeps_the_loop() -> None:
    """Its code is the user's: there Ctrl-C is raised wherever it is, and ends the program."""
    went_on = []

    class Keeps(FakeTransport):
        async def is_connected(self) -> bool:
            signal.raise_signal(signal.SIGINT)
            went_on.append("still here")
            return True

    async def main() -> None:
        async with open_registry() as registry:
            await registry.add_session("s", FakeTransport())
            await registry.add_session("keeps", Keeps())
            await registry.cleanup()
            await trio.sleep_forever()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert went_on == []


async def test_the_calls_that_wait_are_changed_by_their_owner_only() -> None:
    """Rounds begin and end them; whoever looks at them cannot do more."""
    running, one = Running(), Entry("s", FakeTransport(), 1, 0.0)
    scope = trio.CancelScope()
    running.begin(one, "is_connected", scope)
    assert running.overdue() == 0
    assert list(running.calls) == [(one, "is_connected")]
    with pytest.raises(TypeError):
        del running.calls[one, "is_connected"]  # type: ignore[attr-defined]
    running.cancel()
    assert (scope.cancel_called, running.overdue()) == (True, 1)
    for _ in range(2):  # it need not be there
        running.end(one, "is_connected")
    assert (running.overdue(), dict(running.calls)) == (0, {})
