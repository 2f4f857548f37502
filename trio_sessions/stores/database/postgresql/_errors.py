"""What an error of PostgreSQL's means."""

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError

from trio_sessions.errors import RowLocked, RowUnavailable, StoreUnavailable

__all__ = [
    "LOCK_NOT_AVAILABLE",
    "PROGRAM_LIMIT_EXCEEDED",
    "locks_are_of_the_table",
    "row_error",
    "sqlstate",
]

LOCK_NOT_AVAILABLE = "55P03"

# Classes and codes of SQLSTATE that speak of rows: data exceptions, integrity, WITH CHECK OPTION,
# an error raised by a trigger; deadlock and serialization, a lock that was not to be had.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_ROW_ERRORS = ("22", "23", "44", "P0")
_LOCKS = ("40", LOCK_NOT_AVAILABLE)
PROGRAM_LIMIT_EXCEEDED = "54000"


def sqlstate(error: DBAPIError) -> str:
    """Return the five characters, or none if the error is not the server's."""
    return getattr(error.orig, "sqlstate", None) or ""


def row_error(error: DBAPIError) -> type[RowUnavailable] | None:
    """Return what an error of single rows is; see `Database.row_error`."""
    code = sqlstate(error)
    if code.startswith(_LOCKS):
        return RowLocked
    return RowUnavailable if code.startswith(_ROW_ERRORS) else None


@contextlib.contextmanager
def locks_are_of_the_table() -> Iterator[None]:
    """Say of a statement that waits for no row that its lock was that of the table.

    So that a chunk is not asked in halves, each of which would wait as long.
    """
    try:
        yield
    except DBAPIError as exc:
        if sqlstate(exc) != LOCK_NOT_AVAILABLE:
            raise
        raise StoreUnavailable("PostgreSQL: another transaction has locked the table") from exc
