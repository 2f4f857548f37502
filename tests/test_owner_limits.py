"""`Limits.max_sessions_per_owner`: of the whole fleet, and no more than that, however many ask."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from gates import GatedStore
from proxy import Proxy
from statements import noting_engine

import trio_sessions._writer as writer_module
from trio_sessions import (
    Limits,
    NotSupported,
    TooManySessions,
    open_registry,
)
from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.errors import RowLocked
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore
from trio_sessions.testing._conformance._fleet import begin
from trio_sessions.testing._conformance._tools import Client, opened
from trio_sessions.writes import Batch, Claim, Claimed, Committed, Outcome, Verdict

pytestmark = pytest.mark.usefixtures("nothing_in_between")

TWO = Limits(max_sessions_per_owner=2)


async def test_of_fifty_at_once_as_many_as_may_come_in(everywhere: Shared) -> None:
    """To two workers, for one owner; the others' transports are left alone, and nothing is held."""
    limits = Limits(max_sessions_per_owner=5)
    async with everywhere.open(limits=limits) as a, everywhere.open(limits=limits) as b:
        transports = [FakeTransport() for _ in range(50)]
        refused: dict[int, str] = {}

        async def add(number: int) -> None:
            registry = (a, b)[number % 2]
            try:
                await registry.add_session(f"s{number}", transports[number], owner="alice")
            except TooManySessions as exc:
                refused[number] = str(exc)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(add, number)
        assert len(refused) == 45
        [message] = set(refused.values())
        assert "max_sessions_per_owner (5)" in message
        assert "alice" not in message
        held = [*await a.get_all_session_ids(), *await b.get_all_session_ids()]
        assert set(held) == {f"s{one}" for one in range(50) if one not in refused}
        assert set(everywhere.backdoor.rows()) == set(held)
        await everywhere.settle()
        assert {one.disconnects for one in transports} == {0}
        reports = [await one.cleanup() for one in (a, b)]
        assert sum(one.refreshed for one in reports) == 5
        assert {one.missing for one in reports} == {()}


async def test_whoever_leaves_makes_room(everywhere: Shared) -> None:
    """And other owners, or nobody, have places of their own."""
    async with everywhere.open(limits=TWO) as a, everywhere.open(limits=TWO) as b:
        await a.add_session("1", FakeTransport(), owner="alice")
        await b.add_session("2", FakeTransport(), owner="alice")
        with pytest.raises(TooManySessions):
            await a.add_session("3", FakeTransport(), owner="alice", data={"n": 1})
        assert a.get_session_sync("3") is None
        assert await b.locate_session("3") is None
        await a.add_session("bob's", FakeTransport(), owner="bob")
        await a.add_session("nobody's", FakeTransport())
        await b.remove_session("2")
        await a.add_session("3", FakeTransport(), owner="alice")
        assert await b.get_session_data("3") is None
        assert await b.get_session_owner("3") == "alice"


async def test_what_it_has_already_may_be_added_again(everywhere: Shared) -> None:
    """Here, or at another worker: the newest transport wins as ever."""
    async with everywhere.open(limits=TWO) as a, everywhere.open(limits=TWO) as b:
        for session_id in ("1", "2"):
            await a.add_session(session_id, FakeTransport(), owner="alice")
        again, elsewhere = FakeTransport(), FakeTransport()
        await a.add_session("1", again, owner="alice")
        assert a.get_session_sync("1") is again
        await b.add_session("2", elsewhere, owner="alice")
        assert b.get_session_sync("2") is elsewhere
        assert (await a.cleanup()).taken_over == ("2",)


async def test_an_owner_that_is_set_later_is_not_refused(everywhere: Shared) -> None:
    """And counts from then."""
    async with everywhere.open(limits=TWO) as a:
        for session_id in ("1", "2", "3"):
            await a.add_session(session_id, FakeTransport())
            await a.set_session_owner(session_id, "alice")
        with pytest.raises(TooManySessions):
            await a.add_session("4", FakeTransport(), owner="alice")
        assert (await a.cleanup()).refreshed == 3


