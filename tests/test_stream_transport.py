"""StreamTransport over real sockets, TLS and memory."""

import contextlib
import json
import math
import shutil
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from trio_sessions import MessageTooLarge, Transport, open_registry
from trio_sessions.transports import StreamTransport

SOCKETS = ["tcp", "unix", "tls"]
ALL = [*SOCKETS, "memory"]

Link = tuple[trio.abc.Stream, trio.abc.Stream]
Linker = Callable[[str], Awaitable[Link]]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost, made for this run of the tests."""
    openssl = shutil.which("openssl")
    assert openssl is not None, "these tests make their certificate with the program 'openssl'"
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(path), "-out", str(path.with_suffix(".crt"))),
        ],
        check=True,
        capture_output=True,
    )
    with path.open("a") as both:
        both.write(path.with_suffix(".crt").read_text())
    return path


async def connect_tcp() -> tuple[trio.SocketStream, trio.SocketStream]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        theirs = await trio.open_tcp_stream(*listener.socket.getsockname())
        return await listener.accept(), theirs


async def add_tls(ours: trio.abc.Stream, theirs: trio.abc.Stream, certificate: Path) -> Link:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate)
    client = ssl.create_default_context(cafile=str(certificate))
    pair = (
        trio.SSLStream(ours, server, server_side=True),
        trio.SSLStream(theirs, client, server_hostname="localhost"),
    )
    async with trio.open_nursery() as nursery:
        for side in pair:
            nursery.start_soon(side.do_handshake)
    return pair


@pytest.fixture
async def link(request: pytest.FixtureRequest) -> AsyncIterator[Linker]:
    """Makes connections by their kind: our end, and the peer's."""
    made: list[trio.abc.Stream] = []

    async def make(kind: str) -> Link:
        ours: trio.abc.Stream
        theirs: trio.abc.Stream
        if kind == "memory":
            ours, theirs = trio.testing.memory_stream_pair()
        elif kind == "unix":
            ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
        else:
            ours, theirs = await connect_tcp()
            if kind == "tls":
                certificate = request.getfixturevalue("certificate")
                ours, theirs = await add_tls(ours, theirs, certificate)
        made.extend((ours, theirs))
        return ours, theirs

    yield make
    for stream in made:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def bounded() -> AsyncIterator[None]:
    with trio.fail_after(40):
        yield


async def notices_the_end(transport: StreamTransport) -> None:
    """Wait until the kernel has carried the news over; loopback is quick, not instant."""
    with trio.fail_after(40):
        while await transport.is_connected():
            await trio.lowlevel.checkpoint()


# ---- is it connected? ----


@pytest.mark.parametrize("kind", ALL)
async def test_a_peer_that_closes_is_noticed(link: Linker, kind: str) -> None:
    """Without a write, and without anybody reading."""
    ours, theirs = await link(kind)
    transport = StreamTransport(ours)
    assert isinstance(transport, Transport)
    assert await transport.is_connected() is True
    await theirs.aclose()
    await notices_the_end(transport)
    assert await transport.is_connected() is False


@pytest.mark.parametrize("kind", ALL)
async def test_unread_data_does_not_hide_the_end(link: Linker, kind: str) -> None:
    """And it can still be read."""
    ours, theirs = await link(kind)
    transport = StreamTransport(ours)
    await theirs.send_all(b'"last"\n"words"\n"cut o')
    assert await transport.is_connected() is True
    await theirs.aclose()
    await notices_the_end(transport)
    async with bounded():
        assert [message async for message in transport] == ["last", "words"]
    with pytest.raises(trio.EndOfChannel):
        await transport.receive()


@pytest.mark.parametrize("kind", ["tcp", "unix", "memory"])
async def test_a_peer_that_closes_its_sending_half_is_gone(link: Linker, kind: str) -> None:
    """Although it could still be sent to."""
    ours, theirs = await link(kind)
    assert isinstance(theirs, trio.abc.HalfCloseableStream)
    transport = StreamTransport(ours)
    await theirs.send_eof()
    await notices_the_end(transport)
    await transport.send("farewell")
    assert await theirs.receive_some(100) == b'"farewell"\n'


