"""Whether what is not there may have been forgotten, or hidden, or is yet to come.

The one owner of which server this is (`SERVER`); of files `sqlite._files` knows it.

See `trio_sessions.abc.WorkerStore`, and docs/decisions/0010-evidence.md.
"""

import sqlalchemy as sa

from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.postgresql._kinds import Names

__all__ = ["DOUBT", "SERVER", "doubt_cte", "in_doubt"]

# Which server this is: the copy of a database is served by one that was started at another moment.
SERVER = "CAST(CAST(extract(epoch FROM pg_postmaster_start_time()) * 1000000 AS bigint) AS text)"

DOUBT = "(SELECT d.holds FROM doubt AS d)"
"""The database is in doubt, where `doubt_cte` is part of the statement."""


def _look(names: Names) -> str:
    return f"""SELECT coalesce(bool_or(
                f.doubtful_until > clock_timestamp() OR f.server <> {SERVER}
            ), false) OR pg_is_in_recovery() OR row_security_active('{names.sessions}') AS holds
            FROM {names.fleet} AS f WHERE f.id = 1"""


def doubt_cte(names: Names) -> str:
    """Return the CTE that `DOUBT` reads: nothing is looked at where nobody asks."""
    return f"""doubt AS MATERIALIZED (
            {_look(names)}
        )"""


def in_doubt(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the database is in doubt"; see `Database.doubt`."""
    return sa.literal_column(f"({_look(Names.of(tables))})", sa.Boolean())
