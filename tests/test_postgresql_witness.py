"""The witness on PostgreSQL: locks, what is changed under a batch, other servers, statements."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from proxy import Proxy
from servers import make_standby
from statements import updates_of
from witnesses import Witnessed, open_witnessed

from trio_sessions.errors import RowDoubtful, RowUnavailable, StoreUnavailable
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._questions import identity
from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.database.postgresql._kinds import Names
from trio_sessions.stores.database.postgresql._pipeline import in_one_round_trip
from trio_sessions.stores.database.postgresql._sweep import _sweep_sessions, _sweep_workers
from trio_sessions.types import Sent, Stamp
from trio_sessions.writes import Claim, Claimed, ClaimOwner, Committed, Send, SetOwner, Verdict

NAMES = Names.of(tables("trio_"))
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '{}%%'"


def back(shared: Shared) -> DatabaseBackdoor:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    return shared.backdoor


@contextmanager
def another(shared: Shared) -> Iterator[sa.Connection]:
    """Yield somebody else's transaction, undone at the end."""
    with back(shared).engine.connect() as connection:
        yield connection
        connection.rollback()


async def until_one_waits(shared: Shared, for_what: str = "", number: int = 1) -> None:
    with another(shared) as watcher, trio.fail_after(40):
        while watcher.exec_driver_sql(WAITS.format(for_what)).scalar_one() < number:
            await trio.sleep(0.001)
            watcher.rollback()


def patient(shared: Shared, lock_timeout: float = 9.0) -> Callable[[], DatabaseStore]:
    url = back(shared).engine.url
    return lambda: DatabaseStore(url, lock_timeout=lock_timeout, operation_timeout=20.0)


def claim(session_id: str) -> Claim:
    return Claim(session_id=session_id, generation=1, age=0.0)


# ---- what is changed under a batch ----


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ("UPDATE trio_workers SET history = 'another', beat = 1", Verdict.FORGOTTEN),
        ("DELETE FROM trio_workers", Verdict.FORGOTTEN),
        ("UPDATE trio_workers SET beat = beat + 1", Verdict.DONE),
    ],
)
async def test_a_row_that_is_changed_after_the_snapshot(
    postgresql: Shared, change: str, verdict: Verdict
) -> None:
    """By a new history, or a sweep: then nothing is done. By a stamp: then the beat goes on."""
    outcome: list[Committed] = []

    async def commit(a: Witnessed) -> None:
        outcome.append(await a.commit(claim("new"), Send(session_id="s", payload="1")))

    async with open_witnessed(patient(postgresql), "a") as a:
        await a.claim("s")
        with another(postgresql) as connection:
            connection.exec_driver_sql(change)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(commit, a)
                await until_one_waits(postgresql, "WITH witness")
                connection.commit()
        [committed] = outcome
        assert committed.verdict is verdict
        assert committed.clock is not None
        if verdict is Verdict.DONE:
            assert isinstance(committed.answers[0], Claimed)
            assert isinstance(committed.answers[1], Sent)
            assert committed.stamp == Stamp(history=a.known.history, beat=4)
        assert postgresql.backdoor.messages() == (["s"] if verdict is Verdict.DONE else [])
        assert ("new" in postgresql.backdoor.rows()) is (verdict is Verdict.DONE)


async def test_a_stamp_that_a_trigger_swallows_splits_no_batch(postgresql: Shared) -> None:
    """It is no write's fault, and nothing is written."""
    async with open_witnessed(patient(postgresql), "a") as a:
        back(postgresql).execute(
            sa.text(
                "CREATE FUNCTION ignore() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN RETURN NULL; END'"
            )
        )
        back(postgresql).execute(
            sa.text(
                "CREATE TRIGGER ignore BEFORE UPDATE ON trio_workers "
                "FOR EACH ROW EXECUTE FUNCTION ignore()"
            )
        )
        with pytest.raises(StoreUnavailable, match="trigger") as caught:
            await a.commit(claim("s"), claim("t"))
        assert not isinstance(caught.value, RowUnavailable)
        for stamp in (a.stamp, a.sweep):
            with pytest.raises(StoreUnavailable, match="trigger"):
                await stamp()
        assert postgresql.backdoor.rows() == {}