async def test_a_connection_that_is_reset() -> None:
    """No orderly end, but an error: gone as well."""
    ours, theirs = await connect_tcp()
    async with ours:
        transport = StreamTransport(ours)
        theirs.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await theirs.aclose()
        await notices_the_end(transport)
        with pytest.raises(trio.EndOfChannel):
            await transport.receive()


async def test_a_peer_that_is_killed() -> None:
    """A process that ends without closing anything."""
    program = (
        "import socket, sys, time\n"
        "connection = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "connection.sendall(b'\"hello\"\\n')\n"
        "time.sleep(60)\n"
    )
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    process = await trio.lowlevel.open_process([sys.executable, "-c", program, str(port)])
    try:
        async with bounded():
            stream = await listener.accept()
        async with listener, stream:
            transport = StreamTransport(stream)
            async with bounded():
                assert await transport.receive() == "hello"
            assert await transport.is_connected() is True
            process.kill()
            await notices_the_end(transport)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.parametrize("kind", SOCKETS)
async def test_asking_a_socket_costs_no_checkpoint(link: Linker, kind: str) -> None:
    """Connected, closed by the peer, or closed here: the kernel knows at once."""
    ours, theirs = await link(kind)
    transport = StreamTransport(ours)
    with trio.testing.assert_no_checkpoints():
        assert await transport.is_connected() is True
    await theirs.aclose()
    await notices_the_end(transport)
    with trio.testing.assert_no_checkpoints():
        assert await transport.is_connected() is False
    await transport.disconnect()
    with trio.testing.assert_no_checkpoints():
        assert await transport.is_connected() is False


@pytest.mark.parametrize("kind", ALL)
async def test_a_stream_that_was_closed_behind_its_back(link: Linker, kind: str) -> None:
    """The session is over, not unknown for ever."""
    ours, _theirs = await link(kind)
    transport = StreamTransport(ours)
    await ours.aclose()
    assert await transport.is_connected() is False


@pytest.mark.parametrize("kind", ALL)
async def test_a_check_and_a_reader_do_not_collide(link: Linker, kind: str) -> None:
    """Whoever came first; no message is lost and none comes twice."""
    ours, theirs = await link(kind)
    transport = StreamTransport(ours)
    received: list[object] = []

    async def read() -> None:
        received.extend([await transport.receive() for _ in range(20)])

    async def check() -> None:
        for _ in range(10):
            assert await transport.is_connected() is True
            await trio.lowlevel.checkpoint()

    async with bounded(), trio.open_nursery() as nursery:
        nursery.start_soon(check)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read)
        nursery.start_soon(check)
        for number in range(20):
            await theirs.send_all(b"%d\n" % number)
            await trio.lowlevel.checkpoint()
    assert received == list(range(20))


async def test_a_pass_finds_the_peers_that_have_gone(link: Linker) -> None:
    """In a registry, of forty real connections."""
    async with open_registry() as registry:
        pairs = {f"{kind}-{i}": await link(kind) for kind in ALL for i in range(10)}
        for session_id, (ours, _) in pairs.items():
            await registry.add_session(session_id, StreamTransport(ours))
        gone = {session_id for session_id in pairs if session_id.endswith(("3", "7"))}
        for session_id in gone:
            await pairs[session_id][1].aclose()
            transport = await registry.get_session(session_id)
            assert isinstance(transport, StreamTransport)
            await notices_the_end(transport)
        report = await registry.cleanup()
        assert set(report.disconnected) == gone
        assert report.refreshed == 32
        assert not report.check_failures
    with pytest.raises(trio.ClosedResourceError):
        await pairs["tcp-1"][0].send_all(b"x")


# ---- messages ----


@pytest.mark.parametrize("kind", ALL)
async def test_messages_go_both_ways(link: Linker, kind: str) -> None:
    """Any JSON value, one a line, also without a break between them."""
    ours, theirs = await link(kind)
    here, there = StreamTransport(ours), StreamTransport(theirs)
    values: list[object] = [
        None,
        True,
        1,
        -1.5,
        "",
        "ü🦑\n\r\0\u2028",
        [],
        {},
        {"a": [{"b": None}]},
        "x" * 100_000,
    ]
    async with bounded(), trio.open_nursery() as nursery:

        async def send() -> None:
            for value in values:
                await here.send(value)
                await there.send(value)

        nursery.start_soon(send)
        for value in values:
            assert await here.receive() == value
            assert await there.receive() == value
    async with bounded():
        await here.disconnect()
        assert [message async for message in there] == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [{"a": math.nan}], "\ud800"])
