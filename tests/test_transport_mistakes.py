"""What the checks of a transport say to whoever gives them something else than a connection."""

import asyncio
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio_asyncio
from peers import Fakes
from trio.testing import MockClock

from trio_sessions.testing import FakeTransport, conformance_tests, transport_conformance
from trio_sessions.testing._conformance._transports import LIMIT, PATIENCE


@asynccontextmanager
async def open_connection() -> AsyncIterator[Any]:
    await trio.lowlevel.checkpoint()
    yield Fakes(FakeTransport())


def yielding(value: object) -> Callable[[], Any]:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        await trio.lowlevel.checkpoint()
        yield value

    return connect


def run(connect: Any, name: str = "the_answer_is_exactly_true") -> None:
    """Put what ``connect`` gives to one check; a warning is an error, "never awaited" above all."""
    [check] = [one for one in transport_conformance if one.__name__ == name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trio.run(check, connect, clock=MockClock(autojump_threshold=0))


# ---- connect, and what it returns ----


async def coroutine() -> Any:
    await trio.lowlevel.checkpoint()
    return open_connection()


async def undecorated() -> AsyncIterator[Any]:
    await trio.lowlevel.checkpoint()
    yield Fakes(FakeTransport())


@contextmanager
def sync_manager() -> Iterator[Any]:
    yield Fakes(FakeTransport())


def generator() -> Iterator[Any]:
    yield Fakes(FakeTransport())


MUST = r"connect must be a function without arguments that returns an async context manager, .*"
DECORATE = r"put @asynccontextmanager over it"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (open_connection, f"{MUST} not the context manager itself: .* without its parentheses"),
        (coroutine, f"{MUST} not coroutine: .* without its parentheses"),
        (undecorated, f"{MUST} not async_generator: .* without its parentheses"),
        (lambda: None, f"{MUST} not NoneType: where it is a fixture, `return open_connection`"),
        (lambda: Fakes(FakeTransport()), f"{MUST} not Fakes"),
    ],
    ids=["opened", "coroutine", "generator", "nothing", "connection"],
)
def test_connect_must_be_a_function(make: Callable[[], Any], message: str) -> None:
    """Above all where a fixture has called it."""
    with pytest.raises(TypeError, match=message):
        run(make())


@pytest.mark.parametrize(
    ("connect", "message"),
    [
        (coroutine, f"{MUST} and it is an async function without a yield: .* {DECORATE}"),
        (undecorated, f"{MUST} and it returns an async generator: {DECORATE}"),
        (generator, f"{MUST} and it returns a generator: make it `async def`, and {DECORATE}"),
        (sync_manager, f"{MUST} and it returns a sync one: .* @asynccontextmanager"),
        (lambda: Fakes(FakeTransport()), f"{MUST} and it returns Fakes"),
        (lambda: None, f"{MUST} and it returns None"),
    ],
    ids=["async", "undecorated", "generator", "sync", "connection", "nothing"],
)
def test_connect_must_return_an_async_context_manager(
    connect: Callable[[], Any], message: str
) -> None:
    """It is told what it returned, and what to write."""
    with pytest.raises(TypeError, match=message):
        run(connect)


@pytest.mark.filterwarnings("error")
def test_a_fixture_that_has_called_it_is_told_so(request: pytest.FixtureRequest) -> None:
    """In a test of one line, too."""
    test: Any = inspect.unwrap(conformance_tests(transport_conformance, fixture="opened"))
    with pytest.raises(TypeError, match="not the context manager itself"):
        test(transport_conformance[0], request)


@pytest.fixture
def opened() -> Any:
    return open_connection()


# ---- the connection ----


class NoPeer:
    def __init__(self) -> None:
        self.transport = FakeTransport()


class Half:
    async def is_connected(self) -> bool:
        return True


YIELDS = r"connect must yield a Connection, an object with a `transport` and the async methods .*"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (FakeTransport(), f"{YIELDS}; it yields the transport itself, FakeTransport"),
        (None, f"{YIELDS}; it yields None"),
        ((FakeTransport(), 3), f"{YIELDS}; it yields tuple, which has no `transport`"),
        (Fakes(Half()), "the transport of Fakes must be a Transport.*; Half has no disconnect"),
        (Fakes(3), "the transport of Fakes .*; int has no is_connected and no disconnect"),
        (Fakes(FakeTransport), "the transport of Fakes .*, not the class itself: FakeTransport()"),
    ],
    ids=["transport", "nothing", "tuple", "half", "number", "class"],
)
def test_connect_must_yield_a_connection(value: object, message: str) -> None:
    """With a transport that has both of its methods."""
    with pytest.raises(TypeError, match=message):
        run(yielding(value))


@pytest.mark.parametrize(
    ("missing", "check"),
    [
        ("hang_up", "a_peer_that_goes_is_noticed"),
        ("send", "a_send_to_a_peer_that_has_gone_raises"),
    ],
)
def test_a_method_that_is_missing_is_named_by_the_check_that_calls_it(
    missing: str, check: str
) -> None:
    """The others do without."""
    with pytest.raises(TypeError, match=f"; NoPeer has no `{missing}`, which this check calls"):
        run(yielding(NoPeer()), check)
    run(yielding(NoPeer()))


# ---- what must be async ----


class SyncAnswer(FakeTransport):
    def is_connected(self) -> Any:
        return self.state == "connected"


class SyncDisconnect(FakeTransport):
    def disconnect(self, reason: object = None) -> Any:
        self.state = "closed"


