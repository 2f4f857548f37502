"""A replay's events go many in one piece, and are what the SDK would have sent one by one."""

import gc
import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp.server.mcpserver import Context
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp_fleet import BACKENDS, HEADERS, URL, Calls, Fleet, at, begin, make_server, open_fleet, run
from mcp_fleet import raw as raw_client
from mcp_types import JSONRPCMessage, JSONRPCNotification, ToolListChangedNotification
from sse_starlette import EventSourceResponse

from trio_sessions.mcp import SessionEventStore
from trio_sessions.mcp._outlet import Innermost, Outlet, outlet
from trio_sessions.stores.memory import MemoryStore

both = pytest.mark.parametrize("backend", BACKENDS)
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")

LINES = [
    "plain",
    "two\nlines",
    "\r\n\r\nid: 1\r\n",
    "\u2028\u2029\x85\x0b\x00",
    "é🙂",
    "",
    "data: x",
]
PAGE = 200  # events that are read from the log at a time, of which there would be 1,000
MANY = PAGE + 150


@pytest.fixture(autouse=True)
def short_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """To say more events than a page holds takes most of the time."""
    monkeypatch.setattr("trio_sessions.mcp._events._PAGE", PAGE)


@pytest.fixture(autouse=True)
def no_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes so long for a stream that the SDK's server says in it that it lives."""
    monkeypatch.setattr("sse_starlette.sse.EventSourceResponse.DEFAULT_PING_INTERVAL", 3600)


class Between:
    """A middleware in the application: it sees, may change and may hold what a GET is answered."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.change: Callable[[bytes], bytes] = lambda body: body
        self.holds = False
        self.is_holding = anyio.Event()
        self.release = anyio.Event()

    def __call__(self, app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def tell(message: Any) -> None:
                if message.get("body"):
                    self.pieces.append(message["body"])
                    if self.holds:
                        self.is_holding.set()
                        await self.release.wait()
                    message = {**message, "body": self.change(message["body"])}
                await send(message)

            is_get = scope["type"] == "http" and scope["method"] == "GET"
            await app(scope, receive, tell if is_get else send)

        return middleware


class Adapter(EventStore):
    """Stands before a store, as users' own may, and has each event on its way to the SDK."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.is_there = True
        self.had = 0

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        return await self._store.store_event(stream_id, message)

    async def replay_events_after(self, last_event_id: str, send: EventCallback) -> str | None:
        async def pass_on(event: EventMessage) -> None:
            self.had += 1
            await send(event)

        return await self._store.replay_events_after(
            last_event_id, pass_on if self.is_there else send
        )


def making(between: Between, adapter: list[Adapter] | None = None) -> Callable[..., Any]:
    """Return what makes an application with a tool that says much."""

    def make(registry: Any, bus: Any, calls: Calls, **_: Any) -> tuple[Any, Any]:
        server = make_server(bus, calls)

        @server.tool()
        async def recite(texts: list[str], then: list[str], ctx: Context) -> str:
            """Say texts, and others when the test says so."""
            for text in texts:
                await ctx.report_progress(1, 2, text)
            if then:
                calls.started.setdefault("g", anyio.Event()).set()
                await calls.gates.setdefault("g", anyio.Event()).wait()
            for text in then:
                await ctx.report_progress(2, 2, text)
            done = ToolListChangedNotification()  # without what most have: params
            await ctx.session.send_notification(done, related_request_id=ctx.request_id)
            return "the end"

        store: EventStore = SessionEventStore(registry)
        if adapter is not None:
            store = Adapter(store)
            adapter.append(store)
        app = server.streamable_http_app(event_store=store)
        app.add_middleware(between)
        return server, app

    return make


def one_store() -> Any:
    store = MemoryStore()
    return lambda: store


def recite(texts: list[str], then: list[str] | None = None) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {
            "name": "recite",
            "arguments": {"texts": texts, "then": then or []},
            "_meta": {"progressToken": 7},
        },
    }


def headers(session_id: str, last_event_id: str | None = None) -> dict[str, str]:
    more = {} if last_event_id is None else {"last-event-id": last_event_id}
    return {
        **HEADERS,
        "mcp-session-id": session_id,
        "mcp-protocol-version": "2025-11-25",
        **more,
    }


def first_id(text: str) -> str:
    return next(line[4:] for line in text.splitlines() if line.startswith("id: "))


