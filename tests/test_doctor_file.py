"""`trio-sessions doctor` on files: each fault that is made is found, and nothing is written."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from fleets import in_thread
from looks import contents, look, make_tables, only

from trio_sessions import open_registry
from trio_sessions.cli._doctor._file import file_system_of, writer_of
from trio_sessions.cli._doctor._findings import Level, Thresholds


async def test_it_writes_nothing_on_sqlite(sqlite_url: sa.URL, tmp_path: Path) -> None:
    """Neither in the file nor beside it: a file in WAL mode that nobody has open stays alone."""
    async with open_registry(sqlite_url):
        pass
    before = contents(tmp_path)
    assert list(before) == ["sessions.db"]
    assert before["sessions.db"][18] == 2, "it is not in WAL mode"
    assert await look(sqlite_url) == []
    assert contents(tmp_path) == before


@contextlib.contextmanager
def sqlite_file(url: sa.URL) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(str(url.database), isolation_level=None)) as file:
        yield file


async def test_it_finds_a_file_without_a_log(sqlite_url: sa.URL) -> None:
    found = await look(make_tables(sqlite_url))
    only(found, "journal", Level.WARN, says="journal_mode is delete", todo="WAL")


async def in_wal(url: sa.URL) -> sa.URL:
    await in_thread(partial(make_tables, url))
    with sqlite_file(url) as file:
        file.execute("PRAGMA journal_mode = WAL")
    return url


async def test_it_finds_a_log_that_grows(sqlite_url: sa.URL) -> None:
    url = await in_wal(sqlite_url)
    with sqlite_file(url) as file:
        file.execute("CREATE TABLE more (a)")
        found = await look(url, thresholds=Thresholds(log_bytes=1000))
    only(found, "journal", Level.WARN, says="somebody reads", todo="wal_checkpoint")


def damage(path: Path, place: int) -> None:
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\xff" * 300)


async def test_it_finds_a_file_that_is_damaged(sqlite_url: sa.URL) -> None:
    url = await in_wal(sqlite_url)
    with sqlite_file(url) as file:
        file.execute("BEGIN")
        file.execute("CREATE TABLE theirs (a UNIQUE, b)")
        file.executemany("INSERT INTO theirs VALUES (?, ?)", [(n, "x" * 99) for n in range(999)])
        file.execute("COMMIT")
        [(root,)] = file.execute("SELECT rootpage FROM sqlite_master WHERE name = 'theirs'")
        [(size,)] = file.execute("PRAGMA page_size")
    damage(Path(str(url.database)), size * (root - 1) + 20)
    only(await look(url), "integrity", Level.FAIL, says="quick_check", todo="recovery")


async def test_it_finds_ids_that_are_compared_without_case(sqlite_url: sa.URL) -> None:
    url = await in_wal(sqlite_url)
    with sqlite_file(url) as file:
        file.execute("PRAGMA writable_schema = on")
        file.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'session_id VARCHAR(255) NOT NULL', "
            "'session_id VARCHAR(255) COLLATE NOCASE NOT NULL') WHERE name = 'trio_sessions'"
        )
    only(await look(url), "collation", Level.FAIL, says="NOCASE", todo="without COLLATE")


HOLD = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(sqlite_url: sa.URL) -> Iterator[int]:
    """The id of a process that writes and does not end."""
    if not Path("/proc/locks").exists():
        pytest.skip("locks are listed by /proc")
    with sqlite_file(make_tables(sqlite_url)) as file:
        file.execute("PRAGMA journal_mode = WAL")
    command = [sys.executable, "-c", HOLD, str(sqlite_url.database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.communicate()


async def test_it_finds_who_keeps_others_from_writing(holder: int, sqlite_url: sa.URL) -> None:
    found = await look(sqlite_url)
    only(found, "busy", Level.WARN, says=f"process {holder} ", todo="no worker can write")


async def test_it_tells_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    found = await look(sa.make_url(f"sqlite:///{tmp_path / 'typo.db'}"))
    only(found, "connection", Level.FAIL, says="typo.db", todo="--database-url")
    assert contents(tmp_path) == {}, "it has made a file"


async def test_it_tells_of_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("This is the story of a file that is no database. " * 99)
    found = await look(sa.make_url(f"sqlite:///{path}"))
    assert any("not a database" in one.says for one in found), found
    assert any(one.level is Level.FAIL for one in found), found


async def test_it_finds_a_folder_that_may_not_be_written(sqlite_url: sa.URL) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    url = await in_wal(sqlite_url)
    folder = Path(str(url.database)).parent
    folder.chmod(0o500)
    try:
        found = await look(url)
    finally:
        folder.chmod(0o700)
    only(found, "rights", Level.FAIL, says=str(folder), todo="folder")


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/srv/data/a.db", "nfs4"), ("/srv/other.db", "ext4"), ("/srv/a b/c.db", "cifs")],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    mounts = (
        "/dev/sda1 / ext4 rw 0 0\nserver:/x /srv/data nfs4 rw 0 0\n//s/y /srv/a\\040b cifs rw 0 0\n"
    )
    assert file_system_of(Path(path), mounts) == kind


def test_the_writer_s_lock_is_told_from_others(tmp_path: Path) -> None:
    """Readers hold other bytes of the same file, and others the same bytes of other files."""
    index = tmp_path / "a.db-shm"
    assert writer_of(index, "") is None
    index.touch()
    inode = index.stat()
    here = f"{os.major(inode.st_dev):02x}:{os.minor(inode.st_dev):02x}:{inode.st_ino}"
    reader = f"1: POSIX  ADVISORY  READ  7 {here} 124 124\n"
    other = "2: POSIX  ADVISORY  WRITE 8 00:01:1 120 120\n"
    assert writer_of(index, reader + other) is None
    assert writer_of(index, f"{reader}{other}3: POSIX  ADVISORY  WRITE 9 {here} 120 120\n") == 9
