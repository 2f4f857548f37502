"""PostgreSQL with psycopg 3: one statement, one transaction, one round trip.

Over 400 lines, so that all that is PostgreSQL's own stands in one place.
"""

import contextlib
import json
import os
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError, DisconnectionError

from trio_sessions.abc import Bell, Worker
from trio_sessions.stores.database._bell import BellSource, poll
from trio_sessions.stores.database._clock import now
from trio_sessions.stores.database._dialect import Cutter, Dialect, Timeouts
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.postgresql._batch import Commit
from trio_sessions.stores.database.postgresql._errors import (
    LOCK_NOT_AVAILABLE,
    is_row_error,
    locks_are_of_the_table,
    sqlstate,
)
from trio_sessions.stores.database.postgresql._kinds import locked
from trio_sessions.types import RowAnswers, StoredMessage, Swept, Wanted

__all__ = ["PostgreSQL"]

_TEXTS = postgresql.ARRAY(sa.Text)
_ONLY_WHEN_ASKED = 1_000_000_000  # executions until psycopg prepares a statement by itself
_CREATION_LOCK = 0x7472696F_73657373  # "triosess": workers that start at once take turns


class _Shutdown:
    """Ends whatever a connection waits for by shutting down its socket.

    It works on a duplicate of the file descriptor, so it can never hit another socket
    that has got the same number meanwhile.
    """

    def __init__(self, driver: Any) -> None:
        self._descriptor = None if driver.closed else os.dup(driver.fileno())

    def cut(self) -> None:
        if self._descriptor is None:  # it is lost, and waits for nothing
            return
        connection = socket.socket(fileno=self._descriptor)
        try:
            with contextlib.suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


