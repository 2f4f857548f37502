"""The SSE transport of old clients: the stream is at one worker, posts reach any of them."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import MethodType
from typing import Any

import anyio
import httpx2
import mcp_types
import pytest

pytest.importorskip("mcp")

from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.server import MCPServer
from mcp.server.sse import SseServerTransport
from mcp_fleet import BACKENDS, Calls, Fleet, at, leave_early, make_app, open_fleet, raw, run
from starlette.responses import StreamingResponse
from starlette.routing import Mount, Route
from test_mcp_owners import one_store

from trio_sessions import aio
from trio_sessions.limits import Limits
from trio_sessions.mcp import SessionRouter, handlers
from trio_sessions.mcp._sdk import find_endpoints
from trio_sessions.mcp._sse_stream import id_in
from trio_sessions.testing import Fault

both = pytest.mark.parametrize("backend", BACKENDS)
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")

HOST = "http://127.0.0.1:8000"
SSE = f"{HOST}/sse"
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


async def ticks(_: Any) -> StreamingResponse:
    """Be a stream of the application's own, which no session belongs to."""

    async def lines() -> AsyncIterator[bytes]:
        for i in range(3):
            yield b"data: %d\n\n" % i
            await anyio.lowlevel.checkpoint()

    return StreamingResponse(lines(), media_type="text/event-stream")


def make_both(registry: Any, bus: Any, calls: Calls, **settings: Any) -> tuple[Any, Any]:
    """Return a server, and an application with both of its transports."""
    server, app = make_app(registry, bus, calls, **settings)
    app.router.routes.extend(server.sse_app().routes)
    app.router.routes.append(Route("/ticks", ticks))
    return server, app


def old_fleet(backend: str, **settings: Any) -> Any:
    return open_fleet(backend, one_store(), make=make_both, **settings)


class Stream:
    """A stream of an old client, by hand."""

    def __init__(self, http: httpx2.AsyncClient, lines: AsyncIterator[str], endpoint: str) -> None:
        self.http = http
        self.lines = lines
        self.endpoint = endpoint
        self.session_id = endpoint.rpartition("=")[2]

    async def post(self, message: Any, **headers: str) -> int:
        answer = await self.http.post(HOST + self.endpoint, json=message, headers=headers)
        return answer.status_code

    async def next(self) -> Any:
        async for line in self.lines:
            if line.startswith("data: "):
                return json.loads(line.removeprefix("data: "))
        return None


@asynccontextmanager
async def listen(http: httpx2.AsyncClient) -> AsyncIterator[Stream]:
    """Open a stream, and read where to post."""
    async with http.stream("GET", SSE) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: endpoint"
        yield Stream(http, lines, (await anext(lines)).removeprefix("data: "))


@asynccontextmanager
async def one_stream(backend: str, **settings: Any) -> AsyncIterator[tuple[Fleet, Stream]]:
    """Start workers, and open a stream at the first."""
    async with old_fleet(backend, **settings) as fleet, raw(fleet) as http:
        at(fleet, 0)
        async with listen(http) as stream:
            yield fleet, stream


async def until_gone(fleet: Fleet) -> None:
    """Wait until no worker holds anything."""
    for worker in fleet.workers:
        while worker.ids():
            await anyio.sleep(0.01)


@both
def test_posts_reach_their_stream_from_any_worker(backend: str) -> None:
    """A client of the SDK's is answered, with progress and elicitation; nothing is left of it."""

    async def scenario() -> None:
        async def elicit(context: Any, params: Any) -> mcp_types.ElicitResult:
            return mcp_types.ElicitResult(action="accept", content={"name": "bob"})

        async with old_fleet(backend) as fleet:

            def factory(*_: Any, **__: Any) -> httpx2.AsyncClient:
                return httpx2.AsyncClient(transport=fleet, timeout=30.0)

            async with (
                sse_client(SSE, httpx_client_factory=factory) as streams,
                ClientSession(streams[0], streams[1], elicitation_callback=elicit) as session,
            ):
                await session.initialize()
                for n in range(1, 6):
                    answer = await session.call_tool("add", {"n": n})
                    assert answer.structured_content == {"result": n + 1}
                    assert "hello bob" in str((await session.call_tool("ask", {})).content)
            posts = [(worker, status) for method, worker, status in fleet.seen if method == "POST"]
            assert {status for _, status in posts} == {202}
            assert len({worker for worker, _ in posts}) == 2
            await until_gone(fleet)

    run(backend, scenario)


@both
def test_a_session_ends_with_its_stream(backend: str) -> None:
    """Whoever posts to it later is told that there is none, by every worker."""

    async def scenario() -> None:
        async with old_fleet(backend) as fleet, raw(fleet) as http:
            at(fleet, 0)
            async with listen(http) as stream:
                assert fleet.workers[0].ids() == [f"sse:{stream.session_id}"]
                for worker in (0, 1):
                    at(fleet, worker)
                    assert await stream.post(PING) == 202
                    assert (await stream.next())["id"] == 1
            await until_gone(fleet)
            for worker in (0, 1):
                at(fleet, worker)
                assert await stream.post(PING) == 404
                never = HOST + stream.endpoint.replace(stream.session_id, "0" * 32)
                assert (await http.post(never, json=PING)).status_code == 404

    run(backend, scenario)


