"""Refreshing and leaving: one statement each."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from trio_sessions.abc import Worker
from trio_sessions.errors import RowUnavailable, StoreUnavailable
from trio_sessions.stores.database._clock import age_of
from trio_sessions.stores.database._questions import identity, own
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._fleet import refreshed
from trio_sessions.stores.database.postgresql._clearing import LIMIT, clearing
from trio_sessions.stores.database.postgresql._errors import (
    LOCK_NOT_AVAILABLE,
    locks_are_of_the_table,
    sqlstate,
)
from trio_sessions.stores.database.postgresql._kinds import OWN, Names, all_own, locked
from trio_sessions.stores.database.postgresql._kinds import own as own_row
from trio_sessions.stores.database.postgresql._mail import forgetting
from trio_sessions.stores.database.postgresql._pipeline import in_one_round_trip
from trio_sessions.stores.database.postgresql._words import among, each_id, encode_ids
from trio_sessions.types import RowAnswers, Stamp, Swept

__all__ = ["Lease"]

_ASKED = sa.select(each_id().label("session_id")).cte("asked")


class Lease:
    """The operations that refresh and delete the rows of one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        row = tables.sessions.c
        self._own = own(tables)
        mine = sa.and_(among(row.session_id), self._own)
        self._refresh = self._refresh_and_name_the_others(mine)
        self._refresh_free = self._refresh_what_is_not_locked(mine)
        self._names = Names.of(tables)
        self._hides_rows = (
            f"row level security of the table {tables.sessions.name} applies to the role of the "
            "connection, and a row that it hides cannot be told from one that is gone: connect as "
            "the table's owner or a role with BYPASSRLS, or ALTER TABLE "
            f"{tables.sessions.name} DISABLE ROW LEVEL SECURITY"
        )

    # ---- operations ----

    def refresh(
        self, connection: sa.Connection, worker: Worker, session_ids: Sequence[str]
    ) -> RowAnswers:
        """Refresh rows."""
        parameters = {**identity(worker), "session_ids": encode_ids(session_ids)}
        try:
            rows = connection.execute(self._refresh, parameters).all()
        except DBAPIError as exc:
            if sqlstate(exc) != LOCK_NOT_AVAILABLE:
                raise
            # Somebody holds a row: refresh the others, and say which it is.
            with locks_are_of_the_table():
                rows = connection.execute(self._refresh_free, parameters).all()
        return self._judge(session_ids, rows)

    def _judge(self, session_ids: Sequence[str], rows: Sequence[Any]) -> RowAnswers:
        """Return what the rows say of which the statement has told that they were not updated."""
        taken_ago, unknown = dict[str, float](), dict[str, Exception]()
        others = [row[2:] for row in rows if row.session_id is not None]
        stamps = [Stamp(history=row.history, beat=row.beat) for row in rows if row.history]
        for session_id, is_own, is_locked, is_hidden, ago in others:
            if is_own is None and is_hidden:
                raise StoreUnavailable(self._hides_rows)
            if is_own:
                unknown[session_id] = locked() if is_locked else _not_updated()
            elif is_own is not None:
                taken_ago[session_id] = ago
        return RowAnswers(
            held=frozenset(session_ids).difference(session_id for session_id, *_ in others),
            taken_over=frozenset(taken_ago),
            taken_ago=taken_ago,
            unknown=unknown,
            stamp=stamps[0] if stamps else None,
        )

    def delete_all(self, connection: sa.Connection, worker: Worker, limit: int) -> Swept:
        """Delete a piece of the rows of this incarnation, and its own with the last of them."""
        parameters = {**identity(worker), "limit": limit}
        [piece] = in_one_round_trip(connection, [_delete_own(self._names)], parameters)
        return Swept(sessions=piece.sessions, messages=piece.messages, more=piece.more)

    # ---- statements ----

    def _refresh_and_name_the_others(self, mine: sa.ColumnElement[bool]) -> sa.CompoundSelect[Any]:
        """Return what was not updated: as a rule nothing, so that there is nothing to fetch."""
        return self._name_those_not_in(self._update(mine), is_locked=sa.false())

    def _refresh_what_is_not_locked(self, mine: sa.ColumnElement[bool]) -> sa.CompoundSelect[Any]:
        row = self._tables.sessions.c
        free = (
            sa.select(row.session_id)
            .where(mine)
            .with_for_update(key_share=True, skip_locked=True)
            .cte("free")
        )
        done = self._update(row.session_id == free.c.session_id)
        is_free = sa.exists().where(free.c.session_id == _ASKED.c.session_id)
        return self._name_those_not_in(done, is_locked=~is_free)

    def _update(self, which: sa.ColumnElement[bool]) -> sa.CTE:
        return (
            sa.update(self._tables.sessions)
            .where(which)
            .ordered_values(*refreshed(self._tables))
            .returning(self._tables.sessions.c.session_id)
            .cte("done")
        )

    def _name_those_not_in(
        self, done: sa.CTE, *, is_locked: sa.ColumnElement[bool]
    ) -> sa.CompoundSelect[Any]:
        """Return what was not updated, with what the statement's snapshot says of it.

        The snapshot is that of the whole statement, so a row is there, or is not, as it was
        before the UPDATE: one that was changed under it, or that a trigger has spared, is there.
        No row is looked up that was updated. Beside them the worker's stamp is read, in that
        snapshot; where all was updated it comes alone.
        """
        sessions, witness = self._tables.sessions, self._tables.workers
        of_it = sessions.c.session_id == _ASKED.c.session_id
        is_own = sa.select(self._own).where(of_it).scalar_subquery()
        taken_ago = sa.select(age_of(sessions.c.taken_at)).where(of_it).scalar_subquery()
        others = (
            sa.select(
                sa.null().label("history"),
                sa.null().label("beat"),
                _ASKED.c.session_id,
                is_own.label("is_own"),
                is_locked.label("is_locked"),
                sa.func.row_security_active(sa.literal(sessions.name, sa.Text)).label("is_hidden"),
                taken_ago.label("taken_ago"),
            )
            .select_from(_ASKED.outerjoin(done, _ASKED.c.session_id == done.c.session_id))
            .where(done.c.session_id.is_(None))
        )
        itself = sa.select(
            witness.c.history,
            witness.c.beat,
            *(sa.null(), sa.null(), sa.false(), sa.false(), sa.null()),
        ).where(witness.c.incarnation == sa.bindparam("own_incarnation", type_=sa.String))
        return sa.union_all(others, itself)


