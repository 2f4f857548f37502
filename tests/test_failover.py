"""Servers of PostgreSQL that forget: nobody is removed for it, and all rows are written anew."""

from pathlib import Path

import pytest
import trio
from fleets import (
    add,
    behind,
    in_thread,
    join,
    owners,
    quick_store,
    rows,
    until,
    until_all_is_well,
)
from proxy import open_proxy
from servers import Server, make_follower, make_role, make_server, run_sql
from soak import longer

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions.testing import FakeTransport

Data = tuple[Path, Path]
BATCH_SIZES = [pytest.param(1, marks=longer), 7]


def names(prefix: str, number: int) -> list[str]:
    return [f"{prefix}{one:02}" for one in range(number)]


# ---- a server that is empty ----


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
async def test_a_failover_to_an_empty_server(
    server: Server, empty_data: Data, batch_size: int
) -> None:
    """Behind the same address: nobody goes, and nobody is told that a live session is not there."""
    with make_server(empty_data) as other:
        async with join(other.url) as stranger:  # has made the tables, and vouches for itself
            await stranger.cleanup()
        async with (
            open_proxy(server.url) as proxy,
            join(proxy.url, batch_size=batch_size) as a,
            join(proxy.url, batch_size=batch_size) as b,
        ):
            held = {a: await add(a, *names("a", 20)), b: await add(b, *names("b", 20))}
            await a.set_session_owner("a00", "set")
            assert await b.claim_session_owner("b00", "claimed") == "claimed"
            assert await b.session_exists("a01") is True
            proxy.lead_to(other.url)
            proxy.cut()
            for _ in range(20):
                assert await b.session_exists("a01") is not False
            assert await b.claim_session_owner("a01", "thief") is None
            await until_all_is_well(other.url, held)
            assert await in_thread(owners, other.url) == {"a00": "set", "b00": "claimed"}
            assert a.statistics().database_rewinds == b.statistics().database_rewinds == 1
            assert await b.session_exists("a01") is True


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
async def test_a_failover_to_a_server_without_tables(
    server: Server, empty_data: Data, batch_size: int
) -> None:
    """All is unknown until a worker opens, which makes the tables; then all rows are written."""
    with make_server(empty_data) as other:
        async with (
            open_proxy(server.url) as proxy,
            join(proxy.url, batch_size=batch_size) as a,
            join(proxy.url) as b,
        ):
            held = {a: await add(a, *names("a", 12)), b: await add(b, "b")}
            await a.set_session_owner("a00", "set")
            proxy.lead_to(other.url)
            proxy.cut()
            assert await b.session_exists("a00") is None
            report = await a.cleanup()
            while "does not exist" not in str(report.refresh_failures.get("a00")):
                assert report.missing == ()
                report = await a.cleanup()
            async with join(other.url) as stranger:
                held[stranger] = {}
                await until_all_is_well(other.url, held)
                del held[stranger]
            assert await in_thread(owners, other.url) == {"a00": "set"}
            assert a.statistics().database_rewinds == b.statistics().database_rewinds == 1


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
async def test_tables_that_are_dropped_and_made_anew(server: Server, batch_size: int) -> None:
    """By whichever worker opens next."""
    tables = "trio_logs, trio_messages, trio_sessions, trio_workers, trio_gone, trio_fleet"
    async with join(server.url, batch_size=batch_size) as a, join(server.url) as b:
        held = {a: await add(a, *names("a", 12)), b: await add(b, *names("b", 3))}
        await a.set_session_owner("a00", "set")
        await in_thread(run_sql, server.url, f"DROP TABLE {tables}")
        assert (await a.cleanup()).missing == ()
        async with join(server.url):
            assert await b.session_exists("a00") is not False
        await until_all_is_well(server.url, held)
        assert await in_thread(owners, server.url) == {"a00": "set"}
        assert a.statistics().database_rewinds == b.statistics().database_rewinds == 1


# ---- a server that is older ----


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
async def test_an_older_copy_of_the_data(server: Server, batch_size: int) -> None:
    """What has come since is restored; what has moved since stays where it is."""
    async with (
        join(server.url, batch_size=batch_size) as a,
        join(server.url, batch_size=batch_size) as b,
    ):
        held = {a: await add(a, "moves", *names("a", 11)), b: await add(b, *names("b", 3))}
        await a.set_session_owner("a00", "old")
        copy = await in_thread(server.copy)
        held[a] |= await add(a, *names("c", 9))
        held[b] |= await add(b, *names("d", 3), "moves")
        await a.set_session_owner("a00", "new")
        moved = held[a].pop("moves")
        assert (await a.cleanup()).taken_over == ("moves",)
        await in_thread(server.stop)
        server.go_back(copy)
        await in_thread(server.start)
        assert await b.session_exists("c00") is not False
        await until_all_is_well(server.url, held)
        assert (await in_thread(owners, server.url))["a00"] == "new"
        assert a.statistics().database_rewinds == b.statistics().database_rewinds == 1
        assert moved.disconnects == 1


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
async def test_a_server_that_is_killed_and_has_not_written_its_log(
    empty_data: Data, batch_size: int
) -> None:
    """With ``synchronous_commit = off``: what it has confirmed last is lost, and restored."""
    lazy = {"synchronous_commit": "off", "wal_writer_delay": "10000ms"}
    with make_server(empty_data, **lazy) as server:
        async with join(server.url, batch_size=batch_size) as a:
            held = {a: await add(a, *names("s", 10))}
            for attempt in range(5):
                await in_thread(run_sql, server.url, "CHECKPOINT")
                held[a] |= await add(a, *names(f"lost-{attempt}-", 8))
                await in_thread(server.kill)
                await in_thread(server.start, **lazy)
                await until_all_is_well(server.url, held)
                if a.statistics().database_rewinds:
                    return
    pytest.skip("NOTHING WAS LOST in five tries: this shows nothing")