def texts_of(stream: str) -> list[str]:
    """Return what a stream's complete events say, in their order."""
    said = []
    for block in stream.split("\r\n\r\n")[:-1]:
        data = block.partition("data: ")[2]
        if data.strip():
            message = json.loads(data)
            if "params" in message:
                said.append(message["params"]["message"])
            elif "result" in message:
                said.append(message["result"]["structuredContent"]["result"])
    return said


async def cut_off(fleet: Fleet, http: Any, session_id: str, asked: Any) -> str:
    """Make a call whose client leaves at once, and return the id of its stream's beginning."""
    async with http.stream("POST", URL, json=asked, headers=headers(session_id)) as answer:
        async for text in answer.aiter_text():
            first = first_id(text)
            break
        await fleet.workers[0].calls.started.setdefault("g", anyio.Event()).wait()
    return first


@both
@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_events_go_many_in_one_piece(backend: str, place: str) -> None:
    """Of more events than pages hold, no hundredth as many pieces are made; none is lost."""

    async def scenario() -> None:
        between = Between()
        async with (
            open_fleet(backend, one_store(), make=making(between)) as fleet,
            raw_client(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            said = [str(number) for number in range(MANY)]
            answer = await http.post(URL, json=recite(said), headers=headers(session_id))
            if place == "elsewhere":
                at(fleet, 1)
            again = await http.get(URL, headers=headers(session_id, first_id(answer.text)))
            assert texts_of(again.text) == [*said, "the end"]
            assert len(between.pieces) <= MANY / 50

    run(backend, scenario)


@both
def test_a_piece_is_what_the_sdk_sends_one_by_one(backend: str) -> None:
    """Byte for byte: ids, names, and whatever is in the data."""

    async def scenario() -> None:
        between, adapters = Between(), list[Adapter]()
        async with (
            open_fleet(backend, one_store(), size=1, make=making(between, adapters)) as fleet,
            raw_client(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            answer = await http.post(URL, json=recite(LINES), headers=headers(session_id))
            first = first_id(answer.text)
            (adapter,) = adapters
            by_one = await http.get(URL, headers=headers(session_id, first))
            assert adapter.had == len(between.pieces) == len(LINES) + 2
            between.pieces.clear()
            adapter.is_there = False
            at_once = await http.get(URL, headers=headers(session_id, first))
            assert adapter.had == len(LINES) + 2
            assert len(between.pieces) == 1
            assert at_once.content == by_one.content
            assert texts_of(by_one.text) == [*LINES, "the end"]
            assert answer.content.endswith(at_once.content)

    run(backend, scenario)


@both
@pytest.mark.parametrize("which", ["all", "some"])
def test_what_stands_before_the_sdk_has_every_event(backend: str, which: str) -> None:
    """A middleware that changes bodies, be it all or a few, changes those of a replay, too."""

    async def scenario() -> None:
        between = Between()
        async with (
            open_fleet(backend, one_store(), size=1, make=making(between)) as fleet,
            raw_client(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            said = [f"public {number}" for number in range(MANY)]
            said[20] = said[-1] = "secret"
            answer = await http.post(URL, json=recite(said), headers=headers(session_id))
            old, new = (b"secret", b"******") if which == "some" else (b"l", b"L")
            between.change = lambda body: body.replace(old, new)
            again = await http.get(URL, headers=headers(session_id, first_id(answer.text)))
            assert old not in again.content
            assert again.content.count(new) == b"".join(between.pieces).count(old) >= 2
            assert b"".join(between.pieces) in answer.content

    run(backend, scenario)


@both
@pytest.mark.parametrize("when", ["after the replay", "during the replay"])
def test_what_is_said_meanwhile_comes_after_what_was_missed(backend: str, when: str) -> None:
    """In its order, and once."""

    async def scenario() -> None:
        between = Between()
        async with (
            open_fleet(backend, one_store(), size=1, make=making(between)) as fleet,
            raw_client(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            missed = [f"missed {number}" for number in range(MANY)]
            then = [f"then {number}" for number in range(30)]
            first = await cut_off(fleet, http, session_id, recite(missed, then))
            (worker,) = fleet.workers
            between.holds = when == "during the replay"
            got = ""
            async with http.stream("GET", URL, headers=headers(session_id, first)) as stream:
                if between.holds:
                    await between.is_holding.wait()
                    worker.calls.gates["g"].set()
                    held = worker.registry.get_session_sync(session_id)
                    while "7" in held.conversation.begun:  # until it is answered
                        await anyio.sleep(0.01)
                    between.release.set()
                async for text in stream.aiter_text():
                    got += text
                    if text.endswith("data: \r\n\r\n"):  # the replay is over
                        worker.calls.gates["g"].set()
                    if "the end" in text:  # the SDK leaves the stream open
                        break
            assert texts_of(got) == [*missed, *then, "the end"]
            pieces_before_live = [one for one in between.pieces if b"missed" in one]
            assert len(pieces_before_live) <= MANY / 50

    run(backend, scenario)


@both
@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_a_client_that_leaves_in_a_replay_leaves_nothing_behind(backend: str, place: str) -> None:
    """No task, no stream of the SDK's, no request; it is sent all when it comes back."""

    async def scenario() -> None:
        between = Between()
        async with (
            open_fleet(backend, one_store(), make=making(between)) as fleet,
            raw_client(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            said = [str(number) for number in range(MANY)]
            answer = await http.post(URL, json=recite(said), headers=headers(session_id))
            asked = headers(session_id, first_id(answer.text))
            worker = fleet.workers[0]
            held = worker.registry.get_session_sync(session_id)
            sdk = worker.server.session_manager._server_instances[session_id]
            at(fleet, 0 if place == "here" else 1)
            tasks = len(anyio.get_running_tasks())
            between.holds = True
            async with http.stream("GET", URL, headers=asked):
                await between.is_holding.wait()
                assert held._requests == 1
                assert len(anyio.get_running_tasks()) > tasks
            while held._requests or len(anyio.get_running_tasks()) > tasks:
                await anyio.sleep(0.01)  # the fleet's bound ends it
            assert len(between.pieces) == 1
            assert (sdk._sse_stream_writers, sdk._request_streams) == ({}, {})
            gc.collect()  # a stream in memory that was left open warns, which is an error
            between.holds = False
            again = await http.get(URL, headers=asked)
            assert texts_of(again.text) == [*said, "the end"]

    run(backend, scenario)


def note(text: str) -> EventMessage:
    message = JSONRPCNotification(jsonrpc="2.0", method="m", params={"text": text})
    return EventMessage(message, "1.a.b")


async def test_nothing_is_written_before_the_head() -> None:
    """Whoever would write waits until the SDK has sent it."""
    sent: list[Any] = []
    may_send = anyio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            await may_send.wait()
        sent.append(message)

    out = Outlet(send)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(out.write, [note("x")])
        tasks.start_soon(out.send, {"type": "http.response.start", "status": 200, "headers": []})
        await anyio.wait_all_tasks_blocked()
        assert sent == []
        may_send.set()
    assert [one["type"] for one in sent] == ["http.response.start", "http.response.body"]
    assert sent[1]["more_body"]


async def test_pieces_have_a_bound_and_are_whole_events() -> None:
    """A piece is sent when it has 64 KiB, and an event is never divided."""
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    out = Outlet(send)
    await out.send({"type": "http.response.start", "status": 200, "headers": []})
    sent.clear()
    await out.write([note("x" * 30_000) for _ in range(5)])
    await out.write([note("x" * 200_000)])
    await out.write([])
    assert [len(one) // 30_000 for one in sent] == [3, 2, 6]
    assert all(one.endswith(b"\r\n\r\n") for one in sent)


async def test_others_have_their_turn_between_two_pieces() -> None:
    """Where a server takes all at once, too."""
    sent: list[int] = []

    async def write(number: int) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                sent.append(number)

        out = Outlet(send)
        await out.send({"type": "http.response.start", "status": 200, "headers": []})
        await out.write([note("x" * 70_000) for _ in range(5)])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write, 1)
        tasks.start_soon(write, 2)
    assert sorted(sent) == [1] * 5 + [2] * 5
    assert sent not in (sorted(sent), sorted(sent, reverse=True))


async def test_without_a_stream_nothing_can_be_written_to() -> None:
    """Only answers to GET are resumed; a lifespan has no method."""
    seen: list[Any] = []

    async def app(_: Any, __: Any, send: Any) -> None:
        seen.append(send)

    async def send(_: Any) -> None:
        raise AssertionError("nobody has anything to say")

    for scope in ({"type": "http", "method": "POST"}, {"type": "lifespan"}):
        await Innermost(app)(scope, send, send)  # type: ignore[arg-type]  # it receives nothing
    assert seen == [send, send]
    await Innermost(app)({"type": "http", "method": "GET"}, send, send)  # type: ignore[arg-type]
    assert seen[-1] != send
    assert outlet.get() is None
    assert EventSourceResponse.DEFAULT_SEPARATOR == "\r\n"
