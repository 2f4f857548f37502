"""Logs of sessions: appended by any worker, read again and again, gone with their session."""

import math
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor, MemoryBackdoor
from conftest import Shared
from gates import GatedStore
from piles import pile_up_log
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_sessions import (
    InvalidSessionId,
    Limits,
    LogEntry,
    MessageTooLarge,
    NotSupported,
    RegistryClosed,
    RowLocked,
    SessionNotFound,
    SessionRegistry,
    StoreUnavailable,
    open_registry,
)
from trio_sessions import _logs as logs_module
from trio_sessions.abc import Part, Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.testing._conformance._tools import Client, opened
from trio_sessions.types import Sent
from trio_sessions.writes import (
    Append,
    Batch,
    Claim,
    Claimed,
    Committed,
    Outcome,
    Send,
    Write,
)


async def events(registry: SessionRegistry, session_id: str = "s") -> list[Any]:
    return [one.event for one in await registry.logs.read(session_id)]


def stored(shared: Shared) -> int:
    """Return how many entries there are, of all sessions, and of none."""
    if isinstance(shared.backdoor, MemoryBackdoor):
        return sum(len(row.log) for row in shared.backdoor._store._rows.values())
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    [(number,)] = shared.backdoor.execute(sa.text("SELECT count(*) FROM trio_logs"))
    return int(number)


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


async def test_an_append_for_which_nobody_waits(shared: Shared) -> None:
    """It stays in the order of all appends; what became of it can be asked for."""
    async with shared.open() as registry:
        await registry.add_session("s", FakeTransport())
        soon = [registry.logs.append_soon("s", n) for n in range(3)]
        assert [(one.is_settled, one.result, one.size) for one in soon] == [(False, None, 1)] * 3
        last = await registry.logs.append("s", 3)
        assert await events(registry) == [0, 1, 2, 3]
        ids = [one.result for one in soon]
        assert all(isinstance(one, int) and one < last for one in ids)
        alone = registry.logs.append_soon("s", 4)
        with trio.testing.assert_checkpoints():
            await alone.wait()
        assert isinstance(alone.result, int)
        nobody = registry.logs.append_soon("nobody", 1)
        await nobody.wait()
        assert isinstance(nobody.result, SessionNotFound)
    with pytest.raises(RegistryClosed):
        registry.logs.append_soon("s", 5)


async def test_an_append_for_which_nobody_waits_is_refused_at_the_door(shared: Shared) -> None:
    """Or says later that the store was away."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, max_message_bytes=10) as registry:
        await registry.add_session("s", FakeTransport())
        with pytest.raises(MessageTooLarge):
            registry.logs.append_soon("s", "x" * 20)
        with pytest.raises(InvalidSessionId):
            registry.logs.append_soon("", 1)
        store.fail(Fault.FAILS, "Append")
        one = registry.logs.append_soon("s", 1)
        await one.wait()
        assert isinstance(one.result, StoreUnavailable)
        store.heal()


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


def explained(shared: Shared, store: DatabaseStore, statement: Any) -> str:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    values = {
        "asked_id": "s",
        "after": 5,
        "limit": 100,
        "size": 1000,
        "older_than": 600.0,
        "own_incarnation": "x",
    }
    with shared.backdoor.engine.begin() as connection:
        compiled = statement.compile(dialect=connection.dialect)
        found = {name: values.get(name, value) for name, value in compiled.params.items()}
        given: Any = found
        if compiled.positiontup is not None:
            given = tuple(found[name] for name in compiled.positiontup)
        explain = "EXPLAIN QUERY PLAN" if shared.name == "sqlite" else "EXPLAIN"
        rows = connection.exec_driver_sql(f"{explain} {compiled}", given)
        return "\n".join(str(row) for row in rows)


# ---- rows that are not written, outages, lost answers ----


async def test_an_append_goes_behind_the_claim_of_its_row(shared: Shared) -> None:
    """The row could not be written; it is, as soon as somebody appends."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry, shared.open() as other:
        store.fail()
        await registry.add_session("s", FakeTransport())
        assert store.faults["Claim"] == 1
        with pytest.raises(StoreUnavailable):
            await registry.logs.append("s", "away")
        with pytest.raises(StoreUnavailable, match="could not be written"):
            await registry.logs.read("s")
        assert await other.logs.read("s") == []
        store.heal()
        await registry.logs.append("s", 1)
        assert await events(registry) == [1]
        assert await events(other) == [1]


