"""SSETransport by itself: what it streams, what it bounds, and how it ends."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from sse_starlette import EventSourceResponse
from starlette.responses import StreamingResponse

from trio_sessions import RemovalReason, aio
from trio_sessions.aio.transports import SSETransport


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:  # not trio-asyncio's
        runner.run(main)


async def encoded(transport: SSETransport) -> list[str]:
    return [event.decode() async for event in transport.stream()]


def test_events_are_streamed_in_order_with_the_reason_last() -> None:
    """Also those that were sent before anybody streamed; what waits at the end is not lost."""

    async def main() -> None:
        transport = SSETransport()
        await transport.send({"session": "s"}, event="session")
        await transport.send("two\nlines")
        streaming = asyncio.create_task(encoded(transport))
        await asyncio.sleep(0)
        assert await transport.is_connected() is True
        await transport.send(None)
        await transport.disconnect(RemovalReason.TAKEN_OVER)
        await transport.disconnect(RemovalReason.CLOSED)
        assert await transport.is_connected() is False
        with pytest.raises(ConnectionError):
            await transport.send(1)
        assert await streaming == [
            'event: session\ndata: {"session":"s"}\n\n',
            'event: message\ndata: "two\\nlines"\n\n',
            "event: message\ndata: null\n\n",
            'event: end\ndata: "taken_over"\n\n',
        ]
        with pytest.raises(RuntimeError, match="streamed before"):
            await encoded(transport)

    run(main())


def test_a_full_queue_holds_the_sender_until_there_is_room() -> None:
    """So a client that reads slowly slows its sender down, and nothing is lost."""

    async def main() -> None:
        transport = SSETransport(max_events=2)

        async def send_all() -> None:
            for number in range(10):
                await transport.send(number)
            await transport.disconnect()

        sending = asyncio.create_task(send_all())
        await asyncio.sleep(0.01)
        assert len(transport._events) == 2
        received = await encoded(transport)
        assert received == [f"event: message\ndata: {number}\n\n" for number in range(10)]
        await sending

    run(main())


def test_a_client_that_makes_no_room_is_given_up() -> None:
    """What waited is dropped, and the stream ends, once it is asked to go on."""

    async def main() -> None:
        transport = SSETransport(max_events=2, send_timeout=0.05)
        stream = transport.stream()
        await transport.send(1)
        assert await anext(stream)
        for _ in range(2):
            await transport.send(2)
        with pytest.raises(ConnectionError, match=r"2 events unread for send_timeout \(0.05 s\)"):
            await transport.send(3)
        assert await transport.is_connected() is False
        assert [event async for event in stream] == []

    run(main())


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_a_stream_that_is_left_means_that_the_client_has_gone(how: str) -> None:
    """Whoever waits for room is told at once."""

    async def main() -> None:
        transport = SSETransport(max_events=1)
        if how == "cancelled":
            streaming = asyncio.create_task(encoded(transport))
            await asyncio.sleep(0)
            streaming.cancel()
            await asyncio.wait([streaming])
            sending = asyncio.create_task(transport.send(2))
        else:
            stream = transport.stream()
            await transport.send(1)
            assert await anext(stream)
            await transport.send(1)
            sending = asyncio.create_task(transport.send(2))
            await asyncio.sleep(0)
            await stream.aclose()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionError, match="the client has gone"):
            await sending
        assert await transport.is_connected() is False
        await transport.disconnect(RemovalReason.REMOVED)

    run(main())


@pytest.mark.parametrize("name", ["", "a\nb", "a\rb", "a\0"])
def test_the_name_of_an_event_is_one_line(name: str) -> None:
    """Else a name could bring events of its own along."""
    with pytest.raises(ValueError, match="event must be one line"):
        run(SSETransport().send(1, event=name))


def test_room_for_no_event_is_refused() -> None:
    """It could never send anything."""
    with pytest.raises(ValueError, match="max_events must be at least 1, not 0"):
        SSETransport(max_events=0)


@pytest.mark.parametrize("response", [StreamingResponse, EventSourceResponse])
def test_the_pass_keeps_a_stream_and_removes_one_that_has_ended(response: Any) -> None:
    """By a registry, and by a response of either kind that is given to a server."""

    async def main() -> None:
        body: list[bytes] = []
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)
            body.append(message.get("body", b""))

        async with aio.SessionRegistry() as registry:
            transport = SSETransport()
            await registry.add_session("alice", transport)
            serve = response(transport.stream(), media_type="text/event-stream")
            serving = asyncio.create_task(serve({"type": "http", "method": "GET"}, receive, send))
            await transport.send("hello")
            while b'event: message\ndata: "hello"\n\n' not in body:
                await asyncio.sleep(0)
            assert (await registry.cleanup()).disconnected == ()
            gone.set()
            await serving
            assert (await registry.cleanup()).disconnected == ("alice",)

    run(main())
