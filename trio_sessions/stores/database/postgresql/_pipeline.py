"""Several statements in one round trip: psycopg's pipeline, which SQLAlchemy does not know.

Each of them has a snapshot of its own.
https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html

They are prepared, which costs no round trip in a pipeline and saves most of the time that a
lone one takes: planning. A connection whose ``prepare_threshold`` is None prepares nothing, as
it must be behind a PgBouncer in transaction mode.

Each transaction has a COMMIT of its own. Else what fails at the commit (a full queue of
notifications, a deferred constraint) would be told in the place of the sync's answer: psycopg
takes it for that, loses the error, and cannot leave the pipeline. A lone statement that is
prepared already needs neither.

psycopg looks for the parameters of a statement of more than 4 KiB each time anew, which costs more
than sending it; so ours are numbered once. An engine with a class of cursors of its own keeps it.
https://www.psycopg.org/psycopg3/docs/advanced/cursors.html#cursor-raw
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

__all__ = ["in_one_round_trip", "one_after_the_other"]

_PREPARED = "trio_sessions_prepared"
_PLACEHOLDER = re.compile(r"%(?:\((?P<name>\w+)\)s|%)")


def in_one_round_trip(
    connection: sa.Connection, statements: Sequence[str], parameters: Mapping[str, Any]
) -> Sequence[Any]:
    """Execute statements as one transaction; return the rows of the last one.

    Raises:
        DBAPIError: as SQLAlchemy would; nothing was committed, or it is not known. A connection
            that was lost is thrown away by whoever has taken it from the pool.
    """
    driver: Any = connection.connection.dbapi_connection
    prepared: set[str] = connection.info.setdefault(_PREPARED, set())
    last = statements[-1]
    with _translated(connection, last):
        if len(statements) == 1 and last in prepared:
            cursor = _execute(driver, last, parameters)
        else:
            with driver.pipeline():
                cursor = _transaction(driver, statements, parameters)
            if driver.prepare_threshold is not None:
                prepared.add(last)
        rows: Sequence[Any] = cursor.fetchall()  # not before: asking costs a round trip
    return rows


def one_after_the_other(
    connection: sa.Connection, statements: Sequence[str], parameters: Mapping[str, Any]
) -> Sequence[Sequence[Any]]:
    """Execute statements, a transaction each; return the rows of each.

    What comes after one that fails is not carried out; what came before stays committed.

    Raises:
        DBAPIError: as above.
    """
    if len(statements) == 1:
        return [in_one_round_trip(connection, statements, parameters)]
    driver: Any = connection.connection.dbapi_connection
    with _translated(connection, statements[-1]):
        with driver.pipeline():
            cursors = [_transaction(driver, [each], parameters) for each in statements]
        return [cursor.fetchall() for cursor in cursors]


def _execute(driver: Any, statement: str, parameters: Mapping[str, Any]) -> Any:
    """Send a statement; return its cursor."""
    from psycopg import Cursor, RawCursor
    from psycopg.rows import namedtuple_row

    if driver.cursor_factory is not Cursor:
        cursor = driver.cursor(row_factory=namedtuple_row)
        return cursor.execute(statement, parameters, prepare=True)
    numbered, names = _numbered(statement)
    cursor = RawCursor(driver, row_factory=namedtuple_row)
    return cursor.execute(numbered, [parameters[name] for name in names], prepare=True)


@lru_cache(maxsize=256)
def _numbered(statement: str) -> tuple[str, tuple[str, ...]]:
    """Return a statement with $1 for %(name)s, and the names in the order of their numbers."""
    numbers: dict[str, int] = {}

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"

    return _PLACEHOLDER.sub(replace, statement), tuple(numbers)


def _transaction(driver: Any, statements: Sequence[str], parameters: Mapping[str, Any]) -> Any:
    """Send a transaction in a pipeline; return the cursor of its last statement."""
    if driver.autocommit:  # else whoever has the connection commits
        driver.execute("BEGIN")
    for statement in statements:
        cursor = _execute(driver, statement, parameters)
    if driver.autocommit:
        driver.execute("COMMIT")
    return cursor


@contextlib.contextmanager
def _translated(connection: sa.Connection, statement: str) -> Iterator[None]:
    """Raise the driver's errors as SQLAlchemy would, with the transaction ended."""
    import psycopg

    try:
        yield
    except psycopg.Error as exc:
        driver: Any = connection.connection.dbapi_connection
        _roll_back(driver)
        error = DBAPIError.instance(
            statement,
            None,
            exc,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=bool(driver.closed),
            dialect=connection.dialect,
        )
        raise error from exc


def _roll_back(driver: Any) -> None:
    """End the transaction, if the server has not done so; a connection that cannot is closed."""
    import psycopg

    if driver.closed or driver.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        return
    try:
        driver.execute("ROLLBACK")
    except psycopg.Error:
        driver.close()
