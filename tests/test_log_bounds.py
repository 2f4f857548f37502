"""How large logs become, how long they last, and what one misses who follows them: nothing."""

from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from entries import events, explained, stored
from piles import pile_up_log
from trio.testing import MockClock

from trio_sessions import (
    Limits,
    LogEntry,
    RowLocked,
    StoreUnavailable,
    open_registry,
)
from trio_sessions import _logs as logs_module
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.writes import (
    Append,
    Batch,
    Committed,
)

# ---- bounds ----


@pytest.mark.timeout(120)
async def test_a_long_log_goes_piece_by_piece(shared: Shared) -> None:
    """However its session ends, no operation takes long; nothing of it is left."""
    store = FaultyStore(
        shared.make_store()
        if shared.name == "memory"
        else DatabaseStore(
            shared.backdoor.engine.url,  # type: ignore[attr-defined]
            lock_timeout=0.4,
            operation_timeout=2.0,
        )
    )
    many = 45_000
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        pile_up_log(shared, "s", many)
        await registry.remove_session("s")
        if shared.name != "memory":
            assert store.calls["Delete"] >= 5
        assert stored(shared) == 0
        await registry.add_session("s", FakeTransport())
        pile_up_log(shared, "s", many)
        store.fail(Fault.FAILS, "Delete")
        await registry.remove_session("s")
        store.heal()
        store.calls.clear()
        await registry.add_session("s", FakeTransport())
        if shared.name != "memory":
            assert store.calls["Claim"] >= 5
        assert stored(shared) == 0
        shared.backdoor.insert("dead", "another worker", age=7200.0)
        pile_up_log(shared, "dead", many)
        if isinstance(shared.backdoor, DatabaseBackdoor):
            shared.backdoor.age(7200.0, "dead")
            shared.backdoor.execute(sa.text("UPDATE trio_fleet SET unbroken_since = NULL"))
        assert (await registry.cleanup()).expired == 1
        assert stored(shared) == 0
        pile_up_log(shared, "s", many)
    assert stored(shared) == 0
    assert shared.backdoor.rows() == {}


class Noting(MemoryStore):
    """Notes what each append says is to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[int | None] = []

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        self.kept += [one.keep for _, one in batch.of(Append)]
        return await super().commit(worker, batch)


async def test_one_of_a_thousand_appends_says_how_many_are_kept() -> None:
    """Of each session, wherever the count began."""
    store = Noting()
    async with open_registry(store) as registry:
        for session_id in ("s", "t"):
            await registry.add_session(session_id, FakeTransport())
            for _ in range(2000):
                await registry.logs.append(session_id, 0)
            assert store.kept.count(10_000) == 2
            assert store.kept.count(None) == 1998
            store.kept.clear()


async def test_a_log_does_not_grow_without_end(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest stay; an append that fails leaves its word to the next one."""
    monkeypatch.setattr(logs_module, "KEEP", 20)
    monkeypatch.setattr(logs_module, "_EVERY", 10)
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b:
        await a.add_session("s", FakeTransport())
        for n in range(200):
            await (a, b)[n % 2].logs.append("s", n)
            assert stored(shared) <= 40  # each of two counts ten
        found = await events(b)
        assert len(found) >= 20
        assert found == list(range(200))[-len(found) :]
        counts = a._house.log_room.counts
        while counts._counts["s"] != 9:
            await a.logs.append("s", 0)
        store.fail(Fault.FAILS, "Append", times=1)
        with pytest.raises(StoreUnavailable):
            await a.logs.append("s", 0)
        await a.logs.append("s", 0)
        assert counts._counts["s"] == 0
        assert stored(shared) == 20