async def test_a_read_goes_behind_the_claim_of_its_row(shared: Shared) -> None:
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        store.fail()
        await registry.add_session("s", FakeTransport())
        store.heal()
        assert await registry.logs.read("s") == []
        assert set(shared.backdoor.rows()) == {"s"}


async def test_an_append_whose_answer_was_lost_is_not_repeated(shared: Shared) -> None:
    """Nobody knows whether it is there; it is, once."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail(Fault.COMMITS_THEN_FAILS, "Append", times=1)
        with pytest.raises(StoreUnavailable):
            await registry.logs.append("s", 1)
        assert store.faults["Append"] == 1
        await registry.logs.append("s", 2)
        await registry.cleanup()
        assert await events(registry) == [1, 2]


async def test_nothing_is_read_without_the_database(shared: Shared) -> None:
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.logs.append("s", 1)
        store.fail()
        with pytest.raises(StoreUnavailable):
            await registry.logs.read("s")
        with pytest.raises(StoreUnavailable):
            await registry.logs.append("s", 2)
        assert store.faults["read_log"] == 1
        store.heal()
        assert await events(registry) == [1]


async def test_after_a_rewind_the_session_goes_on(shared: Shared) -> None:
    """Its log has lost what the database has forgotten, and takes new entries."""
    async with shared.open() as registry:
        await registry.add_session("s", FakeTransport())
        await registry.logs.append("s", "kept")
        copy = shared.backdoor.copy()
        await registry.logs.append("s", "lost")
        await registry.cleanup()
        shared.backdoor.go_back(copy)
        await registry.logs.append("s", "new")
        assert await events(registry) == ["kept", "new"]
        shared.backdoor.go_back(None)
        await registry.cleanup()
        assert registry.statistics().database_rewinds == 2
        assert await events(registry) == []
        await registry.logs.append("s", "newer")
        assert await events(registry) == ["newer"]


async def test_a_row_that_somebody_has_locked_is_waited_for(postgresql: Shared) -> None:
    """For a while; an append that must come after another transaction's never overtakes it."""
    assert isinstance(postgresql.backdoor, DatabaseBackdoor)
    lock = sa.text("SELECT FROM trio_sessions WHERE session_id = 's' FOR NO KEY UPDATE")
    async with postgresql.open() as registry:
        await registry.add_session("s", FakeTransport())
        await registry.add_session("t", FakeTransport())
        with postgresql.backdoor.engine.connect() as connection:
            connection.execute(lock)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registry.logs.append, "s", 1)
                with trio.fail_after(30):
                    while not registry._house._writer._lines._paused:
                        await trio.sleep(0.001)
                await registry.logs.append("t", 1)
                assert await events(registry) == []
                connection.rollback()
        assert await events(registry) == [1]


# ---- cancellation ----


