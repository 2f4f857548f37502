"""SQLite: a file in WAL mode, one writer at a time."""

import contextlib
import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from trio_sessions.abc import Bell, Worker
from trio_sessions.errors import StoreInUse, StoreUnavailable
from trio_sessions.stores.database._bell import BellSource, look_at_the_file
from trio_sessions.stores.database._dialect import Cutter, Dialect, Timeouts

__all__ = ["SQLite"]

_TURN = "trio_sessions_turn"
_WAIT_FOR_TURN = 10.0  # seconds; as long as a whole operation may take by default


class _Files:
    """The files that are open in this process, and those that its parent had open at the fork.

    SQLite knows which locks a process has on a file, and asks the system for no other. A fork
    copies that knowledge and not the locks. A child that opened the file once more would
    hold none: its parent, closing, takes itself for the last user and deletes the log that the
    child is writing to. See https://sqlite.org/howtocorrupt.html, section 2.6.
    """

    def __init__(self) -> None:
        self.open: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()
        self.inherited: set[str] = set()

    def inherit(self) -> None:
        self.inherited.update(self.open.values())
        self.open.clear()


_files = _Files()
os.register_at_fork(after_in_child=_files.inherit)


class _Interrupt:
    """Ends the statement that a connection is running."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def cut(self) -> None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # closed already
            self._connection.interrupt()

    def close(self) -> None:
        pass


def _roll_back(connection: sa.Connection) -> None:
    """Roll back unless SQLite has done so by itself, as it does after some errors."""
    dbapi_connection: Any = connection.connection.dbapi_connection
    if dbapi_connection.in_transaction:
        connection.exec_driver_sql("ROLLBACK")


class SQLite(Dialect):
    """Threads of one opening take turns here; other processes wait by ``busy_timeout``."""

    def engine_options(self) -> Mapping[str, Any]:
        return {**super().engine_options(), _TURN: threading.Lock()}

    def create_engine(self, url: sa.URL, *, pool_size: int, timeouts: Timeouts) -> sa.Engine:
        engine = sa.create_engine(
            url,
            pool_size=pool_size,
            max_overflow=-1,  # the limiter is the bound
            hide_parameters=True,
            connect_args={"timeout": timeouts.lock_timeout},
        )

        @sa.event.listens_for(engine, "connect")
        def set_pragmas(connection: sqlite3.Connection, record: object) -> None:
            for pragma in (
                "journal_mode = WAL",  # readers and the writer do not block each other
                "synchronous = NORMAL",  # a power cut may lose the last writes, as a crash may
                "foreign_keys = ON",
            ):
                connection.execute(f"PRAGMA {pragma}")

        return engine

    def opens(self, opening: object, url: sa.URL) -> None:
        path = os.path.realpath((url.database or "").removeprefix("file:").partition("?")[0])
        if path in _files.inherited:
            raise StoreInUse(
                f"{path} was open when this process was forked, and SQLite keeps its locks by the "
                "process: what is written here could be lost. Open the store after the fork only, "
                "start the process by 'spawn', or use PostgreSQL"
            )
        _files.open[opening] = path

    def has_closed(self, opening: object) -> None:
        _files.open.pop(opening, None)

    def cutter(self, dbapi_connection: sqlite3.Connection) -> Cutter:
        return _Interrupt(dbapi_connection)

    def is_row_error(self, error: DBAPIError) -> bool:
        return isinstance(error, IntegrityError | DataError)

    def among(self, column: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
        each = sa.func.json_each(sa.bindparam("session_ids", type_=sa.Text)).table_valued("value")
        return column.in_(sa.select(each.c.value))

    def ids(self, session_ids: Sequence[str]) -> str:
        return json.dumps(session_ids, ensure_ascii=False)

    def insert(self, table: sa.Table) -> Any:
        return sqlite.insert(table)

    @contextlib.contextmanager
    def transaction(self, connection: sa.Connection) -> Iterator[None]:
        """Begin as a writer: a transaction that reads first would fail when it writes."""
        turn: threading.Lock = connection.get_execution_options()[_TURN]
        if not turn.acquire(timeout=_WAIT_FOR_TURN):
            raise StoreUnavailable("SQLite: other threads of this process kept the file too long")
        try:
            # An engine of the user's may begin by itself; what it began would only read.
            if not connection.in_transaction():
                connection.begin()
            _roll_back(connection)
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise
        finally:
            turn.release()

    def open_bell(
        self, source: BellSource, worker: Worker, *, listen: bool
    ) -> contextlib.AbstractAsyncContextManager[Bell]:
        return look_at_the_file(
            source, worker, lambda connection, seen: self.news(connection, worker, seen)
        )

    def create_tables(self, connection: sa.Connection) -> None:
        with self.transaction(connection):
            self.tables.metadata.create_all(connection)
