"""The contract of a `Transport` as checks that any transport can be put to."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Protocol

import trio

from trio_sessions.abc import Transport

__all__ = ["Connect", "Connection", "SilentConnection", "TransportCheck", "transport_checks"]

PATIENCE = 30.0
"""Seconds within which a peer must come and go, and what is sent leave."""
LIMIT = 5.0
"""Seconds for ``is_connected()``, and for ``disconnect()``: what a registry gives by default."""
ANSWERS = 100
"""Of ``is_connected()``, which a peer that has gone is given besides `LIMIT` to be missed, within
`PATIENCE`: a machine that is slow answers slowly, too."""
STEP = 0.1
"""Seconds for which nothing else of the thread may be held up by a call, each time anew."""
CALLS = 5
"""Of which one must keep to `STEP`: a machine that is busy is not so each time."""


class Connection(Protocol):
    """A transport, and its peer: what the checks of a transport are given."""

    @property
    def transport(self) -> Transport:
        """A transport that is connected."""
        ...

    async def hang_up(self) -> None:
        """Close the peer's end, as a client does that goes; the transport is to notice it."""
        ...

    async def send(self) -> object:
        """Send something by the transport, as the gateway does."""
        ...


class SilentConnection(Connection, Protocol):
    """A `Connection` whose peer can fall silent, too.

    The checks of a silent peer ask for it, and ask nothing where a connection has no such method.
    """

    async def fall_silent(self) -> None:
        """Let the peer read and answer nothing from now on, and keep its end open.

        So does a client whose process was stopped: the network says that all is well.
        """
        ...


Connect = Callable[[], AbstractAsyncContextManager[Connection]]
"""Connects a transport with a peer; leaving its block frees what belongs to both."""

TransportCheck = Callable[[Connect], Awaitable[None]]


@asynccontextmanager
async def _bounded(what: str, seconds: float = PATIENCE) -> AsyncIterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    assert not scope.cancelled_caught, f"{what} does not end within {seconds:g} s"


async def _ask(connection: Connection) -> object:
    answers: list[object] = []
    async with _bounded("is_connected()", LIMIT):
        answers.append(await connection.transport.is_connected())
    return answers.pop()


async def _expect_true(connection: Connection) -> None:
    answer = await _ask(connection)
    assert answer is True, f"the peer is there, and it says {answer!r}"


async def _expect_false(connection: Connection) -> None:
    answer = await _ask(connection)
    assert answer is False, f"it was disconnected, and says {answer!r}"


async def _disconnect(connection: Connection) -> None:
    async with _bounded("disconnect()", LIMIT):
        await connection.transport.disconnect()


async def _hang_up(connection: Connection) -> None:
    """Let the peer go, and wait until the news has come: a network is quick, not instant."""
    async with _bounded("hang_up()"):
        await connection.hang_up()
    went_at, answers = trio.current_time(), 0
    while (answer := await _ask(connection)) is True:
        answers += 1
        waited = trio.current_time() - went_at
        is_enough = waited > PATIENCE or (waited > LIMIT and answers > ANSWERS)
        assert not is_enough, f"the peer has gone, and it still says True after {waited:.0f} s"
        await trio.sleep(0.01)
    assert answer is False, f"the peer has gone, and it says {answer!r}"


async def the_answer_is_exactly_true(connect: Connect) -> None:
    """While the peer is there; anything else than True and False means "unknown"."""
    async with connect() as connection:
        for _ in range(3):
            await _expect_true(connection)


async def a_peer_that_goes_is_noticed(connect: Connect) -> None:
    """The answer is exactly False then, without waiting for a write to fail."""
    async with connect() as connection:
        await _expect_true(connection)
        await _hang_up(connection)


async def false_is_final(connect: Connect) -> None:
    """It ends the session: a transport that says False never says anything else again."""
    async with connect() as connection:
        await _hang_up(connection)
        for _ in range(3):
            answer = await _ask(connection)
            assert answer is False, f"it has said False, and now says {answer!r}"
        await _disconnect(connection)
        await _expect_false(connection)


async def disconnecting_twice_is_harmless(connect: Connect) -> None:
    """One after the other, at once, and from a peer that has gone; afterwards it is closed."""
    async with connect() as connection:
        for _ in range(2):
            await _disconnect(connection)
            await _expect_false(connection)
    async with connect() as connection:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(_disconnect, connection)
        await _expect_false(connection)
    async with connect() as connection:
        await _hang_up(connection)
        await _disconnect(connection)


async def a_call_that_is_cancelled_ends(connect: Connect) -> None:
    """In bounded time: the registry gives each call a deadline, and waits for nobody."""
    for name in ("is_connected", "disconnect"):
        async with connect() as connection:
            await _cancel(connection, name, has_begun=False)
            await _disconnect(connection)


async def a_check_that_is_cancelled_changes_nothing(connect: Connect) -> None:
    """It was slow once, and its peer is there: who asks again is told so."""
    for has_begun in (False, True):
        async with connect() as connection:
            await _cancel(connection, "is_connected", has_begun=has_begun)
            for _ in range(2):
                answer = await _ask(connection)
                assert answer is True, f"is_connected() was cancelled, and now says {answer!r}"


