"""A worker that holds a session and never answers is 504, within the time that is stated.

Time is the tests' own, where it is measured: nothing but Trio and memory.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest
import trio.testing

pytest.importorskip("mcp")

from mcp_fleet import BACKENDS, HEADERS, URL, Fleet, at, begin, open_fleet, raw, run, scope_of

from trio_sessions.mcp._asgi import once
from trio_sessions.mcp._tunnel import PART_BYTES, Tunnel
from trio_sessions.stores.memory import MemoryStore

HOLDER, OTHER = 0, 1
CALL = 30.0
ANSWER = 300.0
SLOW: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {"name": "slow", "arguments": {"gate": "g"}},
}
ECHO = {**SLOW, "params": {"name": "echo", "arguments": {"text": "x"}}}


def jumping(scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario under Trio, with a clock that jumps."""

    async def bounded() -> None:
        with anyio.fail_after(3 * ANSWER):
            await scenario()

    clock = trio.testing.MockClock(autojump_threshold=0)
    anyio.run(bounded, backend="trio", backend_options={"clock": clock})


def open_two(*, json_response: bool, **router: Any) -> Any:
    store = MemoryStore()
    return open_fleet(
        "trio", lambda: store, json_response=json_response, router=router, cleanup_interval=5.0
    )


async def ask(fleet: Fleet, http: Any, worker: int, session_id: str) -> tuple[Any, float]:
    """Call the tool that waits, at one worker; return its answer, and how long that took."""
    at(fleet, worker)
    asked_at = anyio.current_time()
    answer = await http.post(URL, json=SLOW, headers={**HEADERS, "mcp-session-id": session_id})
    return answer, anyio.current_time() - asked_at


async def never_begins(scope: Any, receive: Any, send: Any) -> None:
    await anyio.sleep_forever()


async def never_ends() -> Any:
    await anyio.sleep_forever()


