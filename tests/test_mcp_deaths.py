"""A call whose worker has died: it is run once or given up, and never said to be moving.

Whoever obeys ``Retry-After`` runs it again. Time is the tests' own: nothing but Trio and memory.
"""

from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import HEADERS, URL, Fleet, at, begin, open_fleet, raw, scope_of
from test_mcp_timeouts import CALL, ECHO, HOLDER, OTHER, SLOW, jumping, never_begins, open_two

from trio_sessions import Limits
from trio_sessions.abc import Part
from trio_sessions.errors import StoreUnavailable
from trio_sessions.mcp._forwarding import Forwarding, Outcome
from trio_sessions.stores.memory import MemoryStore

KNOWN = 20.0  # seconds after which a death is known, at most


async def dies(fleet: Fleet) -> None:
    await fleet.workers[HOLDER].vanish()


async def call(fleet: Fleet, http: Any, session_id: str, what: Any = SLOW) -> Any:
    at(fleet, OTHER)
    return await http.post(URL, json=what, headers={**HEADERS, "mcp-session-id": session_id})


async def call_while_it_dies(fleet: Fleet, http: Any, session_id: str, *, after: float) -> Any:
    """Call the tool that waits; its worker dies so many seconds after it has begun."""
    answers = []

    async def ask() -> None:
        answers.append(await call(fleet, http, session_id))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await fleet.workers[HOLDER].calls.started.setdefault("g", anyio.Event()).wait()
        await anyio.sleep(after)
        await dies(fleet)
    (answer,) = answers
    assert [worker.calls.ran for worker in fleet.workers] == [["slow g"], []]
    return answer


@pytest.mark.parametrize("after", [0.0, CALL - KNOWN, CALL - 1, 2 * CALL, 5 * CALL])
def test_a_call_that_had_begun_is_lost_whenever_its_worker_dies(after: float) -> None:
    """Also when that is known later than a worker may be silent."""

    async def scenario() -> None:
        async with open_two(json_response=True) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            answer = await call_while_it_dies(fleet, http, session_id, after=after)
            assert (answer.status_code, answer.headers.get("retry-after")) == (502, None)
            assert "not run again" in answer.text

    jumping(scenario)


@pytest.mark.parametrize("json_response", [False, True])
def test_a_call_whose_body_came_slowly_is_lost_just_so(*, json_response: bool) -> None:
    """Its answer, a stream or not, had not begun."""

    async def scenario() -> None:
        async with open_two(json_response=json_response) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            fleet.workers[HOLDER].router._here._app = never_begins
            headers = {**HEADERS, "mcp-session-id": session_id}
            request = http.build_request("POST", URL, json=SLOW, headers=headers)
            given, sent = anyio.Event(), list[Any]()

            async def receive() -> Any:
                if given.is_set():
                    await anyio.sleep_forever()
                await anyio.sleep(CALL - 2)
                given.set()
                return {"type": "http.request", "body": request.content, "more_body": False}

            async def send(message: Any) -> None:
                sent.append(message)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fleet.workers[OTHER].router, scope_of(request), receive, send)
                await given.wait()
                await anyio.sleep(1)
                await dies(fleet)
            assert sent[0]["status"] == 502

    jumping(scenario)


@pytest.mark.parametrize("outcome", [Outcome.UNKNOWN, Outcome.UNHEARD])
def test_a_call_that_had_not_begun_is_run_however_late_its_worker_dies(
    monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    """It has all the time that it would have had if that worker had not been asked."""

    async def scenario() -> None:
        async with open_two(json_response=True) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)

            async def forward(*_: Any) -> Outcome:
                await dies(fleet)
                await anyio.sleep(CALL + KNOWN)
                return outcome

            monkeypatch.setattr(Forwarding, "forward", forward)
            answer = await call(fleet, http, session_id, ECHO)
            assert answer.status_code == 200
            assert answer.json()["result"]["structuredContent"] == {"result": "x"}

    jumping(scenario)


@pytest.mark.parametrize("fault", ["away", "no session"])
def test_what_nobody_can_say_of_a_call_is_not_called_moving(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The database is away just then, or the session is gone with its log."""

    async def scenario() -> None:
        async with open_two(json_response=True) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            find = fleet.workers[OTHER].router._places.find

            async def finds(of: str) -> Any:
                if not fleet.workers[HOLDER].ended.is_set():
                    return await find(of)
                if fault == "away":
                    raise StoreUnavailable("away")
                return None

            monkeypatch.setattr(fleet.workers[OTHER].router._places, "find", finds)
            answer = await call_while_it_dies(fleet, http, session_id, after=0)
            assert answer.status_code == 502

    jumping(scenario)


@pytest.mark.parametrize("gone", ["too old", "too many"])
def test_a_call_whose_note_is_gone_is_not_run_again(
    monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """The log keeps no entry for ever: that there is none says nothing then."""
    if gone == "too many":
        for name in ("trio_sessions._logs.KEEP", "trio_sessions.mcp._runs.KEEP"):
            monkeypatch.setattr(name, 10)
        monkeypatch.setattr("trio_sessions._logs._EVERY", 1)
    limits = Limits(log_ttl=60.0) if gone == "too old" else Limits()

    async def scenario() -> None:
        store = MemoryStore()
        async with (
            open_fleet(
                "trio", lambda: store, json_response=True, cleanup_interval=5.0, limits=limits
            ) as fleet,
            raw(fleet) as http,
            anyio.create_task_group() as tasks,
        ):
            session_id = await begin(fleet, http, HOLDER)
            log = fleet.workers[OTHER].registry.logs

            async def crowd() -> None:
                await fleet.workers[HOLDER].calls.started.setdefault("g", anyio.Event()).wait()
                for number in range(20):
                    await log.append(session_id, number)

            tasks.start_soon(crowd)
            after = 2 * limits.log_ttl if gone == "too old" else 1.0
            answer = await call_while_it_dies(fleet, http, session_id, after=after)
            assert answer.status_code == 502
            kept = [entry.event for entry in await log.read(session_id)]
            assert not any(isinstance(event, dict) and "begun" in event for event in kept)

    jumping(scenario)


def test_a_call_in_a_long_log_is_run_where_its_note_would_be_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the log has lost is older than the call."""
    for name in ("trio_sessions._logs.KEEP", "trio_sessions.mcp._runs.KEEP"):
        monkeypatch.setattr(name, 10)
    monkeypatch.setattr("trio_sessions._logs._EVERY", 1)

    async def scenario() -> None:
        async with open_two(json_response=True) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            log = fleet.workers[OTHER].registry.logs
            for number in range(20):
                await log.append(session_id, number)
            await anyio.sleep(2 * CALL + KNOWN)
            assert len(await log.read(session_id)) == 10
            await dies(fleet)
            answer = await call(fleet, http, session_id, ECHO)
            assert answer.status_code == 200

    jumping(scenario)


class WithoutLogs(MemoryStore):
    """Keeps no logs."""

    @property
    def parts(self) -> frozenset[Part]:
        return super().parts - {Part.LOGS}


def test_where_no_log_is_kept_a_call_is_run_and_lost_with_its_worker() -> None:
    """Nothing can be noted of it."""

    async def scenario() -> None:
        store = WithoutLogs()
        async with (
            open_fleet("trio", lambda: store, json_response=True, cleanup_interval=5.0) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, HOLDER)
            answer = await call(fleet, http, session_id, ECHO)
            assert answer.status_code == 200, answer.text
            answer = await call_while_it_dies(fleet, http, session_id, after=0)
            assert answer.status_code == 502
            assert "not run again" in answer.text

    jumping(scenario)
