"""The operations in portable SQL; what a database can do better stands in its own file.

Nothing here assumes RETURNING, SKIP LOCKED or cascades. Every method gets a connection in
autocommit mode and runs one transaction on it.

Over 400 lines: it is all the SQL there is that any database would understand.
"""

import abc
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from trio_sessions.abc import Bell, Worker
from trio_sessions.stores.database._bell import BellSource
from trio_sessions.stores.database._clock import age_of, ago, now
from trio_sessions.stores.database._schema import Tables
from trio_sessions.types import Holder, RowAnswers, StoredMessage, Swept, Wanted
from trio_sessions.writes import Batch, Committed

__all__ = ["Cutter", "Dialect", "Timeouts"]


class Timeouts(Protocol):
    """How long the database itself may take, in seconds."""

    connect_timeout: float
    operation_timeout: float
    lock_timeout: float
    server_timeouts: bool


class Cutter(Protocol):
    """Ends what a connection is doing, from another thread."""

    def cut(self) -> None: ...

    def close(self) -> None: ...


class Dialect(abc.ABC):
    """The SQL of one database, for one set of tables."""

    has_time_zones = False
    """Whether a column may hold moments with or without a time zone."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.sessions = sessions = tables.sessions
        self.own = sa.and_(
            sessions.c.worker_id == sa.bindparam("own_worker_id"),
            sessions.c.incarnation == sa.bindparam("own_incarnation"),
        )
        self._holder = sa.select(
            sessions.c.worker_id, sessions.c.incarnation, sessions.c.owner
        ).where(sessions.c.session_id == sa.bindparam("session_id"))
        # From the messages, which are few, and not from the sessions.
        message = tables.messages.c
        own_message = sa.and_(sessions.c.session_id == message.session_id, self.own)
        self._backlog = (
            sa.select(message.session_id, sa.func.max(message.id), sa.func.count())
            .where(own_message)
            .group_by(message.session_id)
        )
        self._waiting = sa.select(message.session_id).distinct().where(own_message)
        self._newest = sa.select(sa.func.coalesce(sa.func.max(message.id), 0))
        self._waiting_since = self._waiting.where(message.id > sa.bindparam("seen"))

    commit: Callable[[sa.Connection, Worker, Batch, Callable[[], float]], Committed]
    """Carries out a batch."""

    # ---- what each database must say ----

    @abc.abstractmethod
    def create_engine(self, url: sa.URL, *, pool_size: int, timeouts: Timeouts) -> sa.Engine:
        """Make an engine whose every operation is bounded in time."""

    @abc.abstractmethod
    def cutter(self, dbapi_connection: Any) -> Cutter:
        """Return what can end an operation of this connection."""

    @abc.abstractmethod
    def is_row_error(self, error: DBAPIError) -> bool:
        """Say whether the error is that of single rows, so that fewer rows could succeed."""

    @abc.abstractmethod
    def among(self, column: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
        """Return "column is one of the bind parameter session_ids"."""

    @abc.abstractmethod
    def ids(self, session_ids: Sequence[str]) -> Any:
        """Return the value for the bind parameter of `among`."""

    @abc.abstractmethod
    def insert(self, table: sa.Table) -> Any:
        """Return an INSERT that knows ``on_conflict_do_update``."""

    @abc.abstractmethod
    @contextlib.contextmanager
    def transaction(self, connection: sa.Connection) -> Iterator[None]:
        """Run a block of several statements as one writing transaction."""

    def statement(self, connection: sa.Connection) -> contextlib.AbstractContextManager[None]:
        """Run one writing statement, which may be a transaction by itself."""
        return self.transaction(connection)

    @abc.abstractmethod
    def open_bell(
        self, source: BellSource, worker: Worker, *, listen: bool
    ) -> AbstractAsyncContextManager[Bell]:
        """Return what tells of messages, by the best means that the database has."""

    @abc.abstractmethod
    def create_tables(self, connection: sa.Connection) -> None:
        """Create what is missing; harmless when several workers do it at once."""

    # ---- statements ----

    @staticmethod
    def identity(worker: Worker) -> Mapping[str, Any]:
        return {"own_worker_id": worker.worker_id, "own_incarnation": worker.incarnation}

    def vouch(self) -> Any:
        """Return the statement that stamps the fleet's row, and notices a gap before it."""
        fleet = self.tables.fleet
        any_session = sa.exists(sa.select(self.sessions.c.session_id))
        insert = self.insert(fleet).values(
            id=1, vouched_at=now(), unbroken_since=sa.case((any_session, now()))
        )
        return insert.on_conflict_do_update(
            index_elements=[fleet.c.id],
            set_={
                "vouched_at": now(),
                "unbroken_since": sa.case(
                    (fleet.c.vouched_at < ago(sa.bindparam("max_gap", type_=sa.Float)), now()),
                    else_=fleet.c.unbroken_since,
                ),
            },
        )

    @staticmethod
    def old_enough(unbroken_since: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Return "the unbroken series began a session_ttl ago, or has no beginning"."""
        ttl_ago = ago(sa.bindparam("session_ttl", type_=sa.Float))
        return sa.or_(unbroken_since.is_(None), unbroken_since <= ttl_ago)

    def expired(self) -> sa.Select[Any]:
        """Return the select of some ids of other incarnations that were not refreshed."""
        row = self.sessions.c
        ttl_ago = ago(sa.bindparam("session_ttl", type_=sa.Float))
        return (
            sa.select(row.session_id)
            .where(row.last_accessed < ttl_ago, sa.not_(self.own))
            .order_by(row.session_id)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )

    def stale_messages(self) -> sa.Select[Any]:
        """Return the select of some ids of messages that nobody took in time."""
        message = self.tables.messages.c
        ttl_ago = ago(sa.bindparam("message_ttl", type_=sa.Float))
        return (
            sa.select(message.id)
            .where(message.created_at < ttl_ago)
            .order_by(message.id)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )

    # ---- operations ----

    def refresh(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> RowAnswers:
        update = (
            sa.update(self.sessions)
            .where(self.among(self.sessions.c.session_id), self.own)
            .values(last_accessed=now())
        )
        with self.transaction(connection):
            connection.execute(
                update, {**self.identity(worker), "session_ids": self.ids(session_ids)}
            )
            return self._held(connection, worker, session_ids)

    def _held(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> RowAnswers:
        select = sa.select(self.sessions.c.session_id).where(
            self.among(self.sessions.c.session_id), self.own
        )
        found = connection.execute(
            select, {**self.identity(worker), "session_ids": self.ids(session_ids)}
        )
        return RowAnswers(held=frozenset(found.scalars()))

    def delete_all(self, connection: sa.Connection, worker: Worker, limit: int) -> int:
        select = sa.select(self.sessions.c.session_id).where(self.own).limit(limit)
        with self.transaction(connection):
            found = list(connection.execute(select, self.identity(worker)).scalars())
            self._delete_sessions(connection, found)
            return len(found)

    def _delete_sessions(self, connection: sa.Connection, session_ids: Sequence[str]) -> int:
        """Delete sessions that this transaction has seen; return the number of their messages."""
        if not session_ids:
            return 0
        messages = 0
        for table in (self.tables.messages, self.sessions):
            delete = sa.delete(table).where(self.among(table.c.session_id))
            deleted = connection.execute(delete, {"session_ids": self.ids(session_ids)})
            messages = messages or (deleted.rowcount if table is self.tables.messages else 0)
        return messages

    def locate(self, connection: sa.Connection, session_id: str) -> Holder | None:
        row = connection.execute(self._holder, {"session_id": session_id}).one_or_none()
        return None if row is None else Holder(worker_id=row[0], incarnation=row[1], owner=row[2])

    # ---- owners and capabilities ----

    def get_capabilities(self, connection: sa.Connection, session_id: str) -> str | None:
        row = self.sessions.c
        encoded: str | None = connection.execute(
            sa.select(row.capabilities).where(row.session_id == session_id)
        ).scalar()
        return encoded

    def elicitation_capable(self, connection: sa.Connection) -> list[str]:
        row = self.sessions.c
        return list(
            connection.execute(
                sa.select(row.session_id).where(row.elicitation).order_by(row.session_id)
            ).scalars()
        )

    # ---- messages ----

    def waiting(self, connection: sa.Connection, worker: Worker) -> list[str]:
        return list(connection.execute(self._waiting, self.identity(worker)).scalars())

    def backlog(self, connection: sa.Connection, worker: Worker) -> Mapping[str, Any]:
        """Return the newest message and the number of messages of each session that has any."""
        rows = connection.execute(self._backlog, self.identity(worker))
        return {row[0]: (row[1], row[2]) for row in rows}

    def news(
        self, connection: sa.Connection, worker: Worker, seen: int
    ) -> tuple[int, frozenset[str]]:
        """Return the newest message, and the own sessions that have any after ``seen``.

        For a database where ids are committed in their order.
        """
        newest: int = connection.execute(self._newest).scalar_one()
        if newest <= seen:
            return seen, frozenset()
        found = connection.execute(self._waiting_since, {**self.identity(worker), "seen": seen})
        return newest, frozenset(found.scalars())

    def fetch(
        self, connection: sa.Connection, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Fetch session by session: for a database without a network in between."""
        held = self.among(self.sessions.c.session_id)
        own = connection.execute(
            sa.select(self.sessions.c.session_id).where(held, self.own),
            {**self.identity(worker), "session_ids": self.ids([one.session_id for one in wanted])},
        )
        mine = frozenset(own.scalars())
        return {
            one.session_id: list(self._fetch(connection, one))
            for one in wanted
            if one.session_id in mine
        }

    def _fetch(self, connection: sa.Connection, wanted: Wanted) -> Iterator[StoredMessage]:
        message = self.tables.messages.c
        rows = connection.execute(
            sa.select(message.id, message.payload, age_of(message.created_at))
            .where(message.session_id == wanted.session_id)
            .order_by(message.id)
            .limit(wanted.count + len(wanted.held))
        )
        fresh = (row for row in rows if row[0] not in wanted.held)
        size = 0
        for message_id, payload, age in itertools.islice(fresh, wanted.count):
            if size >= wanted.size:
                return
            size += len(payload.encode())
            yield StoredMessage(id=message_id, payload=payload, age=age)

    def own_message(self) -> sa.ColumnElement[bool]:
        """Return "the session of the message is held by this incarnation"."""
        message = self.tables.messages.c
        return sa.exists().where(self.sessions.c.session_id == message.session_id, self.own)

    def acknowledge(
        self, connection: sa.Connection, worker: Worker, message_ids: Sequence[int]
    ) -> None:
        message = self.tables.messages
        with self.statement(connection):
            connection.execute(
                sa.delete(message).where(message.c.id.in_(message_ids), self.own_message()),
                self.identity(worker),
            )

    # ---- the sweep ----

    def sweep(
        self, connection: sa.Connection, worker: Worker, durations: Mapping[str, float], limit: int
    ) -> Swept:
        """Vouch and sweep; ``durations``: session_ttl, message_ttl, max_gap."""
        parameters = {**self.identity(worker), **durations, "limit": limit}
        fleet, messages = self.tables.fleet, self.tables.messages
        allowed = sa.select(fleet.c.id).where(self.old_enough(fleet.c.unbroken_since))
        with self.transaction(connection):
            connection.execute(self.vouch(), parameters)
            expired: list[str] = []
            dropped = 0
            if connection.execute(allowed, parameters).first() is not None:
                expired = list(connection.execute(self.expired(), parameters).scalars())
                dropped = self._delete_sessions(connection, expired)
            stale = connection.execute(
                sa.delete(messages).where(messages.c.id.in_(self.stale_messages())), parameters
            )
            return Swept(sessions=len(expired), messages=dropped + stale.rowcount)
