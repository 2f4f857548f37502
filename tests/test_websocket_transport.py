"""WebSocketTransport over real connections of trio-websocket, on the loopback."""

import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    connect_websocket,
    serve_websocket,
)

from trio_sessions import MessageTooLarge, MissingDependency, RemovalReason, open_registry
from trio_sessions.testing import Connection, conformance_tests, transport_conformance
from trio_sessions.transports import WebSocketTransport, close_code


class Pair:
    """A transport at the server's end, and its client."""

    def __init__(self, transport: WebSocketTransport, client: WebSocketConnection) -> None:
        self.transport = transport
        self.client = client

    async def hang_up(self) -> None:
        await self.client.aclose()

    async def send(self) -> None:
        await self.transport.send(["hello"])


@asynccontextmanager
async def connected(**options: Any) -> AsyncIterator[Pair]:
    """Connect a client; its server has the usual bounds."""
    sender, receiver = trio.open_memory_channel[WebSocketConnection](1)
    done = trio.Event()

    async def handle(request: WebSocketRequest) -> None:
        await sender.send(await request.accept())
        await done.wait()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, handle, "127.0.0.1", 0, None)
        client = await connect_websocket(
            nursery, "127.0.0.1", server.port, "/", use_ssl=False, message_queue_size=100
        )
        transport = WebSocketTransport(await receiver.receive(), **options)
        yield Pair(transport, client)
        await trio.aclose_forcefully(client._stream)
        done.set()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def bounded() -> AsyncIterator[None]:
    with trio.fail_after(40):
        yield


async def closes(pair: Pair) -> tuple[int, str | None]:
    """Return the code and the text with which the client's end is closed."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await pair.client.get_message()
    assert closed.value.reason is not None
    return closed.value.reason.code, closed.value.reason.reason


async def is_noticed(transport: WebSocketTransport) -> None:
    """Wait until it knows that its peer has gone; loopback is quick, not instant."""
    while await transport.is_connected():
        await trio.sleep(0.01)


@pytest.fixture
def connect() -> Callable[[], AbstractAsyncContextManager[Connection]]:
    return connected


test_it_keeps_the_contract = conformance_tests(transport_conformance)


# ---- messages ----


async def test_values_go_both_ways() -> None:
    """Any JSON value, in order; a client may also send it as bytes."""
    values: list[Any] = [{"a": [1, None]}, None, "", 0, "\N{SNOWMAN}\n", False]
    async with bounded(), connected() as pair:
        for value in values:
            await pair.transport.send(value)
        assert await pair.client.get_message() == '{"a":[1,null]}'
        for text in ('{"a":[1]}', b"null", '"\\u2603"'):
            await pair.client.send_message(text)
        assert [await pair.transport.receive() for _ in range(3)] == [{"a": [1]}, None, "\u2603"]


async def test_the_iteration_ends_with_the_client() -> None:
    """What it has sent before comes first, be it read ahead or not."""
    async with bounded(), connected() as pair:
        for number in range(3):
            await pair.client.send_message(str(number))
        await pair.client.send_message("not JSON")
        assert await pair.transport.is_connected() is True  # which reads ahead
        await pair.client.aclose()
        assert [await anext(pair.transport) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="Expecting value"):
            await pair.transport.receive()
        assert [message async for message in pair.transport] == []
        with pytest.raises(trio.EndOfChannel):
            await pair.transport.receive()


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", b"\xff", "[" * 100_000])
async def test_what_is_no_json_is_refused_and_the_next_is_read(text: str | bytes) -> None:
    """One bad message costs itself."""
    async with bounded(), connected() as pair:
        await pair.client.send_message(text)
        await pair.client.send_message("1")
        with pytest.raises(ValueError):  # noqa: PT011 -- each is refused in other words
            await pair.transport.receive()
        assert await pair.transport.receive() == 1


async def test_what_json_cannot_carry_is_not_sent() -> None:
    """Nor is what is too large; the connection stays as it was."""
    async with bounded(), connected(max_message_bytes=10) as pair:
        with pytest.raises(ValueError, match="NaN or infinity"):
            await pair.transport.send(math.nan)
        with pytest.raises(TypeError, match="it has a set in it"):
            await pair.transport.send(set())
        with pytest.raises(MessageTooLarge, match="max_message_bytes is 10"):
            await pair.transport.send("x" * 9)
        await pair.transport.send("x" * 8)
        assert await pair.client.get_message() == '"xxxxxxxx"'


async def test_a_client_that_does_not_read_is_given_up() -> None:
    """In bounded time; then the transport says that it is not connected, and refuses to send."""
    async with bounded(), connected(send_timeout=0.2) as pair:
        with pytest.raises(trio.BrokenResourceError, match=r"send_timeout \(0.2 s\)"):
            for _ in range(10_000):  # the client has room for a hundred, and the kernel for some
                await pair.transport.send("x" * 100_000)
        assert await pair.transport.is_connected() is False
        with pytest.raises(trio.ClosedResourceError):
            await pair.transport.send(1)
        await pair.transport.disconnect()


# ---- is it connected? ----


async def test_a_reader_that_waits_is_not_disturbed() -> None:
    """The answer comes at once then, and the reader gets every message."""
    async with bounded(), connected() as pair:
        received: list[object] = []

        async def read() -> None:
            received.extend([message async for message in pair.transport])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert pair.transport._receiving.locked()
            assert await pair.transport.is_connected() is True
            await pair.client.send_message("1")
            await pair.client.aclose()
        assert received == [1]
        await is_noticed(pair.transport)


async def test_a_close_behind_unread_messages_is_noticed() -> None:
    """As far as it reads ahead; and what was read is there for the reader still."""
    async with bounded(), connected() as pair:
        for number in range(50):
            await pair.client.send_message(str(number))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.client.aclose)  # it is answered when all else was read
            await is_noticed(pair.transport)
        assert [message async for message in pair.transport] == list(range(50))


async def test_a_client_that_floods_is_not_read_without_bound() -> None:
    """Nobody reads: what waits beyond 64 KiB stays in the network."""
    async with bounded(), connected() as pair:
        transport = pair.transport
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                while True:
                    await pair.client.send_message('"' + "x" * 10_000 + '"')

            nursery.start_soon(flood)
            while transport._unread.has_room:
                assert await transport.is_connected() is True
            for _ in range(3):
                assert await transport.is_connected() is True
            assert len(transport._unread) == 7
            nursery.cancel_scope.cancel()


# ---- the end ----


@pytest.mark.parametrize("reason", [None, *RemovalReason])
async def test_the_client_is_told_why(reason: RemovalReason | None) -> None:
    """By a close code, and by the reason's word."""
    async with bounded(), connected() as pair:
        await pair.transport.send("last words")
        await pair.transport.disconnect(reason)
        assert await closes(pair) == (close_code(reason), reason and reason.value)