# ---- locks ----


async def test_the_worker_s_row_is_locked_last(postgresql: Shared) -> None:
    """A batch that waits for somebody who inserts the same id keeps no stamp from being set."""
    async with open_witnessed(patient(postgresql), "a") as a:
        await a.claim("s")
        with another(postgresql) as connection:
            connection.exec_driver_sql(
                "INSERT INTO trio_sessions (session_id, worker_id) VALUES ('new', 'another')"
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.commit, claim("new"), claim("s"))
                await until_one_waits(postgresql, "WITH witness")
                with trio.fail_after(40):
                    assert await a.stamp(passed=True)
                connection.rollback()
        assert await a.seen() == Stamp(history=a.known.history, beat=4)
        assert postgresql.backdoor.rows() == {"s": "a", "new": "a"}


@pytest.mark.parametrize("others", [0, 1])
async def test_a_lock_on_the_worker_s_row_splits_no_batch(postgresql: Shared, others: int) -> None:
    """Whether the batch is the first that waits for it, or there is a queue."""
    update = "UPDATE trio_workers SET data = '[]'"
    async with open_witnessed(patient(postgresql, 0.5), "a") as a:
        with another(postgresql) as connection, another(postgresql) as next_one:
            connection.exec_driver_sql(update)
            async with trio.open_nursery() as nursery:
                if others:
                    nursery.start_soon(
                        trio.to_thread.run_sync, lambda: next_one.exec_driver_sql(update)
                    )
                    await until_one_waits(postgresql, "UPDATE")
                with pytest.raises(StoreUnavailable, match="this worker's row") as caught:
                    await a.commit(claim("s"), claim("t"))
                connection.rollback()
        assert not isinstance(caught.value, RowUnavailable)
        assert (await a.commit(claim("s"), claim("t"))).verdict is Verdict.DONE


async def test_a_batch_that_rings_in_vain_counts_once(postgresql: Shared) -> None:
    """It is repeated without a bell, and the first attempt was undone."""
    back(postgresql).execute(
        sa.text(
            "CREATE FUNCTION pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'the queue is full' USING ERRCODE = '54000'; END $$"
        )
    )
    with ours_before_the_system_s(postgresql) as make:
        async with open_witnessed(make, "a") as a:
            await a.claim("s")
            committed = await a.commit(Send(session_id="s", payload="1"))
            assert isinstance(committed.answers[0], Sent)
            assert committed.stamp == Stamp(history=a.known.history, beat=3)
            assert postgresql.backdoor.messages() == ["s"]


# ---- the sweep ----


async def test_a_sweep_that_fails_has_stamped(postgresql: Shared) -> None:
    """Else whoever is the only one to sweep would lose its lease by a backlog."""
    backdoor = back(postgresql)
    async with open_witnessed(patient(postgresql), "a") as a:
        await a.sweep()
        backdoor.insert("dead", "another", age=7000.0)
        backdoor.execute(
            sa.text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE 'refused'; END $$"
            )
        )
        backdoor.execute(
            sa.text(
                "CREATE TRIGGER refuse BEFORE DELETE ON trio_sessions "
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )
        backdoor.age_workers(700.0)
        beat = a.known.beat
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="refused"):
                await a.sweep()
        assert await a.seen() == Stamp(history=a.known.history, beat=beat + 2)
        [(age,)] = backdoor.execute(
            sa.text("SELECT extract(epoch FROM now() - passed_at) FROM trio_workers")
        )
        assert age < 60.0
        backdoor.execute(sa.text("DROP TRIGGER refuse ON trio_sessions"))
        assert (await a.sweep()).sessions == 1


