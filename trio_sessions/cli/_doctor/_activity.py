"""PostgreSQL: room for connections, updates without indexes, old transactions, the queue."""

from collections.abc import Iterator

import sqlalchemy as sa

from trio_sessions.cli._doctor._findings import Case, Check, Finding, fail, ok, warn
from trio_sessions.cli._doctor._server import is_pooled
from trio_sessions.cli._inspect import duration
from trio_sessions.inspection import WorkerState

__all__ = ["CHECKS"]

_LEAST_POOL = 4  # connections: for the stamp, the pass, the writer and questions, one each

_ROOM = """
    SELECT (CAST(current_setting('max_connections') AS int)
            - CAST(current_setting('superuser_reserved_connections') AS int)
            - coalesce(CAST(current_setting('reserved_connections', true) AS int), 0)) AS server,
        (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database,
        (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS role
"""

_OLDEST = """
    SELECT coalesce(extract(epoch FROM now() - min(a.xact_start)), 0) AS seconds,
        (SELECT pid FROM pg_stat_activity
            WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid()
                AND backend_type = 'client backend'
            ORDER BY xact_start LIMIT 1) AS pid,
        (SELECT coalesce(extract(epoch FROM now() - min(prepared)), 0)
            FROM pg_prepared_xacts) AS prepared
    FROM pg_stat_activity AS a
    WHERE a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
"""

_UPDATES = sa.text("""
    SELECT relname, n_tup_upd AS updates, n_tup_hot_upd AS hot FROM pg_stat_user_tables
    WHERE relid = ANY (ARRAY(
        SELECT to_regclass(quote_ident(name)) FROM unnest(CAST(:names AS text[])) AS name
    ))
    ORDER BY relname
""")

_INDEXED = sa.text(
    """
    SELECT i.indexrelid::regclass::text AS name, i.indisvalid AS is_valid,
        EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = i.indexrelid
            AND a.attname = ANY (CAST(:updated AS text[]))) AS is_updated
    FROM pg_index AS i WHERE i.indrelid = ANY (ARRAY(
        SELECT to_regclass(quote_ident(name)) FROM unnest(CAST(:names AS text[])) AS name
    ))
""".replace("::", r"\:\:")
)

_UPDATED = ["last_accessed", "taken_at", "stamped_at", "passed_at", "beat"]


def _pool(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    own = case.max_concurrent + 1  # for the stamp
    if case.pool_size is not None and case.pool_size < _LEAST_POOL:
        yield fail(
            f"a pool of {case.pool_size} is too small", f"give the engine {_LEAST_POOL} or more"
        )
    elif case.pool_size is not None and case.pool_size < own:
        yield warn(
            f"the pool has {case.pool_size} connections, and max_concurrent={case.max_concurrent} "
            f"may use {own}: operations wait for the pool",
            "raise pool_size, or lower max_concurrent",
        )
    each = case.pool_size or own
    if is_pooled(connection):
        yield ok(f"the pooler decides: it needs default_pool_size {each} for each busy worker")
        return
    each += 1  # who listens has one beside the pool
    limits = connection.exec_driver_sql(_ROOM).one()._asdict()
    room = min(limit for limit in limits.values() if limit is not None and limit >= 0)
    alive = sum(one.state is WorkerState.ALIVE for one in case.workers or ())
    needed = each * max(alive, 1)
    which = next(name for name, limit in limits.items() if limit == room)
    says = f"{max(alive, 1)} x {each} connections may be needed, and the {which} allows {room}"
    todo = "raise max_connections, the role's or the database's CONNECTION LIMIT, or lower "
    if each > room:
        yield fail(says, f"{todo}max_concurrent")
    elif needed > room:
        yield warn(says, f"{todo}max_concurrent, or put PgBouncer in between")
    else:
        yield ok(says)


def _hot(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    names = [case.tables.sessions.name, case.tables.workers.name]
    bad = False
    for index in connection.execute(_INDEXED, {"names": names, "updated": _UPDATED}):
        if index.is_updated:
            bad = True
            yield warn(
                f"index {index.name} has a column that each pass updates: no update is HOT",
                f"DROP INDEX {index.name}",
            )
        if not index.is_valid:
            bad = True
            yield warn(f"index {index.name} is invalid", f"REINDEX INDEX CONCURRENTLY {index.name}")
    shares = []
    for table in connection.execute(_UPDATES, {"names": names}):
        if table.updates < case.thresholds.updates:
            continue
        share = table.hot / table.updates
        shares.append(f"{table.relname} {share:.0%}")
        if share < case.thresholds.hot_updates:
            bad = True
            yield warn(
                f"only {share:.0%} of {table.updates} updates of {table.relname} were HOT",
                "look for indexes of yours on columns that passes update, for the fillfactor "
                "(70 for sessions, 10 for workers), and for long transactions",
            )
    if not bad:
        yield ok(f"HOT: {', '.join(shares)}" if shares else "too few updates to judge")


def _oldest(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    found = connection.exec_driver_sql(_OLDEST).one()
    limit = case.thresholds.oldest_transaction
    if found.seconds > limit:
        yield warn(
            f"a transaction of process {found.pid} is open for {duration(float(found.seconds))}: "
            "no row version since is cleaned away, and NOTIFY waits",
            f"look at it in pg_stat_activity; SELECT pg_terminate_backend({found.pid}) ends it; "
            "idle_in_transaction_session_timeout prevents it",
        )
    if found.prepared > limit:
        yield warn(
            f"a prepared transaction is {duration(float(found.prepared))} old",
            "look at pg_prepared_xacts; ROLLBACK PREPARED ends it",
        )
    if found.seconds <= limit and found.prepared <= limit:
        yield ok(f"the oldest that the role may see: {duration(float(found.seconds))}")


def _queue(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    used = float(connection.exec_driver_sql("SELECT pg_notification_queue_usage()").scalar_one())
    if used > case.thresholds.notify_queue:
        yield warn(
            f"{used:.1%} of the queue of NOTIFY is in use; once it is full, every write that "
            "rings fails",
            "end the session that listens in a transaction that does not end (pg_stat_activity)",
        )
    else:
        yield ok(f"{used:.1%} of the queue of NOTIFY is in use")


CHECKS = (
    Check("connections", _pool),
    Check("hot updates", _hot, needs=("sessions", "workers")),
    Check("transactions", _oldest),
    Check("notify queue", _queue),
)
