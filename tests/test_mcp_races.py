"""What two requests, or a request and the end of a worker, do to one session at a time."""

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
    Fleet,
    at,
    begin,
    leave_early,
    open_fleet,
    raw,
    run,
    through,
)

from trio_sessions.mcp._replay import begin_again
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning"),
]


def one_store() -> Any:
    store = MemoryStore()
    return lambda: store


async def ping(fleet: Fleet, http: Any, worker: int, session_id: str) -> int:
    body = {"jsonrpc": "2.0", "id": f"of {worker}", "method": "ping"}
    request = http.build_request(
        "POST", URL, json=body, headers={**HEADERS, "mcp-session-id": session_id}
    )
    answer = await through(fleet.tasks, fleet.workers[worker].router, request)
    await answer.aread()
    await answer.aclose()
    status: int = answer.status_code
    return status


def test_who_is_too_late_to_take_a_session_over_passes_requests_on(backend: str) -> None:
    """Two workers are asked at once for a dead one's session: one has it, both answer."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=3) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            await fleet.workers.pop(0).vanish()
            await fleet.workers[0].sees_the_death(session_id)
            statuses = []

            async def ask(worker: int) -> None:
                statuses.append(await ping(fleet, http, worker, session_id))

            # both know that the holder is dead before one of them takes it over
            for worker in fleet.workers:
                worker.store.fail(Fault.ANSWERS_LATE, "describe", times=1, seconds=0.5)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, 0)
                tasks.start_soon(ask, 1)
            assert statuses == [200, 200]
            assert sum(worker.sdk_sessions for worker in fleet.workers) == 1

    run(backend, scenario)


def test_a_session_that_moves_while_it_wakes_is_not_gone(backend: str) -> None:
    """Its client may come back: 404 would tell it to begin anew."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            await fleet.workers.pop(0).vanish()
            await fleet.workers[0].sees_the_death(session_id)
            worker = fleet.workers[0]
            held: Any = await worker.router._places.find(session_id)
            app = worker.router._here._app

            async def moves(*args: Any) -> None:
                await held.disconnect()
                await app(*args)

            worker.router._here._app = moves
            assert await ping(fleet, http, 0, session_id) == 503
            worker.router._here._app = app
            assert worker.sdk_sessions == 0

    run(backend, scenario)


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_a_session_that_cannot_begin_again_leaves_nothing(
    backend: str, *, is_cancelled: bool
) -> None:
    """The SDK's session, of which nobody was told yet, ends when its client leaves, or is late."""

    async def scenario() -> None:
        dropped: list[str] = []

        async def drop(alias: str) -> None:
            dropped.append(alias)
            await anyio.lowlevel.cancel_shielded_checkpoint()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if dict(scope["headers"]).get(b"mcp-session-id"):
                scope_of_client.cancel() if is_cancelled else None
                await anyio.sleep_forever()
            headers = [(b"mcp-session-id", b"new")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        with anyio.CancelScope() as scope_of_client:
            with pytest.raises(TimeoutError):
                await begin_again(
                    app, {"headers": []}, {"initialize": INITIALIZE}, timeout=0.2, drop=drop
                )
        assert scope_of_client.cancelled_caught is is_cancelled
        assert dropped == ["new"]

    run(backend, scenario)


def test_no_session_begins_at_a_worker_that_leaves(backend: str) -> None:
    """It would end with the worker; its client is told to come back, to another one."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=1) as fleet, raw(fleet) as http:
            worker = fleet.workers[0]
            await worker.router.leave()
            at(fleet, 0)
            answer = await http.post(URL, json=INITIALIZE, headers=HEADERS)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert (worker.sdk_sessions, worker.ids()) == (0, [])

    run(backend, scenario)


def test_a_client_that_leaves_while_its_session_begins_leaves_none(backend: str) -> None:
    """Nobody has been told its id, and it is not idle for long enough."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=1) as fleet:
            worker = fleet.workers[0]
            worker.store.fail(Fault.ANSWERS_LATE, "Claim", times=1, seconds=0.5)
            await leave_early(worker, httpx2.Request("POST", URL, json=INITIALIZE, headers=HEADERS))
            with anyio.fail_after(10):
                while worker.ids():
                    await anyio.sleep(0.01)
            assert worker.sdk_sessions == 0

    run(backend, scenario)


@pytest.mark.parametrize("trouble", ["another server", "silent"])
def test_sessions_move_past_a_worker_that_cannot_have_them(backend: str, trouble: str) -> None:
    """One of another server on the same database, or one that does not answer."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=3) as fleet, raw(fleet) as http:
            ids = [await begin(fleet, http, 0) for _ in range(3)]
            leaving, fit, unfit = fleet.workers
            if trouble == "silent":
                unfit.store.fail(Fault.HANGS, "collect")
            else:
                unfit.server.session_manager.app.name = "another"
            fleet.workers.remove(leaving)
            with anyio.fail_after(12):
                await leaving.router.leave()
            assert sorted(fit.ids()) == sorted(ids)
            assert unfit.ids() == []
            unfit.store.heal()
            await leaving.close()

    run(backend, scenario)
