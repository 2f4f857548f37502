"""What is asked when a store opens: what the session is, and whether the role may and can.

One statement asks all of it. What our own connections are told cannot be wrong; an engine that was
handed in, and PgBouncer, inherit what the role and the database have as their defaults.
See docs/decisions/0010-evidence.md.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from trio_sessions._logging import get_logger
from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database._database import CheckAlterations, CheckOpening
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database._upgrade import Lacking

__all__ = [
    "BOUNDS",
    "CARRY_EVERY_ID",
    "check_ids",
    "check_opening",
    "check_rights",
    "check_rows",
    "check_schemas",
    "look",
]

logger = get_logger("trio_sessions.rows")

_RIGHTS = "SELECT INSERT UPDATE DELETE"

BOUNDS = {"statement_timeout": "8s", "lock_timeout": "3s"}  # as ours are by default

CARRY_EVERY_ID = ("UTF8", "SQL_ASCII")

# A row for each table, in their order. What an identity column counts by needs no right.
_LOOK = sa.text("""
    SELECT wanted.name, tables.oid IS NOT NULL AS there,
        CAST(CAST(tables.relnamespace AS regnamespace) AS text) AS schema,
        quote_ident(current_schema()) AS here, current_setting('search_path') AS path,
        has_schema_privilege(current_schema(), 'CREATE') AS may_create,
        quote_ident(current_user) AS role, quote_ident(current_database()) AS database,
        current_setting('client_encoding') AS client_encoding,
        current_setting('server_encoding') AS server_encoding,
        current_setting('transaction_isolation') AS isolation,
        ARRAY(
            SELECT setting FROM unnest(ARRAY['statement_timeout', 'lock_timeout']) AS setting
            WHERE current_setting(setting) = '0'
        ) AS unbounded,
        CAST(tables.relnamespace AS regnamespace) || '.' || quote_ident(tables.relname)
            AS full_name,
        ARRAY(
            SELECT a_right FROM unnest(string_to_array(wanted.rights, ' ')) AS a_right
            WHERE NOT has_table_privilege(tables.oid, a_right)
        ) AS lacking,
        ARRAY(
            SELECT CAST(sequence.relnamespace AS regnamespace) || '.'
                || quote_ident(sequence.relname)
            FROM pg_attrdef AS filled
            JOIN pg_depend AS needs ON needs.objid = filled.oid
                AND needs.classid = CAST('pg_attrdef' AS regclass)
                AND needs.refclassid = CAST('pg_class' AS regclass)
            JOIN pg_class AS sequence ON sequence.oid = needs.refobjid
            WHERE filled.adrelid = tables.oid AND CASE WHEN sequence.relkind = 'S'
                THEN NOT has_sequence_privilege(sequence.oid, 'USAGE, UPDATE') END
        ) AS sequences,
        pg_has_role(tables.relowner, 'USAGE') AS owns,
        coalesce(row_security_active(tables.oid), false) AS hides_rows,
        format_type(id.atttypid, id.atttypmod) AS id_type,
        kind.typcategory = 'S' AND coalesce(nullif(kind.typbasetype, 0), kind.oid)
            NOT IN (CAST('text' AS regtype), CAST('varchar' AS regtype)) AS may_be_one,
        CASE WHEN NOT rules.collisdeterministic THEN quote_ident(rules.collname) END AS collation
    FROM unnest(CAST(:names AS text[]), CAST(:rights AS text[]))
        WITH ORDINALITY AS wanted(name, rights, place)
    LEFT JOIN pg_class AS tables ON tables.oid = to_regclass(quote_ident(wanted.name))
    LEFT JOIN pg_attribute AS id ON id.attrelid = tables.oid AND id.attname = 'session_id'
        AND NOT id.attisdropped
    LEFT JOIN pg_type AS kind ON kind.oid = id.atttypid
    LEFT JOIN pg_collation AS rules ON rules.oid = id.attcollation
    ORDER BY wanted.place
""")


def look(connection: sa.Connection, tables: Tables) -> Sequence[Any]:
    """Return a row for each table, in their order, with the session's own facts in each."""
    names = [table.name for table in tables.metadata.sorted_tables]
    lesser = {tables.fleet.name: "SELECT INSERT UPDATE", tables.schema.name: "SELECT"}
    rights = [lesser.get(name, _RIGHTS) for name in names]
    return connection.execute(_LOOK, {"names": names, "rights": rights}).all()


def check_opening(tables: Tables) -> CheckOpening:
    """Return the check of these tables; see `Operations.check`."""

    def check(connection: sa.Connection) -> CheckAlterations:
        found = look(connection, tables)
        there = [table for table in found if table.there]
        _check_session(found[0])
        check_schemas(found[0], {table.schema: table for table in there})
        _warn_of_a_later_schema(found[0], there)
        check_rights(there)
        for table in there:
            check_rows(table)
            check_ids(table)
        return partial(_check_alterations, found, connection.dialect)

    return check