async def test_what_json_cannot_carry_is_not_sent(link: Linker, value: object) -> None:
    """It is refused before a byte of it is on its way."""
    ours, theirs = await link("unix")
    transport = StreamTransport(ours)
    with pytest.raises(ValueError, match=r"."):
        await transport.send(value)
    with pytest.raises(TypeError):
        await transport.send({"a": object()})
    await transport.send("next")
    assert await theirs.receive_some(100) == b'"next"\n'


@pytest.mark.parametrize(
    "line", [b"NaN", b"[-Infinity]", b"{", b"", b"\xff", b"'a'", b"1 2", b"\xef\xbb\xbf1"]
)
async def test_a_line_that_is_no_json(link: Linker, line: bytes) -> None:
    """It is refused, and the next one is read."""
    ours, theirs = await link("unix")
    transport = StreamTransport(ours)
    await theirs.send_all(line + b'\n"next"\n')
    with pytest.raises(ValueError, match=r"."):
        await transport.receive()
    assert await transport.receive() == "next"
    assert await transport.is_connected() is True


async def test_what_is_nested_too_deeply(link: Linker) -> None:
    """A `ValueError` like every other line that cannot be read, in both directions."""
    ours, theirs = await link("memory")
    transport = StreamTransport(ours)
    await theirs.send_all(b"[" * 100_000 + b"]" * 100_000 + b"\n1\n")
    with pytest.raises(ValueError, match="nested"):
        await transport.receive()
    assert await transport.receive() == 1
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="nested"):
        await transport.send(deep)
    while deep:  # else the interpreter itself would recurse to free it
        [deep] = deep  # type: ignore[assignment]  # a list in a list


async def test_a_message_that_is_too_large_is_not_sent(link: Linker) -> None:
    """The limit counts encoded bytes with the end of the line, and is itself allowed."""
    ours, theirs = await link("unix")
    transport = StreamTransport(ours, max_message_bytes=10)
    for message in ("x" * 8, "ü" * 4):
        with pytest.raises(MessageTooLarge, match="11 bytes"):
            await transport.send(message)
    await transport.send("x" * 7)
    assert await theirs.receive_some(100) == b'"xxxxxxx"\n'


@pytest.mark.parametrize("ending", [b'"\n"next"\n', b"", b"x" * 200_000])
async def test_a_line_that_is_too_large_is_not_received(link: Linker, ending: bytes) -> None:
    """Whether it has come to its end or not; there is no reading on after it."""
    ours, theirs = await link("memory")
    transport = StreamTransport(ours, max_message_bytes=10)
    await theirs.send_all(b'"1234567"\n')
    assert await transport.receive() == "1234567"
    await theirs.send_all(b'"123456789' + ending)
    for _ in range(2):
        with pytest.raises(MessageTooLarge, match="max_message_bytes is 10"):
            await transport.receive()
        assert await transport.is_connected() is True


async def test_messages_of_many_tasks_do_not_mix(link: Linker) -> None:
    """Each line is whole, though each needs many writes."""
    ours, theirs = await link("unix")
    transport, peer = StreamTransport(ours), StreamTransport(theirs)
    received = []
    async with bounded(), trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(transport.send, [number] * 50_000)
        for _ in range(20):
            message = await peer.receive()
            assert isinstance(message, list)
            assert len(message) == 50_000
            assert len(set(message)) == 1
            received.append(message[0])
    assert sorted(received) == list(range(20))