class SyncPeer(Fakes):
    def hang_up(self) -> Any:
        self.transport.state = "closed"

    def send(self) -> Any:
        return "sent"

    def fall_silent(self) -> Any:
        return None


@pytest.mark.parametrize(
    ("make", "check", "message"),
    [
        (lambda: Fakes(SyncAnswer()), 0, "SyncAnswer.is_connected must be async, .* bool at once"),
        (lambda: Fakes(SyncDisconnect()), 3, "SyncDisconnect.disconnect .* NoneType at once"),
        (lambda: SyncPeer(FakeTransport()), 1, "SyncPeer.hang_up must be .* NoneType at once"),
        (lambda: SyncPeer(FakeTransport()), 8, "SyncPeer.fall_silent .* NoneType at once"),
        (lambda: SyncPeer(FakeTransport()), 11, "SyncPeer.send must be async, .* str at once"),
    ],
    ids=["is_connected", "disconnect", "hang_up", "fall_silent", "send"],
)
def test_what_is_not_async_is_named(make: Callable[[], Any], check: int, message: str) -> None:
    """With its class, and what it returned."""
    with pytest.raises(TypeError, match=f"{message}: make it `async def`"):
        run(yielding(make()), transport_conformance[check].__name__)


class SaysOne(FakeTransport):
    async def is_connected(self) -> Any:
        return int(await super().is_connected())


class SaysNought(FakeTransport):
    async def is_connected(self) -> Any:
        return (await super().is_connected()) or (0 if self.disconnects else False)


@pytest.mark.parametrize(
    ("transport", "check", "message"),
    [
        (SaysOne, "a_peer_that_goes_is_noticed", "the peer is there, and it says 1"),
        (SaysOne, "a_silent_peer_is_left", "the peer is there, and it says 1"),
        (SaysNought, "false_is_final", "it was disconnected, and says 0"),
    ],
)
def test_an_answer_that_is_wrong_is_told(
    transport: type[FakeTransport], check: str, message: str
) -> None:
    """In words of its own: without pytest, an assert that has none says nothing."""

    class Silent(Fakes):
        async def fall_silent(self) -> None:
            await trio.lowlevel.checkpoint()

    with pytest.raises(AssertionError, match=message):
        run(yielding(Silent(transport())), check)


# ---- asyncio ----


@asynccontextmanager
async def raw_streams() -> AsyncIterator[Any]:
    yield await asyncio.open_connection("127.0.0.1", 1)


class Raw(FakeTransport):
    """Of asyncio, and used as it is."""

    async def is_connected(self) -> bool:
        await asyncio.sleep(0)
        return await super().is_connected()


@asynccontextmanager
async def raw_transport_in_a_loop() -> AsyncIterator[Any]:
    async with trio_asyncio.open_loop():
        yield Fakes(Raw())


@pytest.mark.parametrize(
    "connect",
    [raw_streams, yielding(Fakes(Raw())), raw_transport_in_a_loop],
    ids=["streams", "transport", "loop"],
)
def test_asyncio_under_trio_is_told_of_asyncio_transport(connect: Any) -> None:
    """As a note: the error says what was awaited, and stays as it is."""
    with pytest.raises((RuntimeError, TypeError, ExceptionGroup)) as raised:
        run(connect)
    [told, rule] = raised.value.__notes__
    assert "trio_asyncio.open_loop()" in told
    assert "trio_sessions.aio.asyncio_transport" in told
    assert rule.startswith("The rule of ")


def test_other_errors_get_no_such_note() -> None:
    """Those of a connection that has nothing to do with asyncio."""

    class Broken(FakeTransport):
        async def is_connected(self) -> bool:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError) as raised:
        run(yielding(Fakes(Broken())))
    [rule] = raised.value.__notes__
    assert rule.startswith("The rule of ")


# ---- patience ----


class NoticesNoPeer(FakeTransport):
    async def is_connected(self) -> bool:
        await trio.lowlevel.checkpoint()
        return not self.disconnects


@asynccontextmanager
async def open_deaf() -> AsyncIterator[Any]:
    await trio.lowlevel.checkpoint()
    yield Fakes(NoticesNoPeer())


WHERE_IT_GOES = (
    "a_peer_that_goes_is_noticed",
    "false_is_final",
    "disconnecting_twice_is_harmless",
    "a_send_to_a_peer_that_has_gone_raises",
)


def test_a_peer_that_is_never_missed_is_waited_for_in_seconds() -> None:
    """In each of the checks in which it goes; half a minute in each would be two minutes."""
    waited = list[float]()

    async def seconds(check: Any) -> None:
        began = trio.current_time()
        with pytest.raises(AssertionError, match="the peer has gone, and it still says True"):
            await check(open_deaf)
        waited.append(trio.current_time() - began)

    for check in transport_conformance:
        if check.__name__ in WHERE_IT_GOES:
            trio.run(seconds, check, clock=MockClock(autojump_threshold=0))
    assert len(waited) == len(WHERE_IT_GOES)
    assert LIMIT < min(waited) <= max(waited) < LIMIT + 1


class IsSlow(FakeTransport):
    """As on a machine that has much else to do: each answer takes a while, and the news, too."""

    asked = 0

    async def is_connected(self) -> bool:
        await trio.sleep(0.25)
        self.asked += self.state == "closed"
        return self.asked < 60 and not self.disconnects


def test_a_slow_machine_is_given_more_time() -> None:
    """So many answers, and not only so many seconds."""
    assert LIMIT < 0.25 * 60 < PATIENCE
    run(yielding(Fakes(IsSlow())), "a_peer_that_goes_is_noticed")
