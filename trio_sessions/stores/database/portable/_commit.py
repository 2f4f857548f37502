"""A batch: one transaction that has the rows to itself.

One select reads the rows of all writes and locks them, Python decides, and the rest
carries it out. What was decided is still true then, because nobody else writes meanwhile.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.stores._pieces import PIECE
from trio_sessions.stores.database._clock import age_of, ago, now
from trio_sessions.stores.database._questions import noted_doubt
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._clear import Clear
from trio_sessions.stores.database.portable._crowds import Count
from trio_sessions.stores.database.portable._grammar import Grammar
from trio_sessions.stores.database.portable._mail import Mail
from trio_sessions.stores.database.portable._plan import Plan, claimed, decide, rests_on_absence
from trio_sessions.stores.database.portable._revocation import is_revoked
from trio_sessions.stores.database.portable._witness import Witness, goes_on
from trio_sessions.types import Sent, Stamp
from trio_sessions.writes import (
    Answer,
    Batch,
    Claim,
    Committed,
    Outcome,
    Post,
    Verdict,
)

__all__ = ["Commit"]


class Commit:
    """The operation that carries out batches on one set of tables."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        self._transaction = grammar.transaction
        self._clock = grammar.clock
        self._encode_ids = grammar.encode_ids
        self._witness = Witness(tables, grammar)
        self._mail = Mail(tables, grammar)
        self._doubt = sa.select(noted_doubt(tables))
        among = grammar.among
        row, message = tables.sessions.c, tables.messages.c
        which: sa.BindParameter[str] = sa.bindparam("which")
        self._find = (
            sa.select(
                row.session_id,
                row.worker_id,
                row.incarnation,
                row.generation,
                row.owner,
                row.capabilities,
                row.elicitation,
                row.data,
                sa.type_coerce(sa.cast(row.created_at, sa.String), sa.String).label("born"),
                age_of(row.taken_at).label("taken"),
                (row.taken_at > now()).label("taken_ahead"),
            )
            .where(among(row.session_id))
            .order_by(row.session_id)
            .with_for_update()
        )
        marked = tables.revoked.c.session_id
        self._marks = sa.select(marked).where(among(marked), is_revoked(tables))
        self._clear = Clear(tables, grammar)
        self._count = Count(tables, grammar)
        self._delete = sa.delete(tables.sessions).where(among(row.session_id))
        taken_at = ago(sa.bindparam("age", type_=sa.Float))
        written: dict[str, sa.BindParameter[Any]] = {
            name: sa.bindparam(name)
            for name in (
                "worker_id",
                "incarnation",
                "generation",
                "owner",
                "capabilities",
                "elicitation",
                "data",
            )
        }
        self._insert = sa.insert(tables.sessions).values(
            session_id=which, **written, created_at=now(), taken_at=taken_at, last_accessed=now()
        )
        self._update = (
            sa.update(tables.sessions)
            .where(row.session_id == which)
            .values(
                **written,
                taken_at=sa.case(
                    (row.taken_at > now(), taken_at),  # the clock was set back
                    (row.taken_at > taken_at, row.taken_at),
                    else_=taken_at,
                ),
                last_accessed=now(),
            )
        )
        self._set_owner = (
            sa.update(tables.sessions)
            .where(row.session_id == which)
            .values(owner=sa.bindparam("new_owner"))
        )
        self._set_capabilities = (
            sa.update(tables.sessions)
            .where(row.session_id == which)
            .values(
                capabilities=sa.bindparam("new_capabilities"),
                elicitation=sa.bindparam("new_elicitation"),
            )
        )
        self._set_data = (
            sa.update(tables.sessions)
            .where(row.session_id == which)
            .values(data=sa.bindparam("new_data"))
        )
        self._send = (
            sa.insert(tables.messages)
            .values(
                session_id=which,
                payload=sa.bindparam("content"),
                created_at=ago(sa.bindparam("age", type_=sa.Float)),
            )
            .returning(message.id, sort_by_parameter_order=True)
        )
        entry = tables.logs.c
        self._append = (
            sa.insert(tables.logs)
            .values(session_id=which, event=sa.bindparam("content"), created_at=now())
            .returning(entry.id, sort_by_parameter_order=True)
        )
        newest_that_goes = (
            sa.select(entry.id)
            .where(entry.session_id == which)
            .order_by(entry.id.desc())
            .limit(1)
            .offset(sa.bindparam("keep", type_=sa.Integer))
            .scalar_subquery()
        )
        self._trim = sa.delete(tables.logs).where(
            entry.session_id == which, entry.id <= newest_that_goes
        )
        self._acknowledge = sa.delete(tables.messages).where(
            message.id == sa.bindparam("message_id"), message.session_id == which
        )

    def __call__(
        self, connection: sa.Connection, worker: Worker, batch: Batch, waited: Callable[[], float]
    ) -> Committed:
        """Carry out a batch; ``waited`` returns the seconds since its ages were told."""
        clock = self._clock()  # before the transaction: a wait for its lock is not lateness
        if batch.not_after is not None and clock > batch.not_after:
            return Committed(answers=(), verdict=Verdict.LATE, clock=clock)
        if not batch.writes and batch.stamp is None:
            return Committed(answers=(), clock=clock)
        with self._transaction(connection):
            stamp: Stamp | None = None
            if batch.stamp is not None:
                stamp = self._witness.find(connection, worker)
                if not goes_on(stamp, batch.stamp):
                    return Committed(answers=(), verdict=Verdict.FORGOTTEN, clock=clock)
            answers = self._write(connection, worker, batch, waited) if batch.writes else ()
            if stamp is not None:
                stamp = self._witness.stamp(connection, worker, stamp)
        return Committed(answers=answers, stamp=stamp, clock=clock)

    def _write(
        self, connection: sa.Connection, worker: Worker, batch: Batch, waited: Callable[[], float]
    ) -> list[Answer]:
        # Before the look: a claim may seem newer by what lies between, as the one of which the
        # database heard later; never older than a row that is. See docs/decisions/0010-evidence.md.
        asked = waited()
        named = [one.session_id for one in batch.writes if not isinstance(one, Post)]
        rows = self._rows(connection, named) if named else {}
        in_doubt = any(
            rests_on_absence(worker, write, rows.get(write.session_id)) for write in batch.writes
        ) and bool(connection.execute(self._doubt).scalar())
        revoked = self._revoked(connection, [claim.session_id for _, claim in batch.of(Claim)])
        crowds = self._count(connection, worker, batch, rows)
        plan = decide(worker, batch, rows, asked, revoked=revoked, crowds=crowds, in_doubt=in_doubt)
        self._carry_out(connection, plan, asked, waited)
        return plan.answers

    def _revoked(self, connection: sa.Connection, session_ids: Sequence[str]) -> frozenset[str]:
        if not session_ids:
            return frozenset()
        return frozenset(connection.execute(self._marks, self._among(session_ids)).scalars())

    def _among(self, session_ids: Iterable[str]) -> dict[str, Any]:
        return {"session_ids": self._encode_ids(sorted(set(session_ids)))}

    def _rows(self, connection: sa.Connection, session_ids: Iterable[str]) -> dict[str, Any]:
        found = connection.execute(self._find, self._among(session_ids))
        return {row.session_id: row for row in found}

    def _carry_out(
        self, connection: sa.Connection, plan: Plan, asked: float, waited: Callable[[], float]
    ) -> None:
        """Do what was decided; ``asked`` is what ``waited`` returned then."""
        cleared = self._clear(connection, plan.cleared, PIECE)
        dropped = cleared.dropped
        if cleared.left:
            plan.put_off(cleared.left, dropped)
        if plan.deleted:
            connection.execute(self._delete, self._among(plan.deleted))
        plan.grow_older(waited() - asked)
        for statement, values in (
            (self._insert, plan.inserted),
            (self._update, plan.updated),
            (self._set_owner, plan.owned),
            (self._set_capabilities, plan.able),
            (self._set_data, plan.described),
            (self._acknowledge, plan.acknowledged),
        ):
            if values:
                connection.execute(statement, values)
        for place, session_id in plan.counted:
            plan.answers[place] = dropped[session_id]
        if plan.sent:
            self._send_all(connection, plan, waited())
        for place, post in plan.posted:
            plan.answers[place] = self._mail.post(connection, post)
        if plan.appended:
            self._append_all(connection, plan)
        if plan.claimed:
            self._look_at_the_claimed(connection, plan, dropped)

    def _send_all(self, connection: sa.Connection, plan: Plan, waited: float) -> None:
        values = [
            {"which": send.session_id, "content": send.payload, "age": send.age + waited}
            for _, send, _ in plan.sent
        ]
        ids = connection.execute(self._send, values).scalars()
        for (place, _, holder), message_id in zip(plan.sent, ids, strict=True):
            plan.answers[place] = Sent(id=message_id, holder=holder)

    def _append_all(self, connection: sa.Connection, plan: Plan) -> None:
        values = [{"which": one.session_id, "content": one.event} for _, one in plan.appended]
        ids = connection.execute(self._append, values).scalars()
        for (place, _), entry_id in zip(plan.appended, ids, strict=True):
            plan.answers[place] = entry_id
        trims = [
            {"which": one.session_id, "keep": one.keep}
            for _, one in plan.appended
            if one.keep is not None
        ]
        if trims:
            connection.execute(self._trim, trims)

    def _look_at_the_claimed(
        self, connection: sa.Connection, plan: Plan, dropped: Mapping[str, int]
    ) -> None:
        rows = self._rows(connection, [session_id for _, session_id, _ in plan.claimed])
        for place, session_id, outcome in plan.claimed:
            went = dropped[session_id] if outcome is Outcome.INSERTED else 0
            plan.answers[place] = claimed(rows[session_id], outcome, went)