async def never_answers(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await anyio.sleep_forever()


@pytest.mark.parametrize("app", [never_begins, never_answers])
def test_a_holder_that_streams_has_to_begin_at_once(app: Any) -> None:
    """It lives, and says so, but its answers begin before they are known: 504 in time."""

    async def scenario() -> None:
        async with open_two(json_response=False) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            fleet.workers[HOLDER].router._here._app = app
            answer, took = await ask(fleet, http, OTHER, session_id)
            assert answer.status_code == 504
            assert CALL <= took < CALL + 1

    jumping(scenario)


@pytest.mark.parametrize("json_response", [False, True])
def test_a_holder_that_takes_a_large_body_slowly_has_no_longer(
    monkeypatch: pytest.MonkeyPatch, *, json_response: bool
) -> None:
    """Its parts have one time together, and the answer begins within it."""
    take = Tunnel.part

    async def part(tunnel: Tunnel, payload: Any) -> int:
        await anyio.sleep(0.6 * CALL)
        return await take(tunnel, payload)

    monkeypatch.setattr(Tunnel, "part", part)

    async def scenario() -> None:
        async with open_two(json_response=json_response) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            at(fleet, OTHER)
            body = json.dumps(SLOW).encode().ljust(4 * PART_BYTES)
            asked_at = anyio.current_time()
            headers = {**HEADERS, "mcp-session-id": session_id}
            answer = await http.post(URL, content=body, headers=headers)
            assert answer.status_code == 504
            assert CALL <= anyio.current_time() - asked_at < CALL + 1

    jumping(scenario)


def test_a_body_whose_client_has_left_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other body comes that would push it out: it goes when its time is over."""
    take = Tunnel.part
    second = anyio.Event()

    async def part(tunnel: Tunnel, payload: Any) -> int:
        if payload["at"]:
            second.set()
            await anyio.sleep_forever()
        return await take(tunnel, payload)

    monkeypatch.setattr(Tunnel, "part", part)

    async def scenario() -> None:
        async with open_two(json_response=False) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            at(fleet, OTHER)
            body = json.dumps(SLOW).encode().ljust(4 * PART_BYTES)
            headers = {**HEADERS, "mcp-session-id": session_id}
            request = http.build_request("POST", URL, content=body, headers=headers)
            uploads = fleet.workers[HOLDER].router._tunnel._uploads
            sent: list[Any] = []

            async def send(message: Any) -> None:
                sent.append(message)

            receive = once(body, never_ends)
            async with anyio.create_task_group() as client:
                client.start_soon(fleet.workers[OTHER].router, scope_of(request), receive, send)
                await second.wait()
                client.cancel_scope.cancel()
            assert (len(uploads), sent) == (1, [])
            await anyio.sleep(CALL + 1)
            assert uploads == {}

    jumping(scenario)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("json_response", [False, True])
def test_a_holder_that_never_answers_is_given_up_under_either_library(
    backend: str, *, json_response: bool
) -> None:
    """And what it was to answer is ended there: it may take the next request."""

    async def scenario() -> None:
        store = MemoryStore()
        router = {"call_timeout": 0.3, "answer_timeout": 0.6}
        async with (
            open_fleet(backend, lambda: store, json_response=json_response, router=router) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, HOLDER)
            begun, ended = anyio.Event(), anyio.Event()

            async def hangs(scope: Any, receive: Any, send: Any) -> None:
                begun.set()
                try:
                    await never_answers(scope, receive, send)
                finally:
                    ended.set()

            fleet.workers[HOLDER].router._here._app = hangs
            while not begun.is_set():  # on a busy machine it may be given up before it gets there
                answer, _ = await ask(fleet, http, OTHER, session_id)
                assert answer.status_code == 504
            await ended.wait()

    run(backend, scenario)


@pytest.mark.parametrize(
    ("app", "patience"), [(never_begins, CALL), (never_answers, ANSWER)], ids=["begins", "answers"]
)
def test_a_holder_that_answers_as_a_whole_has_to_answer_some_time(
    app: Any, patience: float
) -> None:
    """Soon if it has not begun; what it runs may take longer, but not for ever."""

    async def scenario() -> None:
        async with open_two(json_response=True) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            fleet.workers[HOLDER].router._here._app = app
            answer, took = await ask(fleet, http, OTHER, session_id)
            assert answer.status_code == 504
            assert patience <= took < patience + 1

    jumping(scenario)


@pytest.mark.parametrize("worker", [HOLDER, OTHER])
@pytest.mark.parametrize(
    ("json_response", "answer_timeout"), [(True, 300.0), (True, None), (False, 60.0)]
)
def test_a_call_may_run_for_longer_than_a_worker_may_be_silent(
    worker: int, *, json_response: bool, answer_timeout: float | None
) -> None:
    """At whatever worker; where answers are streams, for as long as it likes."""

    async def scenario() -> None:
        async with (
            open_two(json_response=json_response, answer_timeout=answer_timeout) as fleet,
            raw(fleet) as http,
            anyio.create_task_group() as tasks,
        ):
            session_id = await begin(fleet, http, HOLDER)

            async def open_gate() -> None:
                await anyio.sleep(200)
                fleet.workers[HOLDER].calls.gates["g"].set()

            tasks.start_soon(open_gate)
            answer, took = await ask(fleet, http, worker, session_id)
            assert answer.status_code == 200
            assert "through g" in answer.text
            assert 200 <= took < 201

    jumping(scenario)


@pytest.mark.parametrize("worker", [HOLDER, OTHER])
def test_an_answer_has_the_same_time_at_every_worker(worker: int) -> None:
    """A client whose requests go to any of them is told the same."""

    async def scenario() -> None:
        async with (
            open_two(json_response=True, answer_timeout=60.0) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, HOLDER)
            answer, took = await ask(fleet, http, worker, session_id)
            assert answer.status_code == 504
            assert 60 <= took < 61

    jumping(scenario)


@pytest.mark.parametrize("worker", [HOLDER, OTHER])
def test_an_answer_that_comes_too_late_is_not_given(worker: int) -> None:
    """It has one head: that of the 504, though the application has not heard of its end."""

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(61)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> None:
        async with (
            open_two(json_response=True, answer_timeout=60.0) as fleet,
            raw(fleet) as http,
        ):
            session_id = await begin(fleet, http, HOLDER)
            fleet.workers[HOLDER].router._here._app = late
            answer, took = await ask(fleet, http, worker, session_id)
            assert answer.status_code == 504
            assert 60 <= took <= 62

    jumping(scenario)


def test_a_silent_stream_of_another_worker_is_kept_alive() -> None:
    """By a comment every 15 seconds, as the SDK does: a balancer would cut it off."""

    async def scenario() -> None:
        async with open_two(json_response=False) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, HOLDER)
            at(fleet, OTHER)
            headers = {**HEADERS, "mcp-session-id": session_id}
            heard: list[tuple[bytes, float]] = []
            async with (
                http.stream("GET", URL, headers=headers) as answer,
                aclosing(answer.aiter_raw()) as pieces,
            ):
                assert answer.status_code == 200
                since = anyio.current_time()
                while len(heard) < 4:
                    heard.append((await anext(pieces), anyio.current_time() - since))
            assert [piece for piece, _ in heard] == [b": ping\r\n\r\n"] * 4
            for number, (_, at_second) in enumerate(heard, 1):
                assert at_second == pytest.approx(15 * number, abs=0.5)

    jumping(scenario)
