"""What the SDK takes, and JSON of a database cannot carry; and ids that nobody was given."""

import json
from typing import Any

import anyio
import httpx2
import pytest

pytest.importorskip("mcp")

from mcp_fleet import (
    BACKENDS,
    HEADERS,
    INITIALIZE,
    URL,
    at,
    begin,
    make_app,
    make_server,
    open_fleet,
    raw,
    run,
    scope_of,
)
from test_mcp_owners import PING, one_store

from trio_sessions.mcp._asgi import once
from trio_sessions.mcp._conversation import Conversation
from trio_sessions.mcp._event_ids import check_event_id, event_id

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning"),
]


@pytest.mark.parametrize("json_response", [False, True])
@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_a_beginning_that_cannot_be_kept_leaves_nothing(
    backend: str, number: str, *, json_response: bool
) -> None:
    """The SDK takes numbers that are none in JSON; its client is told that they will not do."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), size=1, json_response=json_response) as fleet,
            raw(fleet) as http,
        ):
            worker = fleet.workers[0]
            experimental = f'"capabilities": {{"experimental": {{"x": {{"y": {number}}}}}}}'
            body = json.dumps(INITIALIZE).replace('"capabilities": {}', experimental)
            answer = await http.post(URL, content=body, headers=HEADERS)
            assert answer.status_code == 400, answer.text
            assert (worker.sdk_sessions, worker.ids()) == (0, [])

    run(backend, scenario)


@pytest.mark.parametrize("json_response", [False, True])
@pytest.mark.parametrize("named", ["x" * 1000, None])
def test_a_session_whose_owner_cannot_be_one_leaves_nothing(
    backend: str, named: str | None, *, json_response: bool
) -> None:
    """What is to name the owner is at fault, or trips over a header that is not there."""

    def whose(scope: Any) -> str:
        if named is None:
            return str(dict(scope["headers"])[b"authorization"])
        return named

    async def never() -> Any:
        await anyio.sleep_forever()

    async def scenario() -> None:
        async with open_fleet(
            backend, one_store(), size=1, router={"owner": whose}, json_response=json_response
        ) as fleet:
            worker = fleet.workers[0]
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            request = httpx2.Request("POST", URL, json=INITIALIZE, headers=HEADERS)
            receive = once(await request.aread(), never)
            try:
                await worker.router(scope_of(request), receive, send)
            except* (ValueError, KeyError, anyio.ClosedResourceError):  # the SDK tells the session
                pass
            assert {one["status"] for one in sent if "status" in one} <= {500}
            assert (worker.sdk_sessions, worker.ids()) == (0, [])

    run(backend, scenario)


async def ask(http: Any, session_id: str, name: str, **more: str) -> httpx2.Response:
    """Call a tool without arguments."""
    body = {**PING, "method": "tools/call", "params": {"name": name, "arguments": {}}}
    headers = {**HEADERS, "mcp-session-id": session_id, **more}
    answer: httpx2.Response = await http.post(URL, json=body, headers=headers)
    return answer


def test_an_answer_that_json_has_no_word_for_is_kept_as_it_is_sent(backend: str) -> None:
    """The SDK writes null for it; the session goes on."""

    def make_odd(*args: Any, **settings: Any) -> tuple[Any, Any]:
        server, app = make_app(*args, **settings)

        async def odd() -> dict[str, Any]:
            """Return what is no number."""
            return {"n": float("nan"), "m": [float("inf")], "text": "\u00e4"}

        server.tool()(odd)
        return server, app

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), size=1, make=make_odd) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            with anyio.fail_after(20):
                answer = await ask(http, session_id, "odd")
                assert '"structuredContent":{"n":null,"m":[null],"text":"\u00e4"}' in answer.text
                again = await ask(http, session_id, "odd")
            assert '"n":null' in again.text
            (worker,) = fleet.workers
            said: list[Any] = []
            with anyio.fail_after(20):
                while len(said) < 2:  # an event is sent while it goes to the log
                    await anyio.sleep(0.01)
                    kept = await worker.registry.logs.read(session_id)
                    results = [entry.event["message"]["result"] for entry in kept]
                    said = [r["structuredContent"] for r in results if "structuredContent" in r]
            assert [one["n"] for one in said] == [None, None]

    run(backend, scenario)


@pytest.mark.parametrize("cursor", [2**63, 10**19 - 1])
def test_an_event_id_beyond_all_entries_is_refused(backend: str, cursor: int) -> None:
    """Whoever knows the session's id can make one that looks like its own."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            forged = event_id(Conversation(session_id), "7", str(cursor))
            for worker in (0, 1):
                at(fleet, worker)
                headers = {**HEADERS, "mcp-session-id": session_id, "last-event-id": forged}
                assert (await http.get(URL, headers=headers)).status_code == 400
            assert check_event_id(
                session_id, event_id(Conversation(session_id), "7", str(2**63 - 1))
            )

    run(backend, scenario)


@pytest.mark.parametrize(
    "entry", [{"stream": "1"}, {"stream": "1", "message": {"x": 1}}, {"stream": "1", "message": 7}]
)
def test_an_entry_that_cannot_be_read_holds_up_no_replay(
    backend: str, entry: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else has written it: the client would ask for what follows it for ever."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=1) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            (worker,) = fleet.workers
            await worker.registry.logs.append(session_id, entry)
            more = {"mcp-protocol-version": "2025-11-25"}
            answer = await ask(http, session_id, "tell", **more)
            assert "told" in answer.text
            first = event_id(Conversation(session_id), "1", "0")
            headers = {**HEADERS, "mcp-session-id": session_id, "last-event-id": first, **more}
            replayed = await http.get(URL, headers=headers)
            assert "told" in replayed.text
            assert "cannot be read" in caplog.text

    run(backend, scenario)


def without_events(
    registry: Any, bus: Any, calls: Any, *, authenticates: bool, json_response: bool
) -> tuple[Any, Any]:
    """Return a server that keeps no events."""
    server = make_server(bus, calls)
    return server, server.streamable_http_app(json_response=json_response)


def test_where_no_events_are_kept_none_can_be_asked_for(backend: str) -> None:
    """The SDK has no answer at all to it; at whatever worker it is 400, and nothing else is."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), make=without_events) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            own = {**HEADERS, "mcp-session-id": session_id}
            asking = {**own, "last-event-id": "1"}
            unknown = {**asking, "mcp-session-id": "unknown"}
            for worker in (0, 1):
                at(fleet, worker)
                answer = await http.get(URL, headers=asking)
                assert answer.status_code == 400
                assert "Last-Event-ID" in answer.text
                assert (await http.get(URL, headers=unknown)).status_code == 404
                assert (await http.post(URL, json=PING, headers=asking)).status_code == 200
            async with http.stream("GET", URL, headers=own) as stream:
                assert stream.status_code == 200

    run(backend, scenario)
