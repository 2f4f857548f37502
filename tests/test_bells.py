"""How a worker learns of messages, and what that costs: LISTEN, a look at the file, one poll."""

import logging
import sys
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from processes import killed_at_the_end
from proxy import Proxy
from readers import reading
from soak import SOAK, longer
from statements import noting_engine

from trio_sessions import RowUnavailable, SessionRegistry, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.database.postgresql._batch import Commit
from trio_sessions.testing import FakeTransport
from trio_sessions.types import Sent
from trio_sessions.writes import Batch, Claim, Claimed, Outcome, Send

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def quiet(proxy: Proxy) -> None:
    """Wait until the answers to what opening has asked are in, and count from there."""
    with trio.fail_after(40):
        while True:
            before = len(proxy.round_trips)
            await trio.sleep(0.3)  # nothing tells that there will be no more
            if len(proxy.round_trips) == before and not proxy.in_flight:
                break
    proxy.reset()


# ---- PostgreSQL ----


@pytest.mark.timeout(900 if SOAK else 60)
async def test_idle_sessions_cost_no_round_trip(proxy: Proxy, postgresql_schema: sa.URL) -> None:
    """However many are read: older systems polled for each. A message is one bell and one fetch."""
    ids = [f"s{number}" for number in range(10_000 if SOAK else 50)]
    async with (
        open_registry(DatabaseStore(proxy.url)) as a,
        open_registry(DatabaseStore(postgresql_schema)) as b,
        reading(a, *ids) as reader,
    ):
        await quiet(proxy)
        await trio.sleep(20.0 if SOAK else 1.0)  # time is what is measured here
        assert len(proxy.round_trips) <= (2 if SOAK else 0)  # once a minute it looks anyway
        proxy.reset()
        await b.broadcast("s7", "hello")
        await reader.until(1)
        assert reader.received["s7"] == ["hello"]
        assert len(proxy.round_trips) <= 2  # fetched, and perhaps acknowledged already
        await b.broadcast("s8", "hello")
        await reader.until(2)
        assert len(proxy.round_trips) <= 4  # the same for each


async def test_a_listening_connection_that_is_cut_is_made_again(
    proxy: Proxy, postgresql_schema: sa.URL
) -> None:
    """What was sent meanwhile is caught up with."""
    async with (
        open_registry(DatabaseStore(proxy.url)) as a,
        open_registry(DatabaseStore(postgresql_schema)) as b,
        reading(a, "s") as reader,
    ):
        for number in range(3):
            await quiet(proxy)
            proxy.cut()
            await b.broadcast("s", number)
            await reader.until(number + 1)
        assert reader.received["s"] == [0, 1, 2]


