"""Logs of sessions: appended by any worker, read again and again, gone with their session."""

import math
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from entries import events, explained, stored
from piles import pile_up_log
from trio.testing import wait_all_tasks_blocked

from trio_sessions import (
    InvalidSessionId,
    LogEntry,
    MessageTooLarge,
    NotSupported,
    RegistryClosed,
    SessionNotFound,
    open_registry,
)
from trio_sessions import _logs as logs_module
from trio_sessions.abc import Part
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore

# ---- appending and reading ----


async def test_any_worker_appends_and_reads(everywhere: Shared) -> None:
    """In the order of the ids, which ascend, whoever has appended; nothing is taken away."""
    values: list[Any] = [{"id": "e", "n": [1, None, 2**70]}, "text", 0, None, True, []]
    async with everywhere.open() as a, everywhere.open() as b:
        await a.add_session("s", FakeTransport())
        ids = [await (a, b)[n % 2].logs.append("s", value) for n, value in enumerate(values)]
        assert ids == sorted(set(ids))
        for registry in (a, b, a):
            found = await registry.logs.read("s")
            assert [one.event for one in found] == values
            assert [one.id for one in found] == ids
            assert {type(one) for one in found} == {LogEntry}
            assert all(0 <= one.age < 600 for one in found)
        assert [one.id for one in await b.logs.read("s", after=ids[1], limit=3)] == ids[2:5]
        assert await b.logs.read("s", after=ids[-1]) == []


async def test_an_unknown_session_has_no_log(everywhere: Shared) -> None:
    async with everywhere.open() as registry:
        with pytest.raises(SessionNotFound, match="held by no worker"):
            await registry.logs.append("nobody", 1)
        assert await registry.logs.read("nobody") == []
    assert stored(everywhere) == 0


async def test_what_is_wrong_is_said_at_the_door(shared: Shared) -> None:
    """And nothing is asked of the store."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, max_message_bytes=10) as registry:
        await registry.add_session("s", FakeTransport())
        store.calls.clear()
        logs = registry.logs
        with pytest.raises(InvalidSessionId):
            await logs.append("", 1)
        with pytest.raises(InvalidSessionId):
            await logs.read("\0")
        with pytest.raises(ValueError, match="the event"):
            await logs.append("s", math.nan)
        with pytest.raises(TypeError, match="the event"):
            await logs.append("s", object())
        with pytest.raises(MessageTooLarge, match="max_message_bytes"):
            await logs.append("s", "x" * 10)
        for after, error in ((-1, ValueError), (2**63, ValueError), ("1", TypeError)):
            with pytest.raises(error, match="after"):
                await logs.read("s", after=after)  # type: ignore[arg-type]
        for limit, error in ((0, ValueError), (10_001, ValueError), (True, TypeError)):
            with pytest.raises(error, match="limit"):
                await logs.read("s", limit=limit)
        assert not store.calls.keys() & {"read_log", "Append"}
    with pytest.raises(RegistryClosed):
        await logs.append("s", 1)
    with pytest.raises(RegistryClosed):
        await logs.read("s")


async def test_a_store_without_the_part_says_so() -> None:
    """Everything else works."""

    class Plain(MemoryStore):
        @property
        def parts(self) -> frozenset[Part]:
            return super().parts - {Part.LOGS}

    async with open_registry(Plain()) as registry:
        await registry.add_session("s", FakeTransport())
        with pytest.raises(NotSupported, match="LogStore"):
            await registry.logs.append("s", 1)
        with pytest.raises(NotSupported, match="LogStore"):
            await registry.logs.read("s")
        assert (await registry.cleanup()).checked == 1


async def test_what_one_worker_appends_stays_in_order(shared: Shared) -> None:
    """Also where messages are sent in between, which take the same line to the store."""
    async with shared.open() as a, shared.open() as b:
        await a.add_session("s", FakeTransport())
        async with trio.open_nursery() as nursery:
            for n in range(60):
                nursery.start_soon(b.logs.append, "s", n)
                await wait_all_tasks_blocked()
                if n % 7 == 0:
                    nursery.start_soon(b.broadcast, "s", n)
        assert await events(a) == list(range(60))
        assert shared.backdoor.messages() == ["s"] * 9


async def test_a_read_stops_at_a_size(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one entry at least; who goes on after the last has them all."""
    monkeypatch.setattr(logs_module, "_SIZE", 3000)
    async with shared.open() as registry:
        await registry.add_session("s", FakeTransport())
        for n in range(5):
            await registry.logs.append("s", f"{n}" * 2000)
        seen: list[str] = []
        after = 0
        while found := await registry.logs.read("s", after=after):
            assert len(found) <= 2
            seen += [one.event[0] for one in found]
            after = found[-1].id
        assert seen == ["0", "1", "2", "3", "4"]


