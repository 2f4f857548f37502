"""What a store finds in its database when it opens, asked once in a process of tests.

To ask which tables there are, with their columns, keys and indexes, is most of an opening, and
most tests open stores on tables as we make them. What was found there is taken for what is there,
if nothing can have changed it:

- in a file of SQLite, where the text of its schema is the same. It is all that SQLite knows of it;
- in a schema of PostgreSQL that is lent, where no command that changes a schema has begun since.

Programs that tests start ask themselves, and so does `trio-sessions doctor`.
"""

from collections.abc import Hashable

import pytest
import sqlalchemy as sa
from lending import is_as_it_was_lent

from trio_sessions.stores.database import _preparing
from trio_sessions.stores.database._columns import Found, find_tables
from trio_sessions.stores.database._schema import Tables

__all__ = ["share_findings"]

_TEXT = """
SELECT type, name, tbl_name, rootpage, sql FROM main.sqlite_master
UNION ALL SELECT type, name, tbl_name, -rootpage, sql FROM sqlite_temp_master
"""


def share_findings(patch: pytest.MonkeyPatch) -> None:
    """Let all stores of this process, from now on, take what an earlier one has found."""
    kept: dict[Hashable, Found] = {}

    def find(connection: sa.Connection, ours: Tables) -> Found:
        state = _state(connection)
        key = None if state is None else (type(connection.dialect), ours.prefix, state)
        if key in kept:
            return kept[key]
        found = find_tables(connection, ours)
        if key is not None and _state(connection) == state:  # nor while it was asked
            kept[key] = found
        return found

    patch.setattr(_preparing, "find_tables", find)


def _state(connection: sa.Connection) -> tuple[Hashable, ...] | None:
    """Return what tells one state of a schema from all others; None: nothing does."""
    if connection.dialect.name == "sqlite":
        return tuple(tuple(row) for row in connection.exec_driver_sql(_TEXT))
    return ("as it was lent",) if is_as_it_was_lent(connection) else None
