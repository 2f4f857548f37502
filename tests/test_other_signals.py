"""Handlers of other signals that raise: in the middle of our code, as Ctrl-C never is."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
import trio

from trio_sessions import SessionRegistry, aio, open_registry
from trio_sessions.testing import FakeTransport


class TimedOut(Exception):
    """What a handler of SIGALRM raises, in programs that bound a piece of their own code so."""


@contextmanager
def signal_at(event: str, function: str, error: BaseException) -> Iterator[list[str]]:
    """Let a signal come once whose handler raises, at the first call of a function, or its return.

    The function is named as its ``__qualname__``; what is given has that when the signal has come.
    """
    came: list[str] = []

    def raise_it(*_: object) -> None:
        raise error

    def profile(frame: FrameType, now: str, _: object) -> None:
        if now == event and frame.f_code.co_qualname == function:
            sys.setprofile(None)
            came.append(function)
            signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, raise_it)
    sys.setprofile(profile)
    try:
        yield came
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGALRM, before)


async def read(registry: SessionRegistry) -> None:
    async with registry.open_inbox("s"):
        pass


AROUND_STARTS = [
    ("call", "Runner.spawn_impl"),
    ("return", "Runner.spawn_impl"),
    ("return", "Nursery.start_soon"),
]


@pytest.mark.parametrize(("event", "function"), AROUND_STARTS)
@pytest.mark.parametrize(
    "deed",
    [
        lambda registry: registry.cleanup(),
        lambda registry: registry.remove_session("s"),
        read,
    ],
    ids=["cleanup", "remove", "read"],
)
def test_a_signal_around_the_start_of_a_task_stalls_nothing(
    deed: Callable[[SessionRegistry], Awaitable[object]], event: str, function: str
) -> None:
    """What was noted and not started is not waited for: passes go on, never two, and it closes."""
    transport = FakeTransport()

    async def main() -> None:
        with trio.fail_after(20):
            async with open_registry() as registry:
                await registry.add_session("s", transport)
                with pytest.raises(TimedOut), signal_at(event, function, TimedOut()) as came:
                    await deed(registry)
                assert came
                checks = transport.checks
                await registry.cleanup()
                assert transport.checks - checks <= 1
                await registry.add_session("s", transport)
                assert (await registry.cleanup()).refreshed >= 1
        assert registry.statistics().closed

    trio.run(main)


@pytest.mark.parametrize("event", ["call", "return"])
def test_a_signal_in_a_call_into_a_transport_travels(event: str) -> None:
    """A handler that exits ends the program, and is no failure of the call, nor lost in one."""
    closed = []

    class Connection:
        async def is_connected(self) -> bool:
            await asyncio.sleep(0.01)
            return True

        async def disconnect(self) -> None:
            closed.append(self)

    async def main() -> None:
        async with aio.SessionRegistry() as registry:
            for number in range(3):
                await registry.add_session(f"s{number}", Connection())
            with signal_at(event, "AsyncioHost.limit", SystemExit(7)):
                await registry.cleanup()
                await asyncio.sleep(20)

    with (
        pytest.raises(SystemExit) as caught,
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
    ):
        runner.run(main())
    assert caught.value.code == 7
    assert len(closed) == 3
