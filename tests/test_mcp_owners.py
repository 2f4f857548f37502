"""Whose a session is, where it is not the SDK that says so, and what a bad worker answers."""

import traceback
from typing import Any

import anyio
import httpx2
import pytest

pytest.importorskip("mcp")

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp_fleet import BACKENDS, HEADERS, INITIALIZE, URL, Fleet, at, begin, open_fleet, raw, run
from mcp_fleet import through as let_answer

from trio_sessions.mcp._held import HeldSession
from trio_sessions.mcp._identity import give_user
from trio_sessions.mcp._wire import Item
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning"),
]

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


def one_store() -> Any:
    store = MemoryStore()
    return lambda: store


def whose(scope: Any) -> str | None:
    """Say whose a request is, as something that stands before the router has found out."""
    name: str = scope["trusted"]
    return name


async def ask(
    fleet: Fleet, worker: int, known: dict[str, Any], body: Any, session_id: str = ""
) -> httpx2.Response:
    """Make a request of which something before the router knows whose it is."""

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await fleet.workers[worker].router({**scope, **known}, receive, send)

    headers = {**HEADERS, "mcp-session-id": session_id} if session_id else HEADERS
    request = httpx2.Request("DELETE" if body is None else "POST", URL, json=body, headers=headers)
    answer = await let_answer(fleet.tasks, outer, request)
    await answer.aread()
    await answer.aclose()
    return answer


async def look(fleet: Fleet, alice: dict[str, Any], bob: dict[str, Any], *, sleeps: bool) -> None:
    """Let both use alice's session at its worker, at another, and after it was taken over."""
    began = await ask(fleet, 0, alice, INITIALIZE)
    session_id = began.headers["mcp-session-id"]
    for died in (False, True):
        if died:
            await fleet.workers.pop(0).vanish()
            await fleet.workers[0].sees_the_death(session_id)
            if sleeps:  # it is woken through the other worker
                places = fleet.workers[0].router._places
                places.forget(session_id)
                assert isinstance(await places.find(session_id), HeldSession)
        for worker in reversed(range(len(fleet.workers))):
            for body in (PING, None):
                refused = await ask(fleet, worker, bob, body, session_id)
                assert refused.status_code == 404, (died, worker)
            answer = await ask(fleet, worker, alice, PING, session_id)
            assert answer.status_code == 200, (died, worker)
    assert sum(worker.sdk_sessions for worker in fleet.workers) == 1
    assert (await ask(fleet, 1, alice, None, session_id)).status_code == 200


@pytest.mark.parametrize("sleeps", [False, True])
def test_the_owner_that_a_function_has_named_is_asked_for(backend: str, *, sleeps: bool) -> None:
    """It looks at what stands before the router at the worker that a client has reached."""

    async def scenario() -> None:
        router = {"owner": whose}
        async with open_fleet(backend, one_store(), size=3, router=router) as fleet:
            await look(fleet, {"trusted": "alice"}, {"trusted": "bob"}, sleeps=sleeps)

    run(backend, scenario)


@pytest.mark.parametrize("sleeps", [False, True])
def test_a_user_who_was_recognised_before_the_router_is_known_everywhere(
    backend: str, *, sleeps: bool
) -> None:
    """The SDK compares, also where the request was passed on."""

    def user(name: str) -> dict[str, Any]:
        token = AccessToken(token=name, client_id="app", scopes=[], subject=name)
        return {"user": AuthenticatedUser(token)}

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=3) as fleet:
            await look(fleet, user("alice"), user("bob"), sleeps=sleeps)

    run(backend, scenario)


@pytest.mark.parametrize("nonsense", [{"status": "x"}, {"body": "before its head"}, [], 7])
def test_a_worker_that_answers_nonsense_is_502(
    backend: str, nonsense: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client is told so, by a worker that goes on."""
    monkeypatch.setattr(Item, "pack", lambda _: nonsense)

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            at(fleet, 1)
            headers = {**HEADERS, "mcp-session-id": session_id}
            assert (await http.post(URL, json=PING, headers=headers)).status_code == 502

    run(backend, scenario)


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff", b"{}"])
def test_a_body_that_is_no_message_is_refused_at_every_worker(backend: str, body: bytes) -> None:
    """By the SDK, whatever way it took."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            headers = {**HEADERS, "mcp-session-id": session_id}
            for worker in (0, 1):
                at(fleet, worker)
                answer = await http.post(URL, content=body, headers=headers)
                assert answer.status_code == 400

    run(backend, scenario)


def test_a_worker_that_never_answers_is_504(backend: str) -> None:
    """Within `call_timeout`, though it lives: it does not even take the request."""

    async def scenario() -> None:
        router = {"call_timeout": 1.0}
        async with open_fleet(backend, one_store(), router=router) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            fleet.workers[0].store.fail(Fault.HANGS, "collect")
            at(fleet, 1)
            headers = {**HEADERS, "mcp-session-id": session_id}
            with anyio.fail_after(10):
                assert (await http.post(URL, json=PING, headers=headers)).status_code == 504

    run(backend, scenario)


def test_a_user_that_cannot_be_read_is_not_quoted(backend: str) -> None:
    """The handler's failure is logged, and a token does not belong there."""
    token = "a-secret"  # the line that a traceback shows does not have it
    with pytest.raises(ValueError, match="cannot be read") as caught:
        give_user({}, {"token": token, "scopes": 7})
    assert token not in "".join(traceback.format_exception(caught.value))