@pytest.mark.parametrize(
    ("delay", "batch_size"), [*(pytest.param(0.0, size, marks=longer) for size in (1, 7)), (4.0, 7)]
)
async def test_a_standby_that_lags_is_promoted(
    server: Server, delay: float, batch_size: int
) -> None:
    """It has missed the last sessions; the address follows at once, or seconds later."""
    async with (
        open_proxy(server.url) as proxy,
        join(proxy.url, batch_size=batch_size) as a,
        join(proxy.url) as b,
    ):
        held = {a: await add(a, *names("a", 12)), b: await add(b, "b")}
        with make_follower(server) as standby:
            await until(lambda: len(rows(standby.url)) == 13)
            await in_thread(standby.lag, for_good=True)
            held[a] |= await add(a, *names("late", 8))
            await a.set_session_owner("a00", "late")
            assert len(await in_thread(rows, standby.url)) == 13
            await in_thread(server.kill)
            await in_thread(run_sql, standby.url, "SELECT pg_promote()")
            assert len(await in_thread(rows, standby.url)) == 13
            await trio.sleep(delay)
            proxy.lead_to(standby.url)
            proxy.cut()
            assert await b.session_exists("late00") is not False
            assert await b.claim_session_owner("late00", "thief") is None
            await until_all_is_well(standby.url, held)
            assert await in_thread(owners, standby.url) == {"a00": "late"}
            assert a.statistics().database_rewinds == 1


# ---- a server that only reads ----


@pytest.mark.parametrize("has_stamped", [True, False])
async def test_a_replica_that_lags_answers_a_question(server: Server, *, has_stamped: bool) -> None:
    """It does not know of the session yet: unknown, whoever asks."""
    async with join(server.url) as a, behind(server.url) as (proxy, b):
        await add(a, "old")
        await b.cleanup()
        with make_follower(server) as standby:
            await until(lambda: len(rows(standby.url)) == 1)
            await in_thread(standby.lag)
            if not has_stamped:
                proxy.lead_to(standby.url)
                proxy.cut()
            await add(a, "new")
            if has_stamped:
                await b.cleanup()
                proxy.lead_to(standby.url)
                proxy.cut()
            with trio.fail_after(40):
                while await b.session_exists("old") is not True:  # the network was cut
                    await trio.sleep(0.05)
            assert await in_thread(rows, standby.url) == {"old": a.worker_id}
            assert await b.session_exists("new") is None
            with pytest.raises(StoreUnavailable):
                await b.locate_session("new")
            proxy.lead_to(server.url)
            proxy.cut()
            with trio.fail_after(40):
                while await b.session_exists("new") is not True:
                    await trio.sleep(0.05)


# ---- a server that hides ----


@pytest.mark.parametrize("batch_size", [1, 7, pytest.param(1000, marks=longer)])
async def test_row_level_security_while_workers_run(server: Server, batch_size: int) -> None:
    """The role is not the owner: all is unknown, with an error that says what to do."""
    async with join(server.url) as owner:
        with make_role(server.url) as url:
            await in_thread(
                run_sql,
                server.url,
                f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {url.username}",
                f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {url.username}",
            )
            store = quick_store(url, create_tables=False)
            async with open_registry(
                store, session_ttl=3600.0, cleanup_interval=1800.0, batch_size=batch_size
            ) as a:
                held = {a: await add(a, *names("s", 12)), owner: await add(owner, "elsewhere")}
                await in_thread(
                    run_sql, server.url, "ALTER TABLE trio_sessions ENABLE ROW LEVEL SECURITY"
                )
                report = await a.cleanup()
                assert (report.missing, report.held, report.refreshed) == ((), (), 0)
                assert "row level security" in str(report.refresh_failures["s00"]).lower()
                assert "ALTER TABLE" in str(report.refresh_failures["s00"])
                assert await a.session_exists("elsewhere") is None
                late = FakeTransport()
                await a.add_session("late", late)
                await in_thread(
                    run_sql, server.url, "ALTER TABLE trio_sessions DISABLE ROW LEVEL SECURITY"
                )
                held[a]["late"] = late
                await until_all_is_well(server.url, held)
                assert a.statistics().database_rewinds == 0
