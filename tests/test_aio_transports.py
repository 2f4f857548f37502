"""The transports for asyncio: on a real server, with real clients, and by themselves."""

import asyncio
import json
import math
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar

import pytest
import trio
import trio_websocket
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from trio_websocket import WebSocketConnection

from trio_sessions import MessageTooLarge, RemovalReason
from trio_sessions.aio.transports import SSETransport, WebSocketTransport
from trio_sessions.testing import Connection, conformance_tests, transport_conformance
from trio_sessions.transports import close_code

pytestmark = pytest.mark.usefixtures("asyncio_debug")

T = TypeVar("T")
Transport = WebSocketTransport | SSETransport


class Server(uvicorn.Server):
    """Serves one app on the running loop; its signals stay the test's."""

    def __init__(self, app: Starlette) -> None:
        super().__init__(uvicorn.Config(app, port=0, ws="wsproto", lifespan="off", log_config=None))
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        self.should_exit = True
        await self.shutdown()


class Gateway:
    """An app that makes a transport of each connection, and hands it to the test."""

    def __init__(self, *, reads: bool = True, **options: Any) -> None:
        self.transports: asyncio.Queue[Transport] = asyncio.Queue()
        self.received: list[object] = []
        self._reads = reads
        self._options = options
        self.app = Starlette(
            routes=[WebSocketRoute("/ws", self._talk), Route("/sse", self._stream)]
        )

    async def _talk(self, websocket: WebSocket) -> None:
        await websocket.accept()
        transport = WebSocketTransport(websocket, **self._options)
        self.transports.put_nowait(transport)
        if self._reads:
            self.received += [message async for message in transport]
        while await transport.is_connected():
            await asyncio.sleep(0.01)

    async def _stream(self, _: Request) -> Response:
        transport = SSETransport(**self._options)
        self.transports.put_nowait(transport)
        return StreamingResponse(transport.stream(), media_type="text/event-stream")


# ---- the contract ----


class Asyncio:
    """A loop of asyncio in a thread of its own, to be awaited by a Trio task."""

    def __init__(self) -> None:
        self._loop = asyncio.SelectorEventLoop()  # not the policy's, which is trio-asyncio's here
        self._thread = threading.Thread(target=self._loop.run_forever)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            left = asyncio.all_tasks(self._loop)
            self._loop.close()
            assert left == set()

    async def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        future = asyncio.run_coroutine_threadsafe(function(*args), self._loop)
        try:
            return await trio.to_thread.run_sync(future.result, abandon_on_cancel=True)
        finally:
            future.cancel()


class Link:
    """What a check needs: a transport, for Trio, and a peer that hangs up."""

    def __init__(
        self, loop: Asyncio, transport: Transport, hang_up: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._loop = loop
        self._transport = transport
        self.transport = self
        self.hang_up = hang_up

    async def is_connected(self) -> bool:
        return await self._loop.run(self._transport.is_connected)

    async def disconnect(self) -> None:
        await self._loop.run(self._transport.disconnect)

    async def send(self) -> None:
        await self._loop.run(self._transport.send, ["hello"])


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[Asyncio, Gateway, int]]:
    loop = Asyncio()
    gateway = Gateway(**options)
    server = Server(gateway.app)
    with loop.running():
        await loop.run(server.startup)
        try:
            yield loop, gateway, server.port
        finally:
            with trio.CancelScope(shield=True):
                await loop.run(server.close)


@asynccontextmanager
async def over_websocket(*, reads: bool = True) -> AsyncIterator[Connection]:
    async with served(reads=reads) as (loop, gateway, port), trio.open_nursery() as nursery:
        client = await trio_websocket.connect_websocket(
            nursery, "127.0.0.1", port, "/ws", use_ssl=False
        )
        yield Link(loop, await loop.run(gateway.transports.get), client.aclose)
        await trio.aclose_forcefully(client._stream)
        nursery.cancel_scope.cancel()


def unread_websocket() -> AbstractAsyncContextManager[Connection]:
    """Connect by a WebSocket whose endpoint reads nothing."""
    return over_websocket(reads=False)


