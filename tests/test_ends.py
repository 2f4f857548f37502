"""When things end: passes that take long, what serves a session, and a registry that crashes."""

import asyncio
import itertools

import pytest
import trio
from test_lifetime import Fatal
from trio.testing import MockClock

from trio_sessions import aio, open_registry
from trio_sessions.testing import FakeTransport

# ---- the pace of passes ----


class Slow(FakeTransport):
    """Takes its time to answer, and notes when it was asked."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.asked: list[float] = []

    async def is_connected(self) -> bool:
        self.asked.append(trio.current_time())
        await trio.sleep(self.seconds)
        return await super().is_connected()


@pytest.mark.parametrize(
    ("seconds", "shortest", "longest"),
    [
        (4.0, 9.0, 10.0),  # within the interval, less its jitter: it counts from start to start
        (8.9, 9.0, 10.0),
        (25.0, 25.0, 25.0),  # longer than the interval: the next one begins when it has ended
    ],
)
async def test_passes_begin_an_interval_apart_however_long_they_take(
    autojump_clock: MockClock, seconds: float, shortest: float, longest: float
) -> None:
    """And one that overruns is followed at once, without a pause of its own, and by one alone."""
    async with open_registry(
        session_ttl=100.0, cleanup_interval=10.0, check_timeout=30.0
    ) as registry:
        transport = Slow(seconds)
        await registry.add_session("s", transport)
        await trio.sleep(200.0)
        asked = transport.asked
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert len(gaps) >= 6
        assert all(shortest - 0.01 <= gap <= longest + 0.01 for gap in gaps), gaps


async def test_after_a_pass_that_overran_the_pace_is_as_before(autojump_clock: MockClock) -> None:
    """What was missed is not made up for."""
    async with open_registry(
        session_ttl=100.0, cleanup_interval=10.0, check_timeout=60.0
    ) as registry:
        transport = Slow(45.0)
        await registry.add_session("s", transport)
        await trio.sleep(20.0)
        transport.seconds = 0.0
        await trio.sleep(80.0)
        [first, second, *rest] = transport.asked
        assert second - first == pytest.approx(45.0)
        assert rest[0] - second >= 9.0
        assert all(b - a >= 9.0 for a, b in itertools.pairwise(rest))


# ---- a task of asyncio that is tied to a session ----


class Connection:
    def __init__(self) -> None:
        self.connected = True

    async def is_connected(self) -> bool:
        return self.connected

    async def disconnect(self) -> None:
        self.connected = False


@pytest.mark.parametrize("how", ["removed", "dead", "taken over", "shut down"])
def test_who_ends_a_session_waits_for_its_task_to_end(how: str) -> None:
    """It is cancelled, and may take its time to tidy up, though another one ends at once."""

    async def main() -> None:
        release, tidied = asyncio.Event(), False

        async def serve() -> None:
            nonlocal tidied
            try:
                await asyncio.sleep(3600)
            finally:
                await release.wait()
                tidied = True

        registry = aio.SessionRegistry(disconnect_timeout=50.0)
        await registry.initialize()
        connection = Connection()
        await registry.add_session("s", connection)
        task = asyncio.create_task(serve())
        registry.register_respond_task("s", task)
        registry.register_respond_task("s", asyncio.create_task(asyncio.sleep(3600)))
        await asyncio.sleep(0)
        connection.connected = how != "dead"
        ending = asyncio.create_task(
            {
                "removed": lambda: registry.remove_session("s"),
                "dead": registry.cleanup,
                "taken over": lambda: registry.add_session("s", Connection()),
                "shut down": registry.shutdown,
            }[how]()
        )
        async with asyncio.timeout(20):
            while not task.cancelling():
                await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert not ending.done(), "its task has not ended yet"
        release.set()
        async with asyncio.timeout(20):
            await ending
        assert tidied
        assert task.cancelled()
        await registry.shutdown()

    asyncio.run(main())


# ---- a registry that crashes ----


class Crashing(FakeTransport):
    async def is_connected(self) -> bool:
        raise Fatal


async def crash(*, body: BaseException | None) -> None:
    """Let the background crash; raise ``body`` in the block that is cancelled for it."""
    async with open_registry(cleanup_interval=0.05, session_ttl=1.0) as registry:
        await registry.add_session("s", Crashing())
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if body is not None:
                raise body from None
            raise


async def test_what_the_block_raises_while_the_registry_crashes_is_not_lost() -> None:
    """Both come out: neither hides the other."""
    with pytest.RaisesGroup(Fatal, KeyError, match="the registry crashed") as caught:
        await crash(body=KeyError("mine"))
    assert any(one.args == ("mine",) for one in caught.value.exceptions)


async def test_a_group_of_the_block_s_own_stays_a_group() -> None:
    """It is one error beside the crash."""
    mine = ExceptionGroup("mine", [ValueError(), KeyError()])
    with pytest.RaisesGroup(Fatal, pytest.RaisesGroup(ValueError, KeyError)) as caught:
        await crash(body=mine)
    assert mine in caught.value.exceptions


async def test_a_block_that_only_was_cancelled_by_the_crash_adds_nothing() -> None:
    """The crash alone comes out, bare."""
    with pytest.raises(Fatal):
        await crash(body=None)


async def test_ctrl_c_in_a_block_while_the_registry_crashes_ends_the_program() -> None:
    """Bare, as everywhere; its cause is the crash."""
    with pytest.raises(KeyboardInterrupt) as caught:
        await crash(body=KeyboardInterrupt())
    assert isinstance(caught.value.__cause__, Fatal)
