"""Schemas of PostgreSQL that have our tables, lent from test to test.

To create ten tables and drop them takes a server longer than most tests do. So a schema goes to the
next test, emptied, if its tables are as they were made, to the last trigger and right, and nobody
has counted their rows for the planner. Else it is dropped.
"""

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.database._script import schema_script

__all__ = ["Schemas", "make_schema"]

# Each row of the catalogue that tells of the schema, and the transaction that wrote it last.
_LOOK = """
WITH ours AS (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace(:name)),
seen AS (
    SELECT 'namespace', oid, 0, xmin FROM pg_namespace WHERE oid = to_regnamespace(:name)
    UNION ALL SELECT 'class', oid, 0, xmin FROM pg_class WHERE oid IN (TABLE ours)
    UNION ALL SELECT 'estimate', oid, CAST(reltuples AS integer), '0' FROM pg_class
        WHERE oid IN (TABLE ours) AND relkind = 'r'
    UNION ALL SELECT 'column', attrelid, attnum, xmin FROM pg_attribute
        WHERE attrelid IN (TABLE ours)
    UNION ALL SELECT 'default', oid, 0, xmin FROM pg_attrdef WHERE adrelid IN (TABLE ours)
    UNION ALL SELECT 'index', indexrelid, 0, xmin FROM pg_index WHERE indrelid IN (TABLE ours)
    UNION ALL SELECT 'constraint', oid, 0, xmin FROM pg_constraint WHERE conrelid IN (TABLE ours)
    UNION ALL SELECT 'trigger', oid, 0, xmin FROM pg_trigger WHERE tgrelid IN (TABLE ours)
    UNION ALL SELECT 'rule', oid, 0, xmin FROM pg_rewrite WHERE ev_class IN (TABLE ours)
    UNION ALL SELECT 'policy', oid, 0, xmin FROM pg_policy WHERE polrelid IN (TABLE ours)
    UNION ALL SELECT 'function', oid, 0, xmin FROM pg_proc
        WHERE pronamespace = to_regnamespace(:name)
    UNION ALL SELECT 'version', version, needs, xmin FROM {name}.trio_schema
)
SELECT md5(string_agg(seen::text, ' ' ORDER BY seen::text)) FROM seen
"""
_SIZE = """
SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relnamespace = to_regnamespace(:name)
"""
_LARGEST = 1 << 20  # bytes; of rows that are gone, which a scan has to pass


@dataclass(frozen=True)
class _Schema:
    name: str
    look: str


@contextlib.contextmanager
def make_schema(administrator: sa.Engine) -> Iterator[sa.URL]:
    """Yield the URL of an empty schema, which is dropped afterwards."""
    name = _create(administrator)
    try:
        yield _url(administrator, name)
    finally:
        _drop(administrator, name)


class Schemas:
    """Lends schemas, and makes as many as are wanted at once.

    Args:
        administrator: may create and drop them.
    """

    def __init__(self, administrator: sa.Engine) -> None:
        self._administrator = administrator
        self._free: list[_Schema] = []
        ours = tables("trio_")
        self._script = "\n".join(schema_script("postgresql+psycopg://", table_prefix="trio_"))
        kept = ours.schema.name
        names = [table.name for table in ours.metadata.sorted_tables if table.name != kept]
        self._names = names[::-1]

    @contextlib.contextmanager
    def lend(self) -> Iterator[sa.URL]:
        """Yield the URL of a schema with our tables, in which there is nothing."""
        schema = self._find() or self._make()
        try:
            yield _url(self._administrator, schema.name)
        finally:
            if self._empties(schema):
                self._free.append(schema)
            else:
                _drop(self._administrator, schema.name)

    def _find(self) -> _Schema | None:
        """Return one that is free, and that nobody has looked at meanwhile."""
        while self._free:
            schema = self._free.pop()
            with self._administrator.connect() as connection:
                if self._look(connection, schema.name) == schema.look:
                    return schema
            _drop(self._administrator, schema.name)
        return None

    def close(self) -> None:
        """Drop what is not lent."""
        while self._free:
            _drop(self._administrator, self._free.pop().name)

    def _make(self) -> _Schema:
        name = _create(self._administrator)
        with self._administrator.connect() as connection:
            connection.exec_driver_sql(f"SET search_path = {name}; {self._script}")
            connection.exec_driver_sql("RESET search_path")
            return _Schema(name, self._look(connection, name))

    def _look(self, connection: sa.Connection, name: str) -> str:
        look = sa.text(_LOOK.format(name=name))
        return str(connection.execute(look, {"name": name}).scalar_one())

    def _empties(self, schema: _Schema) -> bool:
        """Empty the tables, if they are as they were made; say whether they were."""
        with self._administrator.connect() as connection:
            try:
                if self._look(connection, schema.name) != schema.look:
                    return False
                size = connection.execute(sa.text(_SIZE), {"name": schema.name}).scalar_one()
                if size > _LARGEST:
                    return False
                connection.exec_driver_sql(
                    "".join(f"DELETE FROM {schema.name}.{table};" for table in self._names)
                    + "".join(self._restart(connection, schema.name))
                )
            except sa.exc.ProgrammingError:  # a table is not there
                return False
        return True

    def _restart(self, connection: sa.Connection, name: str) -> Iterator[str]:
        found = "SELECT sequencename FROM pg_sequences WHERE schemaname = :name"
        for (sequence,) in connection.execute(sa.text(found), {"name": name}):
            yield f"SELECT setval('{name}.{sequence}', 1, false);"


def _create(administrator: sa.Engine) -> str:
    name = f"t_{uuid.uuid4().hex[:12]}"
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    return name


def _drop(administrator: sa.Engine, name: str) -> None:
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")


def _url(administrator: sa.Engine, name: str) -> sa.URL:
    return administrator.url.update_query_dict({"options": f"-csearch_path={name}"})
