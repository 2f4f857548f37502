"""Faults of an SQLite file: it is locked, deleted, replaced, older, read-only, full."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import trio
from fleets import in_thread, quick_store, rows

from faults.full import ballast, small_disk
from faults.matrix import Database, Memory, fault
from faults.world import OPERATION, World, create_tables
from trio_sessions.stores.database import DatabaseStore

SQLITE = Database.SQLITE

_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
while not connection.in_transaction:
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as exc:  # somebody is quicker, again and again
        print(exc, file=sys.stderr)
sys.stdout.write("locked\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def _file(world: World) -> Path:
    assert world.url.database is not None
    return Path(world.url.database)


@fault(SQLITE)
async def the_file_is_locked(world: World) -> AsyncIterator[str]:
    """Another process has begun an exclusive transaction."""
    command = [sys.executable, "-c", _LOCK, str(_file(world))]
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.receive_some() == b"locked\n"
        world.listen()
        async with world.incomplete_passes():
            pass
        await world.until_said("locked")
        assert process.returncode is None, "it did not hold the lock to the end"
        yield "a pass of each worker was incomplete: the database is locked"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


# ---- it forgets ----


def _copy(world: World) -> Path:
    copy = _file(world).with_name("copy.db")
    copy.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(_file(world))) as here,
        contextlib.closing(sqlite3.connect(copy)) as there,
    ):
        here.backup(there)
    return copy


def _delete(world: World) -> None:
    for ending in ("", "-wal", "-shm"):
        Path(f"{_file(world)}{ending}").unlink(missing_ok=True)


def _put_over(copy: Path, world: World) -> None:
    _delete(world)
    copy.replace(_file(world))


@fault(SQLITE, memory=Memory.LOST)
async def the_file_is_deleted(world: World) -> AsyncIterator[str]:
    """Removed with its log, while it is open."""
    before = _file(world).stat().st_ino
    world.listen()
    await in_thread(_delete, world)
    await world.until_said("deleted or replaced")
    file = _file(world)
    assert not file.exists() or file.stat().st_ino != before
    yield "a worker said that it was deleted or replaced"


@fault(SQLITE, memory=Memory.LOST)
async def an_empty_file_takes_the_place_of_the_file(world: World) -> AsyncIterator[str]:
    """Another database, which has the tables, and nothing in them."""
    other = _file(world).with_name("other.db")
    await in_thread(create_tables, world.url.set(database=str(other)))
    world.listen()
    await in_thread(_put_over, other, world)
    await world.until_said("deleted or replaced")
    yield "a worker said that it was deleted or replaced"


@fault(SQLITE, memory=Memory.LOST)
async def an_older_copy_is_put_over_the_file(world: World) -> AsyncIterator[str]:
    """SQLite's own backup; sessions come, move and end; the copy takes the place of the file."""
    async with _older_copy(world) as copy:
        await in_thread(_put_over, copy, world)
        await world.until_said("deleted or replaced")
    yield "the rows that came and went since were others than in the copy"


@fault(SQLITE, memory=Memory.LOST)
async def an_older_copy_is_written_into_the_file(world: World) -> AsyncIterator[str]:
    """The same, but the file stays the same: what is in it is replaced, in one transaction."""
    async with _older_copy(world) as copy:
        await in_thread(_write_into, copy, world)
        await world.until_said("the database has gone back")
    yield "the rows that came and went since were others than in the copy"


@asynccontextmanager
async def _older_copy(world: World) -> AsyncIterator[Path]:
    """Give a copy of the file which sessions have come to, moved in and left since."""
    copy = await in_thread(_copy, world)
    before = await in_thread(rows, world.url)
    await world.crowd.until_acted(15)
    assert before != await in_thread(rows, world.url)
    world.listen()
    yield copy


def _write_into(copy: Path, world: World) -> None:
    with (
        contextlib.closing(sqlite3.connect(copy)) as there,
        contextlib.closing(sqlite3.connect(_file(world), timeout=30)) as here,
    ):
        there.backup(here)


# ---- it cannot be written ----


class _Pragmas:
    """What is set on each connection when it is taken from its pool."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.engines = ExitStack()  # engines that are handed in are not the store's to dispose of

    def make_store(self, url: sa.URL) -> DatabaseStore:
        engine = sa.create_engine(url)
        self.engines.callback(engine.dispose)

        @sa.event.listens_for(engine, "checkout")
        def set_it(connection: Any, record: object, proxy: object) -> None:
            if self.text is not None:
                connection.execute(self.text)

        return DatabaseStore(engine, operation_timeout=OPERATION, lock_timeout=0.5)


@contextmanager
def _with_pragmas(world: World) -> Iterator[_Pragmas]:
    pragmas = _Pragmas()
    world.make_store = pragmas.make_store
    with pragmas.engines:
        yield pragmas


@fault(SQLITE, arrange=_with_pragmas)
async def the_file_becomes_read_only(world: World) -> AsyncIterator[str]:
    """`PRAGMA query_only` on each connection."""
    world.listen()
    async with world.incomplete_passes():
        world.arranged.text = "PRAGMA query_only = 1"
    await world.until_said("readonly")
    yield "a pass of each worker was incomplete: attempt to write a readonly database"
    world.arranged.text = "PRAGMA query_only = 0"


@fault(SQLITE, arrange=_with_pragmas)
async def the_file_may_not_grow(world: World) -> AsyncIterator[str]:
    """`PRAGMA max_page_count` on each connection, no more than there are."""
    world.listen()
    world.arranged.text = "PRAGMA max_page_count = 1"
    number = 0
    while not any("full" in line for line in world.log):
        world.crowd.come_as(f"grows-{len(world.crowd.alive)}-{number}-{'x' * 200}", number % 2)
        number += 1
        await world.crowd.until_acted(1)
    yield "a worker said: database or disk is full"
    world.arranged.text = "PRAGMA max_page_count = 1000000"


@contextmanager
def _on_a_small_disk(world: World) -> Iterator[None]:
    folder = _file(world).parent / "small"
    with small_disk(folder, megabytes=4, like=folder.parent):
        world.url = world.entrance = world.url.set(database=str(folder / "sessions.db"))
        world.make_store = lambda url: quick_store(url, operation_timeout=OPERATION)
        yield


@fault(SQLITE, arrange=_on_a_small_disk)
async def the_disk_of_the_file_is_full(world: World) -> AsyncIterator[str]:
    """It is on a file system of 4 MB, which another file fills; that is deleted."""
    world.listen()
    with ballast(_file(world).parent):
        await world.until_said("full")
        yield "a worker said: database or disk is full"