async def test_a_session_that_is_adopted_is_not_refused(everywhere: Shared) -> None:
    """It is no further one: its owner has as many as before."""
    async with everywhere.open() as a, everywhere.open(limits=TWO) as b:
        for session_id in ("s", "t", "u"):
            await a.add_session(session_id, FakeTransport(), owner="alice")
        for session_id in ("s", "t", "u"):
            assert await b.adopt_session(session_id, FakeTransport(), from_worker=a.worker_id)
        with pytest.raises(TooManySessions):
            await b.add_session("v", FakeTransport(), owner="alice")
        assert len(await b.get_all_session_ids()) == 3


async def test_a_refused_session_takes_nothing_with_it(everywhere: Shared) -> None:
    """What another session of the id has left here stays due, and is deleted by a pass."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(limits=TWO, store=store) as a:
        await a.add_session("left", FakeTransport(), owner="bob", data={"old": 1})
        for session_id in ("1", "2"):
            await a.add_session(session_id, FakeTransport(), owner="alice")
        store.fail()
        await a.remove_session("left")
        store.heal()
        with pytest.raises(TooManySessions):
            await a.add_session("left", FakeTransport(), owner="alice")
        assert await a.get_session_data("left") is None
        await a.cleanup()
        assert set(everywhere.backdoor.rows()) == {"1", "2"}
        await a.remove_session("2")
        await a.add_session("left", FakeTransport(), owner="alice")
        assert await a.get_session_data("left") is None


async def test_in_an_outage_sessions_are_let_in_and_stay(everywhere: Shared) -> None:
    """Nobody can be counted; who is in is not turned away when the database is there again."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(limits=TWO, store=store) as a:
        store.fail()
        for number in range(4):
            await a.add_session(f"{number}", FakeTransport(), owner="alice")
        store.heal()
        assert len((await a.cleanup()).restored) == 4
        assert len(await a.get_all_session_ids()) == 4
        with pytest.raises(TooManySessions):
            await a.add_session("5", FakeTransport(), owner="alice")


