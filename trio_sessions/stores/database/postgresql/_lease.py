"""Refreshing, leaving and sweeping: one statement each."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from trio_sessions.abc import Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores.database._clock import now
from trio_sessions.stores.database._questions import identity, own
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._fleet import (
    expired,
    old_enough,
    stale_messages,
    vouch,
)
from trio_sessions.stores.database.postgresql._errors import (
    LOCK_NOT_AVAILABLE,
    locks_are_of_the_table,
    sqlstate,
)
from trio_sessions.stores.database.postgresql._kinds import locked
from trio_sessions.stores.database.postgresql._words import among, each_id, encode_ids
from trio_sessions.types import RowAnswers, Swept

__all__ = ["Lease"]


def _missing(absent: Sequence[Any]) -> frozenset[str]:
    """Return the ids that have no row.

    Raises:
        StoreUnavailable: there may be one that this role is not shown.
    """
    if any(answer.hides_rows for answer in absent):
        raise StoreUnavailable(
            "PostgreSQL: row level security hides rows of the sessions' table from the role: ALTER "
            "TABLE ... DISABLE ROW LEVEL SECURITY, or ALTER ROLE ... BYPASSRLS"
        )
    return frozenset(answer.session_id for answer in absent)


class Lease:
    """Refreshes, deletes and sweeps the rows of one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        row = tables.sessions.c
        self._own = own(tables)
        self._hides_rows = sa.func.row_security_active(tables.sessions.name).label("hides_rows")
        mine = sa.and_(among(row.session_id), self._own)
        self._refresh = self._refresh_and_name_the_missing(mine)
        self._refresh_free = self._refresh_what_is_not_locked(mine)
        some = sa.select(row.session_id).where(self._own)
        some = some.limit(sa.bindparam("limit", type_=sa.Integer))
        # Twice "own": a row that is taken over meanwhile is looked at again in its new form.
        self._delete_all = sa.delete(tables.sessions).where(row.session_id.in_(some), self._own)
        self._sweep = self._vouch_and_sweep()

    # ---- operations ----

    def refresh(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> RowAnswers:
        """Refresh rows."""
        parameters = {**identity(worker), "session_ids": encode_ids(session_ids)}
        try:
            absent = connection.execute(self._refresh, parameters).all()
            return RowAnswers(held=frozenset(session_ids).difference(_missing(absent)))
        except DBAPIError as exc:
            if sqlstate(exc) != LOCK_NOT_AVAILABLE:
                raise
        # Somebody holds a row: refresh the others, and say which it is.
        with locks_are_of_the_table():
            answers = connection.execute(self._refresh_free, parameters).all()
        missing = _missing([answer for answer in answers if not answer.present])
        done = frozenset(answer.session_id for answer in answers if answer.done)
        return RowAnswers(
            held=done,
            unknown={one: locked() for one in frozenset(session_ids).difference(done, missing)},
        )

    def delete_all(self, connection: sa.Connection, worker: Worker, limit: int) -> int:
        """Delete some rows of this incarnation."""
        parameters = {**identity(worker), "limit": limit}
        return connection.execute(self._delete_all, parameters).rowcount

    def sweep(
        self, connection: sa.Connection, worker: Worker, durations: Mapping[str, float], limit: int
    ) -> Swept:
        """Vouch and sweep."""
        parameters = {**identity(worker), **durations, "limit": limit}
        sessions, messages = connection.execute(self._sweep, parameters).one()
        return Swept(sessions=sessions, messages=messages)

    # ---- statements ----

    def _refresh_and_name_the_missing(self, mine: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return what is absent: as a rule nothing, so that there is nothing to fetch."""
        asked = sa.select(each_id().label("session_id")).cte("asked")
        done = (
            sa.update(self._tables.sessions)
            .where(mine)
            .values(last_accessed=now())
            .returning(self._tables.sessions.c.session_id)
            .cte("done")
        )
        return (
            sa.select(asked.c.session_id, self._hides_rows)
            .select_from(asked.outerjoin(done, asked.c.session_id == done.c.session_id))
            .where(done.c.session_id.is_(None))
        )

    def _refresh_what_is_not_locked(self, mine: sa.ColumnElement[bool]) -> sa.Select[Any]:
        row = self._tables.sessions.c
        asked = sa.select(each_id().label("session_id")).cte("asked")
        present = sa.select(row.session_id).where(mine).cte("present")
        free = (
            sa.select(row.session_id)
            .where(mine)
            .with_for_update(key_share=True, skip_locked=True)
            .cte("free")
        )
        done = (
            sa.update(self._tables.sessions)
            .where(row.session_id == free.c.session_id)
            .values(last_accessed=now())
            .returning(row.session_id)
            .cte("done")
        )
        return sa.select(
            asked.c.session_id,
            present.c.session_id.is_not(None).label("present"),
            done.c.session_id.is_not(None).label("done"),
            self._hides_rows,
        ).select_from(
            asked.outerjoin(present, asked.c.session_id == present.c.session_id).outerjoin(
                done, asked.c.session_id == done.c.session_id
            )
        )

    def _vouch_and_sweep(self) -> sa.Select[Any]:
        messages, fleet = self._tables.messages, self._tables.fleet
        vouched = (
            vouch(self._tables, postgresql.insert(fleet))
            .returning(fleet.c.unbroken_since)
            .cte("vouched")
        )
        gone_at_last = (
            expired(self._tables)
            .where(sa.exists(sa.select(vouched).where(old_enough(vouched.c.unbroken_since))))
            .with_for_update(skip_locked=True)
            .cte("expired")
        )
        gone = (
            sa.delete(self._tables.sessions)
            .where(self._tables.sessions.c.session_id == gone_at_last.c.session_id)
            .returning(self._tables.sessions.c.session_id)
            .cte("gone")
        )
        stale = stale_messages(self._tables).with_for_update(skip_locked=True).cte("stale")
        dropped = (
            sa.delete(messages)
            .where(messages.c.id == stale.c.id)
            .returning(messages.c.id)
            .cte("dropped")
        )
        with_them = sa.select(sa.func.count(messages.c.id)).where(
            messages.c.session_id.in_(sa.select(gone.c.session_id)),
            messages.c.id.not_in(sa.select(dropped.c.id)),
        )
        return sa.select(
            sa.select(sa.func.count()).select_from(gone).scalar_subquery(),
            sa.select(sa.func.count()).select_from(dropped).scalar_subquery()
            + with_them.scalar_subquery(),
        )