@pytest.mark.parametrize("kind", SOCKETS)
async def test_a_send_that_is_cancelled_closes_the_stream(link: Linker, kind: str) -> None:
    """A part of a line may be out, and nothing after it could be understood."""
    ours, theirs = await link(kind)
    transport = StreamTransport(ours, max_message_bytes=100_000_000)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.send, "x" * 50_000_000)  # more than any buffer holds
            await trio.testing.wait_all_tasks_blocked(0.01)
            scope.cancel()
    assert scope.cancelled_caught
    assert await transport.is_connected() is False
    with pytest.raises(trio.ClosedResourceError):
        await transport.send("more")
    sent = b""
    async with bounded():
        with contextlib.suppress(trio.BrokenResourceError):  # TLS tells an end from a cut
            async for data in theirs:
                sent += data
    assert 0 < len(sent) < 50_000_000
    assert b"more" not in sent


async def test_a_send_that_is_cancelled_while_it_waits_for_its_turn(link: Linker) -> None:
    """It has sent nothing, so it harms nobody."""
    ours, theirs = await link("unix")
    transport = StreamTransport(ours, max_message_bytes=100_000_000)
    peer = StreamTransport(theirs, max_message_bytes=100_000_000)
    async with bounded(), trio.open_nursery() as nursery:
        nursery.start_soon(transport.send, "x" * 5_000_000)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiting:
                waiting.start_soon(transport.send, "never sent")
                await trio.testing.wait_all_tasks_blocked(0.01)
                scope.cancel()
        assert scope.cancelled_caught
        assert await peer.receive() == "x" * 5_000_000
    assert await transport.is_connected() is True
    await transport.send("next")
    assert await peer.receive() == "next"


async def test_a_receive_that_is_cancelled_loses_nothing(link: Linker) -> None:
    """Half a line is kept for the next call."""
    ours, theirs = await link("unix")
    transport = StreamTransport(ours)
    await theirs.send_all(b'"first ')
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive)
            await trio.testing.wait_all_tasks_blocked(0.01)
            scope.cancel()
    await theirs.send_all(b'half"\n')
    assert await transport.receive() == "first half"


@pytest.mark.parametrize("kind", ALL)
async def test_sending_to_a_peer_that_is_gone(link: Linker, kind: str) -> None:
    """It raises `trio.BrokenResourceError`, after which this end is closed."""
    ours, theirs = await link(kind)
    transport = StreamTransport(ours)
    await trio.aclose_forcefully(theirs)
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(1000):  # the kernel takes the first, and is told only then
            await transport.send("x" * 1000)
    assert await transport.is_connected() is False
    await transport.disconnect()


# ---- disconnecting ----


@pytest.mark.parametrize("kind", ALL)
async def test_disconnecting_closes_both_ways_and_twice_is_fine(link: Linker, kind: str) -> None:
    """The peer reads the end, this end is closed, and whoever waits is woken."""
    ours, theirs = await link(kind)
    transport = StreamTransport(ours)
    await transport.send(1)
    async with bounded(), trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.receive()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(transport.disconnect)
        nursery.start_soon(transport.disconnect)
    await transport.disconnect()
    assert await transport.is_connected() is False
    with pytest.raises(trio.ClosedResourceError):
        await transport.send(2)
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive()
    assert await theirs.receive_some(100) == b"1\n"
    assert await theirs.receive_some(100) == b""


@pytest.mark.parametrize("kind", ALL)
async def test_disconnecting_from_a_peer_that_is_gone(link: Linker, kind: str) -> None:
    """It is no error."""
    ours, theirs = await link(kind)
    await trio.aclose_forcefully(theirs)
    await StreamTransport(ours).disconnect()


@pytest.mark.parametrize("kind", SOCKETS)
async def test_disconnecting_from_a_peer_that_does_not_read(link: Linker, kind: str) -> None:
    """While a send is stuck: at the latest when the deadline cancels it, all is closed."""
    ours, _theirs = await link(kind)
    transport = StreamTransport(ours, max_message_bytes=100_000_000)
    async with bounded(), trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await transport.send("x" * 50_000_000)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.2):
            await transport.disconnect()
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"x")


def test_json_lines_are_what_others_read() -> None:
    """A peer in any language: one line of UTF-8 for each value, without escapes."""

    async def main() -> bytes:
        ours, theirs = trio.testing.memory_stream_pair()
        await StreamTransport(ours).send({"name": "ü"})
        return bytes(await theirs.receive_some(100))

    line = trio.run(main)
    assert line == '{"name": "ü"}\n'.encode()
    assert json.loads(line) == {"name": "ü"}
