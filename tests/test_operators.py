"""What operators ask of a registry: who holds what, and who lives."""

import json
from typing import ClassVar

import pytest
import trio
from conftest import Shared
from proxy import Proxy
from trio.testing import MockClock

from trio_sessions import (
    InvalidSessionId,
    MessageTooLarge,
    NotSupported,
    RegistryClosed,
    StoreUnavailable,
    WorkerState,
    open_registry,
)
from trio_sessions.abc import Part, Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

pytestmark = pytest.mark.usefixtures("nothing_in_between")


# ---- workers ----


async def test_workers_are_listed_with_what_they_hold_and_say(everywhere: Shared) -> None:
    async with (
        everywhere.open(worker_data={"address": "10.0.0.1:8000"}) as a,
        everywhere.open(session_ttl=1000.0, cleanup_interval=100.0) as b,
    ):
        await b.add_session("s", FakeTransport())
        first, second = await a.workers.list()
        assert (first.worker_id, second.worker_id) == (a.worker_id, b.worker_id)
        assert first.state is second.state is WorkerState.ALIVE
        assert (first.sessions, second.sessions) == (0, 1)
        assert (second.session_ttl, second.cleanup_interval) == (1000.0, 100.0)
        assert first.data == {"address": "10.0.0.1:8000"}
        assert second.data == {}
        await b.workers.set_data({"address": [1, None]})
        assert (await a.workers.list())[1].data == {"address": [1, None]}
    async with everywhere.open() as c:
        assert [one.worker_id for one in await c.workers.list()] == [c.worker_id]


async def test_data_outlives_a_database_that_has_forgotten_it(shared: Shared) -> None:
    """The next history begins with it."""
    async with shared.open(worker_data={"port": 1}) as a:
        await a.add_session("s", FakeTransport())
        await a.workers.set_data({"port": 2})
        shared.backdoor.forget_workers()
        await a.cleanup()
        [worker] = await a.workers.list()
        assert (worker.data, worker.sessions) == ({"port": 2}, 1)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([], TypeError),
        ("{}", TypeError),
        ({1: 2}, TypeError),
        ({"a": {1}}, TypeError),
        ({"a": float("nan")}, ValueError),
        ({"a": "x" * 65_536}, MessageTooLarge),
    ],
)
async def test_data_that_cannot_be_told(data: object, error: type[Exception]) -> None:
    """It is refused before anything is opened or written, and the error names it."""
    with pytest.raises(error, match="worker_data"):
        open_registry(worker_data=data)  # type: ignore[arg-type]
    async with open_registry() as registry:
        with pytest.raises(error, match="data"):
            await registry.workers.set_data(data)  # type: ignore[arg-type]
        assert (await registry.workers.list())[0].data == {}


