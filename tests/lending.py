"""Schemas of PostgreSQL that have our tables, lent from test to test.

To create ten tables and drop them takes a server longer than most tests do. So a schema goes to the
next test, emptied, if its tables are as they were made, to the last trigger and right, and nobody
has counted their rows for the planner. Else it is dropped.

To compare all of the catalogue takes half as long as to make it. So our own server counts the
commands that change a schema, any schema, before it carries them out (`count_changes`): where
there were none, only what such a command does not change is compared.
"""

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace

import sqlalchemy as sa

from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.database._script import schema_script

__all__ = ["Schemas", "count_changes", "is_as_it_was_lent", "make_schema"]

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
# The same, if no command has changed it: how many there were, and what none of them changes.
_GLANCE = """
SELECT {changes}, sum(reltuples) FILTER (WHERE relkind = 'r'), sum(pg_relation_size(oid)),
    (SELECT string_agg(concat_ws(' ', version, needs, xmin), ',') FROM {name}.trio_schema)
FROM pg_class WHERE relnamespace = to_regnamespace('{name}')
"""
_LARGEST = 1 << 20  # bytes; of rows that are gone, which a scan has to pass

_COUNT = """
CREATE SCHEMA tests;
CREATE SEQUENCE tests.changes;
GRANT USAGE ON SCHEMA tests TO PUBLIC;
GRANT SELECT ON SEQUENCE tests.changes TO PUBLIC;
CREATE FUNCTION tests.count_change() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
    AS 'BEGIN PERFORM nextval(''tests.changes''); END';
CREATE EVENT TRIGGER count_changes ON ddl_command_start EXECUTE FUNCTION tests.count_change();
"""

_lent: dict[str, int] = {}
"""How many changes there were when a schema was lent, by its name."""


@dataclass(frozen=True)
class _Glance:
    changes: int | None  # None: nobody counts them
    estimates: float
    size: int
    version: str


@dataclass
class _Schema:
    name: str
    look: str
    glance: _Glance


def count_changes(administrator: sa.Engine) -> None:
    """Let the server count the commands that change a schema, of its whole database."""
    with administrator.connect() as connection:
        connection.exec_driver_sql(_COUNT)


def is_as_it_was_lent(connection: sa.Connection) -> bool:
    """Say whether no command has changed, or is changing, the lent schema that is connected to."""
    options = connection.engine.url.query.get("options")
    name = str(options).removeprefix("-csearch_path=")
    if name not in _lent or options == name:
        return False
    changes = "SELECT last_value, current_schemas(false) FROM tests.changes"
    return tuple(connection.exec_driver_sql(changes).one()) == (_lent[name], [name])


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
        self._sequences: list[str] = []
        with administrator.connect() as connection:
            counts = connection.exec_driver_sql("SELECT to_regclass('tests.changes')")
            self.are_counted = counts.scalar_one() is not None
            """Whether the server counts what changes schemas."""

    @contextlib.contextmanager
    def lend(self) -> Iterator[sa.URL]:
        """Yield the URL of a schema with our tables, in which there is nothing."""
        schema = self._find() or self._make()
        if schema.glance.changes is not None:
            _lent[schema.name] = schema.glance.changes
        try:
            yield _url(self._administrator, schema.name)
        finally:
            _lent.pop(schema.name, None)
            if self._empties(schema):
                self._free.append(schema)
            else:
                _drop(self._administrator, schema.name)

    def _find(self) -> _Schema | None:
        """Return one that is free, and that nobody has looked at meanwhile."""
        while self._free:
            schema = self._free.pop()
            with self._administrator.connect() as connection:
                if self._is_as_made(connection, schema):
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
            found = sa.text("SELECT sequencename FROM pg_sequences WHERE schemaname = :name")
            self._sequences = list(connection.execute(found, {"name": name}).scalars())
            glance = self._glance(connection, name)
            return _Schema(name, self._look(connection, name), glance)

    def _look(self, connection: sa.Connection, name: str) -> str:
        look = sa.text(_LOOK.format(name=name))
        return str(connection.execute(look, {"name": name}).scalar_one())

    def _glance(self, connection: sa.Connection, name: str) -> _Glance:
        changes = "(SELECT last_value FROM tests.changes)" if self.are_counted else "NULL::bigint"
        glance = _GLANCE.format(name=name, changes=changes)
        return _Glance(*connection.exec_driver_sql(glance).one())

    def _is_as_made(self, connection: sa.Connection, schema: _Schema) -> bool:
        """Say whether a schema is as it was made, and its rows are not too many."""
        glance = self._glance(connection, schema.name)
        if glance.size > _LARGEST:
            return False
        same = replace(glance, size=schema.glance.size) == schema.glance
        if not (same and self.are_counted) and self._look(connection, schema.name) != schema.look:
            return False
        schema.glance = glance
        return True

    def _empties(self, schema: _Schema) -> bool:
        """Empty the tables, if they are as they were made; say whether they were."""
        with self._administrator.connect() as connection:
            try:
                if not self._is_as_made(connection, schema):
                    return False
            except sa.exc.ProgrammingError:  # a table is not there
                return False
            connection.exec_driver_sql(self._emptying(schema.name))
        return True

    def _emptying(self, name: str) -> str:
        """Return one statement, which a connection prepares when it has seen it often enough."""
        emptied = ", ".join(f"_{n} AS (DELETE FROM {name}.{t})" for n, t in enumerate(self._names))
        anew = ", ".join(f"setval('{name}.{sequence}', 1, false)" for sequence in self._sequences)
        return f"WITH {emptied} SELECT {anew}"


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