class BusyStore(FaultyStore):
    """Somebody else counts the sessions of every owner, as long as it `is_busy`."""

    is_busy = False

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.most: list[int | None] = []
        """What the claims said that were answered."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        busy = [one for _, one in batch.of(Claim) if one.most_of_owner and self.is_busy]
        others = [one for one in batch.writes if one not in busy]
        self.most += [one.most_of_owner for one in others if isinstance(one, Claim)]
        committed = await super().commit(worker, replace(batch, writes=others))
        answers = dict(zip(map(id, others), committed.answers, strict=True))
        return replace(
            committed, answers=[answers.get(id(one), RowLocked("busy")) for one in batch.writes]
        )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_PATIENCE", 0.05)


async def test_whom_nobody_counts_for_long_is_let_in_and_counted_later(
    shared: Shared, impatient: None
) -> None:
    """Its row is not written without the limit, however many passes there are; then with it."""
    store = BusyStore(shared.make_store())
    async with shared.open(limits=TWO, store=store) as a, shared.open(limits=TWO) as b:
        store.is_busy = True
        transport = FakeTransport()
        with trio.fail_after(30):
            await a.add_session("1", transport, owner="alice", data={"n": 1})
            await a.add_session("nobody's", FakeTransport())
            assert (await a.cleanup()).restored == ()
        assert a.get_session_sync("1") is transport
        assert set(shared.backdoor.rows()) == {"nobody's"}
        assert a.statistics().unconfirmed == 1
        store.is_busy = False
        store.most.clear()
        assert (await a.cleanup()).restored == ("1",)
        assert store.most == [2]
        assert await b.get_session_data("1") == {"n": 1}
        await b.add_session("2", FakeTransport(), owner="alice")
        with pytest.raises(TooManySessions):
            await a.add_session("3", FakeTransport(), owner="alice")


@pytest.mark.parametrize("again", ["the next pass", "the same id"])
async def test_who_was_let_in_stays_where_there_is_no_room(
    shared: Shared, impatient: None, caplog: pytest.LogCaptureFixture, again: str
) -> None:
    """Its row is written beyond the limit, and nobody else comes in."""
    store = BusyStore(shared.make_store())
    async with shared.open(limits=TWO, store=store) as a, shared.open(limits=TWO) as b:
        store.is_busy = True
        transport = FakeTransport()
        with trio.fail_after(30):
            await a.add_session("late", transport, owner="alice", data={"n": 1})
        for session_id in ("1", "2"):
            await b.add_session(session_id, FakeTransport(), owner="alice")
        store.is_busy = False
        store.most.clear()
        if again == "the next pass":
            assert (await a.cleanup()).restored == ("late",)
        else:
            await a.add_session("late", transport, owner="alice")
        assert store.most == [2, None]
        assert "one more than limits.max_sessions_per_owner" in caplog.text
        assert a.get_session_sync("late") is transport
        assert set(shared.backdoor.rows()) == {"1", "2", "late"}
        assert await b.get_session_data("late") == {"n": 1}
        await b.remove_session("1")
        with pytest.raises(TooManySessions):
            await b.add_session("3", FakeTransport(), owner="alice")
        await b.remove_session("2")
        await b.add_session("3", FakeTransport(), owner="alice")
        assert (await a.cleanup()).refreshed == 1
        assert transport.disconnects == 0


async def test_what_is_said_of_who_was_let_in_waits_until_it_has_a_row(
    shared: Shared, impatient: None
) -> None:
    """Its claim is refused first, and made once more beyond the limit: before the message goes."""
    store = BusyStore(shared.make_store())
    async with shared.open(limits=TWO, store=store) as a, shared.open(limits=TWO) as b:
        store.is_busy = True
        with trio.fail_after(30):
            await a.add_session("late", FakeTransport(), owner="alice")
        for session_id in ("1", "2"):
            await b.add_session(session_id, FakeTransport(), owner="alice")
        store.is_busy = False
        store.most.clear()
        await a.broadcast("late", "hello", durable=True)
        assert store.most == [2, None]
        assert shared.backdoor.messages() == ["late"]


async def test_nobody_waits_while_an_owner_is_counted(postgresql: Shared) -> None:
    """Neither what is in that batch, nor what comes behind it; and no batch is late."""
    verdicts: set[Verdict] = set()

    class Noting(FaultyStore):
        async def commit(self, worker: Worker, batch: Batch) -> Committed:
            committed = await super().commit(worker, batch)
            verdicts.add(committed.verdict)
            return committed

    assert isinstance(postgresql.backdoor, DatabaseBackdoor)
    lock = "SELECT pg_advisory_xact_lock(hashtextextended('trio_sessions alice', 0))"
    store, events = Noting(postgresql.make_store()), list[str]()
    async with postgresql.open(limits=TWO, store=store) as a:
        await a.add_session("1", FakeTransport(), owner="alice")

        async def add(session_id: str, owner: str) -> None:
            try:
                await a.add_session(session_id, FakeTransport(), owner=owner)
            except TooManySessions:
                events.append(f"not {session_id}")
            else:
                events.append(session_id)

        with trio.fail_after(30), postgresql.backdoor.engine.connect() as connection:
            connection.exec_driver_sql(lock)
            async with trio.open_nursery() as nursery:
                for session_id in ("2", "3"):
                    nursery.start_soon(add, session_id, "alice")
                for number in range(3):
                    await add(f"carol {number}", "carol")
                await a.set_session_owner("1", "alice")
                events.append("set")
                connection.rollback()
        assert events[:4] == ["carol 0", "carol 1", "not carol 2", "set"]
        assert sorted(events[4:]) in (["2", "not 3"], ["3", "not 2"])
    assert verdicts == {Verdict.DONE}


async def test_batches_of_the_same_owners_end(postgresql: Shared) -> None:
    """In whatever order they name them: nobody waits for an owner, so nobody for each other."""
    owners = [f"owner {number}" for number in range(8)]
    let_in = Counter[str]()

    async def claim(client: Client, names: list[str]) -> None:
        for number in range(6):
            claims = [
                Claim(
                    session_id=f"{client.worker.worker_id} {number} {owner}",
                    generation=number + 1,
                    age=0.0,
                    owner=owner,
                    most_of_owner=3,
                )
                for owner in names
            ]
            for owner, answer in zip(names, await client.commit(*claims), strict=True):
                assert isinstance(answer, Claimed)
                let_in[owner] += answer.outcome is Outcome.INSERTED

    async with opened(postgresql.make_store, "a", "b", "c") as clients:
        for client in clients:
            await begin(client, session_ttl=3600.0)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for turn, client in enumerate(clients):
                    names = owners[turn:] + owners[:turn]
                    nursery.start_soon(claim, client, names[::-1] if turn % 2 else names)
    assert let_in == dict.fromkeys(owners, 3)


async def test_who_is_added_again_while_it_is_counted_is_counted_too(shared: Shared) -> None:
    """The first claim is under way: the second one of the id does not slip in behind it."""
    store = GatedStore(shared.make_store())
    async with shared.open(limits=TWO, store=store) as a:
        for session_id in ("1", "2"):
            await a.add_session(session_id, FakeTransport(), owner="alice")
        told: list[Any] = []

        async def add(transport: FakeTransport) -> None:
            try:
                await a.add_session("3", transport, owner="alice")
            except TooManySessions:
                told.append(transport)

        first, second = FakeTransport(), FakeTransport()
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                held = store.hold("Claim")
                nursery.start_soon(add, first)
                await held.reached.wait()
                nursery.start_soon(add, second)
                await shared.settle()
                held.open()
        assert told == [first, second]
        assert a.get_session_sync("3") is None
        assert set(shared.backdoor.rows()) == {"1", "2"}


async def test_a_rewind_turns_nobody_away(shared: Shared) -> None:
    """Rows are written anew with their owners, whatever there is meanwhile."""
    async with shared.open(limits=TWO) as a:
        await a.add_session("1", FakeTransport(), owner="alice")
        old = shared.backdoor.copy()
        await a.add_session("2", FakeTransport(), owner="alice")
        await a.add_session("3", FakeTransport())
        await a.set_session_owner("3", "alice")
        shared.backdoor.go_back(old)
        await a.cleanup()
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        assert shared.backdoor.owners() == {"1": "alice", "2": "alice", "3": "alice"}


async def test_a_store_that_cannot_count_is_refused_when_opening() -> None:
    class Bare(MemoryStore):
        @property
        def parts(self) -> frozenset[Part]:
            return super().parts - {Part.LIMITS}

    with pytest.raises(NotSupported, match="LimitStore"):
        async with open_registry(Bare(), limits=TWO):
            pass
    async with open_registry(Bare()) as registry:
        await registry.add_session("s", FakeTransport(), owner="alice")


async def test_it_costs_no_further_round_trip(proxy: Proxy) -> None:
    """Let in or refused; and who has no limit, or names no owner, sends no word of it."""
    store = DatabaseStore(proxy.url)
    async with open_registry(store, limits=Limits(max_sessions_per_owner=1)) as registry:

        async def cost(session_id: str, **settings: Any) -> int:
            proxy.reset()
            try:
                await registry.add_session(session_id, FakeTransport(), **settings)
            except TooManySessions:
                assert session_id == "refused"
            return len(proxy.round_trips)

        for _ in range(3):
            await cost("s", owner="alice")
            await cost("refused", owner="alice")
            await cost("plain")
            for session_id in ("s", "plain"):
                await registry.remove_session(session_id)
        assert await cost("s", owner="alice") == 1
        assert "advisory" in proxy.round_trips[0]
        assert await cost("refused", owner="alice") == 1
        assert await cost("plain") == 1
        assert "advisory" not in proxy.round_trips[0]
        assert "claim_many" not in proxy.round_trips[0]


# ---- how far it counts ----

MANY = 20_000


def give_many(database: Shared, owner: str) -> None:
    """Let the holder of the session "seed" hold many more, of one owner."""
    numbers = (
        f"generate_series(1, {MANY}) AS one(i)"
        if database.name == "postgresql"
        else f"(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY})"
        " SELECT i FROM n) AS one"
    )
    columns = "worker_id, incarnation, generation, created_at, taken_at, last_accessed"
    assert isinstance(database.backdoor, DatabaseBackdoor)
    database.backdoor.execute(
        sa.text(
            f"INSERT INTO trio_sessions (session_id, owner, {columns}) "
            f"SELECT 'many ' || one.i, :owner, {columns} FROM trio_sessions, {numbers} "
            "WHERE session_id = 'seed'"
        ).bindparams(owner=owner)
    )
    database.backdoor.execute(sa.text("ANALYZE"))


async def test_memory_looks_at_no_more_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the sessions of one owner, and at none of the others."""
    looks = list[str]()

    store = MemoryStore()
    has_stamped = store._workers.has_stamped

    def look(incarnation: str, now: float) -> bool:
        looks.append(incarnation)
        return has_stamped(incarnation, now)

    monkeypatch.setattr(store._workers, "has_stamped", look)
    async with open_registry(store) as many, open_registry(store, limits=TWO) as few:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                for owner in ("alice", "bob"):
                    name = f"{owner} {number}"
                    nursery.start_soon(
                        partial(many.add_session, owner=owner), name, FakeTransport()
                    )
        looks.clear()
        with pytest.raises(TooManySessions):
            await few.add_session("s", FakeTransport(), owner="alice")
        assert len(looks) == 2
        looks.clear()
        await few.add_session("s", FakeTransport(), owner="carol")
        assert looks == []
        for number in range(299):
            await many.remove_session(f"alice {number}")
            await many.set_session_owner(f"bob {number}", "carol")
        await few.add_session("t", FakeTransport(), owner="alice")
        with pytest.raises(TooManySessions):
            await few.add_session("u", FakeTransport(), owner="alice")
        with pytest.raises(TooManySessions):
            await few.add_session("u", FakeTransport(), owner="carol")
        await few.add_session("u", FakeTransport(), owner="bob")


