"""Revocations: marks that outlive rows, in SQL that any database understands."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc._revocation import KEPT
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.stores.database._clock import age_of, ago, now
from trio_sessions.stores.database._inspection import selected
from trio_sessions.stores.database._schema import Tables

__all__ = ["Revocations", "is_revoked"]

_OVER = 20_000  # marks whose time is over that are deleted at a time: more than are made


def is_revoked(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the mark counts still"."""
    return tables.revoked.c.until > now()


class Revocations:
    """Marks in one set of tables.

    Args:
        tables: the tables.
        insert: returns an INSERT that knows ``on_conflict_do_update``.
        transaction: runs a block of several statements as one writing transaction.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        insert: Callable[[sa.Table], Any],
        transaction: Callable[[sa.Connection], AbstractContextManager[None]],
    ) -> None:
        self._tables = tables
        self._transaction = transaction
        mark = tables.revoked.c
        until = ago(-sa.bindparam("ttl", type_=sa.Float))
        marked = insert(tables.revoked).values(
            session_id=sa.bindparam("which"),
            revoked_at=now(),
            until=until,
            reason=sa.bindparam("why"),
        )
        self._mark = marked.on_conflict_do_update(
            index_elements=[mark.session_id],
            set_={
                "revoked_at": now(),
                "until": sa.case((mark.until > marked.excluded.until, mark.until), else_=until),
                "reason": marked.excluded.reason,
            },
        )
        over = sa.select(mark.session_id).where(mark.until < ago(sa.literal(KEPT))).limit(_OVER)
        self._purge = sa.delete(tables.revoked).where(mark.session_id.in_(over))
        self._fresh = sa.select(
            mark.session_id,
            age_of(mark.revoked_at).label("age"),
            sa.not_(is_revoked(tables)).label("is_over"),
        ).where(mark.revoked_at >= ago(sa.bindparam("within", type_=sa.Float)))

    def revoke(self, connection: sa.Connection, revocation: Revocation, limit: int) -> Revoked:
        """Mark ids, and delete their rows."""
        row = self._tables.sessions.c
        with self._transaction(connection):
            # First the rows, in their order, as batches do: or they would block each other.
            rows = sa.select(row.session_id).order_by(row.session_id).with_for_update()
            if revocation.session_ids is not None:
                ids: Sequence[str] = sorted(set(revocation.session_ids))
                more = False
                connection.execute(rows.where(row.session_id.in_(ids)))
            else:
                assert revocation.selection is not None
                found = selected(rows, self._tables, revocation.selection).limit(limit)
                ids = connection.execute(found).scalars().all()
                more = len(ids) >= limit
            if not ids:
                return Revoked(sessions=0)
            connection.execute(self._purge)
            self._mark_all(connection, ids, revocation)
            for table in (self._tables.messages, self._tables.logs):
                connection.execute(sa.delete(table).where(table.c.session_id.in_(ids)))
            gone = connection.execute(
                sa.delete(self._tables.sessions).where(row.session_id.in_(ids))
            )
            return Revoked(sessions=gone.rowcount, more=more)

    def _mark_all(
        self, connection: sa.Connection, ids: Iterable[str], revocation: Revocation
    ) -> None:
        values = [{"which": one, "ttl": revocation.ttl, "why": revocation.reason} for one in ids]
        connection.execute(self._mark, values)

    def revocations(self, connection: sa.Connection, within: float) -> list[Mark]:
        """Return the marks that were made lately."""
        return [
            Mark(session_id=one.session_id, age=float(one.age), is_over=bool(one.is_over))
            for one in connection.execute(self._fresh, {"within": within})
        ]
