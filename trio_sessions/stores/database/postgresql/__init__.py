"""PostgreSQL with psycopg 3: one operation, one transaction, one round trip.

It uses UPDATE … RETURNING, data-modifying CTEs, SKIP LOCKED and ON DELETE CASCADE. It can do
without prepared statements, options and LISTEN, and so it runs behind PgBouncer in
transaction mode (with ``server_timeouts=False, listen=False``).
"""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from trio_sessions.abc import Bell, Worker
from trio_sessions.stores.database._bell import BellSource, poll
from trio_sessions.stores.database._database import Database, Operations
from trio_sessions.stores.database._logs import Logs
from trio_sessions.stores.database._questions import Questions
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._revocation import Revocations
from trio_sessions.stores.database.postgresql._batch import Commit
from trio_sessions.stores.database.postgresql._connections import (
    Shutdown,
    create_engine,
    engine_options,
    import_driver,
    path,
    schema,
    speak_utf8,
    transaction,
    unreadable,
)
from trio_sessions.stores.database.postgresql._doubt import in_doubt
from trio_sessions.stores.database.postgresql._errors import (
    advice,
    has_refused,
    is_too_long,
    leads_astray,
    row_error,
)
from trio_sessions.stores.database.postgresql._fetch import Fetch
from trio_sessions.stores.database.postgresql._kinds import Names
from trio_sessions.stores.database.postgresql._lease import Lease
from trio_sessions.stores.database.postgresql._mail import Mail
from trio_sessions.stores.database.postgresql._opening import check_opening
from trio_sessions.stores.database.postgresql._sweep import Sweep
from trio_sessions.stores.database.postgresql._words import CLOCK, chosen
from trio_sessions.stores.database.postgresql._workers import Workers

__all__ = ["DATABASE"]

_CREATION_LOCK = 0x7472696F_73657373  # "triosess": workers that start at once take turns


@contextmanager
def _creation(connection: sa.Connection) -> Iterator[None]:
    """Hold the lock of creation for a transaction; wait for it as long as an operation may."""
    with transaction(connection):
        bound = connection.exec_driver_sql("SHOW lock_timeout").scalar_one()
        setting = sa.text("SELECT set_config('lock_timeout', :bound, true)")
        connection.execute(setting, {"bound": "0"})
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
        connection.execute(setting, {"bound": bound})
        yield


@lru_cache(maxsize=8)  # statements, which keep nothing of a store
def _operations(tables: Tables, *, listens: bool) -> Operations:
    lease, workers, names = Lease(tables), Workers(tables), Names.of(tables)
    mail = Mail(tables)

    def open_bell(source: BellSource, worker: Worker) -> AbstractAsyncContextManager[Bell]:
        if not listens:
            return poll(source, worker, lambda connection: mail.backlog(connection, worker))
        from trio_sessions.stores.database.postgresql._listen import listen

        return listen(source, worker, f"{names.channels}{worker.incarnation}")

    marks = Revocations(tables, insert=postgresql.insert, transaction=transaction)
    questions = Questions(tables, in_doubt(tables))
    logs = Logs(
        tables, questions, octets=sa.func.octet_length, chosen=chosen, transaction=transaction
    )
    return Operations(
        check=check_opening(tables),
        creation=_creation,
        commit=Commit(tables, rings=listens),
        refresh=lease.refresh,
        delete_all=lease.delete_all,
        begin=workers.begin,
        stamp=workers.stamp,
        sweep=Sweep(tables),
        fetch=Fetch(tables),
        revoke=marks.revoke,
        revocations=marks.revocations,
        mail=mail,
        read_log=logs.read,
        expire_logs=logs.expire,
        open_bell=open_bell,
    )


DATABASE = Database(
    name="postgresql",
    aka=frozenset({"postgres"}),
    driver="psycopg",
    check=lambda _: None,
    import_driver=import_driver,
    create_engine=create_engine,
    opens=lambda *_: None,  # each process has its own connections to the server
    has_closed=lambda *_: None,
    engine_options=engine_options,
    leads_elsewhere=lambda _: False,  # a server ends the connections that it does not serve
    cutter=Shutdown,
    row_error=row_error,
    is_too_long=is_too_long,
    has_refused=has_refused,
    leads_astray=leads_astray,
    advice=advice,
    unreadable=unreadable,
    path=path,
    schema=schema,
    settle=speak_utf8,
    doubt=in_doubt,
    clock=CLOCK,
    has_time_zones=True,
    has_partial_indexes=True,
    # In the order of code points everywhere, so that two transactions lock in the same order.
    session_id=sa.String(255, collation="C"),
    storage={
        # Room in each page for HOT updates of the column that every pass updates.
        "sessions": "SET (fillfactor = 70)",
        # Each of its few rows is updated with every batch: a page is room for many versions of one.
        "workers": "SET (fillfactor = 10)",
        # Letters are for now: whoever leaves or takes one does not wait for the disk. A crash of
        # the server loses them, as their sender and receiver notice.
        "mail": "SET UNLOGGED",
    },
    operations=_operations,
)