async def _cancel(connection: Connection, name: str, *, has_begun: bool) -> None:
    """Call a method, and cancel it: at its first checkpoint, or where it waits after that."""
    scope, began, ended = trio.CancelScope(), trio.Event(), trio.Event()

    async def call() -> None:
        with scope:
            if not has_begun:
                scope.cancel()
            began.set()
            await getattr(connection.transport, name)()
        ended.set()

    trio.lowlevel.spawn_system_task(call)
    await began.wait()
    scope.cancel()
    with trio.move_on_after(LIMIT):
        await ended.wait()
    assert ended.is_set(), f"{name}() ignores its cancellation"


async def a_check_holds_nobody_up(connect: Connect) -> None:
    """It waits by Trio: every session of the worker waits for what holds the thread."""
    async with connect() as connection:
        longest = list[float]()
        for _ in range(CALLS):
            with _steps() as steps:
                await _ask(connection)
                await trio.lowlevel.checkpoint()  # so that its last step has ended
            longest.append(max(steps))
        least = min(longest)
        assert least < STEP, f"is_connected() holds up the thread for {least:.2f} s each time"


class _Steps(trio.abc.Instrument):
    """Notes how long each step of each task takes, in real seconds."""

    def __init__(self) -> None:
        self.seconds = [0.0]
        self._since = time.perf_counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._since = time.perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seconds.append(time.perf_counter() - self._since)


@contextmanager
def _steps() -> Iterator[list[float]]:
    steps = _Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps.seconds
    finally:
        trio.lowlevel.remove_instrument(steps)


async def disconnecting_during_a_check_ends_both(connect: Connect) -> None:
    """A session may leave while it is asked; what the check says then, or raises, is no matter."""
    async with connect() as connection:
        async with trio.open_nursery() as nursery:
            await nursery.start(_check, connection, LIMIT)
            async with _bounded("disconnect() during is_connected()", LIMIT):
                await connection.transport.disconnect()
        answer = await _ask(connection)
        assert answer is False, f"it was disconnected during a check, and says {answer!r}"


async def no_task_is_left(connect: Connect) -> None:
    """Of a check, nor of a transport that is disconnected: nobody would end it."""
    before = _tasks()
    async with connect() as connection:
        during = _tasks()
        for _ in range(3):
            await _ask(connection)
        await _settle(during, "is_connected() has left a task behind")
        await _disconnect(connection)
        await _settle(during, "disconnect() has left a task behind")
    await _settle(before, "the transport has left a task behind")


def _tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def _settle(most: int, otherwise: str) -> None:
    """Let tasks end that are about to end."""
    deadline = trio.current_time() + PATIENCE / 10
    while _tasks() > most:
        assert trio.current_time() < deadline, otherwise
        await trio.sleep(0.01)


async def a_silent_peer_has_not_gone(connect: Connect) -> None:
    """It may come back: a check may wait for its answer, and say so by an error, but not False."""
    async with connect() as connection:
        if await _fall_silent(connection):
            for _ in range(2):
                answer: object = None
                with trio.move_on_after(STEP), suppress(Exception):  # that is "unknown"
                    answer = await connection.transport.is_connected()
                assert answer is not False, "the peer is silent, and it says False at once"


async def a_silent_peer_is_left(connect: Connect) -> None:
    """While a check waits for its answer, too: disconnect() does not wait for the check to end.

    It may wait for the peer's farewell. It is cancelled then, and has to close by force.
    """
    async with connect() as connection:
        if await _fall_silent(connection):
            async with trio.open_nursery() as nursery:
                await nursery.start(_check, connection, 2 * LIMIT)
                await trio.sleep(STEP)  # until the check waits
                with trio.move_on_after(LIMIT):
                    await connection.transport.disconnect()
            answer = await _ask(connection)
            assert answer is False, f"it was disconnected during a check, and says {answer!r}"


async def _fall_silent(connection: Connection) -> bool:
    """Let the peer fall silent; say whether it can."""
    fall_silent = getattr(connection, "fall_silent", None)
    if fall_silent is None:
        return False
    await _expect_true(connection)
    async with _bounded("fall_silent()"):
        await fall_silent()
    return True


async def _check(
    connection: Connection, seconds: float, task_status: trio.TaskStatus[None]
) -> None:
    """Ask a transport that is disconnected meanwhile."""
    task_status.started()
    async with _bounded("is_connected() during disconnect()", seconds):
        try:
            await connection.transport.is_connected()
        except Exception:  # noqa: BLE001 -- "unknown", of a connection that is closed
            return


async def a_send_to_a_peer_that_has_gone_raises(connect: Connect) -> None:
    """At the latest once the transport says False; what is lost in silence is lost for ever."""
    async with connect() as connection:
        async with _bounded("send()"):
            await connection.send()
        await _hang_up(connection)
        await _refuses(connection, "the peer has gone")
    async with connect() as connection:
        await _disconnect(connection)
        await _refuses(connection, "it was disconnected")


async def _refuses(connection: Connection, why: str) -> None:
    async with _bounded("send()"):
        try:
            await connection.send()
        except Exception:  # noqa: BLE001 -- whatever the transport says
            return
    raise AssertionError(f"{why}, and what is sent is lost in silence")


transport_checks: tuple[TransportCheck, ...] = (
    the_answer_is_exactly_true,
    a_peer_that_goes_is_noticed,
    false_is_final,
    disconnecting_twice_is_harmless,
    a_call_that_is_cancelled_ends,
    a_check_that_is_cancelled_changes_nothing,
    a_check_holds_nobody_up,
    disconnecting_during_a_check_ends_both,
    a_silent_peer_has_not_gone,
    a_silent_peer_is_left,
    no_task_is_left,
    a_send_to_a_peer_that_has_gone_raises,
)