async def test_a_worker_that_is_cut_off_is_late_and_then_gone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late after three stamps; gone as soon as a sweep would take its rows; not there after it."""
    monkeypatch.setattr("trio_sessions._settings._STAMP_INTERVAL", 5.0)
    store = MemoryStore()
    cut_off = FaultyStore(store)
    async with (
        open_registry(cut_off, session_ttl=100.0, cleanup_interval=50.0) as a,
        open_registry(store, session_ttl=100.0, cleanup_interval=50.0) as b,
    ):
        await a.add_session("s", FakeTransport())
        states: list[tuple[float, WorkerState | None]] = []
        cut_off.fail()
        since = trio.current_time()
        while not states or states[-1][1] is not None:
            await trio.sleep(1.0)
            info = await b.describe_session("s")
            states.append(
                (trio.current_time() - since, None if info is None else info.worker_state)
            )
        late = next(at for at, state in states if state is WorkerState.LATE)
        gone = next(at for at, state in states if state is WorkerState.GONE)
        assert states[0][1] is WorkerState.ALIVE
        assert 15.0 < late <= 17.0, "three stamps of five seconds"
        assert 100.0 < gone <= 102.0
        assert states[-1][0] <= 152.0, "swept by the next pass"
        cut_off.heal()


class AsInAThread(MemoryStore):
    """What it was told goes on when its caller has left, and takes a while the first time."""

    pauses: ClassVar[list[float]] = [0.2, 0.0]

    @property
    def may_outlast_cancellation(self) -> bool:
        return True

    async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        with trio.CancelScope(shield=True):
            await trio.sleep(self.pauses.pop(0))
            has_row = await super().announce(worker, data=data, draining=draining)
        return has_row  # noqa: RET504 -- a scope may swallow a cancellation, says mypy


async def test_data_whose_caller_has_left_lands_behind_nothing(autojump_clock: MockClock) -> None:
    """What is told later is what stands in the end."""
    async with open_registry(AsInAThread()) as registry:
        with trio.move_on_after(0.1):
            await registry.workers.set_data({"n": 1})
        await registry.workers.set_data({"n": 2})
        await trio.sleep(1.0)
        assert (await registry.workers.list())[0].data == {"n": 2}


# ---- sessions ----


async def test_a_session_is_described_from_anywhere(everywhere: Shared) -> None:
    async with everywhere.open() as a, everywhere.open() as b:
        assert await a.describe_session("s") is None
        await a.add_session("s", FakeTransport())
        await b.set_session_owner("s", "alice")
        await b.broadcast("s", "hello")
        for registry in (a, b):
            info = await registry.describe_session("s")
            assert info is not None
            assert (info.session_id, info.worker_id, info.owner) == ("s", a.worker_id, "alice")
            assert (info.worker_alive, info.worker_state) == (True, WorkerState.ALIVE)
            assert info.waiting == 1
            assert info.created <= info.last_accessed
            assert 0 <= info.idle <= info.age < 60
        await a.remove_session("s")
        assert await b.describe_session("s") is None


async def test_what_is_removed_in_an_outage_is_described_as_gone() -> None:
    """Its row is only what it has left behind."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as a, open_registry(store) as b:
        await a.add_session("s", FakeTransport())
        store.fail()
        await a.remove_session("s")
        store.heal()
        assert await b.describe_session("s") is not None
        assert await a.describe_session("s") is None
        assert await a.list_sessions() == []


async def test_what_is_added_in_an_outage_is_unknown_and_not_absent() -> None:
    """404 for a live session would be a lie; and it is written as soon as that can be."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        store.fail(Fault.FAILS, "commit")
        await registry.add_session("s", FakeTransport())
        with pytest.raises(StoreUnavailable, match="held here"):
            await registry.describe_session("s")
        assert store.faults["commit"] >= 2, "it has tried to write the row"
        store.heal()
        assert (await registry.describe_session("s")) is not None


async def test_who_has_closed_is_told_so(everywhere: Shared) -> None:
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
    with pytest.raises(RegistryClosed):
        await b.describe_session("s")
    with pytest.raises(RegistryClosed):
        await b.list_sessions()
    with pytest.raises(RegistryClosed):
        await b.workers.list()
    with pytest.raises(RegistryClosed):
        await b.workers.set_data({})


async def test_an_outage_is_told() -> None:
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        store.fail()
        with pytest.raises(StoreUnavailable):
            await registry.describe_session("s")
        with pytest.raises(StoreUnavailable):
            await registry.list_sessions()
        with pytest.raises(StoreUnavailable):
            await registry.workers.list()
        with pytest.raises(StoreUnavailable):
            await registry.workers.set_data({})
        store.heal()


async def test_sessions_are_listed_page_by_page(everywhere: Shared) -> None:
    async with everywhere.open() as a, everywhere.open() as b:
        for number in range(5):
            await (a, b)[number % 2].add_session(f"s{number}", FakeTransport())
        await a.set_session_owner("s3", "alice")
        listed, after = [], None
        while page := await a.list_sessions(after=after, limit=2):
            assert len(page) <= 2
            listed += [one.session_id for one in page]
            after = listed[-1]
        assert listed == [f"s{number}" for number in range(5)]
        assert [one.session_id for one in await b.list_sessions(owner="alice")] == ["s3"]
        of_b = await a.list_sessions(worker_id=b.worker_id)
        assert [one.session_id for one in of_b] == ["s1", "s3"]
        assert await a.list_sessions(older_than=3600.0) == []


async def test_a_page_of_what_is_left_behind_is_not_the_end() -> None:
    """Whoever pages on must not take it for that."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        for number in range(6):
            await registry.add_session(f"s{number}", FakeTransport())
        store.fail(Fault.FAILS, "commit")
        for number in range(4):
            await registry.remove_session(f"s{number}")
        store.heal()
        page = await registry.list_sessions(limit=2)
        assert [one.session_id for one in page] == ["s4", "s5"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"owner": 1}, TypeError, "owner"),
        ({"owner": ""}, ValueError, "owner"),
        ({"worker_id": 1}, TypeError, "worker_id"),
        ({"worker_id": "w\0"}, ValueError, "worker_id"),
        ({"worker_id": "w\ud800"}, ValueError, "worker_id"),
        ({"older_than": "1"}, TypeError, "older_than"),
        ({"older_than": True}, TypeError, "older_than"),
        ({"older_than": -1.0}, ValueError, "older_than"),
        ({"older_than": float("inf")}, ValueError, "older_than"),
        ({"older_than": float("nan")}, ValueError, "older_than"),
        ({"limit": 0}, ValueError, "limit"),
        ({"limit": 10_001}, ValueError, "limit"),
        ({"limit": 1.0}, TypeError, "limit"),
        ({"after": ""}, InvalidSessionId, "session_id"),
        ({"after": 1}, InvalidSessionId, "session_id"),
    ],
)
async def test_bad_arguments_ask_nothing(
    arguments: dict[str, object], error: type[Exception], match: str
) -> None:
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        with pytest.raises(error, match=match):
            await registry.list_sessions(**arguments)  # type: ignore[arg-type]
        assert not store.calls["list_sessions"]


