"""The check that tables of our names are our tables."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import NoSuchTableError

from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database._versions import STEPS

__all__ = ["check_tables", "columns_of"]

_Type = sa.types.TypeEngine[Any]

_HINT = "nothing was altered; use another table_prefix or migrate the table"


def columns_of(inspector: sa.Inspector, table: sa.Table) -> Sequence[Any] | None:
    """Return the columns of a table as it is; None: there is no such table.

    SQLite says that it has none, if somebody has created it between two looks.
    """
    try:
        return inspector.get_columns(table.name) or None
    except NoSuchTableError:
        return None


def check_tables(inspector: sa.Inspector, ours: Tables, *, has_time_zones: bool) -> None:
    """Raise unless each table that is there is ours, of this version or of an earlier one.

    Args:
        inspector: of the database; what it has found it does not ask for again.
        ours: the tables as they should be.
        has_time_zones: whether the database knows moments with and without a time zone.

    Raises:
        StoreSchemaError: a table of our name has other columns. The message names the table and
            the column.
    """
    later = {
        ours.metadata.tables[f"{ours.prefix}{table}"].columns[column]
        for step in STEPS
        for table, _, column in (name.partition(".") for name in step.columns)
    }
    for table in ours.metadata.sorted_tables:
        if columns_of(inspector, table) is not None:
            _check_columns(inspector, table, later, has_time_zones=has_time_zones)


def _check_columns(
    inspector: sa.Inspector, table: sa.Table, later: set[sa.Column[Any]], *, has_time_zones: bool
) -> None:
    found = {column["name"]: column for column in inspector.get_columns(table.name)}
    for column in table.columns:
        if column.name not in found and column in later:
            continue
        if column.name not in found:
            raise StoreSchemaError(
                f"table {table.name!r} exists and lacks the column {column.name!r}: {_HINT}"
            )
        fault = _fault(column.type, found[column.name]["type"], has_time_zones=has_time_zones)
        if fault is not None:
            is_now, must_be = (
                _spelled(one, inspector) for one in (found[column.name]["type"], column.type)
            )
            raise StoreSchemaError(
                f"column {column.name!r} of table {table.name!r} is {is_now} and must be "
                f"{must_be}: it {fault}; {_HINT}"
            )
    for name, theirs in found.items():
        filled = theirs["default"] is not None or "identity" in theirs or "computed" in theirs
        if name not in table.columns and not theirs["nullable"] and not filled:
            raise StoreSchemaError(
                f"table {table.name!r} exists and has another column {name!r} that is "
                f"required: {_HINT}"
            )
    key = inspector.get_pk_constraint(table.name)["constrained_columns"]
    expected_key = [column.name for column in table.primary_key]
    if key != expected_key:
        raise StoreSchemaError(
            f"column {expected_key[0]!r} is not the primary key of table {table.name!r}: {_HINT}"
        )


def _spelled(column_type: _Type, inspector: sa.Inspector) -> str:
    return column_type.compile(dialect=inspector.dialect)


def _fault(ours: _Type, theirs: _Type, *, has_time_zones: bool) -> str | None:
    """Say why a column of the type ``theirs`` cannot hold what one of ``ours`` does."""
    try:
        held = theirs.python_type
    except NotImplementedError:  # a type that SQLAlchemy does not know
        return None
    if held is not ours.python_type:
        return f"holds {held.__name__} values, not {ours.python_type.__name__}"
    if isinstance(ours, sa.String) and isinstance(theirs, sa.String):
        if theirs.length is not None and (ours.length is None or theirs.length < ours.length):
            return f"holds at most {theirs.length} characters, not {ours.length or 'any number'}"
    elif has_time_zones and isinstance(theirs, sa.DateTime) and not theirs.timezone:
        return "holds moments without a time zone"
    return None
