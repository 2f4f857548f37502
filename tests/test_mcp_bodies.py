"""A body has the size that the router allows, whatever worker it comes to."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import BACKENDS, HEADERS, INITIALIZE, URL, at, begin, open_fleet, raw, run

from trio_sessions.mcp._asgi import BodyTooLarge, bounded
from trio_sessions.mcp._tunnel import PART_BYTES
from trio_sessions.stores.memory import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")

MOST = 2000


def ping(size: int) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode().ljust(size)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for i in range(0, len(body), 100):
        yield body[i : i + 100]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_smaller_limit_than_the_sdks_holds_at_every_worker(
    backend: str, *, is_declared: bool
) -> None:
    """At the one that holds the session, too; what is as large as it may be goes through."""

    async def scenario() -> None:
        store = MemoryStore()
        router = {"max_body_bytes": MOST}
        async with open_fleet(backend, lambda: store, router=router) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            headers = {**HEADERS, "mcp-session-id": session_id}
            for place in range(2):
                at(fleet, place)
                for size, status in ((MOST, 200), (MOST + 1, 413)):
                    body: Any = ping(size) if is_declared else in_pieces(ping(size))
                    answer = await http.post(URL, content=body, headers=headers)
                    assert (place, size, answer.status_code) == (place, size, status)
            assert answer.json()["error"]["message"] == "Request body too large"

    run(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_that_begins_with_too_large_a_body_does_not_begin(backend: str) -> None:
    """Nothing of it is left: not in the SDK, and not in the registry."""

    async def scenario() -> None:
        store = MemoryStore()
        router = {"max_body_bytes": MOST}
        async with (
            open_fleet(backend, lambda: store, size=1, router=router) as fleet,
            raw(fleet) as http,
        ):
            at(fleet, 0)
            body = json.dumps(INITIALIZE).encode().ljust(MOST + 1)
            answer = await http.post(URL, content=in_pieces(body), headers=HEADERS)
            assert answer.status_code == 413
            assert fleet.workers[0].sdk_sessions == 0
            assert fleet.workers[0].ids() == []

    run(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_request_that_no_letter_can_carry_is_413(backend: str) -> None:
    """Large headers cannot go in parts: the worker that holds the session takes it, others not."""

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            headers = {**HEADERS, "mcp-session-id": session_id, "x-large": "x" * (1 << 20)}
            told = []
            for place in range(2):
                at(fleet, place)
                answer = await http.post(URL, content=ping(100), headers=headers)
                told.append(answer.status_code)
            assert told == [200, 413]
            assert answer.json()["error"]["message"] == "the request is too large to be passed on"

    run(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_bodies_that_find_no_room_at_the_holder_are_502(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is run, and what finds room goes through."""
    monkeypatch.setattr("trio_sessions.mcp._tunnel._UPLOADS", 3 * PART_BYTES)

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            headers = {**HEADERS, "mcp-session-id": session_id}
            call = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": "add", "arguments": {"n": 1}},
            }
            told = []
            at(fleet, 1)
            for parts in (3, 4, 1):
                body = json.dumps(call).encode().ljust(parts * PART_BYTES)
                answer = await http.post(URL, content=body, headers=headers)
                told.append(answer.status_code)
            assert told == [200, 502, 200]
            assert fleet.workers[0].calls.ran == ["add", "add"]

    run(backend, scenario)


class Request:
    """A request in pieces, and what was said to its client."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.said: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        self.left -= 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": self.left > 0}

    async def send(self, message: Any) -> None:
        await anyio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            self.said.append(message["status"])
        else:
            self.said.append(json.loads(message["body"])["error"]["message"])


async def read_all(receive: Any) -> None:
    while (await receive())["more_body"]:
        pass


async def catches(scope: Any, receive: Any, send: Any) -> None:
    """Answer 500, whatever happens, as Starlette does."""
    try:
        await read_all(receive)
    except Exception:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        raise


async def swallows(scope: Any, receive: Any, send: Any) -> None:
    """Answer 500, and say nothing of it."""
    try:
        await catches(scope, receive, send)
    except BodyTooLarge:
        await anyio.lowlevel.checkpoint()


async def reads_in_a_task(scope: Any, receive: Any, send: Any) -> None:
    """Read in a task, which makes a group of what is raised."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_all, receive)


@pytest.mark.parametrize("app", [catches, swallows, reads_in_a_task])
def test_an_application_cannot_answer_for_a_body_that_is_too_large(app: Any) -> None:
    """Whatever it makes of the error, the router answers; nothing beyond the limit is read."""

    async def scenario() -> None:
        request = Request(10)
        await bounded(app, {"headers": []}, request.receive, request.send, most=250)
        assert request.said == [413, "Request body too large"]
        assert request.left == 7

    run("trio", scenario)


def test_an_answer_that_has_begun_is_left_to_the_application() -> None:
    """It has one head: what was read too late is the application's own affair."""

    async def scenario() -> None:
        request = Request(10)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await read_all(receive)

        await bounded(app, {"headers": []}, request.receive, request.send, most=250)
        assert request.said == [200]

    run("trio", scenario)


def test_an_error_of_the_applications_own_stays_one() -> None:
    """Only that of the limit is the limit's."""

    async def scenario() -> None:
        request = Request(1)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await anyio.lowlevel.checkpoint()
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await bounded(app, {"headers": []}, request.receive, request.send, most=250)

    run("trio", scenario)