class PostgreSQL(Dialect):
    """Uses UPDATE … RETURNING, data-modifying CTEs, SKIP LOCKED and ON DELETE CASCADE.

    It needs neither prepared statements nor, if told so, LISTEN, and so it runs behind
    PgBouncer in transaction mode (with ``server_timeouts=False, listen=False``).
    """

    has_time_zones = True

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._channel_prefix = f"{tables.sessions.name.removesuffix('sessions')}"
        row = self.sessions.c
        mine = sa.and_(self.among(row.session_id), self.own)
        self._refresh = self._refresh_and_name_the_missing(mine)
        self._refresh_free = self._refresh_what_is_not_locked(mine)
        self.commit = Commit(tables)
        self._fetch_wanted = self._fetch_of_each()
        self._acknowledge = sa.delete(tables.messages).where(
            tables.messages.c.id
            == sa.any_(sa.bindparam("message_ids", type_=postgresql.ARRAY(sa.BigInteger))),
            self.own_message(),
        )
        some = (
            sa.select(row.session_id).where(self.own).limit(sa.bindparam("limit", type_=sa.Integer))
        )
        self._delete_all = sa.delete(self.sessions).where(row.session_id.in_(some), self.own)
        self._sweep = self._vouch_and_sweep()

    # ---- connections ----

    def create_engine(self, url: sa.URL, *, pool_size: int, timeouts: Timeouts) -> sa.Engine:
        engine = sa.create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            pool_size=pool_size,
            max_overflow=-1,  # the limiter is the bound
            pool_use_lifo=True,  # so that spare connections fall idle
            pool_reset_on_return=None,  # nothing to roll back in autocommit
            hide_parameters=True,
            connect_args=self._connect_args(url, timeouts),
        )

        @sa.event.listens_for(engine, "checkout")
        def discard_if_dead(connection: Any, record: object, proxy: object) -> None:
            # An idle connection has nothing to say: if it can be read, it was closed.
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            if poll.poll(0):
                raise DisconnectionError("closed while it was idle")

        return engine

    @staticmethod
    def _connect_args(url: sa.URL, timeouts: Timeouts) -> dict[str, Any]:
        """Bound every wait: connecting, statements, locks, and a network that falls silent.

        What the URL says itself is left as it is.
        """
        milliseconds = int(timeouts.operation_timeout * 1000)
        arguments: dict[str, Any] = {
            "connect_timeout": max(2, round(timeouts.connect_timeout)),
            "keepalives": 1,
            "keepalives_idle": 30,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": milliseconds,
        }
        arguments = {name: value for name, value in arguments.items() if name not in url.query}
        arguments["prepare_threshold"] = None  # PgBouncer; and it saves a round trip
        if timeouts.server_timeouts:
            arguments["prepare_threshold"] = _ONLY_WHEN_ASKED
            own = (
                f"-c statement_timeout={milliseconds * 4 // 5} "
                f"-c lock_timeout={int(timeouts.lock_timeout * 1000)} "
                f"-c idle_in_transaction_session_timeout={milliseconds}"
            )
            arguments["options"] = f"{own} {url.query.get('options', '')}".strip()
        return arguments

    def cutter(self, dbapi_connection: Any) -> Cutter:
        return _Shutdown(dbapi_connection)

    def is_row_error(self, error: DBAPIError) -> bool:
        return is_row_error(error)

    # ---- statements ----

    # Ids travel as one JSON text: psycopg makes arrays in Python, and twenty threads that
    # do so keep the event loop waiting for the interpreter's lock.

    @staticmethod
    def _each_id() -> sa.ColumnElement[str]:
        return sa.func.json_array_elements_text(
            sa.cast(sa.bindparam("session_ids", type_=sa.Text), postgresql.JSON)
        )

    def among(self, column: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
        each = sa.select(self._each_id()).scalar_subquery()
        return column == sa.any_(sa.func.array(each, type_=_TEXTS))

    def ids(self, session_ids: Sequence[str]) -> str:
        return json.dumps(session_ids, ensure_ascii=False)

    def insert(self, table: sa.Table) -> Any:
        return postgresql.insert(table)

    def statement(self, connection: sa.Connection) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # autocommit: it saves two round trips

    @contextlib.contextmanager
    def transaction(self, connection: sa.Connection) -> Iterator[None]:
        connection.exec_driver_sql("BEGIN")
        try:
            yield
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")

    def create_tables(self, connection: sa.Connection) -> None:
        with self.transaction(connection):
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
            self.tables.metadata.create_all(connection)

    def _refresh_and_name_the_missing(self, mine: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return what is absent: as a rule nothing, so that there is nothing to fetch."""
        asked = sa.select(self._each_id().label("session_id")).cte("asked")
        done = (
            sa.update(self.sessions)
            .where(mine)
            .values(last_accessed=now())
            .returning(self.sessions.c.session_id)
            .cte("done")
        )
        return (
            sa.select(asked.c.session_id)
            .select_from(asked.outerjoin(done, asked.c.session_id == done.c.session_id))
            .where(done.c.session_id.is_(None))
        )

    def _refresh_what_is_not_locked(self, mine: sa.ColumnElement[bool]) -> sa.Select[Any]:
        row = self.sessions.c
        present = sa.select(row.session_id).where(mine).cte("present")
        free = (
            sa.select(row.session_id)
            .where(mine)
            .with_for_update(key_share=True, skip_locked=True)
            .cte("free")
        )
        done = (
            sa.update(self.sessions)
            .where(row.session_id == free.c.session_id)
            .values(last_accessed=now())
            .returning(row.session_id)
            .cte("done")
        )
        return sa.select(present.c.session_id, done.c.session_id.is_not(None)).select_from(
            present.outerjoin(done, present.c.session_id == done.c.session_id)
        )

    def _fetch_of_each(self) -> sa.TextClause:
        """Return of each session the oldest messages, as many as there is room for.

        As text: two laterals in one another read better so. The names of the tables are our
        own, made of a prefix that was checked.
        """
        return sa.text(f"""
            SELECT wanted.session_id, few.id, few.payload,
                CAST(extract(epoch FROM clock_timestamp() - few.created_at) AS double precision)
            FROM unnest(CAST(:session_ids AS text[]), CAST(:counts AS integer[]),
                        CAST(:sizes AS bigint[])) AS wanted(session_id, room, size)
            JOIN {self.sessions.name} AS own ON own.session_id = wanted.session_id
                AND own.worker_id = :own_worker_id AND own.incarnation = :own_incarnation
            CROSS JOIN LATERAL (
                SELECT oldest.*, sum(octet_length(oldest.payload)) OVER (ORDER BY oldest.id)
                                 - octet_length(oldest.payload) AS before
                FROM (
                    SELECT id, payload, created_at FROM {self.tables.messages.name} AS message
                    WHERE message.session_id = wanted.session_id
                        AND message.id <> ALL (CAST(:held AS bigint[]))
                    ORDER BY message.id LIMIT wanted.room
                ) AS oldest
            ) AS few
            WHERE few.before < wanted.size
            ORDER BY wanted.session_id, few.id
        """)  # noqa: S608 -- see above

    def _vouch_and_sweep(self) -> sa.Select[Any]:
        messages = self.tables.messages
        vouched = self.vouch().returning(self.tables.fleet.c.unbroken_since).cte("vouched")
        expired = (
            self.expired()
            .where(sa.exists(sa.select(vouched).where(self.old_enough(vouched.c.unbroken_since))))
            .with_for_update(skip_locked=True)
            .cte("expired")
        )
        gone = (
            sa.delete(self.sessions)
            .where(self.sessions.c.session_id == expired.c.session_id)
            .returning(self.sessions.c.session_id)
            .cte("gone")
        )
        stale = self.stale_messages().with_for_update(skip_locked=True).cte("stale")
        dropped = (
            sa.delete(messages)
            .where(messages.c.id == stale.c.id)
            .returning(messages.c.id)
            .cte("dropped")
        )
        with_them = sa.select(sa.func.count(messages.c.id)).where(
            messages.c.session_id.in_(sa.select(gone.c.session_id)),
            messages.c.id.not_in(sa.select(dropped.c.id)),
        )
        return sa.select(
            sa.select(sa.func.count()).select_from(gone).scalar_subquery(),
            sa.select(sa.func.count()).select_from(dropped).scalar_subquery()
            + with_them.scalar_subquery(),
        )

    # ---- operations ----

    def refresh(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> RowAnswers:
        parameters = {**self.identity(worker), "session_ids": self.ids(session_ids)}
        try:
            missing = connection.execute(self._refresh, parameters).scalars()
            return RowAnswers(held=frozenset(session_ids).difference(missing))
        except DBAPIError as exc:
            if sqlstate(exc) != LOCK_NOT_AVAILABLE:
                raise
        # Somebody holds a row: refresh the others, and say which it is.
        with locks_are_of_the_table():
            answers = connection.execute(self._refresh_free, parameters).all()
        return RowAnswers(
            held=frozenset(session_id for session_id, done in answers if done),
            unknown={session_id: locked() for session_id, done in answers if not done},
        )

    def delete_all(self, connection: sa.Connection, worker: Worker, limit: int) -> int:
        return connection.execute(
            self._delete_all, {**self.identity(worker), "limit": limit}
        ).rowcount

    # ---- messages ----

    def fetch(
        self, connection: sa.Connection, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        found: dict[str, list[StoredMessage]] = {}
        rows = connection.execute(
            self._fetch_wanted,
            {
                **self.identity(worker),
                "session_ids": [one.session_id for one in wanted],
                "counts": [one.count for one in wanted],
                "sizes": [one.size for one in wanted],
                "held": list(frozenset[int]().union(*(one.held for one in wanted))),
            },
        )
        for session_id, message_id, payload, age in rows:
            message = StoredMessage(id=message_id, payload=payload, age=age)
            found.setdefault(session_id, []).append(message)
        return found

    def acknowledge(
        self, connection: sa.Connection, worker: Worker, message_ids: Sequence[int]
    ) -> None:
        parameters = {**self.identity(worker), "message_ids": list(message_ids)}
        connection.execute(self._acknowledge, parameters)

    def open_bell(
        self, source: BellSource, worker: Worker, *, listen: bool
    ) -> contextlib.AbstractAsyncContextManager[Bell]:
        if not listen:
            return poll(source, worker, lambda connection: self.backlog(connection, worker))
        from trio_sessions.stores.database._listen import listen as listen_to

        # The name is of our own letters and digits: a prefix that was checked, and hexadecimals.
        statement = f'LISTEN "{self._channel_prefix}{worker.incarnation}"'
        return listen_to(source, worker, lambda connection: connection.exec_driver_sql(statement))

    def sweep(
        self, connection: sa.Connection, worker: Worker, durations: Mapping[str, float], limit: int
    ) -> Swept:
        sessions, messages = connection.execute(
            self._sweep, {**self.identity(worker), **durations, "limit": limit}
        ).one()
        return Swept(sessions=sessions, messages=messages)
