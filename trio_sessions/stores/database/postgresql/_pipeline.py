"""Several statements in one round trip: psycopg's pipeline, which SQLAlchemy does not know.

Between two syncs they are one transaction, also in autocommit mode, and each of them has a
snapshot of its own. https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html

They are prepared, which costs no round trip in a pipeline and saves most of the time that a
lone one takes: planning. A connection whose ``prepare_threshold`` is None prepares nothing, as
it must be behind a PgBouncer in transaction mode.

What fails at the commit itself (a full queue of notifications, a deferred constraint) is told in
the place of the sync's answer. psycopg takes it for that answer, and cannot leave the pipeline.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

__all__ = ["in_one_round_trip"]

_UNCOLLECTED = 5  # answers that may be left before that of the sync, at most


def in_one_round_trip(
    connection: sa.Connection, statements: Sequence[str], parameters: Mapping[str, Any]
) -> Sequence[Any]:
    """Execute statements with the same parameters; return the rows of the last one.

    Raises:
        DBAPIError: as SQLAlchemy would; nothing was committed, or it is not known.
    """
    import psycopg
    from psycopg.rows import namedtuple_row

    driver: Any = connection.connection.dbapi_connection
    *first, last = statements
    cursor = driver.cursor(row_factory=namedtuple_row)
    try:
        with driver.pipeline():
            for statement in first:
                driver.execute(statement, parameters, prepare=True)
            cursor.execute(last, parameters, prepare=True)
        rows: Sequence[Any] = cursor.fetchall()  # not before: asking costs a round trip
    except psycopg.Error as failure:
        exc = _leave_pipeline(driver, failure)
        is_lost = bool(driver.closed)
        if is_lost:
            connection.invalidate(exc)
        error = DBAPIError.instance(
            last,
            None,
            exc,
            psycopg.Error,
            hide_parameters=True,
            connection_invalidated=is_lost,
            dialect=connection.dialect,
        )
        raise error from exc
    return rows


def _leave_pipeline(driver: Any, failure: Exception) -> Exception:
    """Take a connection out of its pipeline if psycopg could not; return the server's error.

    One that cannot be taken out is closed.
    """
    import psycopg
    from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus

    pgconn = driver.pgconn
    if pgconn.status != ConnStatus.OK or pgconn.pipeline_status == PipelineStatus.OFF:
        return failure
    for _ in range(_UNCOLLECTED):
        result = pgconn.get_result()
        if result is not None and result.status == ExecStatus.PIPELINE_SYNC:
            pgconn.exit_pipeline_mode()
            break
    else:
        driver.close()
    before = failure.__context__
    return before if isinstance(before, psycopg.Error) else failure