async def test_decoding_many_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is not held for all of it."""
    monkeypatch.setattr(logs_module, "_TURN", 10)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_registry(MemoryStore()) as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        for _ in range(100):
            await registry.logs.append("s", "0123456789")
        nursery.start_soon(count)
        await trio.lowlevel.checkpoint()
        turns = 0
        assert len(await registry.logs.read("s")) == 100
        assert turns >= 100
        nursery.cancel_scope.cancel()


# ---- how much is asked of the store ----


async def test_a_thousand_appends_share_few_batches(shared: Shared) -> None:
    """And replaying them is one question; whoever appends nothing asks nothing."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.add_session("t", FakeTransport())
        store.calls.clear()
        async with trio.open_nursery() as nursery:
            for n in range(1000):
                nursery.start_soon(registry.logs.append, "st"[n % 2], n)
        assert 1 <= store.calls["Append"] <= 3
        for session_id in "st":
            assert len(await registry.logs.read(session_id)) == 500
        assert store.calls["read_log"] == 2


@pytest.mark.usefixtures("nothing_in_between")
async def test_a_replay_is_one_statement(database: Shared) -> None:
    """Of a thousand events, with the look whether the session is there."""
    assert isinstance(database.backdoor, DatabaseBackdoor)
    engine = sa.create_engine(database.backdoor.engine.url)
    told: list[str] = []

    def note(*event: Any) -> None:
        told.append(event[2])

    try:
        async with database.open(store=DatabaseStore(engine)) as registry:
            await registry.add_session("s", FakeTransport())
            async with trio.open_nursery() as nursery:
                for n in range(1000):
                    nursery.start_soon(registry.logs.append, "s", n)
            sa.event.listen(engine, "before_cursor_execute", note)
            assert len(await registry.logs.read("s")) == 1000
            assert await registry.logs.read("nobody") == []
            sa.event.remove(engine, "before_cursor_execute", note)
    finally:
        engine.dispose()
    assert len([one for one in told if "trio_logs" in one]) == 2
    assert len([one for one in told if one not in {"BEGIN", "COMMIT"}]) == 2, told


async def test_reading_and_expiring_go_by_an_index(database: Shared) -> None:
    """However many there are, also where all that the planner knows are of one session."""
    store = database.make_store()
    assert isinstance(store, DatabaseStore)
    assert isinstance(database.backdoor, DatabaseBackdoor)
    async with database.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        pile_up_log(database, "s", 20_000)
        database.backdoor.execute(sa.text("ANALYZE"))
        read = store._operations.read_log.__self__._read  # type: ignore[attr-defined]
        expire = store._operations.expire_logs.__self__._expire  # type: ignore[attr-defined]
        for statement, index in (
            (read, "ix_trio_logs_session_id_id"),
            (expire, "ix_trio_logs_created_at"),
        ):
            plan = explained(database, store, statement)
            assert index in plan, plan
            assert "Seq Scan on trio_logs" not in plan
            assert "SCAN trio_logs" not in plan.replace(f"USING COVERING INDEX {index}", "")
