"""What is there of our tables' names, and the check that they are our tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.reflection import ObjectKind, ObjectScope

from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database._versions import STEPS

__all__ = ["Found", "check_tables", "find_tables"]

_Type = sa.types.TypeEngine[Any]

_HINT = "nothing was altered; use another table_prefix or migrate the table"


@dataclass(frozen=True, slots=True)
class Found:
    """The columns, keys and indexes found, by table; one that is not there has no entry."""

    columns: Mapping[str, Sequence[Any]]
    keys: Mapping[str, Sequence[str]]
    indexes: Mapping[str, frozenset[str | None]]


def find_tables(connection: sa.Connection, ours: Tables) -> Found:
    """Ask what is there, for all tables at once: a store opens in a few round trips.

    SQLite may say that a table has no columns, if somebody creates it between two looks: then it
    is not there.
    """
    inspector = sa.inspect(connection)
    names = [table.name for table in ours.metadata.sorted_tables]
    # Views and temporary tables, too: what a statement that names it would meet.
    anything: Any = {"filter_names": names, "kind": ObjectKind.ANY, "scope": ObjectScope.ANY}
    columns = inspector.get_multi_columns(**anything)
    keys = inspector.get_multi_pk_constraint(**anything)
    indexes = inspector.get_multi_indexes(**anything)
    return Found(
        {name: found for (_, name), found in columns.items() if found},
        {name: found["constrained_columns"] for (_, name), found in keys.items()},
        {name: frozenset(one["name"] for one in found) for (_, name), found in indexes.items()},
    )


def check_tables(found: Found, ours: Tables, dialect: sa.Dialect, *, has_time_zones: bool) -> None:
    """Raise unless each table that is there is ours, of this version or of an earlier one.

    Args:
        found: what is there.
        ours: the tables as they should be.
        dialect: how the database spells types, for what errors say.
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
        if table.name in found.columns:
            columns = {column["name"]: column for column in found.columns[table.name]}
            _check_columns(columns, table, later, dialect, has_time_zones=has_time_zones)
            _check_key(found.keys[table.name], table)


def _check_columns(
    found: Mapping[str, Any],
    table: sa.Table,
    later: set[sa.Column[Any]],
    dialect: sa.Dialect,
    *,
    has_time_zones: bool,
) -> None:
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
                one.compile(dialect=dialect) for one in (found[column.name]["type"], column.type)
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


def _check_key(key: Sequence[str], table: sa.Table) -> None:
    expected = [column.name for column in table.primary_key]
    if list(key) != expected:
        raise StoreSchemaError(
            f"column {expected[0]!r} is not the primary key of table {table.name!r}: {_HINT}"
        )


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