async def test_what_has_not_left_is_withdrawn(shared: Shared) -> None:
    """An append that is cancelled while another batch is under way."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        gate = store.hold("Append")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.logs.append, "s", 1)
            await gate.reached.wait()
            with trio.CancelScope() as scope:
                nursery.start_soon(wait_and_cancel, scope)
                await registry.logs.append("s", 2)
            assert scope.cancelled_caught
            gate.open()
        await registry.logs.append("s", 3)
        assert await events(registry) == [1, 3]


async def wait_and_cancel(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked(0.01)
    scope.cancel()


async def test_every_call_is_a_checkpoint(shared: Shared) -> None:
    async with shared.open() as registry:
        await registry.add_session("s", FakeTransport())
        with trio.testing.assert_checkpoints():
            await registry.logs.append("s", 1)
        with trio.testing.assert_checkpoints():
            await registry.logs.read("s")
        with trio.testing.assert_checkpoints():
            await registry.logs.read("nobody")


# ---- nothing of a removed session is seen by a later one of its id ----


async def test_a_session_removed_while_the_database_was_away(shared: Shared) -> None:
    """Nobody reads what it has left, neither before nor after it is added again."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry, shared.open() as other:
        await registry.add_session("s", FakeTransport())
        await registry.logs.append("s", "old")
        store.fail(Fault.FAILS, "Delete")
        await registry.remove_session("s")
        assert store.faults["Delete"] == 1
        assert stored(shared) == 1
        assert await registry.logs.read("s") == []
        with pytest.raises(SessionNotFound):
            await registry.logs.append("s", "late")
        store.fail()
        await registry.add_session("s", FakeTransport())
        with pytest.raises(StoreUnavailable):
            await registry.logs.read("s")
        store.heal()
        assert await registry.logs.read("s") == []
        await registry.logs.append("s", "new")
        assert await events(registry) == ["new"]
        assert await events(other) == ["new"]


async def test_an_append_that_waits_does_not_reach_a_later_session(shared: Shared) -> None:
    """It was for the one that was removed meanwhile."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.add_session("t", FakeTransport())
        told: list[str] = []

        async def append() -> None:
            try:
                await registry.logs.append("s", "old")
            except SessionNotFound:
                told.append("not found")

        gate = store.hold("Append")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.logs.append, "t", 1)
            await gate.reached.wait()
            nursery.start_soon(append)
            await wait_all_tasks_blocked(0.01)
            nursery.start_soon(registry.remove_session, "s")
            await wait_all_tasks_blocked(0.01)
            nursery.start_soon(registry.add_session, "s", FakeTransport())
            await wait_all_tasks_blocked(0.01)
            gate.open()
        assert told == ["not found"]
        assert await events(registry) == []


async def test_an_append_does_not_reach_a_later_session_elsewhere(shared: Shared) -> None:
    """Taken over, removed and added again elsewhere, and its first holder does not know yet."""
    async with shared.open() as a, shared.open() as b:
        await a.add_session("s", FakeTransport())
        await a.logs.append("s", "old")
        await b.add_session("s", FakeTransport())
        assert await events(b) == ["old"], "a takeover keeps it"
        assert await a.logs.append("s", "from here") > 0
        await b.remove_session("s")
        await b.add_session("s", FakeTransport())
        assert await events(b) == []
        assert a.get_session_sync("s") is not None
        with pytest.raises(SessionNotFound):
            await a.logs.append("s", "late")
        await b.logs.append("s", "new")
        assert await events(b) == ["new"]
        await a.cleanup()
        assert await a.logs.append("s", "anybody's") > 0
        assert await events(b) == ["new", "anybody's"]


async def test_an_append_follows_a_session_that_is_taken_over(shared: Shared) -> None:
    """It waited when its session went to another worker, which has the log now."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b:
        await a.add_session("s", FakeTransport())
        await a.add_session("t", FakeTransport())
        gate = store.hold("Append")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.logs.append, "t", 1)
            await gate.reached.wait()
            nursery.start_soon(a.logs.append, "s", 1)
            await wait_all_tasks_blocked(0.01)
            await b.add_session("s", FakeTransport())
            nursery.start_soon(a.cleanup)
            with trio.fail_after(30):
                while a.get_session_sync("s") is not None:
                    await trio.sleep(0.01)
            gate.open()
        assert await events(b) == [1]


