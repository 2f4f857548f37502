"""What a batch costs a database, and what becomes of one row that cannot be written."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from proxy import Proxy
from statements import noting_engine

from trio_sessions import RowUnavailable, StoreUnavailable
from trio_sessions.abc import Worker
from trio_sessions.stores._crowds import Crowds
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database.portable._plan import decide
from trio_sessions.stores.database.postgresql._batch import _parameters
from trio_sessions.stores.database.postgresql._listen import _sessions
from trio_sessions.types import Capabilities, Sent
from trio_sessions.writes import (
    Acknowledge,
    Answer,
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Delete,
    Outcome,
    Send,
    SetCapabilities,
    SetOwner,
    Write,
)

pytestmark = pytest.mark.usefixtures("nothing_in_between")

LOCK_TIMEOUT = 3.0  # seconds; nobody waits as long
EVERYTHING = ["deleted", "kept", "owned", "claimed", "able", "sent", "read"]


def back(shared: Shared) -> DatabaseBackdoor:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    return shared.backdoor


class Client:
    def __init__(self, store: DatabaseStore, worker: Worker) -> None:
        self.store = store
        self.worker = worker

    async def commit(self, *writes: Write[object]) -> Sequence[Answer]:
        return (await self.store.commit(self.worker, Batch(writes=writes))).answers

    async def hold(self, *session_ids: str) -> None:
        """Claim sessions, and store a message for each."""
        await self.commit(*(Claim(session_id=s, generation=1, age=0.0) for s in session_ids))
        await self.commit(*(Send(session_id=s, payload="1") for s in session_ids))


@asynccontextmanager
async def opened(
    url: sa.URL | sa.Engine, name: str = "w", **settings: Any
) -> AsyncIterator[Client]:
    store = DatabaseStore(url, lock_timeout=LOCK_TIMEOUT, operation_timeout=20.0, **settings)
    worker = Worker(worker_id=name, incarnation=name, limiter=trio.CapacityLimiter(3))
    await store.open(worker)
    try:
        yield Client(store, worker)
    finally:
        with trio.CancelScope(shield=True):
            await store.close(worker)


def of_every_kind(times: int = 1) -> list[Write[object]]:
    able = Capabilities(encoded="{}", elicitation=False)
    kinds: list[Write[object]] = [
        Claim(session_id="new", generation=2, age=0.0, ended=1),
        Claim(session_id="kept", generation=2, age=0.0),
        Delete(session_id="deleted", up_to=1),
        SetOwner(session_id="owned", owner="alice"),
        ClaimOwner(session_id="claimed", owner="alice"),
        SetCapabilities(session_id="able", capabilities=able),
        *(Send(session_id="sent", payload=str(number)) for number in range(times)),
        Acknowledge(session_id="read", message_ids=tuple(range(1, 100))),
    ]
    return kinds + [
        Claim(session_id=f"new{number}", generation=1, age=0.0) for number in range(times)
    ]


# ---- what it costs ----


async def test_a_batch_is_one_round_trip_and_one_transaction(
    proxy: Proxy, postgresql_schema: sa.URL
) -> None:
    """Whatever is in it, from the first time on: preparing costs nothing of its own."""
    async with opened(proxy.url) as client:
        await client.hold(*EVERYTHING)
        proxy.reset()
        for number in (1, 100):
            answers = await client.commit(*of_every_kind(number))
            assert not [one for one in answers if isinstance(one, RowUnavailable)]
        assert len(proxy.round_trips) == 2
        assert proxy.accepted == 1
        assert all(text.count("json_to_recordset") >= 5 for text in proxy.round_trips)
        backdoor = DatabaseBackdoor(postgresql_schema)
        writers = backdoor.execute(
            sa.text(
                "SELECT xmin FROM trio_messages WHERE payload = '99' "
                "UNION SELECT xmin FROM trio_sessions WHERE session_id IN ('kept', 'new99')"
            )
        )
        backdoor.close()
        assert len(writers) == 1


async def test_a_batch_on_a_file_is_one_transaction(sqlite: Shared) -> None:
    """Of as many statements as there are kinds of writes; only messages get ids one by one."""
    engine = sa.create_engine(back(sqlite).engine.url)
    statements: Counter[str] = Counter()

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements[statement] += 1

    async with opened(engine) as client:
        await client.hold(*EVERYTHING)
        counted = []
        for number in (1, 100):
            statements.clear()
            answers = await client.commit(*of_every_kind(number))
            assert not [one for one in answers if isinstance(one, RowUnavailable)]
            assert statements["BEGIN IMMEDIATE"] == statements["COMMIT"] == 1
            counted.append(statements.total())
        assert counted[0] <= 16
        assert counted[1] - counted[0] <= 100
    engine.dispose()


async def test_an_empty_batch_asks_nothing(proxy: Proxy) -> None:
    """Nor does it begin a transaction."""
    async with opened(proxy.url) as client:
        proxy.reset()
        assert await client.commit() == ()
        assert proxy.round_trips == []


async def test_behind_a_pooler_nothing_is_prepared(postgresql: Shared) -> None:
    """Where one is not in the way, everything is."""
    prepared = sa.text("SELECT count(*) FROM pg_prepared_statements")
    for server_timeouts in (True, False):
        async with opened(back(postgresql).engine.url, server_timeouts=server_timeouts) as client:
            await client.hold(*EVERYTHING)
            await client.commit(*of_every_kind())
            await client.store.delete_all(client.worker, limit=100)
            amount = await client.store.run(
                client.worker, lambda connection: connection.execute(prepared).scalar_one()
            )
            assert bool(amount) is server_timeouts


async def test_the_plan_that_is_kept_uses_the_indexes(postgresql: Shared) -> None:
    """Also if it was made while the tables were almost empty, and were known to be."""
    with noting_engine(back(postgresql).engine.url) as (engine, seen):
        async with opened(engine) as client:
            await client.hold(*EVERYTHING)
            await client.commit(*of_every_kind())
        with engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE trio_sessions")
            connection.exec_driver_sql("ANALYZE trio_messages")
            [first] = [text for text in seen if "enable_seqscan" in text]
            connection.exec_driver_sql(first)
            batches = [text for text in seen if "json_to_recordset" in text]
            assert len(batches) == 4
            for batch in batches:
                rows = connection.exec_driver_sql(f"EXPLAIN {batch}", seen[batch])
                plan = "\n".join(row[0] for row in rows)
                assert "Seq Scan on trio_" not in plan, plan


async def test_our_own_connections_know_it_from_the_start(postgresql: Shared) -> None:
    """So that a lone write is one statement."""
    told = sa.text("SHOW enable_seqscan")
    for server_timeouts in (True, False):
        async with opened(back(postgresql).engine.url, server_timeouts=server_timeouts) as client:
            is_on = await client.store.run(
                client.worker, lambda connection: connection.execute(told).scalar_one()
            )
            assert is_on == ("off" if server_timeouts else "on")


# ---- one row ----


async def test_a_locked_row_costs_only_itself(postgresql: Shared) -> None:
    """Whatever is to be done with it; nobody waits."""
    url = back(postgresql).engine.url
    async with opened(url) as client:
        for locked in EVERYTHING:
            await client.hold(*EVERYTHING)
            with back(postgresql).engine.connect() as connection:
                connection.exec_driver_sql(
                    f"SELECT 1 FROM trio_sessions WHERE session_id = '{locked}' FOR UPDATE"
                )
                start = time.monotonic()
                writes = of_every_kind()
                answers = await client.commit(*writes)
                assert time.monotonic() - start < LOCK_TIMEOUT
                refused = {
                    write.session_id
                    for write, answer in zip(writes, answers, strict=True)
                    if isinstance(answer, RowUnavailable)
                }
                assert refused == {locked}
                connection.rollback()
            answers = await client.commit(*(w for w in writes if w.session_id == locked))
            assert not [one for one in answers if isinstance(one, RowUnavailable)]
            await client.store.delete_all(client.worker, limit=100)


async def test_an_id_that_somebody_inserts_is_waited_for(postgresql: Shared) -> None:
    """As it must be in a database; then the batch is refused, so that it can be split."""
    async with opened(back(postgresql).engine.url) as client:
        with back(postgresql).engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO trio_sessions VALUES ('s', 'somebody')")
            with pytest.raises(RowUnavailable, match="LockNotAvailable"):
                await client.commit(
                    Claim(session_id="r", generation=1, age=0.0),
                    Claim(session_id="s", generation=1, age=0.0),
                )
            connection.rollback()
        assert back(postgresql).rows() == {}
        [claimed] = await client.commit(Claim(session_id="s", generation=1, age=0.0))
        assert isinstance(claimed, Claimed)
        assert claimed.outcome is Outcome.INSERTED


@pytest.mark.parametrize("table", ["trio_sessions", "trio_messages"])
async def test_a_locked_table_is_no_rows_error(postgresql: Shared, table: str) -> None:
    """A batch that is asked again in halves would wait as long for each of them."""
    async with opened(back(postgresql).engine.url) as client:
        await client.hold(*EVERYTHING)
        with back(postgresql).engine.connect() as connection:
            connection.exec_driver_sql(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable, match="locked the table") as caught:
                await client.commit(*of_every_kind())
            assert not isinstance(caught.value, RowUnavailable)
            connection.rollback()


async def test_a_row_that_is_refused_refuses_its_batch(database: Shared) -> None:
    """Nothing is done, and a batch without it succeeds."""
    refuse = {
        "sqlite": "CREATE TRIGGER refuse BEFORE INSERT ON trio_messages "
        "WHEN NEW.payload = '13' BEGIN SELECT RAISE(ABORT, 'refused'); END",
        "postgresql": "ALTER TABLE trio_messages ADD CHECK (payload <> '13')",
    }
    async with opened(back(database).engine.url) as client:
        await client.hold("s")
        back(database).execute(sa.text(refuse[database.name]))
        claim = Claim(session_id="t", generation=1, age=0.0)
        with pytest.raises(RowUnavailable):
            await client.commit(claim, Send(session_id="s", payload="13"))
        assert set(back(database).rows()) == {"s"}
        assert len(back(database).messages()) == 1
        _, sent = await client.commit(claim, Send(session_id="s", payload="14"))
        assert isinstance(sent, Sent)


async def test_a_row_that_is_refused_at_the_commit_refuses_its_batch(postgresql: Shared) -> None:
    """By a constraint that is deferred; the connection goes on."""
    backdoor = back(postgresql)
    async with opened(backdoor.engine.url) as client:
        refuse = """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE 'not this one' USING ERRCODE = '23514'; END $$;
            CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON trio_sessions
                DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW WHEN (NEW.session_id = 'bad') EXECUTE FUNCTION refuse();
        """
        backdoor.execute(sa.text(refuse))
        claims = [Claim(session_id=one, generation=1, age=0.0) for one in ("bad", "good")]
        for _ in range(2):
            with pytest.raises(RowUnavailable, match="not this one"):
                await client.commit(*claims)
        assert backdoor.rows() == {}
        assert isinstance((await client.commit(claims[1]))[0], Claimed)
        assert set(backdoor.rows()) == {"good"}


async def test_leaving_spares_a_row_that_is_taken_over_meanwhile(postgresql: Shared) -> None:
    """The deletion waits for the takeover, and looks again whose row it is."""
    url = back(postgresql).engine.url
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with opened(url, "a", listen=False) as client:
        await client.hold("s")
        with (
            back(postgresql).engine.connect() as watcher,
            back(postgresql).engine.connect() as connection,
        ):
            connection.exec_driver_sql(
                "UPDATE trio_sessions SET worker_id = 'b', incarnation = 'b'"
            )
            async with trio.open_nursery() as nursery:
                deleted: list[int] = []

                async def leave() -> None:
                    left = await client.store.delete_all(client.worker, limit=10)
                    deleted.append(left.sessions)

                nursery.start_soon(leave)
                with trio.fail_after(40):
                    while not watcher.exec_driver_sql(waits).scalar_one():
                        await trio.sleep(0.01)
                connection.commit()
        assert deleted == [0]
        assert back(postgresql).rows() == {"s": "b"}
        assert back(postgresql).messages() == ["s"]


async def test_a_sweep_spares_a_row_that_is_refreshed_or_taken_over_meanwhile(
    postgresql: Shared,
) -> None:
    """It passes over what is locked, and looks again at what was committed since it began."""
    backdoor = back(postgresql)
    durations: dict[str, Any] = {"session_ttl": 60.0, "message_ttl": 3600.0, "max_gap": 1000.0}
    async with opened(backdoor.engine.url, "a", listen=False) as client:
        for session_id in ("held", "dead"):
            backdoor.insert(session_id, "another", age=100.0)
        insert = "INSERT INTO trio_messages (session_id, payload) VALUES ('held', '1')"
        backdoor.execute(sa.text(insert))
        await client.store.sweep(client.worker, **durations, limit=0)
        backdoor.execute(sa.text("UPDATE trio_fleet SET unbroken_since = NULL"))
        with backdoor.engine.connect() as connection:
            connection.exec_driver_sql(
                "UPDATE trio_sessions SET worker_id = 'b' WHERE session_id = 'held'"
            )
            with trio.fail_after(40):
                swept = await client.store.sweep(client.worker, **durations, limit=10)
            assert (swept.sessions, swept.messages, swept.more) == (1, 0, False)
            connection.commit()
        assert backdoor.rows() == {"held": "b"}
        assert backdoor.messages() == ["held"]


# ---- bells ----


async def test_a_bell_that_cannot_ring_fails_no_message(postgresql: Shared) -> None:
    """As when somebody's listener is stuck, and the queue of notifications is full."""
    backdoor = back(postgresql)
    backdoor.execute(
        sa.text(
            "CREATE FUNCTION pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'the queue is full' USING ERRCODE = '54000'; END $$"
        )
    )
    options = f"{backdoor.engine.url.query['options']},pg_catalog"  # ours before the system's
    async with opened(backdoor.engine.url.update_query_dict({"options": options})) as client:
        await client.commit(Claim(session_id="s", generation=1, age=0.0))
        with pytest.raises(StoreUnavailable, match="the queue is full"):
            await client.store.run(
                client.worker,
                lambda connection: connection.exec_driver_sql("SELECT pg_notify('a', 'b')").all(),
            )
        claim = Claim(session_id="t", generation=1, age=0.0)
        answers = await client.commit(Send(session_id="s", payload="1"), claim)
        assert isinstance(answers[0], Sent)
        assert backdoor.messages() == ["s"]
        assert set(backdoor.rows()) == {"s", "t"}


