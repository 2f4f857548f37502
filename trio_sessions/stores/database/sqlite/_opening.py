"""What is asked when a store on a file opens: whether two ids may be one."""

import sqlalchemy as sa

from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database._database import CheckAlterations, CheckOpening
from trio_sessions.stores.database._schema import Tables

__all__ = ["check_opening"]

# SQLite does not say how a column compares; each index on it does.
# https://www.sqlite.org/pragma.html#pragma_index_xinfo
_LOOK = sa.text("""
    SELECT part.coll FROM pragma_index_list(:name) AS one, pragma_index_xinfo(one.name) AS part
    WHERE part.name = 'session_id' AND part.key AND part.coll <> 'BINARY'
        AND (one.origin = 'pk' OR NOT :is_key)
""")


def check_opening(tables: Tables) -> CheckOpening:
    """Return the check of these tables; see `Operations.check`."""

    def check(connection: sa.Connection) -> CheckAlterations:
        for table in (tables.sessions, tables.messages, tables.logs):
            name, is_key = table.name, table.c.session_id.primary_key
            collation = connection.execute(_LOOK, {"name": name, "is_key": is_key}).scalar()
            if collation is not None:
                raise StoreSchemaError(
                    f"column 'session_id' of table {name!r} compares by {collation}, by which two "
                    "different ids may be one: make the table anew without COLLATE, or use another "
                    "table_prefix; nothing was altered"
                )
        return lambda _: None  # who may write to the file may do everything

    return check
