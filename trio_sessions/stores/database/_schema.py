"""The tables: their definition, their creation, and the check that they are ours."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import NoSuchTableError

from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database._clock import now
from trio_sessions.stores.database._database import Database, known

__all__ = [
    "Tables",
    "check_tables",
    "create_missing",
    "is_complete",
    "metadata",
    "tables",
    "upgrades",
]

_Type = sa.types.TypeEngine[Any]
_LATER = {"added": True}
"""A column or index that an earlier version did not have: `create_missing` adds it."""
_PREFIX = re.compile(r"[a-z_][a-z0-9_]{0,37}|")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one prefix."""

    metadata: sa.MetaData
    sessions: sa.Table
    messages: sa.Table
    fleet: sa.Table
    workers: sa.Table
    gone: sa.Table
    revoked: sa.Table


def metadata(table_prefix: str = "trio_") -> sa.MetaData:
    """Return the tables as a `sqlalchemy.MetaData`, for your own Alembic migrations.

    Args:
        table_prefix: as given to `DatabaseStore`.

    Raises:
        ValueError: the prefix is no lower-case identifier of at most 38 characters.
    """
    return tables(table_prefix).metadata


def tables(prefix: str) -> Tables:
    """Define the tables. Everything but the two ids has a default, for rows from elsewhere."""
    if not isinstance(prefix, str):
        raise TypeError(f"table_prefix must be a str, not {type(prefix).__name__}")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(
            "table_prefix must be lower-case letters, digits and underscores, not begin "
            f"with a digit and have at most 38 characters, not {prefix!r}"
        )
    meta = sa.MetaData()
    moment = sa.TIMESTAMP(timezone=True)
    databases = known().values()
    session_id, message_id = _session_id(databases), _message_id(databases)
    # No index on last_accessed: on PostgreSQL it would end HOT updates of the column
    # that every pass updates (benchmarks/hot_updates.py measures it).
    sessions = sa.Table(
        f"{prefix}sessions",
        meta,
        sa.Column("session_id", session_id, primary_key=True),
        sa.Column("worker_id", sa.String(255), nullable=False),
        sa.Column("incarnation", sa.String(32), nullable=False, server_default=""),
        sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("owner", sa.String(320)),
        sa.Column("capabilities", sa.Text),
        sa.Column("elicitation", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", moment, nullable=False, server_default=now()),
        sa.Column("taken_at", moment, nullable=False, server_default=now()),
        sa.Column("last_accessed", moment, nullable=False, server_default=now()),
        **_options(database.sessions_options for database in databases),
    )
    messages = sa.Table(
        f"{prefix}messages",
        meta,
        sa.Column("id", message_id, primary_key=True, autoincrement=True),
        sa.Column(
            "session_id",
            session_id,
            sa.ForeignKey(sessions.c.session_id, ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False, server_default=now(), index=True),
        **_options(database.messages_options for database in databases),
    )
    # To list who can be asked, without a look at the others.
    asked = sessions.c.elicitation
    sa.Index(
        f"ix_{prefix}sessions_elicitation",
        sessions.c.session_id,
        **_options({f"{one.name}_where": asked} for one in databases if one.has_partial_indexes),
    )
    sa.Index(f"ix_{prefix}messages_session_id_id", messages.c.session_id, messages.c.id)
    # To count and find the rows of one incarnation; a refresh does not touch it.
    sa.Index(f"ix_{prefix}sessions_incarnation", sessions.c.incarnation, info=_LATER)
    # To list the sessions of an owner by id; those without one are not in it.
    sa.Index(
        f"ix_{prefix}sessions_owner",
        sessions.c.owner,
        sessions.c.session_id,
        **_options(
            {f"{one.name}_where": sessions.c.owner.is_not(None)}
            for one in databases
            if one.has_partial_indexes
        ),
        info=_LATER,
    )
    fleet = sa.Table(
        f"{prefix}fleet",
        meta,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("vouched_at", moment, nullable=False),
        sa.Column("unbroken_since", moment),
        sa.Column("doubtful_until", moment, info=_LATER),
        sa.Column("server", sa.String(255), info=_LATER),
    )
    workers = sa.Table(
        f"{prefix}workers",
        meta,
        sa.Column("incarnation", sa.String(32), primary_key=True),
        sa.Column("worker_id", sa.String(255), nullable=False),
        sa.Column("history", sa.String(32), nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("stamped_at", moment, nullable=False),
        sa.Column("passed_at", moment, nullable=False),
        sa.Column("session_ttl", sa.Double, nullable=False),
        sa.Column("cleanup_interval", sa.Double, nullable=False),
        sa.Column("stamp_interval", sa.Double, nullable=False),
        sa.Column("started_at", moment, nullable=False, server_default=now()),
        sa.Column("version", sa.String(64), nullable=False, server_default=""),
        sa.Column("data", sa.Text, nullable=False, server_default="{}"),
        sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.false(), info=_LATER),
        **_options(database.workers_options for database in databases),
    )
    gone = sa.Table(
        f"{prefix}gone",
        meta,
        sa.Column("incarnation", sa.String(32), primary_key=True),
        sa.Column("history", sa.String(32), nullable=False, server_default=""),
        sa.Column("gone_at", moment, nullable=False, server_default=now()),
    )
    revoked = sa.Table(
        f"{prefix}revoked",
        meta,
        sa.Column("session_id", session_id, primary_key=True),
        sa.Column("revoked_at", moment, nullable=False, server_default=now(), index=True),
        sa.Column("until", moment, nullable=False),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
    )
    return Tables(meta, sessions, messages, fleet, workers, gone, revoked)


def _session_id(databases: Iterable[Database]) -> _Type:
    column: _Type = sa.String(255)
    for database in databases:
        if database.session_id is not None:
            column = column.with_variant(database.session_id, database.name)
    return column


def _message_id(databases: Iterable[Database]) -> _Type:
    column: _Type = sa.BigInteger()
    for database in databases:
        if database.message_id is not None:
            column = column.with_variant(database.message_id, database.name)
    return column


def _options(options: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the arguments of each database: their names begin with that of its dialect."""
    return {name: value for one in options for name, value in one.items()}


def is_complete(inspector: sa.Inspector, ours: Tables) -> bool:
    """Say whether nothing is missing: then nobody needs the lock to create it.

    Beside what `check_tables` has asked, it asks for indexes that an earlier version did not have.
    """
    for table in ours.metadata.sorted_tables:
        there = {column["name"] for column in _columns_of(inspector, table) or ()}
        if not there.issuperset(table.columns.keys()):
            return False
        added = {index.name for index in table.indexes if index.info == _LATER}
        if added and added.difference(one["name"] for one in inspector.get_indexes(table.name)):
            return False
    return True


def _columns_of(inspector: sa.Inspector, table: sa.Table) -> Sequence[Any] | None:
    """Return the columns of a table as it is; None: there is no such table.

    SQLite says that it has none, if somebody has created it between two looks.
    """
    try:
        return inspector.get_columns(table.name) or None
    except NoSuchTableError:
        return None


def create_missing(connection: sa.Connection, ours: Tables) -> None:
    """Create tables that are missing, and what an earlier version's tables lack.

    Whoever calls it has a lock that makes others wait who do the same. Workers of the earlier
    version may go on beside: they need not know what is added.
    """
    inspector = sa.inspect(connection)
    there = [one for one in ours.metadata.sorted_tables if inspector.has_table(one.name)]
    new = [one for one in ours.metadata.sorted_tables if one not in there]
    ours.metadata.create_all(connection, tables=new, checkfirst=False)
    for table in there:
        for statement in upgrades(inspector, table):
            connection.exec_driver_sql(statement)


def upgrades(inspector: sa.Inspector, table: sa.Table) -> list[str]:
    """Return the statements that add to a table what that of an earlier version lacks."""
    dialect = inspector.dialect
    columns = {column["name"] for column in inspector.get_columns(table.name)}
    indexes = {index["name"] for index in inspector.get_indexes(table.name)}
    name = dialect.identifier_preparer.format_table(table)
    return [
        f"ALTER TABLE {name} ADD COLUMN {sa.schema.CreateColumn(column).compile(dialect=dialect)}"
        for column in table.columns
        if column.name not in columns
    ] + [
        str(sa.schema.CreateIndex(index).compile(dialect=dialect))
        for index in sorted(table.indexes, key=lambda index: str(index.name))
        if index.name not in indexes
    ]


def check_tables(
    inspector: sa.Inspector, ours: Tables, *, may_create: bool, has_time_zones: bool
) -> None:
    """Raise unless each table is ours, or may be created because it is not there.

    Args:
        inspector: of the database; what it has found it does not ask for again.
        ours: the tables as they should be.
        may_create: whether one may be missing.
        has_time_zones: whether the database knows moments with and without a time zone.

    Raises:
        StoreSchemaError: a table of our name has other columns, or is missing and may
            not be created. The message names the table and the column.
    """
    missing = []
    for table in ours.metadata.sorted_tables:
        if _columns_of(inspector, table) is None:
            missing.append(table.name)
        else:
            _check_columns(inspector, table, may_add=may_create, has_time_zones=has_time_zones)
    if missing and not may_create:
        raise StoreSchemaError(
            f"table {missing[0]!r} does not exist and create_tables is False: create it by your "
            "migrations (trio_sessions.stores.database.metadata) or set create_tables"
        )


def _check_columns(
    inspector: sa.Inspector, table: sa.Table, *, may_add: bool, has_time_zones: bool
) -> None:
    found = {column["name"]: column for column in inspector.get_columns(table.name)}
    hint = "nothing was altered; use another table_prefix or migrate the table"
    for column in table.columns:
        if column.name not in found and may_add and column.info == _LATER:
            continue
        if column.name not in found:
            raise StoreSchemaError(
                f"table {table.name!r} exists and lacks the column {column.name!r}: {hint}"
            )
        fault = _fault(column.type, found[column.name]["type"], has_time_zones=has_time_zones)
        if fault is not None:
            is_now, must_be = (
                _spelled(one, inspector) for one in (found[column.name]["type"], column.type)
            )
            raise StoreSchemaError(
                f"column {column.name!r} of table {table.name!r} is {is_now} and must be "
                f"{must_be}: it {fault}; {hint}"
            )
    for name, theirs in found.items():
        filled = theirs["default"] is not None or "identity" in theirs or "computed" in theirs
        if name not in table.columns and not theirs["nullable"] and not filled:
            raise StoreSchemaError(
                f"table {table.name!r} exists and has another column {name!r} that is "
                f"required: {hint}"
            )
    key = inspector.get_pk_constraint(table.name)["constrained_columns"]
    expected_key = [column.name for column in table.primary_key]
    if key != expected_key:
        raise StoreSchemaError(
            f"column {expected_key[0]!r} is not the primary key of table {table.name!r}: {hint}"
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