async def test_a_batch_rings_each_holder_once(postgresql: Shared) -> None:
    """With all the sessions that it is to look for."""
    url = back(postgresql).engine.url
    async with opened(url, "a") as a, opened(url, "b") as b, opened(url, "c") as c:
        await a.commit(*(Claim(session_id=f"a{n}", generation=1, age=0.0) for n in range(50)))
        await b.commit(Claim(session_id="b0", generation=1, age=0.0))
        with (
            back(postgresql)
            .engine.connect()
            .execution_options(isolation_level="AUTOCOMMIT") as listener
        ):
            for channel in ("trio_a", "trio_b"):
                listener.exec_driver_sql(f'LISTEN "{channel}"')
            sends = [Send(session_id=f"a{n}", payload="1") for n in range(50) for _ in range(3)]
            await c.commit(*sends, Send(session_id="b0", payload="1"))
            driver: Any = listener.connection.dbapi_connection
            heard = await trio.to_thread.run_sync(
                lambda: {n.channel: n.payload for n in driver.notifies(timeout=2)}
            )
        assert set(heard) == {"trio_a", "trio_b"}
        assert heard["trio_b"] == "b0"
        assert _sessions(heard["trio_a"]) - {heard["trio_a"]} == {f"a{n}" for n in range(50)}


