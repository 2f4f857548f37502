"""Faults of a PostgreSQL server: it is killed, hangs, forgets, fails over, has another time."""

import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from fleets import in_thread, rows
from servers import frozen, make_follower, query, run_sql

from faults.matrix import Database, Memory, fault
from faults.process import state
from faults.world import World, is_complete

PG = Database.POSTGRESQL

LAZY = {"synchronous_commit": "off", "wal_writer_delay": "10000ms"}
"""What is confirmed is written only seconds later."""


# ---- it is away ----


@fault(PG)
async def the_server_is_killed_in_the_middle_of_a_pass(world: World) -> AsyncIterator[str]:
    """SIGKILL to all its processes at once, before the answer to a refresh has come; started
    again."""
    async with world.incomplete_passes(), world.in_a_pass():
        await in_thread(world.server.kill)
    yield "its processes had ended, and a pass of each worker was incomplete"
    assert not world.server.is_running
    await in_thread(world.server.start)


@fault(PG)
async def the_server_is_restarted(world: World) -> AsyncIterator[str]:
    """Shut down in good order, and started again."""
    async with world.incomplete_passes():
        await in_thread(world.server.stop)
    yield "it had ended, and a pass of each worker was incomplete"
    assert not world.server.is_running
    await in_thread(world.server.start)


@fault(PG)
async def the_server_hangs(world: World) -> AsyncIterator[str]:
    """SIGSTOP to all its processes, SIGCONT later."""
    processes = await in_thread(world.server.processes)
    world.listen()
    with frozen(*processes):
        for proxy in world.proxies:
            await world.until_said("did not answer within operation_timeout", f":{proxy.url.port}/")
        assert {state(one) for one in processes} == {"T"}
        yield "its processes stood still, and answered no worker in time"


# ---- it forgets ----


async def _stored(url: sa.URL) -> set[tuple[str, str]]:
    return set((await in_thread(rows, url)).items())


@fault(PG, options=LAZY, memory=Memory.LOST)
async def the_server_crashes_and_has_not_written_its_log(world: World) -> AsyncIterator[str]:
    """`synchronous_commit = off`, and SIGKILL: what it has confirmed last is lost."""
    for _ in range(5):
        await in_thread(run_sql, world.url, "CHECKPOINT")
        await world.crowd.until_acted(20)
        before = await _stored(world.url)
        await in_thread(world.server.kill)
        for proxy in world.proxies:  # the workers are quick to write all anew
            await proxy.refuse()
        await in_thread(world.server.start, **LAZY)
        lost = before - await _stored(world.url)
        if lost:
            yield "rows that it had confirmed were not there when it was back"
        for proxy in world.proxies:
            await proxy.heal()
        if lost:
            return
    raise AssertionError("nothing was lost in five tries: this shows nothing")


@fault(PG, memory=Memory.LOST)
async def an_older_copy_of_the_data_is_restored(world: World) -> AsyncIterator[str]:
    """`pg_basebackup`; sessions come, move and end; SIGKILL; started again on the copy."""
    copy = await in_thread(world.server.copy)
    before = await _stored(world.url)
    await world.crowd.until_acted(15)
    after = await _stored(world.url)
    assert before != after
    await in_thread(world.server.kill)
    await in_thread(world.server.go_back, copy)
    yield "the rows that came and went since were others than in the copy"
    await in_thread(world.server.start)


@fault(PG)
async def a_fail_over_that_loses_nothing(world: World) -> AsyncIterator[str]:
    """The server is shut down when its hot standby has all; that is promoted, and the address
    leads to it."""
    standby = await in_thread(world.stack.enter_context, make_follower(world.server))
    async with world.incomplete_passes():
        await in_thread(world.server.stop)  # which waits until the standby has received all
    await in_thread(run_sql, standby.url, "SELECT pg_promote()")
    [(promoted,)] = await in_thread(query, standby.url, "SELECT NOT pg_is_in_recovery()")
    assert promoted
    yield "a pass of each worker was incomplete, and the standby was promoted"
    world.move_to(standby)


@fault(PG, memory=Memory.LOST)
async def a_fail_over_that_loses_the_last_commits(world: World) -> AsyncIterator[str]:
    """The standby lags; sessions come, move and end; the server gets SIGKILL, the standby is
    promoted, and the address leads to it."""
    standby = await in_thread(world.stack.enter_context, make_follower(world.server))
    await in_thread(standby.lag, for_good=True)
    await world.crowd.until_acted(15)
    confirmed = await _stored(world.url)
    await in_thread(world.server.kill)
    await in_thread(run_sql, standby.url, "SELECT pg_promote()")
    assert confirmed != await _stored(standby.url)
    yield "the promoted standby had other rows than were confirmed"
    world.move_to(standby)


# ---- its clock ----


@contextmanager
def _under_a_clock_of_its_own(world: World) -> Iterator[Path]:
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
    if library is None:
        pytest.skip("LIBFAKETIME IS MISSING: install Debian's package faketime")
    with tempfile.TemporaryDirectory(prefix="ts-clock-") as folder:
        Path(folder).chmod(0o755)
        clock = Path(folder) / "clock"
        clock.write_text("+0")
        world.server.stop()
        world.server.start(
            {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        )
        yield clock


async def _clock(world: World) -> float:
    """Return how far the database's clock is ahead of ours."""
    asked = "SELECT extract(epoch FROM clock_timestamp())"
    [(theirs,)] = await in_thread(query, world.url, asked)
    return float(theirs) - time.time()


@fault(PG, arrange=_under_a_clock_of_its_own)
async def the_clock_of_the_database_steps_by_an_hour(world: World) -> AsyncIterator[str]:
    """libfaketime: an hour ahead, for a pass of each worker; an hour back, for another; right."""
    steps = []
    for offset in ("+3600", "-3600"):
        world.arranged.write_text(offset)
        steps.append(await _clock(world))
        await world.crowd.until_acted(10)
        await world.until_passed(is_complete)
    assert steps[0] > 3500, steps
    assert steps[1] < -3500, steps
    yield "its clock was 3,600 s ahead of ours, then 3,600 s behind it"
    world.arranged.write_text("+0")
