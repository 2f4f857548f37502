"""SQLite: the file, where it lies, its mode, who keeps it, and whether it is sound."""

import os
import platform
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from trio_sessions.cli._doctor._findings import Case, Check, Finding, fail, ok, warn
from trio_sessions.cli._doctor._tables import told
from trio_sessions.cli._read_only import is_at_rest
from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database.sqlite._files import path_of
from trio_sessions.stores.database.sqlite._opening import check_opening

__all__ = ["CHECKS", "file_system_of", "writer_of"]

_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"),
        *("ncpfs", "ocfs2", "gfs2", "virtiofs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph"),
        *("fuse.s3fs", "fuse.rclone"),
    }
)
_LOOKS, _BETWEEN = 5, 0.05  # seconds; a write takes less
_WRITE_LOCK = 120  # the byte of the index: https://www.sqlite.org/walformat.html#locks


def file_system_of(path: Path, mounts: str) -> str | None:
    """Return the type of the file system that a path lies on.

    Args:
        path: absolute, without links.
        mounts: what /proc/self/mounts says.
    """
    found: tuple[int, str] | None = None
    for line in mounts.splitlines():
        _, where, kind, *_ = line.split(" ")
        where = where.replace(r"\040", " ")
        if path.is_relative_to(where) and (found is None or len(where) >= found[0]):
            found = len(where), kind
    return None if found is None else found[1]


def writer_of(index: Path, locks: str) -> int | None:
    """Return the process that holds the lock of SQLite's writer.

    Asked of the system's list: a descriptor of our own would cost this process its other locks on
    the file when it is closed.

    Args:
        index: the file beside the log.
        locks: what /proc/locks says.
    """
    try:
        found = index.stat()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in locks.splitlines():
        words = line.split()
        if len(words) != 8 or words[3] != "WRITE" or words[5] != device:  # noqa: PLR2004
            continue
        first, last = int(words[6]), words[7]
        if first <= _WRITE_LOCK and (last == "EOF" or int(last) >= _WRITE_LOCK):
            return int(words[4])
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # only Linux has it
        return ""


def _where(_: sa.Connection, case: Case) -> Iterator[Finding]:
    path = Path(os.path.realpath(path_of(case.url)))
    kind = file_system_of(path, _read("/proc/self/mounts"))
    if kind in _NETWORK:
        yield fail(
            f"the file lies on {kind}, where SQLite's log does not work and locks may be lost",
            "move it to a disk of this machine, or use PostgreSQL",
        )
    else:
        yield ok(f"on {kind}" if kind else f"{platform.system()} does not say where it lies")


def _rights(_: sa.Connection, case: Case) -> Iterator[Finding]:
    path = Path(path_of(case.url))
    lacking = [str(one) for one in (path, path.parent) if not os.access(one, os.W_OK)]
    if lacking:
        yield fail(
            f"this user may not write {' nor '.join(lacking)}",
            "give the worker's user the file and its folder: the log lies beside the file",
        )
    else:
        yield ok("this user may write the file and beside it")


def _journal(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    path = Path(path_of(case.url))
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
    if mode != "wal" and not is_at_rest(path):
        yield warn(
            f"journal_mode is {mode}: who reads waits for who writes",
            "a registry that opens sets WAL, unless somebody keeps the file: PRAGMA journal_mode = "
            "WAL",
        )
        return
    log = path.with_name(f"{path.name}-wal")
    size = log.stat().st_size if log.exists() else 0
    if size > case.thresholds.log_bytes:
        yield warn(
            f"the log has {size / 1e6:.0f} MB: somebody reads in a transaction that does not end",
            "find and end it; then PRAGMA wal_checkpoint(TRUNCATE)",
        )
    else:
        yield ok(f"WAL, {size / 1e6:.1f} MB in the log")


def _busy(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    path = Path(os.path.realpath(path_of(case.url)))
    index, holders = path.with_name(f"{path.name}-shm"), set()
    for _ in range(_LOOKS):
        holders.add(writer_of(index, _read("/proc/locks")))
        time.sleep(_BETWEEN)
    if None not in holders and len(holders) == 1:
        yield warn(
            f"process {holders.pop()} has kept the lock of the writer for as long as we looked "
            f"({_LOOKS * _BETWEEN:g} s)",
            "find what it does: no worker can write meanwhile",
        )
    else:
        yield ok("nobody keeps others from writing")


def _collation(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    try:
        check_opening(case.tables)(connection)
    except StoreSchemaError as exc:
        yield told(exc)
    else:
        yield ok("different ids differ")


def _integrity(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if said == "ok":
        yield ok("quick_check finds nothing")
    else:
        yield fail(
            f"quick_check: {' '.join(str(said).split())}",
            "stop the workers, copy the file, and recover it: https://sqlite.org/recovery.html",
        )


def _version(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    yield ok(f"SQLite {sqlite3.sqlite_version}")


CHECKS = (
    Check("version", _version),
    Check("file system", _where),
    Check("rights", _rights),
    Check("journal", _journal),
    Check("busy", _busy),
    Check("collation", _collation),
    Check("integrity", _integrity),
)
