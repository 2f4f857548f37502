"""What a client has missed is sent again, by whatever worker, and to nobody else."""

import json
from typing import Any, cast

import anyio
import pytest

pytest.importorskip("mcp")

from backdoors import MemoryBackdoor
from mcp_fleet import BACKENDS, HEADERS, URL, as_bytes, at, begin, open_fleet, raw, run
from mcp_types import JSONRPCError, JSONRPCNotification, JSONRPCResponse

from trio_sessions._settings import Settings
from trio_sessions.errors import StoreUnavailable
from trio_sessions.mcp import SessionEventStore
from trio_sessions.mcp._conversation import Conversation, current
from trio_sessions.mcp._event_ids import Seen, check_event_id
from trio_sessions.mcp._event_ids import event_id as id_of
from trio_sessions.mcp._events import LOST
from trio_sessions.mcp._runs import BEGUN, has_begun
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
                await fleet.workers[0].keeps(session_id)
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
    """With the status of a bad request; nothing is stored of it."""

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store, size=1) as fleet, raw(fleet) as http:
            session_id = await begin(fleet, http, 0)
            told = await http.post(
                URL, json=call(1, "echo", {"text": "x"}), headers=headers(session_id)
            )
            assert told.status_code == 200
            await fleet.workers[0].keeps(session_id)
            before = MemoryBackdoor(store).amounts()
            bad = as_bytes({**headers(session_id), "last-event-id": event_id})
            refused = await http.get(URL, headers=bad)
            assert refused.status_code == 400
            await fleet.workers[0].keeps(session_id)
            assert MemoryBackdoor(store).amounts() == before
            assert (before[0], before[2] > 0) == (1, True)

    run(backend, scenario)