def _check_session(session: Any) -> None:
    """Raise unless the session is what our own connections are told to be."""
    for setting, is_now, must_be in (
        ("client_encoding", session.client_encoding, "UTF8"),
        ("default_transaction_isolation", session.isolation, "read committed"),
    ):
        if is_now != must_be:
            raise StoreSchemaError(
                f"{setting} of role {session.role} is {is_now!r} on this connection and must be "
                f"{must_be!r}: ALTER ROLE {session.role} IN DATABASE {session.database} SET "
                f"{setting} = '{must_be}'; connections that are open already stay as they are"
            )
    if session.unbounded:
        logger.warning(
            "no %s on this connection: the server goes on with what the store has cut off: %s; or "
            "give them to your engine",
            " and no ".join(session.unbounded),
            "; ".join(
                f"ALTER ROLE {session.role} SET {name} = '{BOUNDS[name]}'"
                for name in session.unbounded
            ),
        )
    if session.server_encoding not in CARRY_EVERY_ID:
        logger.warning(
            "database %s has the encoding %s, which cannot carry every session id: other workers "
            "do not learn of sessions whose ids it cannot carry; UTF8 carries all",
            session.database,
            session.server_encoding,
        )


def check_schemas(session: Any, schemas: Mapping[str, Any]) -> None:
    """Raise where tables of two schemas would be one store."""
    if len(schemas) > 1:
        (one, in_one), (other, in_other) = list(schemas.items())[:2]
        raise StoreSchemaError(
            f"search_path ({session.path}) leads to table {in_one.name!r} in schema {one} and to "
            f"{in_other.name!r} in schema {other}: they belong in one schema; set search_path to "
            "that, or use another table_prefix; nothing was created"
        )


def _warn_of_a_later_schema(session: Any, there: Sequence[Any]) -> None:
    if there and there[0].schema != session.here:
        logger.warning(
            "the tables are those of schema %s, which comes later in search_path (%s) than %s: "
            "workers of whatever else uses them share their sessions with this one; if that is not "
            "meant, set search_path, or use another table_prefix",
            there[0].schema,
            session.path,
            session.here,
        )


def _check_alterations(found: Sequence[Any], dialect: sa.Dialect, lacking: Lacking) -> None:
    """Raise if the role may not add what is lacking, or would add it elsewhere."""
    session = found[0]
    there = [table for table in found if table.there]
    if lacking.tables:
        name = lacking.tables[0].name
        if session.here is None:
            raise StoreSchemaError(
                f"table {name!r} does not exist, and no schema of search_path "
                f"({session.path}) is there for role {session.role}: create one, or GRANT USAGE, "
                f"CREATE ON SCHEMA ... TO {session.role}"
            )
        missing = next(table for table in found if table.name == name)
        schemas = {table.schema: table for table in there}
        schemas.setdefault(session.here, missing)
        check_schemas(session, schemas)
        if not session.may_create:
            raise StoreSchemaError(
                f"table {name!r} does not exist, and role {session.role} may not create it: "
                f"GRANT CREATE ON SCHEMA {session.here} TO {session.role}, or create it by your "
                "migrations (trio_sessions.stores.database.metadata)"
            )
    not_owned = {table.name for table in there if not table.owns}
    statements = [
        statement
        for name, of_table in lacking.alterations(dialect).items()
        if name in not_owned
        for statement in of_table
    ]
    if statements:
        raise StoreSchemaError(
            "the tables are those of an earlier version, and are not those of role "
            f"{session.role}, which may not alter them: let their owner run "
            f"{'; '.join(statements)}"
        )


def check_rights(there: Sequence[Any]) -> None:
    """Raise if a right is missing, with the GRANT of all that are."""
    grants = [
        f"GRANT {', '.join(table.lacking)} ON {table.full_name} TO {table.role}"
        for table in there
        if table.lacking
    ] + [
        f"GRANT USAGE ON SEQUENCE {sequence} TO {table.role}"
        for table in there
        for sequence in table.sequences
    ]
    if grants:
        raise StoreSchemaError(f"role {there[0].role} lacks rights: {'; '.join(grants)}")


def check_rows(table: Any) -> None:
    """Raise if rows may be hidden from the role."""
    if table.hides_rows:
        raise StoreSchemaError(
            f"row level security hides rows of table {table.name!r} from role {table.role}, and a "
            f"row that is hidden looks like one that is gone: ALTER TABLE {table.full_name} "
            f"DISABLE ROW LEVEL SECURITY, or ALTER ROLE {table.role} BYPASSRLS"
        )


def check_ids(table: Any) -> None:
    """Raise if two ids could be one."""
    if table.may_be_one or table.collation is not None:
        how = f" with the collation {table.collation}" if table.collation else ""
        raise StoreSchemaError(
            f"column 'session_id' of table {table.name!r} is {table.id_type}{how}, in which two "
            f"different ids may be one: ALTER TABLE {table.full_name} ALTER COLUMN session_id TYPE "
            'varchar(255) COLLATE "C"'
        )
