"""What goes from worker to worker in letters: a client that asks either is told the same."""

from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import BACKENDS, HEADERS, URL, at, begin, open_fleet, raw, run
from test_mcp_sse import one_stream
from test_mcp_surface import made_app
from test_mcp_timeouts import ECHO, HOLDER, OTHER, SLOW, jumping, open_two

from trio_sessions import aio
from trio_sessions.errors import StoreUnavailable, WorkerGone
from trio_sessions.mcp import SessionRouter, handlers
from trio_sessions.mcp._tunnel import PART_BYTES, _Answer
from trio_sessions.stores.memory import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")

EVENT = b"id: 1\r\ndata: {}\r\n\r\n"
PING = b": ping - 2026-01-01 00:00:00+00:00\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "arrives"),
    [
        ([EVENT, PING, EVENT], EVENT + EVENT),
        ([PING, PING.replace(b"\r\n", b"\n"), EVENT], EVENT),
        ([PING + EVENT], PING + EVENT),
        ([EVENT, PING + EVENT, PING], EVENT + PING + EVENT),
        ([b": ping", b"\r\n\r\n", EVENT], b": ping\r\n\r\n" + EVENT),
        ([b"data", b": ping\r\n\r\n", PING], b"data: ping\r\n\r\n"),
    ],
)
def test_of_a_stream_only_comments_are_dropped(pieces: list[bytes], arrives: bytes) -> None:
    """A middleware may merge pieces, or cut them anywhere: no event is lost by it."""

    async def scenario() -> None:
        answer = _Answer(PART_BYTES)
        headers = [(b"content-type", b"text/event-stream")]
        await answer._send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await answer._send({"type": "http.response.body", "body": piece, "more_body": True})
        await answer._send({"type": "http.response.body", "body": b""})
        body = bytearray()
        while not answer.is_over:
            body += (await answer.next()).body
        assert bytes(body) == arrives

    run("trio", scenario)


@pytest.mark.parametrize("json_response", [False, True])
@pytest.mark.parametrize("text", ["x" * 60_000, "\x00" * 20_000, "ä" * 60_000, "x" * 300_000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_small_letters_hold_any_call(backend: str, text: str, *, json_response: bool) -> None:
    """JSON in JSON may be many times as large."""

    async def scenario() -> None:
        store = MemoryStore()
        async with (
            open_fleet(
                backend, lambda: store, json_response=json_response, max_message_bytes=65_536
            ) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, HOLDER)
            call = {**ECHO, "params": {"name": "echo", "arguments": {"text": text}}}
            answers: list[Any] = []
            for worker in (HOLDER, OTHER):
                at(fleet, worker)
                answers.append(
                    await http.post(
                        URL, json=call, headers={**HEADERS, "mcp-session-id": session_id}
                    )
                )
            assert [answer.status_code for answer in answers] == [200, 200]
            own, passed_on = (answer.text.rpartition('{"jsonrpc"')[2] for answer in answers)
            assert own == passed_on
            assert len(own) > len(text)

    run(backend, scenario)


def test_letters_that_are_too_small_are_refused() -> None:
    """Not when the first large request comes."""
    registry = aio.SessionRegistry(handlers=handlers(), max_message_bytes=65_535)
    with pytest.raises(ValueError, match=r"max_message_bytes .* 65536 or more .* not 65535"):
        SessionRouter(made_app(), registry)


@pytest.mark.parametrize("size", [10, 2 * PART_BYTES], ids=["whole", "in parts"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_worker_that_is_busy_is_to_be_asked_again(
    backend: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has refused the call before anything was done: a stream took its last place."""
    monkeypatch.setattr("trio_sessions._mail._serving._MOST", 1)

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            at(fleet, OTHER)
            headers = {**HEADERS, "mcp-session-id": session_id}
            call = {**ECHO, "params": {"name": "echo", "arguments": {"text": "x" * size}}}
            async with http.stream("GET", URL, headers=headers) as stream:
                assert stream.status_code == 200
                answer = await http.post(URL, json=call, headers=headers)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            while (await http.post(URL, json=call, headers=headers)).status_code == 503:
                await anyio.sleep(0.01)
            answer = await http.post(URL, json=call, headers=headers)
            assert answer.status_code == 200

    run(backend, scenario)


@pytest.mark.parametrize(("method", "status"), [("tools/call", 502), ("tools/list", 503)])
def test_what_may_have_been_asked_is_not_to_be_asked_again(
    method: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The letter may have been left, though the database says nothing: a call may be run."""

    async def scenario() -> None:
        async with open_two(json_response=True) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            calling = fleet.workers[OTHER].registry._house._mail._calling
            ask = calling.ask

            async def asks(*args: Any) -> None:
                await ask(*args)
                raise StoreUnavailable("the answer of the database was lost")

            monkeypatch.setattr(calling, "ask", asks)
            at(fleet, OTHER)
            headers = {**HEADERS, "mcp-session-id": session_id}
            answer = await http.post(URL, json={**SLOW, "method": method}, headers=headers)
            assert answer.status_code == status
            assert answer.headers.get("retry-after") == ("1" if status == 503 else None)

    jumping(scenario)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), WorkerGone("dead")])
@pytest.mark.parametrize(("method", "status"), [("tools/call", 502), ("tools/list", 503)])
def test_what_may_have_been_posted_is_not_to_be_posted_again(
    method: str, status: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor by an old client, whose stream goes on: who seemed to be dead may only have slept."""

    async def scenario() -> None:
        async with one_stream("trio") as (fleet, stream):
            workers = fleet.workers[OTHER].registry.workers

            @asynccontextmanager
            async def nothing_comes(*args: Any, **settings: Any) -> Any:
                async def items() -> Any:
                    raise error
                    yield

                yield items()

            monkeypatch.setattr(workers, "stream", nothing_comes)
            at(fleet, OTHER)
            assert await stream.post({**SLOW, "method": method}) == status

    run("trio", scenario)
