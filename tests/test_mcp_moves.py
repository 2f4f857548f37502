"""What becomes of the sessions of a worker that leaves: how fast they move, and what goes along."""

import copy
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import (
    BACKENDS,
    HEADERS,
    INITIALIZE,
    URL,
    Fleet,
    Worker,
    at,
    begin,
    open_fleet,
    raw,
    run,
)

from trio_sessions.limits import Limits
from trio_sessions.mcp._held import HeldSession
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


async def leave(fleet: Fleet, worker: Worker) -> None:
    """Let a worker leave."""
    fleet.workers.remove(worker)
    await worker.stop()


def held_at(worker: Worker, session_id: str) -> HeldSession:
    """Return a session that a worker holds."""
    held = worker.router._places.here(session_id)
    assert held is not None
    return held


def let_idle(held: HeldSession, seconds: float) -> None:
    """Let a session have been idle for so long."""
    held._heard -= seconds


def test_a_session_is_as_idle_after_a_move_as_before(backend: str) -> None:
    """However often it moves, it lives no longer without its client."""

    async def scenario() -> None:
        router = {"idle_timeout": 1800.0}
        async with (
            open_fleet(backend, one_store(), size=3, router=router) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            let_idle(held_at(fleet.workers[0], session_id), 1000)
            await leave(fleet, fleet.workers[0])
            holder = fleet.holder()
            held = held_at(holder, session_id)
            assert 1000 <= held.idle < 1800
            let_idle(held, 900)
            await leave(fleet, holder)
            while fleet.workers[0].ids():  # 1900 s are too many
                await anyio.sleep(0.05)
            assert await fleet.workers[0].registry.describe_session(session_id) is None

    run(backend, scenario)


def test_the_registrys_own_limit_counts_on_after_a_move(backend: str) -> None:
    """The worker that takes it over has heard nothing of its client."""

    async def scenario() -> None:
        limits, router = Limits(idle_timeout=1800.0), {"idle_timeout": None}
        async with (
            open_fleet(backend, one_store(), limits=limits, router=router) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            let_idle(held_at(fleet.workers[0], session_id), 1900)
            await leave(fleet, fleet.workers[0])
            while fleet.workers[0].ids():
                await anyio.sleep(0.05)
            assert await fleet.workers[0].registry.describe_session(session_id) is None

    run(backend, scenario)


def test_a_session_with_a_request_is_not_idle(backend: str) -> None:
    """A stream that listens is one, too."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=1) as fleet, raw(fleet) as http:
            held = held_at(fleet.workers[0], await begin(fleet, http, 0))
            let_idle(held, 1000)
            held.enter("GET")
            held.accept()
            assert held.idle == 0.0
            held.leave("GET", was_accepted=True)
            assert held.idle < 1000

    run(backend, scenario)


def test_many_sessions_move_in_few_transactions(backend: str) -> None:
    """Those of one letter share the writer's batches."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            ids = [await begin(fleet, http, 0) for _ in range(20)]
            store = fleet.workers[1].store
            store.fail(Fault.ANSWERS_LATE, "Claim", seconds=0.2)  # as a database does
            before = store.calls["Claim"]
            await leave(fleet, fleet.workers[0])
            assert sorted(fleet.workers[0].ids()) == sorted(ids)
            assert store.calls["Claim"] - before <= 4

    run(backend, scenario)


def test_large_sessions_move_in_many_letters(backend: str) -> None:
    """And one that has no room in any keeps no other from moving."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), max_message_bytes=65_536) as fleet,
            raw(fleet) as http,
        ):
            at(fleet, 0)
            ids = []
            for size in (65_300, *[10_000] * 10):
                what = copy.deepcopy(INITIALIZE)
                what["params"]["clientInfo"]["name"] = "x" * size
                answer = await http.post(URL, json=what, headers=HEADERS)
                assert answer.status_code == 200, answer.text
                ids.append(answer.headers["mcp-session-id"])
            await leave(fleet, fleet.workers[0])
            assert sorted(fleet.workers[0].ids()) == sorted(ids[1:])

    run(backend, scenario)


def test_what_cannot_be_adopted_stays_for_another_worker(backend: str) -> None:
    """The claim of one letter's sessions fails: the next worker is asked, and has them."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=3) as fleet, raw(fleet) as http:
            ids = [await begin(fleet, http, 0) for _ in range(5)]
            refusing = fleet.workers[2]  # the youngest is asked first
            refusing.store.fail(Fault.FAILS, "Claim")
            await leave(fleet, fleet.workers[0])
            assert sorted(fleet.workers[0].ids()) == sorted(ids)
            assert refusing.store.faults["Claim"]
            refusing.store.heal()

    run(backend, scenario)


def test_a_session_that_a_letter_has_brought_unheard_answers(backend: str) -> None:
    """The offer was taken, and the answer lost: it is held as soon as its client asks anybody."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), size=3, cleanup_interval=5.0) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, 0)
            unheard = fleet.workers[2]  # the youngest is asked first
            unheard.store.fail(Fault.COMMITS_THEN_FAILS, "Claim", times=1)
            await leave(fleet, fleet.workers[0])
            assert unheard.store.faults["Claim"] == 1
            assert [worker.ids() for worker in fleet.workers] == [[], []]
            at(fleet, 0)
            headers = {**HEADERS, "mcp-session-id": session_id}
            answer = await http.post(URL, json=PING, headers=headers)
            assert answer.status_code == 200
            assert unheard.ids() == [session_id]

    run(backend, scenario)


@pytest.mark.parametrize(
    "session",
    [
        {},
        {"id": "x"},
        {"id": "x", "data": {}, "owner": None, "idle": "long"},
        {"id": ["x"], "data": {}, "owner": None, "idle": 0},
    ],
)
def test_a_letter_that_cannot_be_read_moves_nothing(backend: str, session: Any) -> None:
    """Not even what stands in front of the nonsense."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            held = held_at(fleet.workers[0], session_id)
            good = {"id": session_id, "owner": None, "data": held.data, "idle": 0.0}
            payload = {
                "from": fleet.workers[0].registry.worker_id,
                "server": "test",
                "sessions": [good, session],
            }
            with pytest.raises((KeyError, TypeError, ValueError)):
                await fleet.workers[1].router.take_over(payload)
            assert fleet.workers[1].ids() == []

    run(backend, scenario)