async def test_a_listening_connection_that_the_network_has_forgotten_is_made_again(
    proxy: Proxy, postgresql_schema: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing, and it is not told that it is gone."""
    monkeypatch.setattr("trio_sessions.stores.database.postgresql._listen._LOOK_ANYWAY", 0.2)
    async with (
        open_registry(DatabaseStore(proxy.url, operation_timeout=1, lock_timeout=0.5)) as a,
        open_registry(DatabaseStore(postgresql_schema)) as b,
        reading(a, "s") as reader,
    ):
        with trio.fail_after(40):
            await proxy.wait_until(lambda: "SELECT 1" in proxy.round_trips)
            proxy.reset()
            proxy.fall_silent("answers")
            await proxy.wait_until(lambda: any("LISTEN" in text for text in proxy.round_trips))
            await proxy.heal()
        await b.broadcast("s", 1)
        await reader.until(1)


async def test_a_bell_that_breaks_is_an_outage_like_any_other(
    proxy: Proxy, postgresql_schema: sa.URL, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever waits for it is told `StoreUnavailable`, and the log has no traceback."""
    async with (
        open_registry(DatabaseStore(proxy.url)) as a,
        open_registry(DatabaseStore(postgresql_schema)) as b,
        reading(a, "s") as reader,
    ):
        await quiet(proxy)
        channel = f"trio_{a._house._edge.worker.incarnation}"
        ended = f"""
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE query LIKE '%%LISTEN "{channel}"'
        """
        backdoor = DatabaseBackdoor(postgresql_schema)
        with backdoor.engine.connect() as connection:
            assert connection.exec_driver_sql(ended).scalars().all() == [True]
        backdoor.close()
        with trio.fail_after(40):
            await proxy.wait_until(lambda: any("LISTEN" in text for text in proxy.round_trips))
        await b.broadcast("s", 1)
        await reader.until(1)
    assert "the connection that listens for messages broke" in caplog.text
    assert [record for record in caplog.records if record.exc_info] == []
    assert max(record.levelno for record in caplog.records) == logging.WARNING


async def test_without_listen_one_poll_a_second_serves_all_sessions(
    proxy: Proxy, postgresql_schema: sa.URL
) -> None:
    """As behind PgBouncer; it is quicker while messages come."""
    ids = [f"s{number}" for number in range(50)]
    async with (
        open_registry(DatabaseStore(proxy.url, listen=False)) as a,
        open_registry(DatabaseStore(postgresql_schema)) as b,
        reading(a, *ids) as reader,
    ):
        for number in range(5):
            await b.broadcast("s7", number)
            await reader.until(number + 1)
        assert reader.received["s7"] == [0, 1, 2, 3, 4]
        await b.broadcast("s7", "stays unread")  # its consumer is busy with the one before
        await trio.sleep(4)  # it slows down by itself
        proxy.reset()
        await trio.sleep(2.5)
        assert 1 <= len(proxy.round_trips) <= 3
        assert not any("LISTEN" in statement for statement in proxy.round_trips)


async def test_a_message_that_is_committed_late_is_polled_for(postgresql: Shared) -> None:
    """Its id is smaller than that of one which has been seen."""
    backdoor = postgresql.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    url = backdoor.engine.url
    insert = "INSERT INTO trio_messages (session_id, payload) VALUES ('s', '\"late\"')"
    async with (
        open_registry(DatabaseStore(url, listen=False)) as a,
        postgresql.open() as b,
        reading(a, "s") as reader,
    ):
        with backdoor.engine.connect() as connection:
            transaction = connection.begin()
            connection.exec_driver_sql(insert)
            await b.broadcast("s", "early")
            await reader.until(1)
            transaction.commit()
        await reader.until(2, 5.0)
        assert reader.received["s"] == ["early", "late"]


def at_once(incarnation: str) -> Worker:
    return Worker(worker_id="w", incarnation=incarnation, limiter=trio.CapacityLimiter(1))


async def test_a_takeover_during_a_send_hears_the_bell(postgresql: Shared) -> None:
    """The sender is told to come again, and rings for the new holder."""
    backdoor = postgresql.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    takes, sends = at_once("new"), at_once("sends")
    commit = Commit(tables("trio_"), rings=True)
    store = postgresql.make_store()
    await store.open(sends)
    async with postgresql.open() as a:
        await a.add_session("s", FakeTransport())
        with (
            backdoor.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as listener,
            backdoor.engine.connect() as connection,
        ):
            listener.exec_driver_sql('LISTEN "trio_new"')
            transaction = connection.begin()
            claim = Batch(writes=[Claim(session_id="s", generation=1, age=0.0)])
            [claimed] = commit(connection, takes, claim, lambda: 0.0).answers
            assert isinstance(claimed, Claimed)
            assert claimed.outcome is Outcome.TAKEN_OVER
            send = Batch(writes=[Send(session_id="s", payload="1")])
            assert isinstance((await store.commit(sends, send)).answers[0], RowUnavailable)
            transaction.commit()
            assert isinstance((await store.commit(sends, send)).answers[0], Sent)
            driver: Any = listener.connection.dbapi_connection
            heard = await trio.to_thread.run_sync(
                lambda: [n.payload for n in driver.notifies(timeout=20, stop_after=1)]
            )
            assert heard == ["s"]
    await store.close(sends)


async def test_a_send_is_in_the_way_of_a_takeover_only(postgresql: Shared) -> None:
    """Refreshes, owners, capabilities and other messages do not wait for it."""
    backdoor = postgresql.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    takes = at_once("new")
    store = postgresql.make_store()
    await store.open(takes)
    commit = Commit(tables("trio_"), rings=True)
    async with postgresql.open() as a, postgresql.open() as b:
        await a.add_session("s", FakeTransport())
        with backdoor.engine.connect() as connection:
            transaction = connection.begin()
            send = Batch(writes=[Send(session_id="s", payload="1")])
            [sent] = commit(connection, at_once("sends"), send, lambda: 0.0).answers
            assert isinstance(sent, Sent)
            report = await a.cleanup()
            assert (report.refreshed, report.refresh_failures) == (1, {})
            await b.set_session_owner("s", "alice")
            await b.store_client_capabilities("s", {})
            await b.broadcast("s", 2)
            claim = Batch(writes=[Claim(session_id="s", generation=1, age=0.0)])
            assert isinstance((await store.commit(takes, claim)).answers[0], RowUnavailable)
            transaction.rollback()
            [claimed] = (await store.commit(takes, claim)).answers
            assert isinstance(claimed, Claimed)
            assert claimed.outcome is Outcome.TAKEN_OVER
    await store.close(takes)


async def test_every_statement_on_the_hot_path_uses_its_index(postgresql: Shared) -> None:
    """No sequential scan of a large table, whatever is asked of single sessions."""
    backdoor = postgresql.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    with noting_engine(backdoor.engine.url, isolation_level="AUTOCOMMIT") as (engine, seen):
        plans = await plans_of_the_hot_path(postgresql, engine, seen)
    assert len(plans) >= 12
    for statement, plan in plans.items():
        allowed = 0
        if "trio_fleet" in statement:  # the sweep looks at every session, once a pass
            allowed = plan.count("Seq Scan on trio_sessions")
            assert "Seq Scan on trio_messages" not in plan, plan
        elif "SELECT DISTINCT trio_messages" in statement:
            allowed = 1  # what waits is looked for among the messages
        large = plan.count("Seq Scan on trio_sessions") + plan.count("Seq Scan on trio_messages")
        assert large <= allowed, f"{statement}\n{plan}"


async def plans_of_the_hot_path(
    postgresql: Shared, engine: sa.Engine, seen: dict[str, Any]
) -> dict[str, str]:
    async with open_registry(engine) as a, postgresql.open() as b:
        async with reading(a, "s") as reader:
            for number in range(3):
                await b.broadcast("s", number)
                await a.broadcast("s", number, durable=True)
            await reader.until(6)
            await a.set_session_owner("s", "alice")
            await a.claim_session_owner("s", "bob")
            await a.store_client_capabilities("s", {"elicitation": {}})
            await a.get_client_capabilities("s")
            await a.get_elicitation_capable_sessions()
            await a.locate_session("elsewhere")
            await a.cleanup()
            with trio.fail_after(40):
                while not any("DELETE FROM trio_messages" in s and "claims" not in s for s in seen):
                    await trio.sleep(0.01)
        await a.remove_session("s")
        with engine.connect() as connection:
            fill(connection)
            return {
                statement: explain(connection, statement, parameters)
                for statement, parameters in list(seen.items())
                if "trio_" in statement
                and "pg_catalog" not in statement
                and not statement.lstrip().startswith(("CREATE", "ALTER", "SHOW", "ANALYZE"))
            }


def fill(connection: sa.Connection) -> None:
    """Make tables of which nobody would read the whole."""
    connection.exec_driver_sql(
        "INSERT INTO trio_sessions (session_id, worker_id, incarnation) "
        "SELECT 'other' || n, 'w', 'i' FROM generate_series(1, 20000) n"
    )
    connection.exec_driver_sql(
        "INSERT INTO trio_messages (session_id, payload) "
        "SELECT 'other' || n, '1' FROM generate_series(1, 20000) n"
    )
    connection.exec_driver_sql("ANALYZE trio_sessions")
    connection.exec_driver_sql("ANALYZE trio_messages")


def explain(connection: sa.Connection, statement: str, parameters: Any) -> str:
    rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
    return "\n".join(row[0] for row in rows)


# ---- crashes and storms ----

CONSUMER_ON_TRIO = """
import sys, trio
from trio_sessions import open_registry
from trio_sessions.testing import FakeTransport

async def main():
    async with open_registry(sys.argv[1]) as registry:
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s") as inbox:
            print("ready", flush=True)
            print(await anext(inbox), flush=True)
            print(await anext(inbox), flush=True)
            await trio.sleep_forever()

trio.run(main)
"""

CONSUMER_ON_ASYNCIO = """
import asyncio, sys
from trio_sessions.aio import SessionRegistry

class Connection:
    async def is_connected(self):
        return True

    async def disconnect(self):
        pass

async def main():
    async with SessionRegistry(sys.argv[1]) as registry:
        await registry.add_session("s", Connection())
        async with registry.open_inbox("s") as inbox:
            print("ready", flush=True)
            print(await anext(inbox), flush=True)
            print(await anext(inbox), flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("database", "program"),
    [
        pytest.param("sqlite", CONSUMER_ON_TRIO, id="sqlite-trio"),
        pytest.param("postgresql", CONSUMER_ON_ASYNCIO, id="postgresql-aio"),
        pytest.param("sqlite", CONSUMER_ON_ASYNCIO, id="sqlite-aio", marks=longer),
        pytest.param("postgresql", CONSUMER_ON_TRIO, id="postgresql-trio", marks=longer),
    ],
    indirect=["database"],
)
async def test_a_consumer_killed_between_read_and_acknowledge(
    database: Shared, program: str
) -> None:
    """With SIGKILL: the message that it had not finished is there for the next holder."""
    backdoor = database.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    url = backdoor.engine.url.render_as_string(hide_password=False)
    async with database.open() as registry:
        async with killed_at_the_end([sys.executable, "-c", program, url]) as (_, lines):
            assert await anext(lines) == "ready"
            for message in ("one", "two", "three"):
                await registry.broadcast("s", message)
            assert [await anext(lines), await anext(lines)] == ["one", "two"]
            with trio.fail_after(40):
                while len(backdoor.messages()) > 2:
                    await trio.sleep(0.01)
        await registry.add_session("s", FakeTransport())
        async with registry.open_inbox("s") as inbox:
            with trio.fail_after(40):
                assert [await anext(inbox), await anext(inbox)] == ["two", "three"]


@pytest.mark.timeout(1800 if SOAK else 120)
async def test_a_storm_arrives_whole_and_in_order(everywhere: Shared) -> None:
    """From two workers to the sessions of both: nothing lost, nothing doubled, order kept."""
    sessions, each = (1000, 100) if SOAK else (40, 40)
    if everywhere.host:  # through the test's view of the facade each call crosses three times
        sessions, each = sessions // 2, each // 2
    ids = [f"s{number}" for number in range(sessions)]
    backdoor = everywhere.backdoor
    stores = [
        DatabaseStore(backdoor.engine.url, lock_timeout=9)  # so that they wait for one file
        if isinstance(backdoor, DatabaseBackdoor)
        else everywhere.make_store()
        for _ in range(2)
    ]
    async with (
        everywhere.open(store=stores[0]) as a,
        everywhere.open(store=stores[1]) as b,
        reading(a, *ids[::2]) as reader_a,
        reading(b, *ids[1::2]) as reader_b,
    ):

        async def send(sender: SessionRegistry, name: str, some: list[str]) -> None:
            for number in range(each // 2):
                for session_id in some:
                    await sender.broadcast(session_id, [name, number])

        async with trio.open_nursery() as nursery:
            for first in range(8):
                nursery.start_soon(send, a, "a", ids[first::8])
                nursery.start_soon(send, b, "b", ids[first::8])
        await reader_a.until(sessions // 2 * each, 600)
        await reader_b.until(sessions // 2 * each, 600)
        received = {**reader_a.received, **reader_b.received}
        for session_id in ids:
            for name in ("a", "b"):
                numbers = [number for sender, number in received[session_id] if sender == name]
                assert numbers == list(range(each // 2)), session_id
        with trio.fail_after(40):
            while backdoor.messages():
                await trio.sleep(0.05)
        assert a.statistics().messages_dropped == b.statistics().messages_dropped == 0