def test_every_reason_has_a_code_that_may_be_sent() -> None:
    """Reserved ones (1004 to 1006, 1015) may not; 1012 is registered; ours are for private use."""
    codes = {reason: close_code(reason) for reason in RemovalReason}
    assert close_code(None) == codes[RemovalReason.REMOVED] == 1000
    assert codes[RemovalReason.CLOSED] == 1001
    assert codes[RemovalReason.DRAINED] == 1012
    private = [code for code in codes.values() if 4000 <= code <= 4999]
    assert len(private) == len(set(private)) == 5
    assert set(codes.values()) - set(private) == {1000, 1001, 1012}
    assert close_code.__doc__ is not None
    for reason, code in codes.items():
        assert f"{reason.value:<12}  {code}" in close_code.__doc__


async def test_a_client_that_does_not_answer_the_close_is_cut_off() -> None:
    """At the deadline of whoever disconnects: closing is bounded."""
    async with bounded(), connected() as pair:
        stream = pair.client._stream
        assert isinstance(stream, trio.SocketStream)
        with stream.socket.dup():  # the connection is there, and nobody answers on it
            await trio.aclose_forcefully(stream)
            assert await pair.transport.is_connected() is True
            with trio.move_on_after(0.1) as scope:
                await pair.transport.disconnect(RemovalReason.IDLE)
        assert scope.cancelled_caught
        assert await pair.transport.is_connected() is False


async def test_a_reader_ends_when_the_session_is_removed() -> None:
    """The registry disconnects the transport; nobody waits on it for ever."""
    async with bounded(), connected() as pair, open_registry() as registry:
        await registry.add_session("alice", pair.transport)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert [message async for message in pair.transport] == []

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await registry.remove_session("alice")
        assert await closes(pair) == (1000, "removed")


async def test_a_client_is_told_that_another_has_taken_its_session_over() -> None:
    """By the registry, which hands the reason on."""
    async with bounded(), connected() as older, connected() as newer, open_registry() as registry:
        await registry.add_session("alice", older.transport)
        await registry.add_session("alice", newer.transport)
        assert await closes(older) == (4409, "taken_over")
        assert await newer.transport.is_connected() is True


def test_a_missing_package_is_named_with_its_extra() -> None:
    """Importing the transports needs no trio-websocket; making this one does."""
    program = (
        "import sys; sys.modules['trio_websocket'] = None\n"
        "from trio_sessions.transports import StreamTransport, WebSocketTransport\n"
        "try: WebSocketTransport(object())\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(f"{MissingDependency.__name__} WebSocketTransport needs")
    assert "pip install 'trio_sessions[websocket]'" in ran.stdout
