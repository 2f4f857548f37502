"""The schema as a script, for who may not connect, or wants to read it first."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores.database._database import find
from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.database._upgrade import definition, note
from trio_sessions.stores.database._urls import check_url

__all__ = ["schema_script"]


def schema_script(url: str, *, table_prefix: str) -> Iterator[str]:
    """Yield the statements that create the tables of this version in an empty database.

    Nothing is connected to.

    Args:
        url: its scheme says for which database.
        table_prefix: as for `DatabaseStore`.

    Raises:
        TypeError, ValueError: the URL or the prefix cannot be one.
        MissingDependency: the driver is not installed.
    """
    ours = tables(table_prefix)
    checked = check_url(url)
    make_dialect: Any = checked.get_dialect()
    dialect = make_dialect(paramstyle="named")  # no % is doubled
    storage = find(checked.get_backend_name()).storage
    for element in definition(ours, storage, tables=tuple(ours.metadata.sorted_tables)):
        yield _written(element, dialect)
    yield _written(note(ours), dialect)


def _written(element: Any, dialect: sa.Dialect) -> str:
    options = {"literal_binds": True} if isinstance(element, sa.Insert) else {}
    text = str(element.compile(dialect=dialect, compile_kwargs=options))
    lines = [line.replace("\t", "    ").rstrip() for line in text.strip().splitlines()]
    return "\n".join(lines) + ";"