def test_the_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sessions that are crowded out, one of so many appends is due all the same."""
    monkeypatch.setattr(logs_module, "_COUNTED", 50)
    monkeypatch.setattr(logs_module, "_EVERY", 10)
    counts = logs_module._Counts()
    due = sum(counts.is_due(f"s{n % 200}") for n in range(20_000))
    assert len(counts._counts) == 50
    assert 1500 < due < 2500
    counts.owe("not counted")
    assert len(counts._counts) == 50


async def test_old_entries_are_expired(shared: Shared) -> None:
    """By whoever has appended something, of all sessions; others ask nothing."""
    limits = Limits(log_ttl=0.2)
    writer, reader = FaultyStore(shared.make_store()), FaultyStore(shared.make_store())
    settings: dict[str, Any] = {"session_ttl": 3600.0, "limits": limits, "cleanup_interval": 0.1}
    async with (
        shared.open(store=writer, **settings) as a,
        shared.open(store=reader, **settings) as b,
    ):
        await a.add_session("s", FakeTransport())
        await b.add_session("t", FakeTransport())
        await trio.sleep(0.3)
        assert writer.calls["expire_logs"] == 0
        for session_id in ("s", "t"):
            await a.logs.append(session_id, "old")
        writer.fail(Fault.FAILS, "expire_logs", times=2)
        with trio.fail_after(30):
            while stored(shared):
                await trio.sleep(0.05)
        assert writer.faults["expire_logs"] == 2
        assert writer.calls["expire_logs"] > 2
        assert reader.calls["expire_logs"] == 0
        assert await b.logs.read("s") == []
        assert set(shared.backdoor.rows()) == {"s", "t"}


async def test_expiry_goes_piece_by_piece(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is younger stays."""
    monkeypatch.setattr(logs_module, "_PIECE", 100)
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, limits=Limits(log_ttl=1.0)) as registry:
        await registry.add_session("s", FakeTransport())
        pile_up_log(shared, "s", 250)
        await trio.sleep(1.1)
        await registry.logs.append("s", "new")
        assert await registry._house.log_room.expire() == 250
        assert store.calls["expire_logs"] == 3
        assert await events(registry) == ["new"]


@pytest.mark.parametrize("believed", ["nothing", "much"])
async def test_what_expires_is_chosen_once(postgresql: Shared, believed: str) -> None:
    """A join might carry the select out again and again, and each time lock others."""
    store = postgresql.make_store()
    assert isinstance(store, DatabaseStore)
    assert isinstance(postgresql.backdoor, DatabaseBackdoor)
    async with postgresql.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        if believed == "much":
            pile_up_log(postgresql, "s", 20_000)
        postgresql.backdoor.execute(sa.text("ANALYZE trio_logs"))
        expire = store._operations.expire_logs.__self__._expire  # type: ignore[attr-defined]
        plan = explained(postgresql, store, expire)
        assert "InitPlan" in plan, plan
        for word in ("Join", "Nested Loop", "SubPlan"):
            assert word not in plan, plan


async def test_its_task_ends_with_the_registry(autojump_clock: MockClock) -> None:
    """It goes round once an interval, and no more."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.logs.append("s", 1)
        await trio.sleep(1000)
        assert 2 <= store.calls["expire_logs"] <= 4
        assert await events(registry) == []


# ---- who follows a log misses nothing ----


@pytest.mark.timeout(120)
async def test_who_reads_after_the_last_id_misses_nothing(shared: Shared) -> None:
    """While several workers append at once, each on threads and connections of its own."""
    each, workers = 60, 3
    async with shared.open() as reader:
        await reader.add_session("s", FakeTransport())
        seen: list[LogEntry] = []
        done = trio.Event()

        async def follow() -> None:
            while True:
                is_last = done.is_set()
                after = seen[-1].id if seen else 0
                found = await reader.logs.read("s", after=after)
                seen.extend(found)
                if is_last and not found:
                    return

        async def append_all(number: int) -> None:
            async with shared.open() as registry:
                for n in range(each):
                    while True:
                        try:
                            await registry.logs.append("s", [number, n])
                        except RowLocked:  # for long: it was not appended
                            continue
                        except StoreUnavailable as exc:
                            if "database is locked" not in str(
                                exc
                            ):  # SQLite's whole file, likewise
                                raise
                            continue
                        break

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            async with trio.open_nursery() as appenders:
                for number in range(workers):
                    appenders.start_soon(append_all, number)
            done.set()
        assert [one.id for one in seen] == [one.id for one in await reader.logs.read("s")]
        assert len(seen) == each * workers
        for number in range(workers):
            own = [one.event[1] for one in seen if one.event[0] == number]
            assert own == list(range(each))
