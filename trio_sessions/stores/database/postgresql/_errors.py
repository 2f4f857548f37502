"""What an error of PostgreSQL's means."""

import contextlib
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError

from trio_sessions.errors import RowLocked, RowUnavailable, StoreUnavailable

__all__ = [
    "LOCK_NOT_AVAILABLE",
    "PROGRAM_LIMIT_EXCEEDED",
    "advice",
    "has_refused",
    "is_too_long",
    "leads_astray",
    "locks_are_of_the_table",
    "row_error",
    "sqlstate",
]

# A server that takes no writes, as a standby does, and one that goes, has crashed or only comes.
_READ_ONLY = "25006"
_ASTRAY = (_READ_ONLY, "57P01", "57P02", "57P03")

LOCK_NOT_AVAILABLE = "55P03"

# Classes and codes of SQLSTATE that speak of rows: data exceptions, integrity, WITH CHECK OPTION,
# an error raised by a trigger; deadlock and serialization, a lock that was not to be had.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_ROW_ERRORS = ("22", "23", "44", "P0")
_LOCKS = ("40", LOCK_NOT_AVAILABLE)
PROGRAM_LIMIT_EXCEEDED = "54000"
_QUERY_CANCELED = "57014"

# The connection's own troubles, and those of a server that goes: its last word may be younger than
# a commit. "Statement completion unknown" speaks for itself.
_UNDECIDED = ("08", "40003", "57P", "58", "XX")


def sqlstate(error: DBAPIError) -> str:
    """Return the five characters, or none if the error is not the server's."""
    return getattr(error.orig, "sqlstate", None) or ""


def row_error(error: DBAPIError) -> type[RowUnavailable] | None:
    """Return what an error of single rows is; see `Database.row_error`."""
    code = sqlstate(error)
    if code.startswith(_LOCKS):
        return RowLocked
    return RowUnavailable if code.startswith(_ROW_ERRORS) else None


def is_too_long(error: DBAPIError) -> bool:
    """Say whether the server has ended a statement, as it does at ``statement_timeout``."""
    return sqlstate(error) == _QUERY_CANCELED


def has_refused(error: DBAPIError) -> bool:
    """Say whether the server has rolled back, and lives."""
    code = sqlstate(error)
    return bool(code) and not code.startswith(_UNDECIDED)


def leads_astray(error: DBAPIError) -> bool:
    """Say whether the connection leads to a server that is not, or no more, the right one."""
    return sqlstate(error) in _ASTRAY or _names_what_a_standby_has_not(error)


def _names_what_a_standby_has_not(error: DBAPIError) -> bool:
    """Say whether a standby has refused a statement for a table that is not logged: the letters'.

    It says so as of any feature that it has not, so its words decide. Where they are not English,
    the next stamp finds out.
    """
    return sqlstate(error) == "0A000" and "recovery" in str(error.orig)


def advice(error: DBAPIError) -> str:
    """Say what to do about an error, where the server's own words leave that open."""
    match _READ_ONLY if _names_what_a_standby_has_not(error) else sqlstate(error):
        case "25006":
            return (
                "this server takes no writes, as a standby does; all connections to it were thrown "
                "away, and the next operation connects anew"
            )
        case "42501":
            return (
                "the role lacks a right, or row level security hides rows from it: GRANT SELECT, "
                "INSERT, UPDATE, DELETE on the tables and USAGE on the messages' sequence; ALTER "
                "TABLE ... DISABLE ROW LEVEL SECURITY, or ALTER ROLE ... BYPASSRLS"
            )
    return ""


@contextlib.contextmanager
def locks_are_of_the_table() -> Iterator[None]:
    """Translate a lock error of a statement that waits for no row: the table is locked.

    That is no row's error, so a chunk is not asked in halves, each of which would wait as long.
    """
    try:
        yield
    except DBAPIError as exc:
        if sqlstate(exc) != LOCK_NOT_AVAILABLE:
            raise
        raise StoreUnavailable(
            "PostgreSQL: another transaction has locked the table", did_nothing=True
        ) from exc
