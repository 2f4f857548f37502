"""SQLite: a file in WAL mode, one writer at a time."""

from contextlib import AbstractAsyncContextManager
from functools import lru_cache

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from trio_sessions.abc import Bell, Worker
from trio_sessions.stores.database._bell import BellSource, look_at_the_file
from trio_sessions.stores.database._database import Database, Operations
from trio_sessions.stores.database._logs import Logs
from trio_sessions.stores.database._questions import Questions
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._commit import Commit
from trio_sessions.stores.database.portable._fetch import Fetch
from trio_sessions.stores.database.portable._grammar import Grammar
from trio_sessions.stores.database.portable._lease import Lease
from trio_sessions.stores.database.portable._mail import Mail
from trio_sessions.stores.database.portable._revocation import Revocations
from trio_sessions.stores.database.sqlite._connections import (
    Interrupt,
    create_engine,
    engine_options,
    has_refused,
    is_too_long,
    row_error,
    transaction,
)
from trio_sessions.stores.database.sqlite._files import has_closed, leads_elsewhere, opens
from trio_sessions.stores.database.sqlite._opening import check_opening
from trio_sessions.stores.database.sqlite._words import (
    CLOCK,
    among,
    check,
    each_id,
    encode_ids,
    octets,
    read_clock,
)

__all__ = ["DATABASE"]

_GRAMMAR = Grammar(
    among=among,
    each_id=each_id,
    encode_ids=encode_ids,
    insert=sqlite.insert,
    transaction=transaction,
    clock=read_clock,
)


@lru_cache(maxsize=8)  # statements, which keep nothing of a store
def _operations(tables: Tables, *, listens: bool) -> Operations:
    def open_bell(source: BellSource, worker: Worker) -> AbstractAsyncContextManager[Bell]:
        return look_at_the_file(
            source,
            worker,
            lambda connection, seen: questions.news(connection, worker, seen),
            lambda connection, seen: mail.news(connection, worker, seen),
        )

    lease, questions, mail = Lease(tables, _GRAMMAR), Questions(tables), Mail(tables, _GRAMMAR)
    marks = Revocations(tables, insert=sqlite.insert, transaction=transaction)
    logs = Logs(
        tables,
        questions,
        octets=octets,
        chosen=lambda column, ids: column.in_(ids),
        transaction=transaction,
    )
    return Operations(
        check=check_opening(tables),
        creation=transaction,
        commit=Commit(tables, _GRAMMAR),
        refresh=lease.refresh,
        delete_all=lease.delete_all,
        begin=lease.begin,
        stamp=lease.stamp,
        sweep=lease.sweep,
        fetch=Fetch(tables, _GRAMMAR),
        revoke=marks.revoke,
        revocations=marks.revocations,
        mail=mail,
        read_log=logs.read,
        expire_logs=logs.expire,
        open_bell=open_bell,
    )


DATABASE = Database(
    name="sqlite",
    driver="pysqlite",
    check=check,
    import_driver=lambda: None,  # it comes with Python
    create_engine=create_engine,
    opens=opens,
    has_closed=has_closed,
    engine_options=engine_options,
    leads_elsewhere=leads_elsewhere,
    cutter=Interrupt,
    row_error=row_error,
    is_too_long=is_too_long,
    has_refused=has_refused,
    clock=CLOCK,
    has_partial_indexes=True,
    message_id=sa.Integer(),  # it numbers rows by itself only in a column of exactly this type
    messages_options={"sqlite_autoincrement": True},
    operations=_operations,
)