async def test_a_revoked_session_leaves_no_log(shared: Shared) -> None:
    limits = Limits(revocation_ttl=0.001)
    async with shared.open(limits=limits) as holder, shared.open(limits=limits) as other:
        await holder.add_session("s", FakeTransport())
        await holder.logs.append("s", "old")
        assert await other.revoke("s") == 1
        assert stored(shared) == 0
        assert await other.logs.read("s") == []
        await trio.sleep(0.01)
        await other.add_session("s", FakeTransport())
        assert await events(other) == []


async def test_a_swept_session_leaves_no_log(shared: Shared) -> None:
    """Its worker is dead; its log stayed for as long as its row."""
    async with shared.open() as registry:
        shared.backdoor.insert("dead", "another worker", age=7200.0)
        await registry.logs.append("dead", "old")
        assert await events(registry, "dead") == ["old"]
        if isinstance(shared.backdoor, DatabaseBackdoor):
            shared.backdoor.age(7200.0, "dead")
            shared.backdoor.execute(sa.text("UPDATE trio_fleet SET unbroken_since = NULL"))
        assert (await registry.cleanup()).expired == 1
        assert stored(shared) == 0
        await registry.add_session("dead", FakeTransport())
        assert await events(registry, "dead") == []


async def test_closing_leaves_no_log(shared: Shared) -> None:
    async with shared.open() as registry:
        for session_id in ("s", "t"):
            await registry.add_session(session_id, FakeTransport())
            await registry.logs.append(session_id, 1)
    assert stored(shared) == 0


async def test_what_a_hand_has_left_is_not_seen(database: Shared) -> None:
    """A session deleted without its log, where nothing cascades, is a session without one."""
    async with database.open() as registry, database.open() as other:
        await registry.add_session("s", FakeTransport())
        await registry.logs.append("s", "old")
        database.backdoor.delete("s")
        assert await other.logs.read("s") == []
        await other.add_session("s", FakeTransport())
        assert await events(other) == []
        assert stored(database) == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("table", ["trio_logs", "trio_messages"])
async def test_what_comes_just_before_a_claim_goes_with_the_session(
    postgresql: Shared, table: str
) -> None:
    """A claim replaces an ended session to whose row others add something at that very moment."""
    assert isinstance(postgresql.backdoor, DatabaseBackdoor)
    write: Write[object] = (
        Append(session_id="s", event="1")
        if table == "trio_logs"
        else Send(session_id="s", payload="1")
    )
    survivors = sa.text(
        f"SELECT one.id, extract(epoch FROM s.created_at - one.created_at) FROM {table} AS one "
        "JOIN trio_sessions AS s USING (session_id) WHERE one.created_at < s.created_at"
    )
    beside = [Claim(session_id=f"t{n}", generation=1, age=0.0) for n in range(300)]
    generation = 1
    took: dict[int, float] = {}
    earlier: list[tuple[int, float]] = []

    async def add(client: Client) -> None:
        while generation < 60:
            asked = trio.current_time()
            [answer] = (await client.store.commit(client.worker, Batch(writes=[write]))).answers
            if isinstance(answer, Sent | int):
                number = answer.id if isinstance(answer, Sent) else answer
                took[number] = trio.current_time() - asked

    async with opened(postgresql.make_store, "a", "b", "c") as (a, b, c):
        await a.claim("s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, b)
            nursery.start_soon(add, c)
            while generation < 60:
                claim = Claim(session_id="s", generation=generation + 1, age=0.0, ended=generation)
                batch = Batch(writes=[*beside, claim])
                answer = (await a.store.commit(a.worker, batch)).answers[-1]
                if isinstance(answer, Claimed):
                    assert answer.outcome is Outcome.INSERTED
                    earlier += [
                        (number, float(age))
                        for number, age in postgresql.backdoor.execute(survivors)
                    ]
                    generation += 1
    if table == "trio_messages":
        # Of a message only the start of its transaction is known: it may come after the claim's.
        earlier = [(number, age) for number, age in earlier if age > took[number]]
    assert earlier == []


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
    monkeypatch.setattr(logs_module, "_KEEP", 20)
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
    each, workers = 150, 3
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
