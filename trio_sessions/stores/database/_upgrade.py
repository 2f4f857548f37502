"""From what is there to what this version needs: what is lacking, and what adds it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores.database._columns import Found
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database._versions import NEEDS, STEPS, VERSION

__all__ = ["Changes", "Lacking", "carry_out", "definition", "look", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """What a database has not, of what this version needs; in the order in which it is added."""

    was_made: bool
    """All tables of version 0 are there: some store, or somebody's migrations, made them."""
    version: int | None
    """The highest version that is noted; None: none is."""
    needs: int
    """The lowest version that a worker must know, to use the database."""
    tables: tuple[sa.Table, ...] = ()
    columns: tuple[sa.Column[Any], ...] = ()
    indexes: tuple[sa.Index, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What is lacking, in words."""
        return (
            *(f"table {table.name}" for table in self.tables),
            *(f"column {column.table.name}.{column.name}" for column in self.columns),
            *(f"index {index.name}" for index in self.indexes),
        )

    @property
    def is_older(self) -> bool:
        """Whether something is lacking because the schema is that of an earlier version.

        Where no version is noted, tables that somebody has made by hand are told from it by what
        else is there.
        """
        if self.version is None:
            return self.was_made and bool(self.tables or self.columns)
        return self.version < VERSION

    @property
    def is_noted(self) -> bool:
        """Whether the database is known to have this version, or a later one."""
        return self.version is not None and self.version >= VERSION

    def alterations(self, dialect: sa.Dialect) -> Mapping[str, list[str]]:
        """Return the statements that add to tables which are there, by the table's name."""
        statements: dict[str, list[str]] = {}
        for column in self.columns:
            name = dialect.identifier_preparer.format_table(column.table)
            added = sa.schema.CreateColumn(column).compile(dialect=dialect)
            statements.setdefault(column.table.name, []).append(
                f"ALTER TABLE {name} ADD COLUMN {added}"
            )
        for index in self.indexes:
            assert index.table is not None
            created = sa.schema.CreateIndex(index).compile(dialect=dialect)
            statements.setdefault(index.table.name, []).append(str(created))
        return statements


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What an opening has done to the schema."""

    had_tables: bool = True
    """Some of the tables were there."""
    before: int | None = None
    """The version that was noted; None: none was."""
    added: tuple[str, ...] = field(default=())
    """What was lacking, in words."""
    noted: bool = False
    """This version was noted."""


def look(connection: sa.Connection, found: Found, ours: Tables) -> Lacking:
    """Return what the database lacks.

    Where others may create or upgrade meanwhile it may be half of theirs. What was found under
    their lock is not.
    """
    missing: list[sa.Table] = []
    columns: list[sa.Column[Any]] = []
    indexes: list[sa.Index] = []
    for table in ours.metadata.sorted_tables:
        if table.name not in found.columns:
            missing.append(table)
            continue
        there = {column["name"] for column in found.columns[table.name]}
        columns += [column for column in table.columns if column.name not in there]
        indexed = found.indexes[table.name]
        indexes += [index for index in _indexes(table) if index.name not in indexed]
    later = {f"{ours.prefix}{name}" for step in STEPS for name in step.tables}
    version, needs = None, 0
    if ours.schema not in missing:
        noted = sa.select(sa.func.max(ours.schema.c.version), sa.func.max(ours.schema.c.needs))
        version, needs = connection.execute(noted).one()
    return Lacking(
        was_made=later.issuperset(table.name for table in missing),
        version=version,
        needs=needs or 0,
        tables=tuple(missing),
        columns=tuple(columns),
        indexes=tuple(indexes),
    )


def _indexes(table: sa.Table) -> list[sa.Index]:
    return sorted(table.indexes, key=lambda index: str(index.name))


def definition(
    ours: Tables, storage: Mapping[str, str], *, tables: tuple[sa.Table, ...]
) -> Iterator[sa.schema.ExecutableDDLElement]:
    """Yield the statements that create some of the tables, in their order.

    Args:
        ours: all of the tables.
        storage: what alters how the database stores them, by the tables' names without the prefix.
        tables: those to be created.
    """
    for table in tables:
        yield sa.schema.CreateTable(table)
        for index in _indexes(table):
            yield sa.schema.CreateIndex(index)
        how = storage.get(table.name.removeprefix(ours.prefix))
        if how is not None:
            statement = sa.DDL(f"ALTER TABLE %(table)s {how}")  # type: ignore[no-untyped-call]
            yield statement.against(table)


def carry_out(
    connection: sa.Connection, ours: Tables, storage: Mapping[str, str], lacking: Lacking
) -> Changes:
    """Add what is lacking, and note this version; in a transaction, under the lock of `look`."""
    for element in definition(ours, storage, tables=lacking.tables):
        connection.execute(element)
    for statements in lacking.alterations(connection.dialect).values():
        for statement in statements:
            connection.exec_driver_sql(statement)
    if not lacking.is_noted:
        connection.execute(note(ours))
    return Changes(
        had_tables=len(lacking.tables) < len(ours.metadata.tables),
        before=lacking.version,
        added=lacking.names,
        noted=not lacking.is_noted,
    )


def note(ours: Tables) -> sa.Insert:
    """Return the statement that notes that the database has this version."""
    return sa.insert(ours.schema).values(version=VERSION, needs=NEEDS)
