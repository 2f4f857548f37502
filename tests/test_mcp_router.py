"""Requests of MCP reach the worker that holds their session, whatever worker they come to."""

from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from backdoors import MemoryBackdoor
from mcp_fleet import (
    BACKENDS,
    HEADERS,
    INITIALIZE,
    URL,
    as_bytes,
    at,
    begin,
    client,
    open_fleet,
    raw,
    run,
    text_of,
)

from trio_sessions.limits import Limits
from trio_sessions.mcp._runs import name_of
from trio_sessions.stores.memory import MemoryStore

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    # the SDK's client leaves what its streams are made of to the collector of garbage
    pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning"),
]


def noting(heard: list[float]) -> Any:
    async def note(progress: float, total: Any, message: Any) -> None:
        heard.append(progress)

    return note


def one_store() -> Any:
    store = MemoryStore()
    return lambda: store


def test_calls_are_answered_by_any_worker(backend: str) -> None:
    """Of calls with progress that go to either of two workers, none is lost."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet:
            async with client(fleet) as session:
                for n in range(20):
                    heard: list[float] = []

                    answer = await session.call_tool(
                        "add", {"n": 3}, progress_callback=noting(heard)
                    )
                    assert answer.structured_content == {"result": 4}, n
                    assert heard == [0.0, 1.0, 2.0]
            assert {status for _, _, status in fleet.seen} <= {200, 202}
            assert len({worker for _, worker, _ in fleet.seen}) == 2
            assert [worker.sdk_sessions for worker in fleet.workers] == [0, 0]

    run(backend, scenario)


def test_a_server_asks_its_client_through_any_worker(backend: str) -> None:
    """An elicitation goes out, and its answer comes in, by whatever worker."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, client(fleet) as session:
            for _ in range(10):
                answer = await session.call_tool("ask", {})
                assert text_of(answer) == "hello bob"

    run(backend, scenario)


def test_a_stream_of_notifications_comes_through_another_worker(backend: str) -> None:
    """What belongs to no request is heard on a GET stream that another worker passes on."""

    async def scenario() -> None:
        heard = anyio.Event()

        async def note(message: Any) -> None:
            heard.set()

        async with (
            open_fleet(backend, one_store()) as fleet,
            client(fleet, messages=note) as session,
        ):
            await session.call_tool("echo", {"text": "x"})
            while not any(method == "GET" for method, _, _ in fleet.seen):
                await anyio.sleep(0.01)
            await session.call_tool("tell", {})
            await heard.wait()

    run(backend, scenario)


def test_a_session_that_was_deleted_is_gone_everywhere(backend: str) -> None:
    """DELETE at another worker ends the session in the SDK and the registry."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            at(fleet, 0)
            began = await http.post(URL, json=INITIALIZE, headers=HEADERS)
            assert began.status_code == 200
            session_id = began.headers["mcp-session-id"]
            at(fleet, 1)
            ended = await http.delete(URL, headers={"mcp-session-id": session_id})
            assert ended.status_code == 200
            assert [worker.sdk_sessions for worker in fleet.workers] == [0, 0]
            for place, worker in enumerate(fleet.workers):
                assert await worker.registry.get_all_session_ids() == []
                assert await worker.registry.describe_session(session_id) is None
                at(fleet, place)
                again = await http.delete(URL, headers={"mcp-session-id": session_id})
                assert again.status_code == 404

    run(backend, scenario)


def test_a_session_of_a_dead_worker_goes_on_at_another(backend: str) -> None:
    """Its client notices nothing but the time that it takes."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, client(fleet) as session:
            assert (await session.call_tool("add", {"n": 1})).structured_content == {"result": 2}
            dead = fleet.holder()
            fleet.workers.remove(dead)
            await dead.vanish()
            assert (await session.call_tool("add", {"n": 1})).structured_content == {"result": 2}
            assert text_of(await session.call_tool("ask", {})) == "hello bob"
            assert fleet.workers[0].sdk_sessions == 1

    run(backend, scenario)


def test_sessions_move_when_their_worker_stops(backend: str) -> None:
    """A worker that is told to stop hands its sessions over."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, client(fleet) as session:
            await session.call_tool("add", {"n": 1})
            leaving = fleet.holder()
            fleet.workers.remove(leaving)
            await leaving.stop()
            assert len(await fleet.workers[0].registry.get_all_session_ids()) == 1
            assert (await session.call_tool("add", {"n": 1})).structured_content == {"result": 2}

    run(backend, scenario)


@pytest.mark.parametrize("session_id", ["unknown", "x" * 300, "a b", "ä"])
def test_an_unknown_session_is_not_found(backend: str, session_id: str) -> None:
    """The status of the specification, and nothing is stored."""

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store, size=1) as fleet, raw(fleet) as http:
            headers = as_bytes({**HEADERS, "mcp-session-id": session_id})
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            answer = await http.post(URL, json=ping, headers=headers)
            assert answer.status_code == 404
            assert answer.json()["error"]["message"] == "Session not found"
            assert MemoryBackdoor(store).amounts() == (0, 0, 0, 0)
            (worker,) = fleet.workers
            assert (worker.sdk_sessions, worker.ids()) == (0, [])

    run(backend, scenario)


def test_what_nobody_can_say_is_503(backend: str) -> None:
    """While the database is away, a session elsewhere is unknown, not gone."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            fleet.workers[1].store.fail()
            at(fleet, 1)
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            answer = await http.post(
                URL, json=ping, headers={**HEADERS, "mcp-session-id": session_id}
            )
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            fleet.workers[1].store.heal()
            # a session that is held here goes on
            at(fleet, 0)
            fleet.workers[0].store.fail()
            answer = await http.post(
                URL, json=ping, headers={**HEADERS, "mcp-session-id": session_id}
            )
            assert answer.status_code == 200
            fleet.workers[0].store.heal()

    run(backend, scenario)


