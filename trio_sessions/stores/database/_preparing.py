"""What becomes of the schema when a store opens.

An opening does no more than it may (`Allowed`). What it finds, and what it then does::

                                 NOTHING          CREATE              UPGRADE
    nothing is lacking           opens            opens               opens, notes the version
    a table                      refused          creates it (*)      creates it
    a column                     refused          refused             adds it
    an index, and nothing else   opens, warns     creates it (*)      creates it
    later, and not for us        refused          refused             refused

(*) unless the schema is an older one (`Lacking.is_older`): then it is refused. Without a lock one
may see half of what another worker is just creating, so who may change anything decides under it.
See docs/decisions/0012-operate.md.
"""

import enum
import shlex

import sqlalchemy as sa

from trio_sessions._logging import get_logger
from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database._columns import check_tables, find_tables
from trio_sessions.stores.database._database import Database, Operations
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database._upgrade import Changes, Lacking, carry_out, look
from trio_sessions.stores.database._urls import masked
from trio_sessions.stores.database._versions import VERSION

__all__ = ["Allowed", "Preparation"]

logger = get_logger("trio_sessions.rows")


class Allowed(enum.Enum):
    """What an opening may do to the schema."""

    NOTHING = "nothing"
    CREATE = "create"
    """Create tables that are missing."""
    UPGRADE = "upgrade"
    """And bring those of an older schema up to this version."""


class Preparation:
    """The schema of one set of tables, in one database.

    Args:
        database: what it is.
        operations: what is asked of the tables.
        tables: those of this version.
        url: where the database is, for what errors say.
    """

    def __init__(
        self, database: Database, operations: Operations, tables: Tables, url: sa.URL
    ) -> None:
        self._database = database
        self._operations = operations
        self._tables = tables
        self._url = url

    def prepare(self, connection: sa.Connection, allowed: Allowed) -> Changes:
        """Check the tables, and create or upgrade as far as that is allowed.

        Raises:
            StoreSchemaError: they are not what they must be; nothing was altered.
        """
        check_alterations = self._operations.check(connection)
        found = find_tables(connection, self._tables)
        has_time_zones = self._database.has_time_zones
        check_tables(found, self._tables, connection.dialect, has_time_zones=has_time_zones)
        lacking = look(connection, found, self._tables)
        self._check_version(lacking)
        if allowed is Allowed.NOTHING:
            if lacking.tables or lacking.columns:
                raise StoreSchemaError(self._what_is_missing(lacking))
            _warn_of_indexes(lacking, connection.dialect)
            return Changes(before=lacking.version)
        if not _is_needed(lacking, allowed):
            return Changes(before=lacking.version)
        with self._operations.creation(connection):
            lacking = look(connection, find_tables(connection, self._tables), self._tables)
            self._check_version(lacking)
            if not _is_needed(lacking, allowed):  # others were faster
                return Changes(before=lacking.version)
            if allowed is not Allowed.UPGRADE and (lacking.columns or lacking.is_older):
                raise StoreSchemaError(self._what_is_older(lacking))
            check_alterations(lacking)
            changes = carry_out(connection, self._tables, self._database.storage, lacking)
        logger.info(
            "%s: the schema has version %d; added: %s",
            masked(self._url),
            VERSION,
            ", ".join(changes.added) or "nothing",
        )
        return changes

    def _check_version(self, lacking: Lacking) -> None:
        if lacking.needs > VERSION:
            raise StoreSchemaError(
                f"the schema of {masked(self._url)} has version {lacking.version}, and needs "
                f"workers that know version {lacking.needs} at least; this one knows {VERSION}: "
                "install a later trio_sessions"
            )

    # ---- what errors say ----

    def _command(self) -> str:
        command = ["trio-sessions", "init-db", "--database-url", masked(self._url)]
        if self._tables.prefix != "trio_":
            command += ["--table-prefix", self._tables.prefix]
        return shlex.join(command)

    def _what_is_missing(self, lacking: Lacking) -> str:
        if lacking.tables:
            what = f"table {lacking.tables[0].name!r} does not exist"
        else:
            column = lacking.columns[0]
            what = f"table {column.table.name!r} exists and lacks the column {column.name!r}"
        return (
            f"{what} and create_tables is False: let your migrations add it "
            f"(trio_sessions.stores.database.metadata), run {self._command()}, or set create_tables"
        )

    def _what_is_older(self, lacking: Lacking) -> str:
        version = (
            "was made before versions were counted"
            if lacking.version is None
            else f"has version {lacking.version}"
        )
        return (
            f"the schema of {masked(self._url)} {version}, and this trio_sessions needs version "
            f"{VERSION}; it lacks {', '.join(lacking.names)}; nothing was altered: run "
            f"{self._command()}, or open with migrate=True"
        )


def _is_needed(lacking: Lacking, allowed: Allowed) -> bool:
    return bool(lacking.names) or (allowed is Allowed.UPGRADE and not lacking.is_noted)


def _warn_of_indexes(lacking: Lacking, dialect: sa.Dialect) -> None:
    for statements in lacking.alterations(dialect).values():
        for statement in statements:
            logger.warning("an index is missing, without which it is slow: %s", statement)
