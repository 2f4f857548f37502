"""Servers that freeze, rows that others have locked, clients that are cut off: real statements."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial

import pytest
import sqlalchemy as sa
import trio
from fleets import add, in_thread, join, owners, quick_store, rows, until, until_all_is_well
from proxy import Proxy, open_proxy
from servers import Server, frozen, query, run_sql

from trio_sessions import SessionRegistry, StoreUnavailable
from trio_sessions.abc import Worker
from trio_sessions.errors import RowUnavailable
from trio_sessions.testing import FakeTransport
from trio_sessions.types import Sent
from trio_sessions.writes import Batch, Claim, Claimed, Send, Write

Commit = Callable[..., Awaitable[list[object]]]

# ---- what comes late ----


def backends(server: Server, name: str) -> list[int]:
    """Return the server's processes for connections of that name."""
    found = query(server.url, f"SELECT pid FROM pg_stat_activity WHERE application_name = '{name}'")
    return [pid for (pid,) in found]


def has_executed(server: Server, pids: list[int], session_id: str, number: int) -> bool:
    """Say whether processes have begun so many batches about a session."""
    lines = re.split(r"^(\d+) (?=[A-Z]+:)", server.log(), flags=re.MULTILINE)
    said = zip(map(int, lines[1::2]), lines[2::2], strict=True)
    about = [what for pid, what in said if pid in pids and f'"{session_id}"' in what]
    return len([what for what in about if what.startswith("DETAIL")]) == number


@asynccontextmanager
async def join_named(url: sa.URL) -> AsyncIterator[SessionRegistry]:
    async with join(url.update_query_dict({"application_name": "late"})) as registry:
        yield registry


@pytest.mark.usefixtures("nothing_in_between")
@pytest.mark.parametrize("whole", [False, True])
async def test_an_add_that_is_cut_off_and_lands_late(server: Server, *, whole: bool) -> None:
    """The server, or only its processes for A, freezes: B was added later, and wins."""
    async with join_named(server.url) as a, join(server.url) as b:
        others = await add(a, "other")
        pids = await in_thread(backends, server, "late")
        old, new = FakeTransport(), FakeTransport()
        with frozen(*(server.processes() if whole else pids)):
            await a.add_session("s", old)  # in vain
            assert a.statistics().unconfirmed == 1
            if not whole:
                await b.add_session("s", new)
        if whole:
            await b.add_session("s", new)
        await until(partial(has_executed, server, pids, "s", 1))
        await until(lambda: not set(backends(server, "late")) & set(pids))
        assert (await in_thread(rows, server.url))["s"] == b.worker_id
        assert (await a.cleanup()).taken_over == ("s",)
        assert (old.disconnects, new.disconnects) == (1, 0)
        await until_all_is_well(server.url, {a: others, b: {"s": new}})


@pytest.mark.usefixtures("nothing_in_between")
async def test_what_is_said_of_a_session_lands_late(server: Server) -> None:
    """Its caller was told that it has failed, and it does nothing behind what came since."""
    async with join_named(server.url) as a, join(server.url) as b:
        await add(b, "set", "claimed", "sent")
        await a.set_session_owner("set", "before")
        pids = await in_thread(backends, server, "late")
        failed: list[str] = []

        async def set_owner() -> None:
            with suppress(StoreUnavailable):
                await a.set_session_owner("set", "old")
                return
            failed.append("set")

        async def claim_owner() -> None:
            if await a.claim_session_owner("claimed", "old") is None:
                failed.append("claimed")

        async def send() -> None:
            with suppress(StoreUnavailable):
                await a.broadcast("sent", "old")
                return
            failed.append("sent")

        with frozen(*pids):
            async with trio.open_nursery() as nursery:
                for say in set_owner, claim_owner, send:
                    nursery.start_soon(say)
            await b.set_session_owner("set", "new")
        for session_id, number in ("set", 2), ("claimed", 1), ("sent", 1):
            await until(partial(has_executed, server, pids, session_id, number))
        await until(lambda: not set(backends(server, "late")) & set(pids))
        assert sorted(failed) == ["claimed", "sent", "set"]
        assert await in_thread(owners, server.url) == {"set": "new"}
        assert await in_thread(query, server.url, "SELECT count(*) FROM trio_messages") == [(0,)]
        assert await b.claim_session_owner("claimed", "new") == "new"
        await a.broadcast("sent", "new")
        async with b.open_inbox("sent") as inbox:
            with trio.fail_after(40):
                assert await anext(inbox) == "new"


# ---- locks of others ----


