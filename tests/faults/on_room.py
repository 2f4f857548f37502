"""Faults of a PostgreSQL server that has no room: on its disk, or for connections."""

import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import sqlalchemy as sa
import trio
from fleets import in_thread
from servers import Server, run_sql

from faults.full import ballast, small_disk
from faults.matrix import Database, fault
from faults.world import WITHIN, World

PG = Database.POSTGRESQL


@contextmanager
def _tables_on_a_small_disk(world: World) -> Iterator[None]:
    folder = world.server.folder / "small"
    with small_disk(folder, megabytes=8, like=world.server.folder):
        run_sql(
            world.url,
            f"CREATE TABLESPACE small LOCATION '{folder}'",
            "ALTER DATABASE postgres SET default_tablespace = small",
        )
        try:
            yield
        finally:
            if world.server.is_running:
                world.server.kill()


@fault(PG, arrange=_tables_on_a_small_disk)
async def the_disk_of_the_tables_is_full(world: World) -> AsyncIterator[str]:
    """They are in a tablespace on a file system of 8 MB, which a file fills; it is deleted."""
    world.listen()
    with ballast(world.server.folder / "small"):
        line = await world.until_said("No space left on device")
        assert "No space left on device" in world.server.log()
        assert "extend" in line
        yield "the server said: could not extend file, no space left on device"


@fault(PG, options={"max_connections": "30"})
async def there_are_too_few_connections(world: World) -> AsyncIterator[str]:
    """Others take all that `max_connections` allows, and those of the workers are ended."""
    world.listen()
    with ExitStack() as others:
        async with trio.open_nursery() as nursery:
            async with world.incomplete_passes():
                for proxy in world.proxies:
                    await proxy.refuse()
                await nursery.start(_take_all_connections, world.url, others)
                for proxy in world.proxies:
                    await proxy.heal()
            await world.until_said("too many clients")
            yield "the server said: too many clients already; a pass of each worker was incomplete"
            nursery.cancel_scope.cancel()


async def _take_all_connections(
    url: sa.URL, others: ExitStack, task_status: trio.TaskStatus[None]
) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    refused = 0
    while True:
        try:
            others.enter_context(await in_thread(engine.connect))
        except sa.exc.OperationalError:
            refused += 1
            if refused == 10:  # the server does not notice at once that a connection was cut
                task_status.started()
            await trio.sleep(0.02)  # the server tells nobody that a place is free


@contextmanager
def _all_on_a_small_disk(world: World) -> Iterator[Path]:
    server = world.server
    small = server.folder / "small"
    with small_disk(small, megabytes=96, like=server.folder):
        server.stop()
        subprocess.run(["mv", server.folder / "data", small / "data"], check=True)
        (server.folder / "data").symlink_to(small / "data")
        server.start()
        try:
            yield small
        finally:
            if server.is_running:
                server.kill()


@fault(PG, arrange=_all_on_a_small_disk)
async def the_disk_of_the_whole_server_is_full(world: World) -> AsyncIterator[str]:
    """All its files are on a file system of 96 MB, which a file fills: it cannot write its log,
    and crashes. The file is deleted, and the server is started again."""
    with ballast(world.arranged), trio.fail_after(WITHIN):
        async with world.incomplete_passes():
            while "PANIC" not in world.server.log():
                with contextlib.suppress(sa.exc.OperationalError):
                    await in_thread(run_sql, world.url, "SELECT pg_switch_wal()")
                await trio.sleep(0.05)  # until the log has filled the disk
        assert "No space left on device" in world.server.log()
        yield "the server said: PANIC, no space left; a pass of each worker was incomplete"
    await in_thread(_start_again, world.server)


def _start_again(server: Server) -> None:
    try:
        server.kill()
    except FileNotFoundError:  # it has given up by itself
        server._reap()
    server.start()