@both
def test_a_large_post_goes_along_and_a_larger_one_does_not(backend: str) -> None:
    """In parts; the router's limit holds."""

    async def scenario() -> None:
        router = {"max_body_bytes": 1_000_000}
        async with one_stream(backend, router=router) as (fleet, stream):
            big = {**PING, "params": {"_meta": {"x": "y" * 500_000}}}
            for worker in (0, 1):
                at(fleet, worker)
                assert await stream.post(big) == 202
                assert (await stream.next())["id"] == 1
                assert await stream.post({**PING, "params": {"x": "y" * 1_000_000}}) == 413

    run(backend, scenario)


@both
@pytest.mark.parametrize("by", ["the SDK", "a function"])
def test_a_stream_takes_posts_of_its_owner_only(backend: str, by: str) -> None:
    """At every worker, and whatever else the post says of itself."""

    async def scenario() -> None:
        settings: dict[str, Any] = {"authenticates": True}
        if by == "a function":
            settings = {
                "router": {"owner": lambda scope: dict(scope["headers"])[b"authorization"].decode()}
            }
        async with (
            old_fleet(backend, **settings) as fleet,
            raw(fleet, "alice") as alice,
            raw(fleet, "bob") as bob,
        ):
            at(fleet, 0)
            async with listen(alice) as hers, listen(bob) as his:
                info = await fleet.workers[1].registry.describe_session(f"sse:{hers.session_id}")
                assert "alice" in info.owner
                path, _, query = hers.endpoint.partition("?")
                dashed = re.sub("(.{8})(.{4})(.{4})(.{4})(.{12})", r"{\1-\2-\3-\4-\5}", query[11:])
                for worker in (0, 1):
                    at(fleet, worker)
                    for url in (
                        hers.endpoint,
                        f"{path}more?{query}",
                        f"{path}?session_id=urn:uuid:{dashed.upper()}",
                        f"{path}?session_id={his.session_id}&{query}",
                    ):
                        for named in (None, f"sse:{his.session_id}", f"sse:{hers.session_id}"):
                            headers = {} if named is None else {"mcp-session-id": named}
                            answer = await bob.post(HOST + url, json=PING, headers=headers)
                            assert answer.status_code == 404, (worker, url, named)
                    assert await hers.post(PING) == 202
                    assert (await hers.next())["id"] == 1

    run(backend, scenario)


@both
def test_a_stream_does_not_move(backend: str) -> None:
    """Nobody adopts it: posts wait for its worker to be heard of again, or for the row to go."""

    async def scenario() -> None:
        async with one_stream(backend) as (fleet, stream):
            await fleet.workers.pop(0).vanish()
            await fleet.workers[0].sees_the_death(f"sse:{stream.session_id}")
            answer = await stream.http.post(HOST + stream.endpoint, json=PING)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert fleet.workers[0].ids() == []

    run(backend, scenario)


@both
def test_the_streams_of_a_worker_that_ends_end(backend: str) -> None:
    """After its other sessions have moved; and it begins no more of them."""

    async def scenario() -> None:
        async with one_stream(backend) as (fleet, stream):
            await fleet.workers[0].router.leave()
            assert await stream.next() is None
            refused = await stream.http.get(SSE)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            await until_gone(fleet)

    run(backend, scenario)


@both
def test_a_stream_that_begins_while_its_worker_ends_does_not_begin(backend: str) -> None:
    """Its row is just being written: it ends with the others, and its client is told so."""

    async def scenario() -> None:
        async with old_fleet(backend, size=1) as fleet, raw(fleet) as http:
            worker = fleet.workers[0]
            worker.store.fail(Fault.ANSWERS_LATE, "Claim", times=1, seconds=0.5)
            answers: list[httpx2.Response] = []

            async def ask() -> None:
                answers.append(await http.get(SSE))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                while not worker.ids():
                    await anyio.sleep(0.01)
                await worker.router.leave()
            assert [answer.status_code for answer in answers] == [503]
            assert worker.ids() == []

    run(backend, scenario)


@both
def test_a_session_that_a_limit_lets_not_in_has_no_stream(backend: str) -> None:
    """Its client is told so by a status; the session that was there goes on."""

    async def scenario() -> None:
        limits = Limits(max_sessions=1)
        async with one_stream(backend, size=1, limits=limits) as (_, stream):
            refused = await stream.http.get(SSE)
            assert refused.status_code == 503
            assert "endpoint" not in refused.text
            assert await stream.post(PING) == 202
            assert (await stream.next())["id"] == 1

    run(backend, scenario)


