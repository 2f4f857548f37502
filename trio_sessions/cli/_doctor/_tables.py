"""The tables, their columns, and whether what is asked all the time finds its index."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from trio_sessions.cli._doctor._findings import Case, Check, Finding, fail, ok, warn
from trio_sessions.errors import StoreSchemaError
from trio_sessions.inspection import Selection
from trio_sessions.stores.database._columns import check_tables, find_tables
from trio_sessions.stores.database._database import find
from trio_sessions.stores.database._inspection import Inspection
from trio_sessions.stores.database._questions import Questions
from trio_sessions.stores.database._upgrade import look
from trio_sessions.stores.database._versions import VERSION
from trio_sessions.stores.database.portable._fleet import stale_messages

__all__ = ["CHECKS", "told"]


def told(error: StoreSchemaError) -> Finding:
    """Return what the store says when it refuses to open: what is wrong, and what helps."""
    says, _, todo = str(error).partition(": ")
    return fail(says, todo)


def _schema(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    found = find_tables(connection, case.tables)
    has_time_zones = find(connection.dialect.name).has_time_zones
    try:
        check_tables(found, case.tables, connection.dialect, has_time_zones=has_time_zones)
    except StoreSchemaError as exc:
        yield told(exc)
        return
    lacking = look(connection, found, case.tables)
    if lacking.needs > VERSION:
        yield fail(
            f"the schema has version {lacking.version}, and needs workers that know version "
            f"{lacking.needs}; this one knows {VERSION}",
            "install a later trio_sessions",
        )
    elif lacking.tables or lacking.columns:
        noted = "" if lacking.version is None else f"the schema has version {lacking.version}: "
        names = [name for name in lacking.names if not name.startswith("index ")]
        yield fail(
            f"{noted}{', '.join(names)} missing",
            "trio-sessions init-db creates and upgrades, or your migrations do; or look at "
            "--table-prefix",
        )
    else:
        version = "no version noted" if lacking.version is None else f"version {lacking.version}"
        yield ok(f"{len(case.there)} tables, {version}")


def _indexes(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    lacking = look(connection, find_tables(connection, case.tables), case.tables)
    alterations = replace(lacking, columns=()).alterations(connection.dialect)
    statements = [one for of_table in alterations.values() for one in of_table]
    for statement in statements:
        yield warn("an index is missing, without which it is slow", statement)
    slow = [what for what, question in _questions(case) if _walks(connection, case, question)]
    for what in slow:
        yield warn(
            f"no index is used for {what}: a table is walked from end to end",
            "create what is missing, REINDEX what is invalid, then ANALYZE",
        )
    if not statements and not slow:
        yield ok("each question finds its index")


def _questions(case: Case) -> Iterator[tuple[str, sa.Select[Any]]]:
    """Return what the passes, the sweeps and the operators ask all the time."""
    session, message = case.tables.sessions.c, case.tables.messages.c
    inspection = Inspection(case.tables, Questions(case.tables, None))
    yield "a page of sessions", inspection.page(Selection(), "a", 100)
    yield (
        "the sessions of one worker",
        sa.select(sa.func.count()).where(session.incarnation == "an-incarnation"),
    )
    yield (
        "the messages of one session",
        sa.select(message.payload).where(message.session_id == "a").order_by(message.id),
    )
    yield "old messages", stale_messages(case.tables).params(message_ttl=600.0).limit(100)


def _walks(connection: sa.Connection, case: Case, question: sa.Select[Any]) -> bool:
    """Say whether the plan reads a whole table, although it is told to avoid that."""
    is_file = connection.dialect.name == "sqlite"
    if not is_file:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    sql = question.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN" if is_file else "EXPLAIN"
    plan = [str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {sql}")]
    names = (case.tables.sessions.name, case.tables.messages.name)
    if is_file:
        return any(
            line.startswith(f"SCAN {name}") and "INDEX" not in line
            for name in names
            for line in plan
        )
    return any(f"Seq Scan on {name}" in line for name in names for line in plan)


CHECKS = (
    Check("schema", _schema),
    Check("indexes", _indexes, needs=("sessions", "messages", "workers", "fleet")),
)