def test_a_limit_that_lets_no_session_in_is_503(backend: str) -> None:
    """Neither a new one nor one that comes from a dead worker; nothing of it is left."""

    async def scenario() -> None:
        limits = Limits(max_sessions=1)
        async with open_fleet(backend, one_store(), limits=limits) as fleet, raw(fleet) as http:
            of_dead = await begin(fleet, http, 0)
            held = await begin(fleet, http, 1)
            survivor = fleet.workers[1]
            await fleet.workers.pop(0).vanish()
            await survivor.sees_the_death(of_dead)
            at(fleet, 0)
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            to_dead = {**HEADERS, "mcp-session-id": of_dead}
            for body, headers in ((INITIALIZE, HEADERS), (ping, to_dead)):
                answer = await http.post(URL, json=body, headers=headers)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert (survivor.sdk_sessions, survivor.ids()) == (1, [held])
            ended = await http.delete(URL, headers={**HEADERS, "mcp-session-id": held})
            assert ended.status_code == 200
            assert (await http.post(URL, json=ping, headers=to_dead)).status_code == 200

    run(backend, scenario)


def test_large_bodies_go_in_parts(backend: str) -> None:
    """A request with a megabyte reaches another worker, and so does its answer."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, client(fleet) as session:
            text = 'ä\n"' * 50_000
            for _ in range(4):
                answer = await session.call_tool("echo", {"text": text})
                assert text_of(answer) == text

    run(backend, scenario)


def test_a_body_over_the_limit_is_413(backend: str) -> None:
    """At whatever worker it arrives."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            for place in range(2):
                at(fleet, place)
                answer = await http.post(
                    URL,
                    content=b" " * (5 << 20),
                    headers={**HEADERS, "mcp-session-id": session_id},
                )
                assert answer.status_code == 413

    run(backend, scenario)


def test_bob_cannot_use_alices_session(backend: str) -> None:
    """Not at its worker, not through another one, and not after its worker's death."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), authenticates=True) as fleet,
            raw(fleet, "alice") as alice,
            raw(fleet, "bob") as bob,
            raw(fleet) as nobody,
        ):
            session_id = await begin(fleet, alice, 0)
            headers = {**HEADERS, "mcp-session-id": session_id}
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            for place in range(2):
                at(fleet, place)
                assert (await alice.post(URL, json=ping, headers=headers)).status_code == 200
                assert (await bob.post(URL, json=ping, headers=headers)).status_code == 404
                assert (await bob.delete(URL, headers=headers)).status_code == 404
                assert (await nobody.post(URL, json=ping, headers=headers)).status_code == 401
            await fleet.workers.pop(0).vanish()
            at(fleet, 0)
            assert (await bob.post(URL, json=ping, headers=headers)).status_code == 404
            assert (await nobody.post(URL, json=ping, headers=headers)).status_code == 401
            assert fleet.workers[0].sdk_sessions == 0
            assert (await alice.post(URL, json=ping, headers=headers)).status_code == 200
            assert (await bob.post(URL, json=ping, headers=headers)).status_code == 404

    run(backend, scenario)


@pytest.mark.parametrize("name", ["slow", "echo"])
def test_a_call_that_was_begun_is_not_run_by_another_worker(backend: str, name: str) -> None:
    """Its client is told so; one that the dead worker had not begun is run by the next one."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), json_response=True) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            at(fleet, 1)
            arguments = {"gate": "g"} if name == "slow" else {"text": "x"}
            call = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": name, "arguments": arguments},
            }
            answers = []

            async def ask() -> None:
                headers = {**HEADERS, "mcp-session-id": session_id}
                answers.append(await http.post(URL, json=call, headers=headers))

            dying = fleet.workers[0]
            async with anyio.create_task_group() as tasks:
                if name == "slow":
                    tasks.start_soon(ask)
                    await dying.calls.started.setdefault("g", anyio.Event()).wait()
                else:
                    await http.post(
                        URL,
                        json={"jsonrpc": "2.0", "id": 0, "method": "ping"},
                        headers={**HEADERS, "mcp-session-id": session_id},
                    )
                fleet.workers.remove(dying)
                at(fleet, 0)
                await dying.vanish()
                if name == "echo":
                    tasks.start_soon(ask)
            (answer,) = answers
            assert fleet.workers[0].calls.ran == []
            if name == "slow":
                assert answer.status_code == 502
                assert "not run again" in answer.text
            else:
                assert answer.json()["result"]["structuredContent"] == {"result": "x"}

    run(backend, scenario)


@pytest.mark.parametrize(
    ("method", "body", "is_named"),
    [
        ("POST", b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}', True),
        ("POST", b'{"jsonrpc":"2.0","id":1,"method":"of/somebody"}', True),
        ("POST", b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}', False),
        ("POST", b'{"jsonrpc":"2.0","method":"notifications/cancelled"}', False),
        ("POST", b'{"jsonrpc":"2.0","id":1,"result":{}}', False),
        ("POST", b"no json", False),
        ("POST", b"[]", False),
        ("GET", b"", False),
        ("DELETE", b"", False),
    ],
)
def test_what_must_not_run_twice_has_a_name(
    backend: str, method: str, body: bytes, *, is_named: bool
) -> None:
    """What changes nothing, or the same twice, needs none."""
    assert bool(name_of(method, body)) is is_named