@both
@pytest.mark.parametrize("takes", [True, False])
def test_what_was_answered_reaches_the_server(
    backend: str, caplog: pytest.LogCaptureFixture, *, takes: bool
) -> None:
    """The SDK answers a post first; the worker that passed it on has left by then."""

    async def scenario() -> None:
        router = {"call_timeout": 1.0}
        async with one_stream(backend, router=router) as (fleet, stream):
            may_take, is_over = anyio.Event(), anyio.Event()

            async def app(scope: Any, receive: Any, send: Any) -> None:
                await send({"type": "http.response.start", "status": 202, "headers": []})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                try:
                    await may_take.wait()
                finally:
                    is_over.set()

            fleet.workers[0].router._sse._app = app
            at(fleet, 1)
            assert await stream.post(PING) == 202
            await anyio.wait_all_tasks_blocked()
            assert not is_over.is_set()
            if takes:
                may_take.set()
            await is_over.wait()
            await anyio.wait_all_tasks_blocked()
            assert ("does not take" in caplog.text) is not takes

    run(backend, scenario)


@both
def test_a_client_that_leaves_before_its_session_is_told_leaves_none(backend: str) -> None:
    """The database is slow, and the session stays added though nobody waits for it any more."""

    async def scenario() -> None:
        async with old_fleet(backend, size=1) as fleet:
            worker = fleet.workers[0]
            worker.store.fail(Fault.ANSWERS_LATE, "Claim", times=1, seconds=0.5)
            await leave_early(worker, httpx2.Request("GET", SSE))
            with anyio.fail_after(10):
                await until_gone(fleet)

    run(backend, scenario)


@both
def test_a_session_that_is_revoked_ends_its_stream(backend: str) -> None:
    """At the worker that holds it, asked at another."""

    async def scenario() -> None:
        async with one_stream(backend) as (fleet, stream):
            await fleet.workers[1].registry.revoke(f"sse:{stream.session_id}")
            assert await stream.next() is None
            await until_gone(fleet)

    run(backend, scenario)


@both
def test_a_post_waits_for_a_database_that_is_away(backend: str) -> None:
    """503 where nobody can say who holds the stream; at its own worker nothing is asked."""

    async def scenario() -> None:
        async with one_stream(backend) as (fleet, stream):
            for worker in fleet.workers:
                worker.store.fail()
            assert await stream.post(PING) == 202
            at(fleet, 1)
            assert await stream.post(PING) == 503
            for worker in fleet.workers:
                worker.store.heal()

    run(backend, scenario)


@both
def test_what_is_no_such_stream_passes_untouched(backend: str) -> None:
    """A stream of the application's own, a post elsewhere, and one that names no session."""

    async def scenario() -> None:
        async with old_fleet(backend) as fleet, raw(fleet) as http:
            answer = await http.get(f"{HOST}/ticks")
            assert answer.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
            asked = [worker.store.calls["describe"] for worker in fleet.workers]
            named = f"session_id={'0' * 32}"
            assert (await http.post(f"{HOST}/ticks?{named}")).status_code == 405
            for query in ("", "?session_id=", "?session_id=7", "?other=7"):
                answer = await http.post(f"{HOST}/messages/{query}", json=PING)
                assert answer.status_code == 400
            assert (await http.get(f"{HOST}/nothing")).status_code == 404
            assert asked == [worker.store.calls["describe"] for worker in fleet.workers]
            assert all(worker.ids() == [] for worker in fleet.workers)

    run(backend, scenario)


@both
@pytest.mark.parametrize("chunks", [1, 3, 7, 1000])
def test_a_first_event_is_read_in_whatever_pieces_it_comes(backend: str, chunks: int) -> None:
    """And what follows it is sent on as it comes."""
    named = "0123456789abcdef" * 2

    async def scenario() -> None:
        async with old_fleet(backend, size=1) as fleet, raw(fleet) as http:
            text = f"event: endpoint\r\ndata: /messages/?session_id={named}\r\n\r\n: more\r\n\r\n"
            held: list[list[str]] = []

            async def app(scope: Any, receive: Any, send: Any) -> None:
                headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                body = text.encode()
                for i in range(0, len(body), chunks):
                    part = body[i : i + chunks]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                held.append(fleet.workers[0].ids())

            fleet.workers[0].router._sse._app = app
            assert (await http.get(SSE)).text == text
            assert held == [[f"sse:{named}"]]
            await until_gone(fleet)

    run(backend, scenario)


def test_a_transport_that_does_not_say_where_to_post_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the versions that do."""
    app = MCPServer("old").sse_app()
    transport = next(
        route.app.__self__
        for route in app.routes
        if isinstance(route, Mount) and isinstance(route.app, MethodType)
    )
    assert isinstance(transport, SseServerTransport)
    monkeypatch.delattr(transport, "_endpoint")
    with pytest.raises(ImportError, match=r"mcp>=2\.3,<3.*_endpoint"):
        find_endpoints(app)


def test_an_application_with_streams_alone_will_do() -> None:
    """It needs no manager of sessions; one with neither is refused, see test_mcp_surface."""
    app = MCPServer("old").sse_app(message_path="/deep/messages")
    assert find_endpoints(app) == {"/deep/messages/"}
    SessionRouter(app, aio.SessionRegistry(handlers=handlers()))


@pytest.mark.parametrize("query", [b"", b"session_id", b"session_id=7", b"a=1", b"session_id=\xff"])
def test_a_query_that_names_no_session(query: bytes) -> None:
    """The SDK answers it."""
    assert id_in(query) is None
