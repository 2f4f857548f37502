"""A new SQLite file that several open at once: one of them puts it into WAL mode."""

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

PROGRAM = """
import sys
import time

import trio

from trio_sessions import open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport


async def main():
    for line in sys.stdin:
        path, moment = line.split()
        while time.time() < float(moment):
            pass
        try:
            store = DatabaseStore(f"sqlite:///{path}", lock_timeout=5.0)
            async with open_registry(store) as registry:
                await registry.add_session(sys.argv[1], FakeTransport())
                print("opened", registry.statistics().unconfirmed, flush=True)
        except Exception as exc:
            print(f"{type(exc).__name__}: {exc}", flush=True)


print("ready", flush=True)
trio.run(main)
"""


@pytest.mark.timeout(120)
def test_two_processes_open_one_new_file_at_the_same_moment(tmp_path: Path) -> None:
    """Both open it; twenty times."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]

    def hear() -> list[str]:
        return [process.stdout.readline().strip() for process in processes if process.stdout]

    try:
        assert hear() == ["ready", "ready"]
        for number in range(20):
            moment = time.time() + 0.02
            for process in processes:
                assert process.stdin is not None
                process.stdin.write(f"{tmp_path / str(number)}.db {moment}\n")
                process.stdin.flush()
            assert hear() == ["opened 0", "opened 0"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def begin_to_write(url: sa.URL) -> sqlite3.Connection:
    """Return a connection with a transaction that is about to write to a file without WAL.

    SQLite's busy handler does not wait for it where a file is put into WAL mode.
    """
    assert url.database is not None
    connection = sqlite3.connect(url.database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    other: Any = sqlite3.connect(url.database, timeout=5.0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("PRAGMA journal_mode = WAL")
    assert time.monotonic() - start < 1.0, "it waited by itself"
    other.close()
    return connection


async def test_a_new_file_is_opened_while_another_writes_to_it(sqlite_url: sa.URL) -> None:
    """As soon as the other has ended."""
    connection = begin_to_write(sqlite_url)

    async def end() -> None:
        await trio.sleep(0.3)
        connection.close()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            async with open_registry(DatabaseStore(sqlite_url)) as registry:
                await registry.add_session("s", FakeTransport())
                assert registry.statistics().unconfirmed == 0


async def test_opening_a_new_file_waits_no_longer_than_lock_timeout(sqlite_url: sa.URL) -> None:
    """It fails then, and says why."""
    connection = begin_to_write(sqlite_url)
    start = time.monotonic()
    with trio.fail_after(20), pytest.raises(StoreUnavailable, match="database is locked"):
        async with open_registry(DatabaseStore(sqlite_url, lock_timeout=0.4)):
            raise AssertionError("it opened")
    assert 0.4 <= time.monotonic() - start < 5.0
    connection.close()
