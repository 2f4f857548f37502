"""What a client has missed is sent again, by whatever worker, and to nobody else."""

import json
from typing import Any, cast

import anyio
import pytest

pytest.importorskip("mcp")

from mcp_fleet import BACKENDS, HEADERS, URL, as_bytes, at, begin, open_fleet, raw, run
from mcp_types import JSONRPCNotification, JSONRPCResponse

from trio_sessions.errors import StoreUnavailable
from trio_sessions.mcp import SessionEventStore
from trio_sessions.mcp._conversation import Conversation, current
from trio_sessions.mcp._events import LOST, check_event_id
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.types import LogEntry

both = pytest.mark.parametrize("backend", BACKENDS)
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")


def one_store() -> Any:
    store = MemoryStore()
    return lambda: store


def events(text: str) -> list[tuple[str, Any]]:
    """Return the ids and messages of a stream."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if "id" in fields:
            data = fields.get("data", "")
            found.append((fields["id"], json.loads(data) if data.strip() else None))
    return found


def call(request_id: int, name: str, arguments: Any) -> dict[str, Any]:
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "method": "tools/call",
        "params": {"name": name, "arguments": arguments, "_meta": {"progressToken": request_id}},
    }


def headers(session_id: str, **more: str) -> dict[str, str]:
    return {
        **HEADERS,
        "mcp-session-id": session_id,
        "mcp-protocol-version": "2025-11-25",
        **{key.replace("_", "-"): value for key, value in more.items()},
    }


@both
@pytest.mark.parametrize("place", ["here", "elsewhere", "after its worker's death"])
def test_an_answer_that_was_missed_is_sent_again(backend: str, place: str) -> None:
    """A client that names the last event it has seen is sent those that follow."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            answer = await http.post(
                URL, json=call(7, "add", {"n": 2}), headers=headers(session_id)
            )
            said = events(answer.text)
            assert [message is None for _, message in said] == [True, False, False, False]
            assert said[-1][1]["result"]["structuredContent"] == {"result": 3}
            if place == "elsewhere":
                at(fleet, 1)
            elif place != "here":
                await fleet.workers.pop(0).vanish()
                at(fleet, 0)
            for seen in range(len(said) - 1):
                again = await http.get(
                    URL, headers=headers(session_id, last_event_id=said[seen][0])
                )
                assert [m for _, m in events(again.text)] == [m for _, m in said[seen + 1 :]]

    run(backend, scenario)


@both
def test_a_call_that_died_with_its_worker_is_answered_and_not_run_again(backend: str) -> None:
    """Its client, which comes back, is told so at once instead of waiting for ever."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            dying = fleet.workers[0]
            async with http.stream(
                "POST", URL, json=call(7, "slow", {"gate": "g"}), headers=headers(session_id)
            ) as answer:
                async for text in answer.aiter_text():
                    first = events(text)
                    break
                await dying.calls.started.setdefault("g", anyio.Event()).wait()
            fleet.workers.remove(dying)
            await dying.vanish()
            at(fleet, 0)
            again = await http.get(URL, headers=headers(session_id, last_event_id=first[0][0]))
            (told,) = events(again.text)
            assert told[1]["id"] == 7
            assert told[1]["error"]["message"] == LOST
            assert fleet.workers[0].calls.ran == []

    run(backend, scenario)


@both
def test_bob_is_not_sent_what_alice_was_told(backend: str) -> None:
    """An event id of alice's session is refused in bob's, at every worker; nothing is sent."""

    async def scenario() -> None:
        async with (
            open_fleet(backend, one_store(), authenticates=True) as fleet,
            raw(fleet, "alice") as alice,
            raw(fleet, "bob") as bob,
        ):
            of_alice = await begin(fleet, alice, 0)
            of_bob = await begin(fleet, bob, 0)
            answer = await alice.post(
                URL, json=call(7, "echo", {"text": "alice's"}), headers=headers(of_alice)
            )
            event_id = events(answer.text)[0][0]
            for worker in (0, 1):
                at(fleet, worker)
                for session_id, status in ((of_bob, 400), (of_alice, 404)):
                    refused = await bob.get(
                        URL, headers=headers(session_id, last_event_id=event_id)
                    )
                    assert refused.status_code == status
                    assert "alice's" not in refused.text

    run(backend, scenario)


@both
@pytest.mark.parametrize("event_id", ["x", "1.2", "1.X19HRVRfc3RyZWFt.0", "9" * 30, "1.é.new", "."])
def test_an_event_id_that_cannot_be_one_is_refused(backend: str, event_id: str) -> None:
    """With the status of a bad request."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store(), size=1) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            bad = as_bytes({**headers(session_id), "last-event-id": event_id})
            refused = await http.get(URL, headers=bad)
            assert refused.status_code == 400

    run(backend, scenario)


