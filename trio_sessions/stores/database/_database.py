"""What a database is: a frozen description, found by the name of SQLAlchemy's dialect.

Each is a folder beside this file that is named like the dialect, with a `Database` named
``DATABASE`` in it. Nothing else knows which there are. What databases do alike stands in
`portable`, made of what the description says; what one does better stands in its folder.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from trio_sessions.abc import Bell, Worker
from trio_sessions.errors import RowUnavailable
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.stores.database._bell import BellSource
from trio_sessions.types import (
    Begun,
    Presence,
    RowAnswers,
    Stamp,
    Stamped,
    StoredEntry,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import Batch, Committed

if TYPE_CHECKING:
    from trio_sessions.stores.database._questions import Asker
    from trio_sessions.stores.database._schema import Tables
    from trio_sessions.stores.database._upgrade import Lacking

__all__ = [
    "BeginHistory",
    "CheckAlterations",
    "CheckOpening",
    "Clock",
    "Cutter",
    "Database",
    "ExpireLogs",
    "Operations",
    "ReadLog",
    "SetStamp",
    "Timeouts",
    "find",
    "known",
]


class Timeouts(Protocol):
    """How long the database itself may take, in seconds."""

    connect_timeout: float
    operation_timeout: float
    lock_timeout: float
    server_timeouts: bool


class Cutter(Protocol):
    """A means to end what a connection is doing, from another thread."""

    def cut(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The database's clock, as SQL; arguments are SQL, too."""

    now: str
    ago: Callable[[str], str]
    """The moment so many seconds ago."""
    age_of: Callable[[str], str]
    """The seconds since a moment that was stored."""


class MakeOperations(Protocol):
    """A maker of the operations on one set of tables."""

    def __call__(self, tables: "Tables", *, listens: bool) -> "Operations":
        """Return the operations.

        Args:
            tables: the tables.
            listens: the workers keep a connection to be told of messages, where the database can
                tell; else nobody is to be told, and a bell asks now and then.
        """
        ...


CheckAlterations = Callable[["Lacking"], None]
"""Raise `StoreSchemaError` unless the role may add what is lacking."""

CheckOpening = Callable[[sa.Connection], CheckAlterations]
"""Look, before a store opens, at what tables alone do not show.

Raise `StoreSchemaError` unless session, rights and ids are what they must be; return the check
of whoever then wants to add something.
"""


class BeginHistory(Protocol):
    """The operation that begins a history: it writes a worker's row anew."""

    def __call__(
        self,
        connection: sa.Connection,
        worker: Worker,
        history: str,
        presence: Presence,
        *,
        after: str | None,
    ) -> Begun:
        """Return whether the incarnation had lost its lease; see `WorkerStore.begin`."""
        ...


class SetStamp(Protocol):
    """The operation that stamps a worker's row, and vouches for the fleet."""

    def __call__(
        self, connection: sa.Connection, worker: Worker, stamp: Stamp, *, passed: bool
    ) -> Stamped:
        """Return what has become of it; see `WorkerStore.stamp`."""
        ...


class PostOffice(Protocol):
    """The operations on mail; see `trio_sessions.abc.MailStore`."""

    def collect(
        self, connection: sa.Connection, worker: Worker, limit: int, size: int
    ) -> list[str]: ...

    def listen(self, connection: sa.Connection, worker: Worker, topics: Sequence[str]) -> None: ...

    def unlisten(
        self, connection: sa.Connection, worker: Worker, topics: Sequence[str]
    ) -> None: ...

    def living(self, connection: sa.Connection) -> frozenset[str]: ...

    def expire(self, connection: sa.Connection, older_than: float, limit: int) -> int: ...


class ReadLog(Protocol):
    """The operation that reads a part of a session's log."""

    def __call__(
        self,
        connection: sa.Connection,
        asker: "Asker",
        session_id: str,
        *,
        after: int,
        limit: int,
        size: int,
    ) -> Sequence[StoredEntry]:
        """Return entries; see `LogStore.read_log`."""
        ...