@pytest.mark.parametrize("age", [1e12, 1e300, 10**400])
async def test_an_age_that_no_database_can_go_back_is_that_of_nobody(
    everywhere: Shared, age: float
) -> None:
    """PostgreSQL said that the interval is out of range, which was told as an outage."""
    async with everywhere.open() as registry:
        await registry.add_session("s", FakeTransport())
        assert await registry.list_sessions(older_than=age) == []
        assert await registry.revoke(older_than=age) == 0
        assert registry.get_session_sync("s") is not None


async def test_a_question_is_one_operation(database: Shared) -> None:
    """`describe_session` decides between 404, 403 and 503 with one round trip."""
    store = FaultyStore(database.make_store())
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        before = sum(store.calls.values())
        await registry.describe_session("s")
        await registry.describe_session("elsewhere")
        await registry.list_sessions()
        await registry.workers.list()
        assert sum(store.calls.values()) == before + 4


async def test_a_question_is_one_round_trip(proxy: Proxy) -> None:
    """As the network sees it."""
    async with open_registry(DatabaseStore(proxy.url)) as registry:
        await registry.add_session("s", FakeTransport())
        for ask in (
            lambda: registry.describe_session("s"),
            lambda: registry.describe_session("elsewhere"),
            lambda: registry.list_sessions(owner="alice"),
            registry.workers.list,
            lambda: registry.workers.set_data({"port": 1}),
        ):
            await ask()
            proxy.reset()
            await ask()
            assert len(proxy.round_trips) == 1


# ---- a store without this part ----


class Plain(FaultyStore):
    """Keeps what a registry needs, and no more."""

    @property
    def parts(self) -> frozenset[Part]:
        return super().parts - {Part.INSPECTION}


async def test_a_store_that_cannot_say_is_told_from_one_that_is_away() -> None:
    async with open_registry(Plain(MemoryStore()), worker_data={"a": 1}) as registry:
        await registry.add_session("s", FakeTransport())
        for ask in (
            registry.list_sessions,
            registry.workers.list,
            lambda: registry.describe_session("s"),
            lambda: registry.workers.set_data({}),
        ):
            with pytest.raises(NotSupported, match="InspectionStore"):
                await ask()
        report = await registry.cleanup()
        assert report.refreshed == 1


def test_data_is_json() -> None:
    """What is stored is what any program can read."""
    from trio_sessions._settings import Settings

    presence = Settings(worker_data={"port": 1}).presence()
    assert json.loads(presence.data) == {"port": 1}
