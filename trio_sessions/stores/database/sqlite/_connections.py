"""Connections to a file, and turns at writing to it."""

import contextlib
import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from trio_sessions.errors import RowUnavailable, StoreUnavailable
from trio_sessions.stores.database._database import Timeouts
from trio_sessions.stores.database.sqlite._files import PATH, path_of

__all__ = [
    "Interrupt",
    "create_engine",
    "engine_options",
    "has_refused",
    "is_too_long",
    "row_error",
    "transaction",
]

_PAUSE = 0.01  # seconds until a file that is busy is put into WAL mode again
_TURN = "trio_sessions_turn"
_WAIT_FOR_TURN = 10.0  # seconds, at least: several operations may be before it
_PATIENCE = "trio_sessions_patience"


class Interrupt:
    """A cutter that interrupts the statement that a connection is running."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def cut(self) -> None:
        """End it."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # closed already
            self._connection.interrupt()

    def close(self) -> None:
        """Keep nothing."""


def row_error(error: DBAPIError) -> type[RowUnavailable] | None:
    """Return what an error of single rows is; see `Database.row_error`."""
    return RowUnavailable if isinstance(error, IntegrityError | DataError) else None


def is_too_long(error: DBAPIError) -> bool:
    """Say whether a statement was interrupted: there is no network that could have been silent."""
    return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT


_REFUSED = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CONSTRAINT,
    }
)


def has_refused(error: DBAPIError) -> bool:
    """Say whether nothing is in the file: these roll back, also those that come with COMMIT."""
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _REFUSED


def engine_options(url: sa.URL, timeouts: Timeouts) -> Mapping[str, Any]:
    """Return execution options: autocommit, whose turn it is to write, where the file is.

    Threads of one opening take turns by a lock; other processes wait by ``busy_timeout``.
    """
    return {
        "isolation_level": "AUTOCOMMIT",
        _TURN: threading.Lock(),
        _PATIENCE: max(_WAIT_FOR_TURN, timeouts.operation_timeout),
        PATH: path_of(url),
    }


def create_engine(url: sa.URL, pool_size: int, timeouts: Timeouts) -> sa.Engine:
    """Make an engine; see `Database.create_engine`."""
    engine = sa.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=-1,  # the limiter is the bound
        hide_parameters=True,
        connect_args={"timeout": timeouts.lock_timeout},
    )

    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: sqlite3.Connection, record: object) -> None:
        _put_into_wal(connection, timeouts.lock_timeout)
        for pragma in (
            "synchronous = NORMAL",  # a power cut may lose the last writes, as a crash may
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _put_into_wal(connection: sqlite3.Connection, patience: float) -> None:
    """Put the file into WAL mode: readers and the writer do not block each other then.

    For a new file that takes a lock of its own. SQLite does not wait for it by
    ``busy_timeout`` where two might wait for each other, as when both do this at once
    (https://sqlite.org/c3ref/busy_handler.html), so we do.

    Args:
        connection: to the file.
        patience: seconds.
    """
    deadline = time.monotonic() + patience
    connection.execute("PRAGMA busy_timeout = 0")  # one who waits, and not one after the other
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as exc:
            is_busy = exc.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE * (0.5 + random.random()))  # noqa: S311 -- jitter, no secret
    connection.execute(f"PRAGMA busy_timeout = {int(patience * 1000)}")


@contextlib.contextmanager
def transaction(connection: sa.Connection) -> Iterator[None]:
    """Run a block as a writing transaction: one that reads first might fail when it writes."""
    options = connection.get_execution_options()
    turn: threading.Lock = options[_TURN]
    if not turn.acquire(timeout=options[_PATIENCE]):
        raise StoreUnavailable(
            "SQLite: other threads of this process kept the file too long", did_nothing=True
        )
    try:
        # An engine of the user's may begin by itself; what it began would only read.
        if not connection.in_transaction():
            connection.begin()
        _roll_back(connection)
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
            connection.exec_driver_sql("COMMIT")
        except BaseException:  # rolled back whatever it is; raised again
            _roll_back(connection)
            raise
    finally:
        turn.release()


def _roll_back(connection: sa.Connection) -> None:
    """Roll back unless SQLite has done so by itself, as it does after some errors."""
    dbapi_connection: Any = connection.connection.dbapi_connection
    if dbapi_connection.in_transaction:
        connection.exec_driver_sql("ROLLBACK")
