"""Several statements in one round trip: psycopg's pipeline, which SQLAlchemy does not know.

They are one transaction, and each of them has a snapshot of its own.
https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html

They are prepared, which costs no round trip in a pipeline and saves most of the time that a
lone one takes: planning. A connection whose ``prepare_threshold`` is None prepares nothing, as
it must be behind a PgBouncer in transaction mode.

The transaction has a COMMIT of its own. Else what fails at the commit (a full queue of
notifications, a deferred constraint) would be told in the place of the sync's answer: psycopg
takes it for that, loses the error, and cannot leave the pipeline. A lone statement that is
prepared already needs neither.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

__all__ = ["in_one_round_trip"]

_PREPARED = "trio_sessions_prepared"


def in_one_round_trip(
    connection: sa.Connection, statements: Sequence[str], parameters: Mapping[str, Any]
) -> Sequence[Any]:
    """Execute statements with the same parameters; return the rows of the last one.

    Raises:
        DBAPIError: as SQLAlchemy would; nothing was committed, or it is not known. A connection
            that was lost is thrown away by whoever has taken it from the pool.
    """
    import psycopg
    from psycopg.rows import namedtuple_row

    driver: Any = connection.connection.dbapi_connection
    prepared: set[str] = connection.info.setdefault(_PREPARED, set())
    *first, last = statements
    cursor = driver.cursor(row_factory=namedtuple_row)
    try:
        if not first and last in prepared:
            cursor.execute(last, parameters, prepare=True)
        else:
            with driver.pipeline():
                if driver.autocommit:  # else whoever has the connection commits
                    driver.execute("BEGIN")
                for statement in first:
                    driver.execute(statement, parameters, prepare=True)
                cursor.execute(last, parameters, prepare=True)
                if driver.autocommit:
                    driver.execute("COMMIT")
            if driver.prepare_threshold is not None:
                prepared.add(last)
        rows: Sequence[Any] = cursor.fetchall()  # not before: asking costs a round trip
    except psycopg.Error as exc:
        _roll_back(driver)
        error = DBAPIError.instance(
            last,
            None,
            exc,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=bool(driver.closed),
            dialect=connection.dialect,
        )
        raise error from exc
    return rows


def _roll_back(driver: Any) -> None:
    """End the transaction, if the server has not done so; a connection that cannot is closed."""
    import psycopg

    if driver.closed or driver.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        return
    try:
        driver.execute("ROLLBACK")
    except psycopg.Error:
        driver.close()