@pytest.mark.parametrize("session_id", ["s", "[]", '["t"]', "7", "null", "ü"])
def test_a_single_session_is_told_of_by_its_id(session_id: str) -> None:
    """Which may look like anything."""
    assert session_id in _sessions(session_id)


# ---- what has passed on the way ----


@pytest.mark.parametrize(
    ("waited", "outcome"),
    [(0.0, Outcome.TAKEN_OVER), (2.9, Outcome.TAKEN_OVER), (3.1, Outcome.LOST)],
)
def test_a_claim_grows_older_while_it_waits_for_a_connection(
    waited: float, outcome: Outcome
) -> None:
    """Its age was told when it was handed over; somebody may have come since."""
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(1))
    row = SimpleNamespace(
        worker_id="other",
        incarnation="other",
        generation=1,
        owner=None,
        capabilities=None,
        elicitation=False,
        data=None,
        taken=8.0,
        taken_ahead=False,
    )
    batch = Batch(writes=[Claim(session_id="s", generation=1, age=5.0)])
    plan = decide(worker, batch, {"s": row}, waited, revoked=(), crowds=Crowds({}), in_doubt=False)
    assert plan.claimed == [(0, "s", outcome)]
    told = _parameters(worker, batch, waited)["claims"]
    assert told is not None
    assert orjson.loads(told)[0]["age"] == pytest.approx(5.0 + waited)
