"""Questions of operators, in SQL that any database understands: who holds what, and who lives."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from trio_sessions._json import decode_object
from trio_sessions.abc import Worker
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo, WorkerState, state_of
from trio_sessions.stores.database._clock import age_of, ago
from trio_sessions.stores.database._database import find
from trio_sessions.stores.database._questions import Asker, Questions
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._expiry import has_gone

__all__ = ["Inspection", "questions", "selected"]


class Inspection:
    """Questions to one set of tables.

    Args:
        tables: the tables.
        questions: ask for one session.
    """

    def __init__(self, tables: Tables, questions: Questions) -> None:
        row, message, worker = tables.sessions.c, tables.messages.c, tables.workers.c
        longest = sa.select(sa.func.max(tables.workers.alias("all_workers").c.session_ttl))
        max_gap = longest.scalar_subquery() * MAX_GAP
        life = (
            age_of(worker.stamped_at).label("silence"),
            worker.stamp_interval,
            has_gone(tables, max_gap).label("has_lapsed"),
        )
        held = (
            sa.select(sa.func.count())
            .where(row.incarnation == worker.incarnation)
            .correlate(tables.workers)
            .scalar_subquery()
        )
        self._workers = sa.select(
            worker.worker_id,
            worker.incarnation,
            worker.started_at,
            worker.stamped_at,
            worker.passed_at,
            held.label("sessions"),
            worker.session_ttl,
            worker.cleanup_interval,
            worker.version,
            worker.data,
            worker.draining,
            *life,
        ).order_by(worker.started_at, worker.incarnation)
        waiting = (
            sa.select(sa.func.count())
            .where(message.session_id == row.session_id)
            .correlate(tables.sessions)
            .scalar_subquery()
        )
        its_worker = sa.and_(
            worker.incarnation == row.incarnation, worker.worker_id == row.worker_id
        )
        columns = (
            row.session_id,
            row.worker_id,
            row.incarnation,
            row.owner,
            row.created_at,
            row.last_accessed,
            age_of(row.last_accessed).label("idle"),
            age_of(row.created_at).label("age"),
            waiting.label("waiting"),
            *life,
        )
        self._tables = tables
        said: dict[str, Any] = {"data": sa.bindparam("data"), "draining": sa.bindparam("draining")}
        mine = worker.incarnation == sa.bindparam("own_incarnation")
        self._announce = sa.update(tables.workers).where(mine).values(said)
        self._sessions = sa.select(*columns).select_from(
            tables.sessions.outerjoin(tables.workers, its_worker)
        )
        self._session = questions.about(*columns, row.data, beside=(tables.workers, its_worker))
        self._questions = questions

    def announce(
        self, connection: sa.Connection, worker: Worker, *, data: str, draining: bool
    ) -> bool:
        """Replace what a worker says of itself."""
        parameters = {
            "own_incarnation": worker.incarnation,
            "data": data,
            "draining": draining,
        }
        return connection.execute(self._announce, parameters).rowcount == 1

    def list_workers(self, connection: sa.Connection) -> list[WorkerInfo]:
        """Return the workers that have a row."""
        return [_worker(found) for found in connection.execute(self._workers)]

    def list_sessions(
        self, connection: sa.Connection, selection: Selection, after: str, limit: int
    ) -> list[SessionInfo]:
        """Return sessions by id."""
        question = self.page(selection, after, limit)
        return [_session(found) for found in connection.execute(question)]

    def describe(
        self, connection: sa.Connection, asker: Asker, session_id: str
    ) -> SessionInfo | None:
        """Return what is known of a session."""
        found = self._questions.ask(connection, self._session, asker, session_id)
        if found.session_id is None:
            return None
        return replace(_session(found), data=decode_object(found.data))

    def page(self, selection: Selection, after: str, limit: int) -> sa.Select[Any]:
        """Return the select of one page of sessions; a plan test looks at it."""
        session_id = self._tables.sessions.c.session_id
        question = selected(self._sessions.where(session_id > after), self._tables, selection)
        return question.order_by(session_id).limit(limit)


def selected(question: sa.Select[Any], tables: Tables, selection: Selection) -> sa.Select[Any]:
    """Return a question for the sessions alone that are meant."""
    row = tables.sessions.c
    if selection.owner is not None:
        question = question.where(row.owner == selection.owner)
    if selection.worker_id is not None:
        question = question.where(row.worker_id == selection.worker_id)
    if selection.older_than is not None:
        moment = ago(sa.literal(selection.older_than, sa.Float))
        question = question.where(row.created_at < moment)
    return question


def _session(found: Any) -> SessionInfo:
    """Return what a row says of a session."""
    return SessionInfo(
        session_id=found.session_id,
        worker_id=found.worker_id,
        incarnation=found.incarnation,
        worker_state=None if found.silence is None else _state(found),
        owner=found.owner,
        created=_moment(found.created_at),
        last_accessed=_moment(found.last_accessed),
        age=_seconds(found.age),
        idle=_seconds(found.idle),
        waiting=found.waiting,
    )


def _worker(found: Any) -> WorkerInfo:
    return WorkerInfo(
        worker_id=found.worker_id,
        incarnation=found.incarnation,
        state=_state(found),
        started=_moment(found.started_at),
        last_stamp=_moment(found.stamped_at),
        last_pass=_moment(found.passed_at),
        silence=_seconds(found.silence),
        sessions=found.sessions,
        session_ttl=found.session_ttl,
        cleanup_interval=found.cleanup_interval,
        version=found.version,
        data=json.loads(found.data),
        draining=bool(found.draining),
    )


def _state(found: Any) -> WorkerState:
    return state_of(
        silence=found.silence,
        stamp_interval=found.stamp_interval,
        has_lapsed=bool(found.has_lapsed),
    )


def _moment(moment: datetime) -> datetime:
    """Return a moment in UTC; a database without time zones says so by none."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _seconds(age: float) -> float:
    """Return an age; a moment in the future, which a clock has left that was ahead, has none."""
    return max(0.0, float(age))


@lru_cache(maxsize=8)  # statements, which keep nothing of a store
def questions(database: str, tables: Tables) -> tuple[Questions, Inspection]:
    """Return the questions to one set of tables, in the words of a database of this name."""
    doubt = find(database).doubt
    questions = Questions(tables, None if doubt is None else doubt(tables))
    return questions, Inspection(tables, questions)