class ExpireLogs(Protocol):
    """The operation that deletes old entries of logs."""

    def __call__(self, connection: sa.Connection, *, older_than: float, limit: int) -> int:
        """Return how many; see `LogStore.expire_logs`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The operations on one set of tables.

    Each gets a connection in autocommit mode, and is one transaction on it.
    """

    check: CheckOpening
    creation: Callable[[sa.Connection], AbstractContextManager[None]]
    """A transaction in which nobody else creates or alters tables."""
    commit: Callable[[sa.Connection, Worker, Batch, Callable[[], float]], Committed]
    """Carry out a batch; the last argument returns the seconds since its ages were told."""
    refresh: Callable[[sa.Connection, Worker, Sequence[str]], RowAnswers]
    delete_all: Callable[[sa.Connection, Worker, int], Swept]
    begin: BeginHistory
    stamp: SetStamp
    sweep: Callable[[sa.Connection, Worker, Mapping[str, float], int, Stamp | None], Swept]
    """Stamp, vouch and sweep; the durations are session_ttl, message_ttl and max_gap."""
    fetch: Callable[
        [sa.Connection, Worker, Sequence[Wanted]], Mapping[str, Sequence[StoredMessage]]
    ]
    revoke: Callable[[sa.Connection, Revocation, int], Revoked]
    revocations: Callable[[sa.Connection, float], list[Mark]]
    mail: "PostOffice"
    read_log: ReadLog
    expire_logs: ExpireLogs
    open_bell: Callable[[BellSource, Worker], AbstractAsyncContextManager[Bell]]
    """Return what tells of messages, by the best means that the database has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """The description of a database: what others do not share with it."""

    name: str
    """That of its dialect in SQLAlchemy, and of its folder."""
    aka: frozenset[str] = frozenset()
    """Other names that people write in URLs, and that SQLAlchemy does not know."""
    driver: str
    """The only one that is supported."""
    check: Callable[[sa.URL], None]
    """Raise `ValueError` for a URL that cannot work."""
    import_driver: Callable[[], None]
    """Raise `MissingDependency` if it cannot be imported."""

    create_engine: Callable[[sa.URL, int, Timeouts], sa.Engine]
    """Make an engine whose every operation is bounded in time; with a size for its pool."""
    opens: Callable[[object, sa.URL], None]
    """Note, in a thread, that an opening is about to connect; raise `StoreInUse` if it must not."""
    has_closed: Callable[[object], None]
    """Note that all connections of an opening are closed."""
    engine_options: Callable[[sa.URL, Timeouts], Mapping[str, Any]]
    """What the connections of one opening have in common, as execution options."""
    leads_elsewhere: Callable[[sa.Connection], bool]
    """Say whether the URL leads to another database by now than this connection does."""
    cutter: Callable[[Any], Cutter]
    """Return what can end an operation of a driver's connection."""
    row_error: Callable[[DBAPIError], type[RowUnavailable] | None]
    """Return what an error of single rows is; None: it is that of all, or of the connection."""
    is_too_long: Callable[[DBAPIError], bool]
    """Say whether the database has ended the operation because it took too long."""

    has_refused: Callable[[DBAPIError], bool] = lambda _: False
    """Say whether the database has surely carried out nothing of the transaction."""
    leads_astray: Callable[[DBAPIError], bool] = lambda _: False
    """Say whether an error means that every connection may lead to the wrong server."""
    advice: Callable[[DBAPIError], str] = lambda _: ""
    """Say what to do about an error, if it does not say so itself."""
    unreadable: Callable[[sa.Engine, TypeError], str] = lambda *_: ""
    """Say why SQLAlchemy cannot read what an engine's first connection says, and what to do; empty
    if the error is another."""
    path: Callable[[sa.Connection], object] = lambda _: None
    """Return by which path tables are found, if the driver knows it without asking; else None."""
    schema: Callable[[sa.Connection], object] = lambda _: None
    """Ask to which schema that path leads."""
    settle: Callable[[sa.Connection], None] = lambda _: None
    """Tell a connection of an engine that was handed in what it must be, where it is not."""

    doubt: Callable[["Tables"], sa.ColumnElement[bool]] | None = None
    """Return "what is not there may have been forgotten" (`WorkerStore`); None: where the fleet's
    row says so, and nothing else."""

    clock: Clock
    has_time_zones: bool = False
    """A column may hold moments with or without a time zone."""
    has_partial_indexes: bool = False
    session_id: sa.types.TypeEngine[Any] | None = None
    """The type of the column, if it is to be another than a string."""
    message_id: sa.types.TypeEngine[Any] | None = None
    """The type of the column, if it is to be another than a big integer."""
    messages_options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for the `sqlalchemy.Table` of messages."""
    storage: Mapping[str, str] = field(default_factory=dict)
    """How tables are to be stored: what ALTER TABLE is told of them once they are created, by their
    names without the prefix. `sqlalchemy.Table` has no word for it before 2.1."""

    operations: MakeOperations


@cache
def known() -> Mapping[str, Database]:
    """Return every database that has a folder here, by its name."""
    package = importlib.import_module(__package__ or "")
    folders = [found.name for found in pkgutil.iter_modules(package.__path__) if found.ispkg]
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in folders]
    databases = [module.DATABASE for module in modules if hasattr(module, "DATABASE")]
    return {database.name: database for database in databases}


def find(name: str) -> Database:
    """Return the database of a dialect that is known to be supported."""
    return known()[name]
