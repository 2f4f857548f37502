"""Logs in outages, cancelled, and left by removed sessions."""

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from entries import events, stored
from gates import GatedStore
from trio.testing import wait_all_tasks_blocked

from trio_sessions import (
    Limits,
    SessionNotFound,
    StoreUnavailable,
)
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.testing._conformance._tools import Client, opened
from trio_sessions.types import Sent
from trio_sessions.writes import (
    Append,
    Batch,
    Claim,
    Claimed,
    Outcome,
    Send,
    Write,
)

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
