"""A manager of sessions that is made when the server starts, and what may be wrong with it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import (
    BACKENDS,
    HEADERS,
    INITIALIZE,
    URL,
    Calls,
    at,
    begin,
    open_fleet,
    raw,
    run,
)
from mcp_late import KIND_NAMES, KINDS, make_fastmcp, make_late, needs_fastmcp
from test_mcp_events import call, events, headers, one_store

from trio_sessions import aio
from trio_sessions.mcp import RegistrySubscriptionBus, SessionRouter, handlers
from trio_sessions.mcp._manager import find_sessions
from trio_sessions.mcp._sdk import find_seat
from trio_sessions.mcp._streams import behind, split

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")


@pytest.mark.parametrize("name", ["7", "", "3:abc", "3:abcd:7", "x:abc:7", "²:ab:7", ":7", "9:a:7"])
def test_a_name_without_a_prefix_is_none_of_fastmcps(name: str) -> None:
    """It would be kept under half a name."""
    with pytest.raises(ValueError, match="no prefix"):
        split(name)


@pytest.mark.parametrize("name", ["7", "", "3:abc:7", "é\r\n:", "_GET_stream"])
def test_a_prefix_is_cut_off_whatever_follows(name: str) -> None:
    """Clients choose the ids of their requests."""
    assert split(f"3:a:c:{name}") == ("3:a:c:", name)


def test_an_adapter_that_names_streams_in_another_way_is_refused() -> None:
    """Replays would be lost in silence; the message names the versions that work."""
    changed = type("SessionScopedEventStore", (), {"_event_store": 1, "_stream_prefix": "new-"})
    changed.__module__ = "fastmcp.server.session_scoped_event_store"
    with pytest.raises(ImportError, match=r"fastmcp>=4,<5.*SessionScopedEventStore"):
        behind(changed())


def test_another_event_store_is_what_it_is() -> None:
    """With an attribute of that name or without."""
    for store in (None, SimpleNamespace(), SimpleNamespace(_event_store=1)):
        assert behind(store) is store


def make(kind: Any, registry: Any) -> Any:
    return kind(
        registry,
        RegistrySubscriptionBus(registry),
        Calls(),
        authenticates=False,
        json_response=False,
    )[1]


def test_each_manager_is_prepared_when_it_is_seen_first() -> None:
    """Before there is one, nothing is known of it; each start may make another."""

    async def scenario() -> None:
        app = make(make_late, aio.SessionRegistry(handlers=handlers()))
        sessions = find_sessions(app, None)
        assert (sessions.server, sessions.get("x")) == (None, None)
        assert not sessions.stateless
        assert not sessions.keeps_events
        assert sessions.max_request_body_size == 4 * 1024 * 1024
        seen: list[Any] = []
        for _ in range(2):
            async with app.router.lifespan_context(app):
                manager = sessions.manager
                assert manager is not None
                assert manager.session_idle_timeout is None
                assert sessions.keeps_events
                assert sessions.server == "test"
                seen.append(manager)
        assert seen[0] is not seen[1]

    run("asyncio", scenario)


def test_a_manager_that_lacks_a_seam_ends_the_start() -> None:
    """The server says why, and does not begin to serve."""

    async def scenario() -> None:
        registry = aio.SessionRegistry(handlers=handlers())
        app = make(make_late, registry)
        router = SessionRouter(app, registry)
        seat: Any = find_seat(app)

        @asynccontextmanager
        async def lifespan(_: Any) -> AsyncIterator[None]:
            seat.session_manager = SimpleNamespace(stateless=False)
            yield

        app.router.lifespan_context = lifespan
        told: list[Any] = []
        into, events = anyio.create_memory_object_stream[dict[str, str]](1)

        async def send(message: Any) -> None:
            told.append(message)
            await anyio.lowlevel.checkpoint()

        async with into, events:
            await into.send({"type": "lifespan.startup"})
            scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
            with pytest.raises(BaseExceptionGroup) as caught:
                await router(scope, events.receive, send)
        assert caught.group_contains(ImportError, match=r"mcp>=2\.3,<3.*_server_instances")
        assert [message["type"] for message in told] == ["lifespan.startup.failed"]
        assert "_server_instances" in told[0]["message"]

    run("asyncio", scenario)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_body_may_be_as_large_as_the_manager_takes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though that is known only once the server has started, and not when the router is made."""
    monkeypatch.setattr("trio_sessions.mcp._manager.MOST_BYTES", 1000)

    async def scenario() -> None:
        async with (
            open_fleet("trio", one_store(), make=KINDS[kind]) as fleet,
            raw(fleet) as http,
        ):
            at(fleet, 0)
            body = json.dumps(INITIALIZE).encode().ljust(2000)
            began = await http.post(URL, content=body, headers=HEADERS)
            assert began.status_code == 200
            asked = json.dumps(call(7, "echo", {"text": "x" * 2000})).encode()
            for place in range(2):
                at(fleet, place)
                answer = await http.post(
                    URL, content=asked, headers=headers(began.headers["mcp-session-id"])
                )
                assert (place, answer.status_code) == (place, 200)
            manager = fleet.workers[1].router._manager.manager
            assert manager is not None
            manager.max_request_body_size = 1000
            refused = await http.post(
                URL, content=asked, headers=headers(began.headers["mcp-session-id"])
            )
            assert refused.status_code == 413

    run("trio", scenario)


@needs_fastmcp
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_fastmcps_has_all_its_fields(backend: str) -> None:
    """At the session's worker, through another one, and after its death."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), make=make_fastmcp, authenticates=True) as fleet,
            raw(fleet, "alice") as http,
        ):
            session_id = await begin(fleet, http, 0)
            for died in (False, True):
                if died:
                    await fleet.workers.pop(0).vanish()
                for worker in range(len(fleet.workers)):
                    at(fleet, worker)
                    asked = call(7, "whose", {})
                    answer = await http.post(URL, json=asked, headers=headers(session_id))
                    (said,) = [m for _, m in events(answer.text) if m is not None]
                    assert said["result"]["structuredContent"] == {"result": "first"}

    run(backend, scenario)