async def test_a_server_that_is_frozen_after_the_stamp_expires_nobody(postgresql: Shared) -> None:
    """The time that passes then is no gap yet, and nobody could stamp in it."""
    backdoor = back(postgresql)

    def sweep(a: Witnessed) -> Callable[[sa.Connection], list[Any]]:
        parameters = {
            **identity(a.worker),
            "history": a.known.history,
            "beat": str(a.known.beat - 1),
            "session_ttl": 600.0,
            "message_ttl": 86400.0,
            "limit": 100,
        }
        return lambda connection: [
            list(in_one_round_trip(connection, [statement(NAMES)], parameters)[0])
            for statement in (_sweep_sessions, _sweep_workers)
        ]

    def freeze(seconds: float) -> None:
        for table, columns in (
            ("fleet", ("vouched_at", "unbroken_since")),
            ("workers", ("stamped_at", "passed_at")),
            ("sessions", ("last_accessed", "taken_at")),
        ):
            earlier = ", ".join(f"{one} = {one} - interval '{seconds} s'" for one in columns)
            backdoor.execute(sa.text(f"UPDATE trio_{table} SET {earlier}"))

    async with (
        open_witnessed(patient(postgresql), "a") as a,
        open_witnessed(patient(postgresql), "b") as b,
        open_witnessed(patient(postgresql), "idle"),
    ):
        await a.sweep()
        await b.claim("s")
        freeze(1000.0)
        assert isinstance(a.store, DatabaseStore)
        swept = await a.store.run(a.worker, sweep(a))
        assert swept == [[0, 0, 0, False, False], [0]]
        freeze(-1000.0)
        backdoor.execute(sa.text("UPDATE trio_fleet SET unbroken_since = NULL"))
        backdoor.age(1000.0)
        backdoor.age_workers(1000.0, "b", "idle")
        swept = await a.store.run(a.worker, sweep(a))
        assert swept == [[1, 0, 0, False, False], [2]]


async def test_an_incarnation_is_known_to_be_gone_for_a_week(postgresql: Shared) -> None:
    """What went earlier is forgotten by the next sweep."""
    backdoor = back(postgresql)
    async with open_witnessed(patient(postgresql), "a") as a:
        await a.sweep()
        for days in (8, 6):
            backdoor.execute(
                sa.text(
                    f"INSERT INTO trio_gone VALUES ('{days}', '', now() - interval '{days} days')"
                )
            )
        async with open_witnessed(patient(postgresql), "b") as b:
            backdoor.age_workers(700.0, "b")
            await a.sweep()
            gone = backdoor.execute(sa.text("SELECT incarnation FROM trio_gone"))
            assert {row[0] for row in gone} == {"6", b.worker.incarnation}