class Log:
    """A log that can be away."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Any]] = {}
        self.is_away = False

    async def append(self, session_id: str, event: Any) -> int:
        await anyio.lowlevel.checkpoint()
        if self.is_away:
            raise StoreUnavailable("away")
        self.entries.setdefault(session_id, []).append(event)
        return len(self.entries[session_id])

    async def read(self, session_id: str, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        await anyio.lowlevel.checkpoint()
        found = list(enumerate(self.entries.get(session_id, []), start=1))
        return [LogEntry(id=i, event=e, age=0.0) for i, e in found if i > after][:limit]


class OnlyLogs:
    """A registry of which the event store needs no more."""

    def __init__(self) -> None:
        self.logs = Log()


def store_on(registry: OnlyLogs) -> SessionEventStore:
    return SessionEventStore(cast("Any", registry))


NOTE = JSONRPCNotification(jsonrpc="2.0", method="notifications/message", params={"n": 1})
ANSWER = JSONRPCResponse(jsonrpc="2.0", id=1, result={})


async def test_an_event_is_sent_though_the_database_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not kept, and what is kept later follows the same id."""
    registry = OnlyLogs()
    store = store_on(registry)
    current.set(Conversation("a"))
    first = await store.store_event("1", NOTE)
    registry.logs.is_away = True
    second = await store.store_event("1", NOTE)
    registry.logs.is_away = False
    assert first == second
    assert "was not kept" in caplog.text
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    await store.store_event("1", ANSWER)
    assert await store.replay_events_after(second, send) is None
    assert [one.message for one in sent] == [ANSWER]


async def test_streams_are_replayed_apart() -> None:
    """Of what a session was told, only what belongs to the stream is sent; its end is its end."""
    registry = OnlyLogs()
    store = store_on(registry)
    current.set(Conversation("a"))
    one, two = await store.store_event("1", None), await store.store_event("2", None)
    for _ in range(3):
        await store.store_event("1", NOTE)
        await store.store_event("2", NOTE)
    await store.store_event("1", ANSWER)
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    assert await store.replay_events_after(one, send) is None
    assert [type(e.message) for e in sent] == [JSONRPCNotification] * 3 + [JSONRPCResponse]
    sent.clear()
    assert await store.replay_events_after(two, send) == "2"
    assert [type(e.message) for e in sent] == [JSONRPCNotification] * 3


async def test_an_event_outside_a_session_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Without a router nobody knows whose it is: it has no id, and that is logged."""
    store = store_on(OnlyLogs())
    current.set(None)
    assert await store.store_event("1", NOTE) == ""
    assert "outside a SessionRouter" in caplog.text


def test_ids_of_events_survive_any_id_of_a_request() -> None:
    """Line breaks and foreign letters of a client's request id do not reach the header."""
    from trio_sessions.mcp._events import _event_id

    for stream in ("1", "é\r\nx: y", "", "_GET_stream", "🙂" * 50, "\ud800"):
        event_id = _event_id(Conversation("s"), stream, 5)
        assert event_id.isascii()
        assert event_id.isprintable()
        if stream:
            assert check_event_id("s", event_id) == (5, stream)
            assert check_event_id("t", event_id) is None