@asynccontextmanager
async def over_sse() -> AsyncIterator[Connection]:
    async with (
        served() as (loop, gateway, port),
        await trio.open_tcp_stream("127.0.0.1", port) as client,
    ):
        await client.send_all(b"GET /sse HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200 OK" in await client.receive_some()
        yield Link(loop, await loop.run(gateway.transports.get), client.aclose)


@pytest.fixture(
    params=[over_websocket, unread_websocket, over_sse], ids=["websocket", "unread", "sse"]
)
def connect(
    request: pytest.FixtureRequest,
) -> Callable[[], AbstractAsyncContextManager[Connection]]:
    found: Callable[[], AbstractAsyncContextManager[Connection]] = request.param
    return found


test_they_keep_the_contract = conformance_tests(transport_conformance)


# ---- WebSockets ----


class Talk:
    """A WebSocket at a real server; the transport's methods are called from Trio."""

    def __init__(
        self, loop: Asyncio, gateway: Gateway, transport: Any, client: WebSocketConnection
    ) -> None:
        self.gateway = gateway
        self.client = client
        self.transport = transport
        self._loop = loop

    async def call(self, name: str, *args: Any) -> Any:
        return await self._loop.run(getattr(self.transport, name), *args)

    async def closes(self) -> tuple[int, str | None]:
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            while True:
                await self.client.get_message()
        assert closed.value.reason is not None
        return closed.value.reason.code, closed.value.reason.reason or None


@asynccontextmanager
async def talking(**options: Any) -> AsyncIterator[Talk]:
    with trio.fail_after(40):
        async with served(**options) as (loop, gateway, port), trio.open_nursery() as nursery:
            client = await trio_websocket.connect_websocket(
                nursery, "127.0.0.1", port, "/ws", use_ssl=False, message_queue_size=100
            )
            try:
                yield Talk(loop, gateway, await loop.run(gateway.transports.get), client)
            finally:  # or the server would wait for it
                await trio.aclose_forcefully(client._stream)
            nursery.cancel_scope.cancel()


async def test_values_go_both_ways() -> None:
    """Any JSON value, in order, and the iteration ends with the client."""
    async with talking() as talk:
        for value in ({"a": [1, None]}, None, "", 0, "\N{SNOWMAN}\n", False):
            await talk.call("send", value)
        received = [json.loads(await talk.client.get_message()) for _ in range(6)]
        assert received == [{"a": [1, None]}, None, "", 0, "\N{SNOWMAN}\n", False]
        for text in ('{"a":[1]}', b"null", '"\\u2603"'):
            await talk.client.send_message(text)
        await talk.client.aclose()
        while await talk.call("is_connected"):
            await trio.sleep(0.01)
        while len(talk.gateway.received) < 3:
            await trio.sleep(0.01)
        assert talk.gateway.received == [{"a": [1]}, None, "\u2603"]
        with pytest.raises(ConnectionError):
            await talk.call("receive")


async def test_what_was_read_ahead_is_received_after_the_client_has_gone() -> None:
    """Also if it is no JSON: that costs itself."""
    async with talking(reads=False) as talk:
        for text in ("1", "NaN", "[" * 20_000, b"\xff", "2"):
            await talk.client.send_message(text)
        await talk.client.aclose()
        while await talk.call("is_connected"):
            await trio.sleep(0.01)
        assert await talk.call("receive") == 1
        for _ in range(3):
            with pytest.raises(ValueError):  # noqa: PT011 -- each is refused in other words
                await talk.call("receive")
        assert await talk.call("receive") == 2
        with pytest.raises(ConnectionError, match="the client has gone"):
            await talk.call("receive")


async def test_what_json_cannot_carry_is_not_sent() -> None:
    """Nor is what is too large; the connection stays as it was."""
    async with talking(max_message_bytes=10) as talk:
        with pytest.raises(ValueError, match="NaN or infinity"):
            await talk.call("send", math.nan)
        with pytest.raises(MessageTooLarge, match="max_message_bytes is 10"):
            await talk.call("send", "x" * 9)
        await talk.call("send", "x" * 8)
        assert await talk.client.get_message() == '"xxxxxxxx"'


async def test_a_client_that_does_not_read_is_given_up() -> None:
    """In bounded time; the transport says that it is not connected, for the next pass to hear."""
    async with talking(send_timeout=0.2) as talk:
        with pytest.raises(ConnectionError, match=r"send_timeout \(0.2 s\)"):
            for _ in range(10_000):  # the client has room for a hundred, and the kernel for some
                await talk.call("send", "x" * 100_000)
        assert await talk.call("is_connected") is False
        with pytest.raises(ConnectionError):
            await talk.call("send", 1)
        await trio.aclose_forcefully(talk.client._stream)  # else its server waits for it
        await talk.call("disconnect")


@pytest.mark.parametrize("reason", [None, RemovalReason.DRAINED, RemovalReason.TAKEN_OVER])
async def test_the_client_is_told_why(reason: RemovalReason | None) -> None:
    """By a close code, and by the reason's word; the endpoint ends by itself."""
    async with talking() as talk:
        await talk.call("send", "last words")
        await talk.call("disconnect", reason)
        assert await talk.closes() == (close_code(reason), reason and reason.value)


async def test_a_websocket_must_be_accepted() -> None:
    """Before it is a transport: it says so, and what to do."""

    async def never(*_: Any) -> Any:
        raise AssertionError

    websocket = WebSocket({"type": "websocket", "path": "/", "headers": []}, never, never)
    with pytest.raises(ValueError, match=r"await websocket.accept\(\)"):
        WebSocketTransport(websocket)
    await trio.lowlevel.checkpoint()


def test_neither_package_is_needed_to_import_them() -> None:
    """Nor is trio-websocket."""
    program = (
        "import sys\n"
        "for name in ('starlette', 'sse_starlette', 'trio_websocket'): sys.modules[name] = None\n"
        "from trio_sessions.aio.transports import SSETransport, WebSocketTransport\n"
        "SSETransport()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
