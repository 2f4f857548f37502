"""Logs of sessions, in SQL that any database understands: read, and expired."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores.database._clock import age_of, ago
from trio_sessions.stores.database._questions import Asker, Questions
from trio_sessions.stores.database._schema import Tables
from trio_sessions.types import StoredEntry

__all__ = ["Logs"]


class Logs:
    """The logs of one set of tables.

    Args:
        tables: the tables.
        questions: knows what it means that a session's row is not there.
        octets: returns the bytes of a text.
        chosen: returns "the column is one of the ids of this select", which is carried out once.
        transaction: runs a block as one writing transaction.
    """

    def __init__(
        self,
        tables: Tables,
        questions: Questions,
        *,
        octets: Callable[[sa.ColumnElement[str]], sa.ColumnElement[int]],
        chosen: Callable[[sa.ColumnElement[int], sa.Select[tuple[int]]], sa.ColumnElement[bool]],
        transaction: Callable[[sa.Connection], AbstractContextManager[None]],
    ) -> None:
        self._questions = questions
        self._transaction = transaction
        entry = tables.logs.c
        limit = sa.bindparam("limit", type_=sa.Integer)
        asked_id = sa.bindparam("asked_id", type_=sa.String)
        after = sa.bindparam("after", type_=sa.BigInteger)
        # Said so that only the index on both is of use. With "this session, by id" a planner may
        # walk all entries by id, if it believes that most of them are of this session.
        first = (
            sa.select(entry.id, entry.session_id, entry.event, entry.created_at)
            .where(
                sa.tuple_(entry.session_id, entry.id) > sa.tuple_(asked_id, after),
                entry.session_id <= asked_id,
            )
            .order_by(entry.session_id, entry.id)
            .limit(limit)
            .subquery("first")
        )
        size = octets(first.c.event)
        before = (sa.func.sum(size).over(order_by=first.c.id) - size).label("before")
        few = sa.select(first, before).subquery("few")
        belongs = sa.and_(
            few.c.session_id == tables.sessions.c.session_id,
            few.c.before < sa.bindparam("size", type_=sa.BigInteger),
        )
        columns = few.c.id, few.c.event, age_of(few.c.created_at).label("age")
        self._read = questions.about(*columns, beside=(few, belongs)).order_by(few.c.id)
        old = (
            sa.select(entry.id)
            .where(entry.created_at < ago(sa.bindparam("older_than", type_=sa.Float)))
            .order_by(entry.created_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        self._expire = sa.delete(tables.logs).where(chosen(entry.id, old))

    def read(
        self,
        connection: sa.Connection,
        asker: Asker,
        session_id: str,
        *,
        after: int,
        limit: int,
        size: int,
    ) -> list[StoredEntry]:
        """Return entries of a session, in one statement; see `LogStore.read_log`."""
        parameters = {"after": after, "limit": limit, "size": size}
        rows = self._questions.ask_for_all(connection, self._read, asker, session_id, parameters)
        return [_entry(row) for row in rows if row.id is not None]

    def expire(self, connection: sa.Connection, *, older_than: float, limit: int) -> int:
        """Delete old entries, but for those that somebody else has locked."""
        with self._transaction(connection):
            parameters = {"older_than": older_than, "limit": limit}
            return connection.execute(self._expire, parameters).rowcount


def _entry(row: Any) -> StoredEntry:
    return StoredEntry(id=row.id, event=row.event, age=float(row.age))