async def test_a_worker_that_wakes_while_its_row_is_swept(postgresql: Shared) -> None:
    """It waits, and is told that its lease is lost; once."""
    outcome: list[bool] = []

    async def begin(b: Witnessed) -> None:
        outcome.append(await b.begin(rewound=True))

    async with open_witnessed(patient(postgresql), "b") as b:
        with another(postgresql) as connection:
            connection.exec_driver_sql("DELETE FROM trio_workers")
            connection.exec_driver_sql(
                "INSERT INTO trio_gone (incarnation, history) "
                f"VALUES ('{b.worker.incarnation}', '{b.known.history}')"
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(begin, b)
                await until_one_waits(postgresql, "SELECT FROM trio_workers")
                connection.commit()
        assert outcome == [True]
        assert await b.store.locate(b.worker, "nobody") is None, "that is no reason for doubt"
        assert not await b.begin(rewound=True)


async def test_whoever_is_locked_is_not_waited_for(postgresql: Shared) -> None:
    """Neither a session nor a worker; the others go."""
    async with (
        open_witnessed(patient(postgresql), "a") as a,
        open_witnessed(patient(postgresql), "b"),
        open_witnessed(patient(postgresql), "c"),
    ):
        await a.sweep()
        for session_id in ("locked", "free"):
            postgresql.backdoor.insert(session_id, "another", age=7000.0)
        postgresql.backdoor.age_workers(700.0, "b", "c")
        with another(postgresql) as connection:
            connection.exec_driver_sql(
                "SELECT FROM trio_sessions WHERE session_id = 'locked' FOR UPDATE"
            )
            connection.exec_driver_sql("SELECT FROM trio_workers WHERE worker_id = 'b' FOR UPDATE")
            with trio.fail_after(40):
                assert (await a.sweep()).sessions == 1
            assert set(postgresql.backdoor.rows()) == {"locked"}
            assert set(postgresql.backdoor.workers()) == {"a", "b"}


# ---- doubt ----


@contextmanager
def ours_before_the_system_s(shared: Shared) -> Iterator[Callable[[], DatabaseStore]]:
    """Yield what makes a store to which functions of the schema hide those of the system."""
    url = back(shared).engine.url
    options = f"{url.query['options']},pg_catalog"
    yield lambda: DatabaseStore(url.update_query_dict({"options": options}))


@asynccontextmanager
async def open_in_doubt(
    make: Callable[[], DatabaseStore],
) -> AsyncIterator[tuple[Witnessed, Callable[[], Any]]]:
    """Open two workers, with a session each; yield one, and what checks that there is doubt."""
    async with open_witnessed(make, "a") as a, open_witnessed(make, "b") as b:
        await a.claim("a")
        await b.claim("b")

        async def check() -> None:
            for ask in (
                a.store.locate(a.worker, "nobody"),
                a.store.get_capabilities(a.worker, "nobody"),
                a.store.elicitation_capable(a.worker),
            ):
                with pytest.raises(StoreUnavailable, match="unknown"):
                    await ask
            writes = (
                Send(session_id="nobody", payload="1"),
                SetOwner(session_id="nobody2", owner="x"),
                ClaimOwner(session_id="b", owner="x"),
                ClaimOwner(session_id="a", owner="x"),
            )
            answers = (await a.commit(*writes)).answers
            assert [isinstance(one, RowDoubtful) for one in answers] == [True, True, True, False]
            assert await trio.to_thread.run_sync(owners) == {"a": "x", "b": None}
            assert await a.store.locate(a.worker, "b") is not None
            assert (await a.store.refresh(a.worker, ["nobody"])).held == frozenset()

        def owners() -> dict[str, str | None]:
            backdoor = DatabaseBackdoor(make()._url)
            found = backdoor.owners()
            backdoor.close()
            return found

        yield a, check


async def test_another_server_is_in_doubt_until_others_have_found_out(postgresql: Shared) -> None:
    """It may be a copy that lags; a stamp of one worker says nothing of what others wrote."""
    fleet = "SELECT doubtful_until - clock_timestamp() FROM trio_fleet"
    async with open_in_doubt(patient(postgresql)) as (a, check):
        await a.stamp()
        assert await a.store.locate(a.worker, "nobody") is None
        back(postgresql).execute(sa.text("UPDATE trio_fleet SET server = 'another'"))
        await check()
        assert await a.stamp()
        await check()
        [(left,)] = back(postgresql).execute(sa.text(fleet))
        assert 5.0 < left.total_seconds() <= 10.0, "two of their stamp_interval"
        back(postgresql).execute(sa.text("UPDATE trio_fleet SET doubtful_until = now()"))
        assert await a.store.locate(a.worker, "nobody") is None


async def test_a_doubt_in_the_future_is_set_right(postgresql: Shared) -> None:
    """It was noted while the clock was ahead."""
    fleet = "SELECT doubtful_until - clock_timestamp() FROM trio_fleet"
    async with open_in_doubt(patient(postgresql)) as (a, check):
        await a.begin(rewound=True)
        await check()
        back(postgresql).execute(
            sa.text("UPDATE trio_fleet SET doubtful_until = doubtful_until + interval '1 day'")
        )
        await a.stamp()
        [(left,)] = back(postgresql).execute(sa.text(fleet))
        assert 500.0 < left.total_seconds() <= 600.0
        await check()


async def test_the_doubt_lasts_two_of_the_longest_intervals(postgresql: Shared) -> None:
    """Of all workers; who begins without a rewind, or with a shorter one, does not end it."""
    left = sa.text("SELECT extract(epoch FROM doubtful_until - clock_timestamp()) FROM trio_fleet")
    make = patient(postgresql)
    async with (
        open_witnessed(make, "a", session_ttl=2000.0),
        open_witnessed(make, "b", session_ttl=20.0) as b,
    ):
        await b.begin(rewound=True)
        await b.begin(rewound=False)
        [(first,)] = back(postgresql).execute(left)
        assert 1900.0 < first <= 2000.0
        back(postgresql).execute(sa.text("DELETE FROM trio_workers WHERE worker_id = 'a'"))
        await b.begin(rewound=True)
        [(later,)] = back(postgresql).execute(left)
        assert 1900.0 < later <= first


async def test_a_standby_is_in_doubt_and_so_is_what_becomes_of_it(
    postgresql: Shared, proxy: Proxy
) -> None:
    """One that lags knows not of all; one that was promoted was started at another moment."""
    url = back(postgresql).engine.url
    beat = sa.text("SELECT beat FROM trio_workers WHERE worker_id = 'a'")
    with make_standby(url) as standby:
        async with open_in_doubt(lambda: DatabaseStore(proxy.url)) as (a, check):
            assert await a.stamp(passed=True)
            assert await a.store.locate(a.worker, "nobody") is None
            copy = DatabaseBackdoor(standby)
            with trio.fail_after(40):
                while copy.execute(beat) != [(a.known.beat,)]:
                    await trio.sleep(0.01)
            proxy.lead_to(standby)
            proxy.cut()
            with trio.fail_after(40):
                said = ""
                while "unknown" not in said:
                    with pytest.raises(StoreUnavailable) as caught:
                        await a.store.locate(a.worker, "nobody")
                    said = str(caught.value)
            assert await a.store.locate(a.worker, "b") is not None
            with pytest.raises(StoreUnavailable, match="takes no writes"):
                await a.stamp()
            assert copy.execute(sa.text("SELECT pg_promote()")) == [(True,)]
            copy.close()
            await check()
            assert await a.stamp()
            await check()
            settled = sa.text("UPDATE trio_fleet SET doubtful_until = NULL")
            again = DatabaseBackdoor(standby)
            again.execute(settled)
            again.close()
            assert await a.store.locate(a.worker, "nobody") is None
            proxy.lead_to(url)
            proxy.cut()


async def test_rows_that_are_hidden_are_in_doubt(postgresql: Shared) -> None:
    """As those of other tenants on an engine that was handed in."""
    back(postgresql).execute(
        sa.text(
            "CREATE FUNCTION row_security_active(text) RETURNS boolean LANGUAGE sql AS "
            "$$ SELECT $1 = 'trio_sessions' $$"
        )
    )
    with ours_before_the_system_s(postgresql) as make:
        async with open_witnessed(make, "a") as a:
            with pytest.raises(StoreUnavailable, match="unknown"):
                await a.store.locate(a.worker, "nobody")


# ---- what it costs ----


@pytest.mark.parametrize("server_timeouts", [True, False])
async def test_everything_is_one_round_trip(proxy: Proxy, *, server_timeouts: bool) -> None:
    """From the first time on; also behind a pooler, where nothing is prepared."""
    url = proxy.url
    async with open_witnessed(
        lambda: DatabaseStore(url, server_timeouts=server_timeouts, listen=False), "a"
    ) as a:
        for _ in range(2):
            proxy.reset()
            await a.claim("s")
            await a.commit()
            await a.stamp()
            await a.sweep(limit=0)
            await a.sweep()
            await a.seen()
            await a.store.own_rows(a.worker, after="", limit=10)
            await a.begin()
            await a.store.locate(a.worker, "nobody")
            assert len(proxy.round_trips) == 9


async def test_stamps_are_hot_updates(postgresql: Shared) -> None:
    """No index is on what a stamp changes, and its page has room."""
    engine = sa.create_engine(back(postgresql).engine.url, pool_size=1, max_overflow=0)

    async with open_witnessed(lambda: DatabaseStore(engine), "a") as a:
        for _ in range(20):
            await a.commit()
        before, hot_before = await trio.to_thread.run_sync(updates_of, engine, "trio_workers")
        for _ in range(100):
            await a.commit()
            await a.stamp()
        after, hot_after = await trio.to_thread.run_sync(updates_of, engine, "trio_workers")
        assert after - before == 200
        assert hot_after - hot_before > 180
    engine.dispose()