class OnItsWay:
    """An event that is on its way until somebody waits for it, or the log takes what waits."""

    size = 1

    def __init__(self, log: "Log", session_id: str, event: Any) -> None:
        self._log = log
        self._session_id = session_id
        self._event = event
        self.result: int | BaseException | None = None

    @property
    def is_settled(self) -> bool:
        return self.result is not None

    def settle(self) -> None:
        if self._log.is_away:
            self.result = StoreUnavailable("away")
        else:
            entries = self._log.entries.setdefault(self._session_id, [])
            entries.append(self._event)
            self.result = len(entries)

    async def wait(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._log.take_what_waits()


class Log:
    """A log that can be away."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Any]] = {}
        self.waiting: list[OnItsWay] = []
        self.is_away = False
        self.most = 1000
        """Entries that are read at a time, whatever is asked for: as where they are large."""

    def append_soon(self, session_id: str, event: Any) -> OnItsWay:
        one = OnItsWay(self, session_id, event)
        self.waiting.append(one)
        return one

    def take_what_waits(self) -> None:
        for one in self.waiting:
            one.settle()
        self.waiting.clear()

    async def read(self, session_id: str, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        await anyio.lowlevel.checkpoint()
        found = list(enumerate(self.entries.get(session_id, []), start=1))
        return [LogEntry(id=i, event=e, age=0.0) for i, e in found if i > after][
            : min(limit, self.most)
        ]


class OnlyLogs:
    """A registry of which the event store needs no more."""

    def __init__(self) -> None:
        self.logs = Log()
        self._settings = Settings()


def store_on(registry: OnlyLogs) -> SessionEventStore:
    return SessionEventStore(cast("Any", registry))


NOTE = JSONRPCNotification(jsonrpc="2.0", method="notifications/message", params={"n": 1})
ANSWER = JSONRPCResponse(jsonrpc="2.0", id=1, result={})


async def test_an_event_is_sent_though_the_database_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not kept, and what is kept later follows its id, and that of the one before."""
    registry = OnlyLogs()
    store = store_on(registry)
    current.set(Conversation("a"))
    first = await store.store_event("1", NOTE)
    registry.logs.is_away = True
    second = await store.store_event("1", NOTE)
    registry.logs.take_what_waits()
    registry.logs.is_away = False
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    await store.store_event("1", ANSWER)
    assert "was not kept" in caplog.text
    for seen in (first, second):
        sent.clear()
        assert await store.replay_events_after(seen, send) is None
        assert [one.message for one in sent] == [ANSWER]


async def test_an_event_is_sent_while_it_goes_to_the_log() -> None:
    """Its id is known before; a replay waits for what is on its way, and sends nothing twice."""
    registry = OnlyLogs()
    store = store_on(registry)
    conversation = Conversation()
    conversation.session_id = "a"
    current.set(conversation)
    ids = [await store.store_event("1", message) for message in (None, NOTE, NOTE, ANSWER)]
    assert registry.logs.entries == {}
    assert len(set(ids)) == 4
    assert not conversation.is_kept
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    for seen, event_id in enumerate(ids):
        sent.clear()
        assert await store.replay_events_after(event_id, send) is None
        told = [type(one.message) for one in sent]
        # who has seen the answer asks in vain
        all_of_it: list[type] = [JSONRPCNotification, JSONRPCNotification, JSONRPCResponse]
        left = all_of_it[seen:]
        assert told == (left or [JSONRPCError])
        assert not left or [one.event_id for one in sent] == ids[seen + 1 :]
    assert conversation.is_kept


async def test_a_stream_of_an_earlier_request_is_not_sent_again() -> None:
    """A client may give a request the id of one that was answered, and is still on its way."""
    registry = OnlyLogs()
    store = store_on(registry)
    conversation = Conversation()
    conversation.session_id = "a"
    current.set(conversation)
    await store.store_event("1", ANSWER)
    again = await store.store_event("1", None)
    await store.store_event("1", NOTE)
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    assert await store.replay_events_after(again, send) == "1"
    assert [one.message for one in sent] == [NOTE]


async def test_what_another_worker_has_said_comes_before_what_is_said_here() -> None:
    """Where the session has come from another worker, the first event waits for its place."""
    registry = OnlyLogs()
    store = store_on(registry)
    first, second = Conversation("a"), Conversation("a")
    current.set(first)
    await store.store_event("_GET_stream", NOTE)
    current.set(second)
    ids = [await store.store_event("_GET_stream", NOTE) for _ in range(2)]
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    assert len(registry.logs.entries["a"]) == 2
    await store.replay_events_after(ids[0], send)
    assert [one.message for one in sent] == [NOTE]
    sent.clear()
    await store.replay_events_after(ids[1], send)
    assert sent == []


async def test_written_ahead_an_event_is_in_the_log_before_it_is_sent() -> None:
    """Whoever wants that waits for the database."""
    registry = OnlyLogs()
    store = SessionEventStore(cast("Any", registry), write_ahead=True)
    conversation = Conversation()
    conversation.session_id = "a"
    current.set(conversation)
    for number in range(1, 3):
        await store.store_event("1", NOTE)
        assert len(registry.logs.entries["a"]) == number


async def test_when_too_much_is_on_its_way_an_event_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So what a worker keeps in memory is bounded, whatever the database does."""
    monkeypatch.setattr("trio_sessions.mcp._keeping._MOST", 3)
    registry = OnlyLogs()
    store = store_on(registry)
    conversation = Conversation()
    conversation.session_id = "a"
    current.set(conversation)
    for _ in range(3):
        await store.store_event("1", NOTE)
    assert registry.logs.entries == {}
    await store.store_event("1", NOTE)
    assert len(registry.logs.entries["a"]) == 4


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


async def test_a_log_of_large_entries_is_read_to_its_end() -> None:
    """A log is read some MiB at a time: fewer entries than were asked for are not its end."""
    registry = OnlyLogs()
    store = store_on(registry)
    current.set(Conversation("a"))
    first = await store.store_event("1", None)
    for message in (NOTE, NOTE, NOTE, ANSWER):
        await store.store_event("1", message)
    registry.logs.take_what_waits()
    registry.logs.entries["a"].append({BEGUN: "name"})
    registry.logs.most = 2
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    for conversation in (current.get(), Conversation("a")):  # here, and where it moves to
        current.set(conversation)
        sent.clear()
        assert await store.replay_events_after(first, send) is None
        assert [one.message for one in sent] == [NOTE, NOTE, NOTE, ANSWER]
    asked_at = anyio.current_time()
    for name, is_there in (("name", True), ("another", False)):
        found = await has_begun(cast("Any", registry), "a", name, asked_at=asked_at)
        assert found is is_there


async def test_an_event_outside_a_session_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Without a router nobody knows whose it is: it has no id, and that is logged."""
    store = store_on(OnlyLogs())
    current.set(None)
    assert await store.store_event("1", NOTE) == ""
    assert "outside a SessionRouter" in caplog.text


def test_ids_of_events_survive_any_id_of_a_request() -> None:
    """Line breaks and foreign letters of a client's request id do not reach the header."""
    for stream in ("1", "é\r\nx: y", "", "_GET_stream", "🙂" * 50, "\ud800"):
        event_id = id_of(Conversation("s"), stream, "5")
        assert event_id.isascii()
        assert event_id.isprintable()
        if stream:
            assert check_event_id("s", event_id) == Seen(5, stream)
            assert check_event_id("t", event_id) is None