@contextmanager
def transaction(server: Server, statement: str) -> Iterator[sa.Connection]:
    """Keep a transaction open that has run a statement, for the length of the block."""
    engine = sa.create_engine(server.url, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
            yield connection
            connection.rollback()
    finally:
        engine.dispose()


async def test_a_batch_does_not_wait_for_a_row_of_it(server: Server) -> None:
    """Somebody has locked one row: what is said of all others is written meanwhile."""
    sessions = [f"s{number:02}" for number in range(20)]
    async with join(server.url) as a:
        held = {a: await add(a, *sessions)}
        refused: list[str] = []

        async def set_owner(session_id: str) -> None:
            try:
                await a.set_session_owner(session_id, "owner")
            except StoreUnavailable:
                refused.append(session_id)

        lock = "SELECT 1 FROM trio_sessions WHERE session_id = 's07' FOR UPDATE"
        with transaction(server, lock):
            async with trio.open_nursery() as nursery:
                for session_id in sessions:
                    nursery.start_soon(set_owner, session_id)
                await until(lambda: len(owners(server.url)) == 19)
            report = await a.cleanup()
            assert (report.refreshed, list(report.refresh_failures)) == (19, ["s07"])
        assert refused == ["s07"]
        await until_all_is_well(server.url, held)


async def test_a_workers_row_that_is_locked(server: Server) -> None:
    """It is no row's error: no batch is split for it, and no session is lost."""
    async with open_proxy(server.url) as proxy, join(proxy.url) as a:
        held = {a: await add(a, *(f"s{number:02}" for number in range(20)))}
        await a.cleanup()
        proxy.reset()
        with transaction(server, "SELECT 1 FROM trio_workers FOR UPDATE"):
            held[a] |= await add(a, *(f"t{number:02}" for number in range(20)))
            assert a.statistics().unconfirmed == 20
            batches = [one for one in proxy.round_trips if "claims" in one]
            assert 1 <= len(batches) <= 4, "one alone, one with the others; each may go once more"
            report = await a.cleanup()
            assert (report.missing, report.held, report.taken_over) == ((), (), ())
            assert report.refreshed == 20
        await until_all_is_well(server.url, held)
        assert a.statistics().database_rewinds == 0


# ---- batches under way ----

SLOW = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(0.7); RETURN NEW; END $$;
    CREATE TRIGGER slow BEFORE UPDATE ON trio_sessions FOR EACH ROW EXECUTE FUNCTION wait()"""


@asynccontextmanager
async def open_store(url: sa.URL, name: str) -> AsyncIterator[Commit]:
    store = quick_store(url, operation_timeout=10.0)
    worker = Worker(worker_id=name, incarnation=name, limiter=trio.CapacityLimiter(3))
    await store.open(worker)

    async def commit(*writes: Write[object]) -> list[object]:
        return list((await store.commit(worker, Batch(writes=list(writes)))).answers)

    try:
        yield commit
    finally:
        with trio.CancelScope(shield=True):
            await store.close(worker)


def claim(session_id: str) -> Claim:
    return Claim(session_id=session_id, generation=1, age=0.0)


async def test_two_batches_that_cross(server: Server) -> None:
    """Each holds the row that the other one has a message for: both come to their end."""
    async with open_store(server.url, "a") as a, open_store(server.url, "b") as b:
        await a(claim("x"))
        await b(claim("y"))
        # Long enough to be seen by who looks now and then, on a busy machine, too.
        await in_thread(run_sql, server.url, SLOW.replace("0.7", "2.0"))
        ended: list[str] = []

        async def carry_out(commit: Commit, own: str, other: str) -> None:
            writes: list[Write[object]] = [claim(own), Send(session_id=other, payload=f'"{own}"')]
            while writes:
                answers = await commit(*writes)
                for answer in answers:
                    assert isinstance(answer, (Claimed, Sent, RowUnavailable))
                writes = [
                    write
                    for write, answer in zip(writes, answers, strict=True)
                    if isinstance(answer, RowUnavailable)
                ]
            ended.append(own)

        async with trio.open_nursery() as nursery:
            with trio.fail_after(40):
                nursery.start_soon(carry_out, a, "x", "y")
                nursery.start_soon(carry_out, b, "y", "x")
                await until(lambda: sleeping(server) == 2)  # both hold their locks now
        assert sorted(ended) == ["x", "y"]
        assert await in_thread(rows, server.url) == {"x": "a", "y": "b"}
        sent = await in_thread(query, server.url, "SELECT session_id FROM trio_messages ORDER BY 1")
        assert sent == [("x",), ("y",)]


def sleeping(server: Server) -> int:
    [(number,)] = query(
        server.url, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    )
    return int(number)


@pytest.mark.parametrize("by", ["network", "server"])
async def test_a_client_that_is_cut_off_in_the_middle_of_a_batch(server: Server, by: str) -> None:
    """All of the batch is done, or nothing; and nothing stays locked."""
    async with open_proxy(server.url) as proxy, join(proxy.url) as a:
        held = {a: await add(a, "s0", "s1")}
        await a.cleanup()
        await in_thread(run_sql, server.url, SLOW.replace("0.7", "1.5"))
        failed: list[str] = []

        async def say(session_id: str) -> None:
            try:
                await a.set_session_owner(session_id, "cut")
            except StoreUnavailable:
                failed.append(session_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say, "s0")
            await until(lambda: sleeping(server) == 1)
            await cut_off(server, proxy, by)
        await until(lambda: not sleeping(server))
        await until(lambda: not in_transaction(server))
        await in_thread(run_sql, server.url, "DROP TRIGGER slow ON trio_sessions")
        done = await in_thread(owners, server.url)
        assert done in ({}, {"s0": "cut"})
        if by == "server":
            assert (done, failed) == ({}, ["s0"])
        await until_all_is_well(server.url, held)
        await a.set_session_owner("s1", "later")
        assert (await in_thread(owners, server.url))["s1"] == "later"


async def cut_off(server: Server, proxy: Proxy, by: str) -> None:
    if by == "network":
        proxy.cut()
    else:
        await in_thread(
            run_sql,
            server.url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'",
        )


def in_transaction(server: Server) -> int:
    [(number,)] = query(
        server.url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND xact_start IS NOT "
        "NULL AND pid <> pg_backend_pid()",
    )
    return int(number)