@lru_cache
def _delete_own(names: Names) -> str:
    """Return the statement that locks some rows, in the order that all have, and lets them go.

    With the last of them the worker's own, and what was left for it.

    Twice "own": a row that is taken over meanwhile is looked at again in its new form.
    """
    leaving = f"SELECT {OWN['incarnation']} FROM piece AS p WHERE NOT p.more"
    return f"""WITH some_own AS MATERIALIZED (
            SELECT s.session_id FROM {names.sessions} AS s WHERE {all_own("s")}
            ORDER BY s.session_id LIMIT {LIMIT} FOR UPDATE
        ), {clearing(names, "some_own", guard=own_row("s"))}, piece AS MATERIALIZED (
            SELECT counts.*, (counts.sessions + counts.messages > 0 OR x.has_some) AND (
                    counts.messages >= {LIMIT} OR x.is_full
                    OR (SELECT count(*) FROM some_own) >= {LIMIT}
                ) AS more
            FROM logs_gone AS x CROSS JOIN (
                SELECT (SELECT count(*) FROM gone) AS sessions,
                    (SELECT count(*) FROM dropped) AS messages
            ) AS counts
        ), left_behind AS (
            DELETE FROM {names.workers} AS w
            WHERE w.incarnation = {OWN["incarnation"]} AND NOT (SELECT p.more FROM piece AS p)
        ), {forgetting(names, leaving)}
        SELECT * FROM piece"""


def _not_updated() -> RowUnavailable:
    """Return the answer for a row that is there and was not refreshed."""
    return RowUnavailable(
        "the row is there and was not updated: another transaction has changed it at the same "
        "moment, or a trigger on UPDATE of the sessions' table returns NULL"
    )
