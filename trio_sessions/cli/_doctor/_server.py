"""PostgreSQL: what the role may do, and what its sessions are."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from trio_sessions.cli._doctor._findings import (
    Case,
    Check,
    Finding,
    Level,
    Listening,
    fail,
    ok,
    warn,
)
from trio_sessions.cli._doctor._tables import told
from trio_sessions.cli._inspect import duration
from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database.postgresql._opening import (
    BOUNDS,
    CARRY_EVERY_ID,
    check_ids,
    check_rights,
    check_rows,
    check_schemas,
    look,
)

__all__ = ["CHECKS", "is_pooled"]


# What the session began with: while we look, our own transaction has bounds of its own.
_UNBOUNDED = """
    SELECT name, quote_ident(current_user) FROM pg_settings
    WHERE name IN ('statement_timeout', 'lock_timeout') AND reset_val = '0' ORDER BY name DESC
"""

_NONE = warn("not looked at: no table is there", "see schema")


def is_pooled(connection: sa.Connection) -> bool:
    """Say whether something in between hands connections of the server on.

    A pooler tells its clients a process id of its own making.
    """
    driver = connection.connection.dbapi_connection
    assert driver is not None
    told_at_connecting = driver.info.backend_pid
    there = connection.execute(sa.select(sa.func.pg_backend_pid())).scalar_one()
    return bool(told_at_connecting != there)


def _refused(check: Callable[[], None], otherwise: str) -> Finding:
    try:
        check()
    except StoreSchemaError as exc:
        return told(exc)
    return ok(otherwise)


def _first_refused(there: Sequence[Any], check: Callable[[Any], None], otherwise: str) -> Finding:
    for table in there:
        finding = _refused(partial(check, table), otherwise)
        if finding.level is not Level.OK:
            return finding
    return ok(otherwise) if there else _NONE


def _tables_there(connection: sa.Connection, case: Case) -> Sequence[Any]:
    return [table for table in look(connection, case.tables) if table.there]


def _takes_writes(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    facts = connection.exec_driver_sql(
        "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only'), "
        "current_setting('server_version'), quote_ident(current_user)"
    ).one()
    is_standby, reads_only, version, role = facts
    if is_standby:
        yield fail("this server is a standby and takes no writes", "lead the URL to the primary")
    elif reads_only == "on":
        yield fail(
            f"transactions of role {role} are read-only by default",
            f"ALTER ROLE {role} SET default_transaction_read_only = off",
        )
    else:
        yield ok(f"PostgreSQL {version}, takes writes")


def _rights(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    there = _tables_there(connection, case)
    yield _refused(lambda: check_rights(there), "the role has what it needs") if there else _NONE


def _schemas(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    found = look(connection, case.tables)
    schemas = {table.schema: table for table in found if table.there}
    says = f"search_path is {found[0].path}"
    yield _refused(lambda: check_schemas(found[0], schemas), says)


def _encoding(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    session = look(connection, case.tables)[0]
    if session.server_encoding in CARRY_EVERY_ID:
        yield ok(f"the database has {session.server_encoding}")
    else:
        yield warn(
            f"database {session.database} has the encoding {session.server_encoding}, which "
            "cannot carry every session id: such sessions are unknown to other workers",
            "move to a database with ENCODING 'UTF8'",
        )


def _isolation(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    session = look(connection, case.tables)[0]
    if session.isolation == "read committed":
        yield ok("read committed")
        return
    says = f"role {session.role} begins transactions as {session.isolation}"
    todo = (
        f"ALTER ROLE {session.role} IN DATABASE {session.database} SET "
        "default_transaction_isolation = 'read committed'"
    )
    if is_pooled(connection):
        yield fail(f"{says}, and through a pooler no registry opens like that", todo)
    else:
        yield warn(f"{says}: a registry on an engine of yours does not open", todo)


def _rows(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    yield _first_refused(_tables_there(connection, case), check_rows, "no row is hidden")


def _collation(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    yield _first_refused(_tables_there(connection, case), check_ids, "different ids differ")


def _clock(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    before = case.host_clock()
    there = connection.exec_driver_sql(
        "SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
    ).scalar_one()
    after = case.host_clock()
    offset = float(there) - (before + after) / 2
    if abs(offset) - (after - before) / 2 <= case.thresholds.clock_offset:
        yield ok(f"{abs(offset):.3f} s between this host and the database")
        return
    which = "ahead of" if offset > 0 else "behind"
    yield warn(
        f"the database's clock is {duration(abs(offset))} {which} this host's",
        "set both by NTP: leases go by the database's alone, but logs of workers and rows do not "
        "fit together, and after a fail-over another clock counts",
    )


def _pooler(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    if not is_pooled(connection):
        yield ok("none in between")
        return
    unbounded = connection.exec_driver_sql(_UNBOUNDED).all()
    if case.listening is Listening.LISTEN:
        yield fail(
            "PgBouncer or another pooler is in between, and loses LISTEN: messages from other "
            "workers wait for up to a minute",
            "DatabaseStore(url, server_timeouts=False, listen=False) for all workers, and then "
            "--no-listen here",
        )
    for name, role in unbounded:
        yield warn(
            f"a pooler is in between, and role {role} has no {name}: the server goes on with what "
            "the store has cut off",
            f"ALTER ROLE {role} SET {name} = '{BOUNDS[name]}'",
        )
    if case.listening is Listening.POLL and not unbounded:
        yield ok("a pooler is in between, and the role has its timeouts")


CHECKS = (
    Check("writes", _takes_writes),
    Check("rights", _rights),
    Check("search path", _schemas),
    Check("encoding", _encoding),
    Check("isolation", _isolation),
    Check("row security", _rows),
    Check("collation", _collation),
    Check("clock", _clock),
    Check("pooler", _pooler),
)
