"""Connections to a server, each wait of theirs bounded, and told what they are.

What a role or a database has as its defaults is not inherited where the promise rests on it; see
docs/decisions/0010-evidence.md.
"""

import contextlib
import importlib
import os
import select
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DisconnectionError

from trio_sessions.errors import MissingDependency
from trio_sessions.stores.database._database import Timeouts

__all__ = [
    "USES_INDEXES",
    "USE_INDEXES",
    "Shutdown",
    "create_engine",
    "engine_options",
    "import_driver",
    "path",
    "schema",
    "speak_utf8",
    "transaction",
    "unreadable",
]

USES_INDEXES = "trio_sessions_uses_indexes"
"""An execution option: the connection was told so when it connected."""

# Else a plan is made, and kept, while the tables are almost empty, that reads them whole for each
# id; until the next ANALYZE, whatever they have grown to. Our own connections are told when they
# connect, others for each transaction.
USE_INDEXES = "SELECT set_config('enable_seqscan', 'off', true)"

# Row level security hides rows in silence, unless one insists on seeing all: then it is an error.
# A stricter isolation looks at an old snapshot, and fails where ours is to see who came first.
_MUST_BE = r"-c row_security=off -c default_transaction_isolation=read\ committed"

_ONLY_WHEN_ASKED = 1_000_000_000  # executions until psycopg prepares a statement by itself


def import_driver() -> None:
    """Raise `MissingDependency` if psycopg is not there."""
    # It may be there and not work: without its binary part it needs libpq of the system.
    try:
        importlib.import_module("psycopg")
    except ImportError as exc:
        raise MissingDependency(
            f"store is a PostgreSQL URL and its driver cannot be imported ({exc}): "
            "pip install 'trio_sessions[postgresql]'"
        ) from exc


class Shutdown:
    """A cutter that shuts down the connection's socket: whatever it waits for ends.

    It works on a duplicate of the file descriptor, so it can never hit another socket
    that has got the same number meanwhile.
    """

    def __init__(self, driver: Any) -> None:
        self._descriptor = None if driver.closed else os.dup(driver.fileno())

    def cut(self) -> None:
        """Shut the socket down."""
        if self._descriptor is None:  # it is lost, and waits for nothing
            return
        connection = socket.socket(fileno=self._descriptor)
        try:
            with contextlib.suppress(OSError):  # gone already
                connection.shutdown(socket.SHUT_RDWR)
        finally:
            connection.detach()

    def close(self) -> None:
        """Give the duplicate back."""
        if self._descriptor is not None:
            os.close(self._descriptor)


def engine_options(_url: sa.URL, _timeouts: Timeouts) -> Mapping[str, Any]:
    """Return execution options: autocommit, which saves a transaction's two round trips."""
    return {"isolation_level": "AUTOCOMMIT"}


def create_engine(url: sa.URL, pool_size: int, timeouts: Timeouts) -> sa.Engine:
    """Make an engine; see `Database.create_engine`."""
    engine = sa.create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size,
        max_overflow=-1,  # the limiter is the bound
        pool_use_lifo=True,  # so that spare connections fall idle
        pool_reset_on_return=None,  # nothing to roll back in autocommit
        hide_parameters=True,
        connect_args=_connect_args(url, timeouts),
        execution_options={USES_INDEXES: timeouts.server_timeouts},
    )

    @sa.event.listens_for(engine, "checkout")
    def discard_if_dead(connection: Any, record: object, proxy: object) -> None:
        # An idle connection has nothing to say: if it can be read, it was closed.
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if poll.poll(0):
            raise DisconnectionError("closed while it was idle")

    return engine


def _connect_args(url: sa.URL, timeouts: Timeouts) -> dict[str, Any]:
    """Return psycopg's arguments, which bound every wait: for the server, locks, the network.

    What the URL says itself is left as it is, but for what a session must be.
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
    arguments["client_encoding"] = "UTF8"  # any id; PgBouncer keeps it for each client
    arguments["prepare_threshold"] = None  # as PgBouncer needs it; see `_pipeline`
    if timeouts.server_timeouts:
        arguments["prepare_threshold"] = _ONLY_WHEN_ASKED
        own = (
            f"-c statement_timeout={milliseconds * 4 // 5} "
            f"-c lock_timeout={int(timeouts.lock_timeout * 1000)} "
            f"-c idle_in_transaction_session_timeout={milliseconds} "
            "-c enable_seqscan=off"  # see `_batch`
        )
        arguments["options"] = f"{own} {url.query.get('options', '')} {_MUST_BE}"
    return arguments


def speak_utf8(connection: sa.Connection) -> None:
    """Tell a connection of somebody's engine its encoding, unless it is UTF-8 already.

    The driver knows without asking. To its owner text stays what it was.
    """
    driver: Any = connection.connection.dbapi_connection
    if not driver.closed and driver.pgconn.parameter_status(b"client_encoding") != b"UTF8":
        connection.exec_driver_sql("SET client_encoding TO 'UTF8'")


def path(connection: sa.Connection) -> bytes | None:
    """Return ``search_path``, of which a server tells by itself from PostgreSQL 18 on."""
    driver: Any = connection.connection.dbapi_connection
    found: bytes | None = None
    if not driver.closed:
        found = driver.pgconn.parameter_status(b"search_path")
    return found


def schema(connection: sa.Connection) -> object:
    """Return the schema to which ``search_path`` leads."""
    return connection.exec_driver_sql("SELECT current_schema()").scalar()


def unreadable(engine: sa.Engine, error: TypeError) -> str:
    """Say what to do about a database that speaks in bytes; see `Database.unreadable`.

    SQLAlchemy asks the first connection of an engine which server it is, before we have it.
    """
    if engine.dialect.server_version_info is not None or "bytes" not in str(error):
        return ""
    return (
        "has no encoding (SQL_ASCII), so that your engine cannot read what its first connection "
        "says: give the engine's URL ?client_encoding=utf8, or create_engine(..., "
        'connect_args={"client_encoding": "utf8"})'
    )


@contextlib.contextmanager
def transaction(connection: sa.Connection) -> Iterator[None]:
    """Run a block of several statements as one transaction."""
    connection.exec_driver_sql("BEGIN")
    try:
        yield
    except BaseException:  # rolled back whatever it is; raised again
        if not connection.invalidated:
            connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")
