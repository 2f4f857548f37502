"""What two requests, or a request and the end of a worker, do to one session at a time."""

from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import BACKENDS, HEADERS, URL, Fleet, begin, open_fleet, raw, run, through

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
