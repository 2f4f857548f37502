"""What only reads, in SQL that any database understands."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores._doubt import IN_DOUBT, Acknowledged
from trio_sessions.stores.database._clock import now
from trio_sessions.stores.database._schema import Tables
from trio_sessions.types import Holder, Stamp

__all__ = ["Asker", "Questions", "all_own", "identity", "noted_doubt", "own"]


def own(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "this incarnation holds the row"; `identity` has the parameters.

    Not by the index on the incarnation: a planner that believes that there are few such rows would
    read all of them for each chunk, and not look the ids of the chunk up.
    """
    return _own(tables, tables.sessions.c.incarnation.concat(sa.literal_column("''")))


def all_own(tables: Tables) -> sa.ColumnElement[bool]:
    """Return the same, by that index, where the rows are not named."""
    return _own(tables, tables.sessions.c.incarnation)


def _own(tables: Tables, incarnation: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    return sa.and_(
        tables.sessions.c.worker_id == sa.bindparam("own_worker_id"),
        incarnation == sa.bindparam("own_incarnation", type_=sa.String),
    )


def identity(worker: Worker) -> Mapping[str, Any]:
    """Return the parameters of `own`."""
    return {"own_worker_id": worker.worker_id, "own_incarnation": worker.incarnation}


def noted_doubt(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the fleet's row says that the database went back, not long ago"."""
    fleet = tables.fleet.c
    return sa.exists(sa.select(fleet.id).where(fleet.doubtful_until > now()))


def _asker_is_forgotten(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the asker's row is not there, or not as it was": see `Acknowledged`.

    A fleet's row that is there may be of strangers, who have opened on that database.
    """
    worker = tables.workers.c
    own_row = sa.and_(
        worker.incarnation == sa.bindparam("own_incarnation", type_=sa.String),
        worker.history == sa.bindparam("known_history", type_=sa.String),
        worker.beat >= sa.bindparam("known_beat", type_=sa.BigInteger),
    )
    return ~sa.exists(sa.select(worker.incarnation).where(own_row))


_KNOWN, _FORGOTTEN, _IN_DOUBT = range(3)
"""What it means that a row is not there."""


class Asker:
    """The worker that asks, with the stamp that it was told of by now.

    Args:
        acknowledged: what each worker was told of.
        worker: who it is.
    """

    def __init__(self, acknowledged: Acknowledged, worker: Worker) -> None:
        self._acknowledged = acknowledged
        self._worker = worker
        self._known = acknowledged.of(worker)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of every question."""
        known = self._known or Stamp(history="", beat=0)
        return {
            **identity(self._worker),
            "known_history": known.history,
            "known_beat": known.beat,
        }

    def check(self, if_absent: int) -> None:
        """Raise if a row that is not there may have been forgotten."""
        # One that leaves, or that asks before it has begun a history, need not have a row.
        must_have_a_row = self._known is not None and self._acknowledged.of(self._worker)
        if if_absent == _IN_DOUBT or (if_absent == _FORGOTTEN and must_have_a_row):
            raise StoreUnavailable(IN_DOUBT)


class Questions:
    """Questions to one set of tables.

    Args:
        tables: the tables.
        doubt: "what is not there may have been forgotten"; None: `noted_doubt`. It is asked in
            the statement that looks for the row, and only where there is none.
    """

    def __init__(self, tables: Tables, doubt: sa.ColumnElement[bool] | None = None) -> None:
        row, message = tables.sessions.c, tables.messages.c
        why = sa.case(
            (noted_doubt(tables) if doubt is None else doubt, _IN_DOUBT),
            (_asker_is_forgotten(tables), _FORGOTTEN),
            else_=_KNOWN,
        )
        once = sa.select(sa.literal_column("1").label("once")).subquery("once")
        self._asked = once.outerjoin(
            tables.sessions, row.session_id == sa.bindparam("asked_id", type_=sa.String)
        )
        self._if_absent = sa.case((row.session_id.is_(None), why), else_=_KNOWN).label("if_absent")
        self._holder = self.about(row.worker_id, row.incarnation, row.owner)
        self._capabilities = self.about(row.capabilities)
        self._data = self.about(row.data)
        self._elicitation = sa.union_all(
            sa.select(row.session_id, sa.literal_column(str(_KNOWN)).label("if_absent")).where(
                row.elicitation
            ),
            sa.select(sa.null(), why),
        )
        self._own_rows = (
            sa.select(row.session_id, row.generation)
            .where(all_own(tables), row.session_id > sa.bindparam("after", type_=sa.String))
            .order_by(row.session_id)
            .limit(sa.bindparam("limit", type_=sa.Integer))
        )
        # From the messages, which are few, and not from the sessions.
        own_message = sa.and_(row.session_id == message.session_id, own(tables))
        self._waiting = sa.select(message.session_id).distinct().where(own_message)
        self._newest = sa.select(sa.func.coalesce(sa.func.max(message.id), 0))
        self._waiting_since = self._waiting.where(message.id > sa.bindparam("seen"))

    def about(
        self, *columns: sa.ColumnElement[Any], beside: tuple[sa.FromClause, Any] | None = None
    ) -> sa.Select[Any]:
        """Return the select of columns of one session's row, for `ask`.

        Args:
            columns: what is asked for.
            beside: another table with some of these columns, and how its rows belong to the row.
        """
        asked = self._asked if beside is None else self._asked.outerjoin(*beside)
        return sa.select(*columns, self._if_absent).select_from(asked)

    def locate(self, connection: sa.Connection, asker: Asker, session_id: str) -> Holder | None:
        """Return who holds a session."""
        worker_id, incarnation, owner, _ = self.ask(connection, self._holder, asker, session_id)
        if incarnation is None:
            return None
        return Holder(worker_id=worker_id, incarnation=incarnation, owner=owner)

    def get_capabilities(
        self, connection: sa.Connection, asker: Asker, session_id: str
    ) -> str | None:
        """Return a session's capabilities, encoded."""
        encoded: str | None
        encoded, _ = self.ask(connection, self._capabilities, asker, session_id)
        return encoded

    def get_data(self, connection: sa.Connection, asker: Asker, session_id: str) -> str | None:
        """Return a session's data, encoded."""
        encoded: str | None
        encoded, _ = self.ask(connection, self._data, asker, session_id)
        return encoded

    def elicitation_capable(self, connection: sa.Connection, asker: Asker) -> list[str]:
        """Return the ids of sessions that can be asked."""
        found = connection.execute(self._elicitation, asker.parameters).all()
        for _, if_absent in found:
            asker.check(if_absent)
        return sorted(session_id for session_id, _ in found if session_id is not None)

    def own_rows(
        self, connection: sa.Connection, worker: Worker, after: str, limit: int
    ) -> list[tuple[str, int]]:
        """Return ids and generations of own rows, those after ``after``."""
        parameters = {**identity(worker), "after": after, "limit": limit}
        return [(row[0], row[1]) for row in connection.execute(self._own_rows, parameters)]

    def ask(
        self,
        connection: sa.Connection,
        question: sa.Select[Any],
        asker: Asker,
        session_id: str,
    ) -> Any:
        """Return what a session's row says; nothing but None if there is none, for sure.

        Raises:
            StoreUnavailable: there is none, and the database is in doubt.
        """
        parameters = {**asker.parameters, "asked_id": session_id}
        answer = connection.execute(question, parameters).one()
        asker.check(answer.if_absent)
        return answer

    def ask_for_all(
        self,
        connection: sa.Connection,
        question: sa.Select[Any],
        asker: Asker,
        session_id: str,
        more: Mapping[str, Any],
    ) -> Sequence[Any]:
        """Return what stands beside a session's row, row by row, otherwise as `ask`."""
        parameters = {**asker.parameters, "asked_id": session_id, **more}
        answers = connection.execute(question, parameters).all()
        asker.check(answers[0].if_absent)
        return answers

    def waiting(self, connection: sa.Connection, worker: Worker) -> list[str]:
        """Return the ids of own sessions with messages."""
        return list(connection.execute(self._waiting, identity(worker)).scalars())

    def news(
        self, connection: sa.Connection, worker: Worker, seen: int
    ) -> tuple[int, frozenset[str]]:
        """Return the newest message, and the own sessions that have any after ``seen``.

        For a database where ids are committed in their order.
        """
        newest: int = connection.execute(self._newest).scalar_one()
        if newest <= seen:
            return seen, frozenset()
        found = connection.execute(self._waiting_since, {**identity(worker), "seen": seen})
        return newest, frozenset(found.scalars())