async def test_a_file_is_read_no_further_than_may_be(sqlite: Shared) -> None:
    """As many steps of the database as where the owner has just as many as it may."""
    assert isinstance(sqlite.backdoor, DatabaseBackdoor)
    engine = sa.create_engine(sqlite.backdoor.engine.url)
    steps = Counter[str]()

    @sa.event.listens_for(engine, "connect")
    def count(connection: Any, record: Any) -> None:
        connection.set_progress_handler(lambda: steps.update(all=1), 10)

    costs = list[int]()
    async with sqlite.open() as other:
        await other.add_session("seed", FakeTransport())
        for name in ("1", "2"):
            await other.add_session(name, FakeTransport(), owner="alice")
        give_many(sqlite, "bob")
        async with sqlite.open(limits=TWO, store=DatabaseStore(engine)) as registry:
            for owner in ("alice", "bob"):
                steps.clear()
                for name in ("s", "t"):
                    with pytest.raises(TooManySessions):
                        await registry.add_session(name, FakeTransport(), owner=owner)
                costs.append(steps["all"])
        assert costs[1] < 2 * costs[0] < 10_000
        sqlite.backdoor.execute(sa.text("DELETE FROM trio_sessions WHERE owner = 'bob'"))
    engine.dispose()


async def test_a_server_reads_no_further_than_may_be(postgresql: Shared) -> None:
    """Whatever it believes of how many sessions an owner has."""
    assert isinstance(postgresql.backdoor, DatabaseBackdoor)
    with noting_engine(postgresql.backdoor.engine.url) as (engine, seen):
        async with postgresql.open() as other:
            await other.add_session("seed", FakeTransport())
            async with postgresql.open(limits=TWO, store=DatabaseStore(engine)) as registry:
                give_many(postgresql, "alice")
                with pytest.raises(TooManySessions):
                    await registry.add_session("s", FakeTransport(), owner="alice")
                [lock] = [one for one in seen if "pg_try_advisory_xact_lock" in one]
                [batch] = [one for one in seen if "claim_many AS" in one]
                with postgresql.backdoor.engine.connect() as connection:
                    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                    connection.exec_driver_sql(lock, seen[lock])
                    explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {batch}"
                    plan = connection.exec_driver_sql(explain, seen[batch]).scalar_one()
                    connection.rollback()
                assert 2 <= rows_read(plan, "trio_sessions") <= 20
            delete = "DELETE FROM trio_sessions WHERE owner = 'alice'"
            postgresql.backdoor.execute(sa.text(delete))


def rows_read(plan: Any, table: str) -> int:
    """Return how many rows of a table were looked at."""
    if isinstance(plan, list):
        return sum(rows_read(one, table) for one in plan)
    if not isinstance(plan, dict):
        return 0
    read = sum(rows_read(one, table) for one in plan.values())
    if plan.get("Relation Name") == table and "Scan" in plan["Node Type"]:
        removed = plan.get("Rows Removed by Filter", 0)
        read += int((plan["Actual Rows"] + removed) * plan["Actual Loops"])
    return read
