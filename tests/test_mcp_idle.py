"""Who keeps a session alive: its client, and nobody else."""

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import BACKENDS, HEADERS, URL, Worker, at, begin, open_fleet, raw, run
from test_mcp_owners import PING, one_store
from test_mcp_sse import HOST, listen, old_fleet

from trio_sessions._entry import Entry
from trio_sessions.mcp._held import HeldSession

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning"),
]

LONG = 1000.0  # seconds


def entry_of(worker: Worker, session_id: str) -> Entry:
    """Return a session as its registry holds it."""
    registry = worker.registry
    core = registry._opened().core if hasattr(registry, "_opened") else registry
    entry: Entry = core._house.table.get(session_id)
    return entry


def let_idle(worker: Worker, session_id: str) -> None:
    """Let nobody have been heard of for long."""
    held = worker.registry.get_session_sync(session_id)
    if isinstance(held, HeldSession):
        held._heard -= LONG
    entry = entry_of(worker, session_id)
    entry.note_activity(entry.active_at - LONG)


def is_idle(worker: Worker, session_id: str) -> tuple[bool, bool]:
    """Say whether a session has not been heard of since: by the router, and by the registry."""
    held = worker.registry.get_session_sync(session_id)
    by_router = held.idle >= LONG if isinstance(held, HeldSession) else True
    entry = entry_of(worker, session_id)
    return by_router, entry.active_at < entry.added_at


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "PUT"])
@pytest.mark.parametrize("worker", [0, 1])
def test_a_stranger_keeps_no_session_alive(backend: str, worker: int, method: str) -> None:
    """Whoever knows its id may ask, at whichever worker, and is refused; it grows no younger."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), authenticates=True) as fleet,
            raw(fleet, "alice") as alice,
            raw(fleet, "bob") as bob,
            raw(fleet, "nobody") as unknown,
            raw(fleet) as nameless,
        ):
            session_id = await begin(fleet, alice, 0)
            headers = {**HEADERS, "mcp-session-id": session_id}
            holder = fleet.workers[0]
            let_idle(holder, session_id)
            at(fleet, worker)
            for http, status in ((bob, 404), (unknown, 401), (nameless, 401)):
                answer = await http.request(method, URL, json=PING, headers=headers)
                assert answer.status_code == status
                assert is_idle(holder, session_id) == (True, True)
            assert (await alice.post(URL, json=PING, headers=headers)).status_code == 200
            assert is_idle(holder, session_id) == (False, False)

    run(backend, scenario)


@pytest.mark.parametrize("json_response", [False, True])
def test_a_session_is_not_idle_while_it_answers_its_client(
    backend: str, *, json_response: bool
) -> None:
    """Also where the answer comes as a whole, and has not begun yet."""

    async def scenario() -> None:
        async with (
            open_fleet(
                backend, one_store(), size=1, authenticates=True, json_response=json_response
            ) as fleet,
            raw(fleet, "alice") as alice,
            anyio.create_task_group() as tasks,
        ):
            session_id = await begin(fleet, alice, 0)
            worker = fleet.workers[0]
            call = {"name": "slow", "arguments": {"gate": "g"}}
            body = {**PING, "method": "tools/call", "params": call}
            started = worker.calls.started.setdefault("g", anyio.Event())

            async def ask() -> None:
                headers = {**HEADERS, "mcp-session-id": session_id}
                answer = await alice.post(URL, json=body, headers=headers)
                assert "through g" in answer.text

            tasks.start_soon(ask)
            await started.wait()
            let_idle(worker, session_id)
            assert worker.registry.get_session_sync(session_id).idle == 0.0
            worker.calls.gates["g"].set()

    run(backend, scenario)


@pytest.mark.parametrize("worker", [0, 1])
def test_a_stranger_keeps_no_stream_of_an_old_client_alive(backend: str, worker: int) -> None:
    """The SDK compares who opened it with who posts."""

    async def scenario() -> None:
        async with (
            old_fleet(backend, authenticates=True) as fleet,
            raw(fleet, "alice") as alice,
            raw(fleet, "bob") as bob,
            raw(fleet) as nameless,
        ):
            at(fleet, 0)
            async with listen(alice) as stream:
                session_id = f"sse:{stream.session_id}"
                holder = fleet.workers[0]
                let_idle(holder, session_id)
                at(fleet, worker)
                for http, status in ((bob, 404), (nameless, 401)):
                    answer = await http.post(HOST + stream.endpoint, json=PING)
                    assert answer.status_code == status
                    assert is_idle(holder, session_id) == (True, True)
                assert await stream.post(PING) == 202
                assert is_idle(holder, session_id) == (True, False)

    run(backend, scenario)
