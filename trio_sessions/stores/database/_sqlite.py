"""SQLite: a file in WAL mode, one writer at a time."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from trio_sessions.abc import Bell, Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores.database._bell import BellSource, look_at_the_file
from trio_sessions.stores.database._commit import Commit
from trio_sessions.stores.database._dialect import Cutter, Dialect, Timeouts
from trio_sessions.stores.database._schema import Tables

__all__ = ["SQLite"]

_WAIT_FOR_TURN = 10.0  # seconds; as long as a whole operation may take by default


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
    """Threads of one process take turns here; other processes wait by ``busy_timeout``."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._turn = threading.Lock()
        self.commit = Commit(
            tables, transaction=self.transaction, among=self.among, encode_ids=self.ids
        )

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
        if not self._turn.acquire(timeout=_WAIT_FOR_TURN):
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
            self._turn.release()

    def open_bell(
        self, source: BellSource, worker: Worker, *, listen: bool
    ) -> contextlib.AbstractAsyncContextManager[Bell]:
        return look_at_the_file(
            source, worker, lambda connection, seen: self.news(connection, worker, seen)
        )

    def create_tables(self, connection: sa.Connection) -> None:
        with self.transaction(connection):
            self.tables.metadata.create_all(connection)
