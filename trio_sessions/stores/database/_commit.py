"""A batch in portable SQL: one transaction that has the rows to itself.

Nothing here assumes RETURNING, SKIP LOCKED or cascades; a database that knows them does it
better. One select reads the rows of all writes and locks them, Python decides, and the rest
carries it out. What was decided is still true then, because nobody else writes meanwhile.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.stores.database._clock import age_of, ago, now
from trio_sessions.stores.database._schema import Tables
from trio_sessions.types import Capabilities, Holder, Sent
from trio_sessions.writes import (
    Acknowledge,
    Answer,
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Committed,
    Delete,
    Keep,
    Outcome,
    Send,
    SetCapabilities,
    SetOwner,
)

__all__ = ["Commit"]


@dataclass(slots=True)
class _Plan:
    """What is to be done, and what is to be answered."""

    answers: list[Answer]
    cleared: set[str] = field(default_factory=set)
    """Sessions whose messages go."""
    deleted: list[str] = field(default_factory=list)
    inserted: list[dict[str, Any]] = field(default_factory=list)
    updated: list[dict[str, Any]] = field(default_factory=list)
    owned: list[dict[str, Any]] = field(default_factory=list)
    able: list[dict[str, Any]] = field(default_factory=list)
    sent: list[tuple[int, Send, Holder]] = field(default_factory=list)
    acknowledged: list[dict[str, Any]] = field(default_factory=list)
    counted: list[tuple[int, str]] = field(default_factory=list)
    """Deletions, whose answer is the number of messages that went."""
    claimed: list[tuple[int, str, Outcome]] = field(default_factory=list)


class Commit:
    """Carries out batches on one set of tables.

    Args:
        tables: the tables.
        transaction: begins as a writer.
        among: returns "the column is one of the bind parameter session_ids".
        encode_ids: returns the value for that.
    """

    def __init__(
        self,
        tables: Tables,
        *,
        transaction: Callable[[sa.Connection], AbstractContextManager[None]],
        among: Callable[[sa.ColumnElement[str]], sa.ColumnElement[bool]],
        encode_ids: Callable[[Sequence[str]], Any],
    ) -> None:
        self._transaction = transaction
        self._encode_ids = encode_ids
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
                sa.type_coerce(sa.cast(row.created_at, sa.String), sa.String).label("born"),
                age_of(row.taken_at).label("taken"),
            )
            .where(among(row.session_id))
            .order_by(row.session_id)
            .with_for_update()
        )
        self._count = (
            sa.select(message.session_id, sa.func.count())
            .where(among(message.session_id))
            .group_by(message.session_id)
        )
        self._delete_messages = sa.delete(tables.messages).where(among(message.session_id))
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
                taken_at=sa.case((row.taken_at > taken_at, row.taken_at), else_=taken_at),
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
        self._send = (
            sa.insert(tables.messages)
            .values(
                session_id=which,
                payload=sa.bindparam("content"),
                created_at=ago(sa.bindparam("age", type_=sa.Float)),
            )
            .returning(message.id, sort_by_parameter_order=True)
        )
        self._acknowledge = sa.delete(tables.messages).where(
            message.id == sa.bindparam("message_id"), message.session_id == which
        )

    def __call__(
        self, connection: sa.Connection, worker: Worker, batch: Batch, waited: Callable[[], float]
    ) -> Committed:
        """Carry out a batch; ``waited`` returns the seconds since its ages were told."""
        if not batch.writes:
            return Committed(answers=())
        with self._transaction(connection):
            rows = self._rows(connection, [write.session_id for write in batch.writes])
            plan = _decide(worker, batch, rows, waited())
            self._carry_out(connection, plan)
        return Committed(answers=plan.answers)

    def _among(self, session_ids: Iterable[str]) -> dict[str, Any]:
        return {"session_ids": self._encode_ids(sorted(set(session_ids)))}

    def _rows(self, connection: sa.Connection, session_ids: Iterable[str]) -> dict[str, Any]:
        found = connection.execute(self._find, self._among(session_ids))
        return {row.session_id: row for row in found}

    def _carry_out(self, connection: sa.Connection, plan: _Plan) -> None:
        dropped = self._clear(connection, plan.cleared)
        if plan.deleted:
            connection.execute(self._delete, self._among(plan.deleted))
        for statement, values in (
            (self._insert, plan.inserted),
            (self._update, plan.updated),
            (self._set_owner, plan.owned),
            (self._set_capabilities, plan.able),
            (self._acknowledge, plan.acknowledged),
        ):
            if values:
                connection.execute(statement, values)
        for place, session_id in plan.counted:
            plan.answers[place] = dropped[session_id]
        if plan.sent:
            self._send_all(connection, plan)
        if plan.claimed:
            self._look_at_the_claimed(connection, plan, dropped)

    def _clear(self, connection: sa.Connection, session_ids: Iterable[str]) -> Counter[str]:
        """Delete the messages of sessions; return how many these were of each."""
        dropped: Counter[str] = Counter()
        if session_ids:
            among = self._among(session_ids)
            dropped.update({row[0]: row[1] for row in connection.execute(self._count, among)})
            if dropped:
                connection.execute(self._delete_messages, among)
        return dropped

    def _send_all(self, connection: sa.Connection, plan: _Plan) -> None:
        values = [
            {"which": send.session_id, "content": send.payload, "age": send.age}
            for _, send, _ in plan.sent
        ]
        ids = connection.execute(self._send, values).scalars()
        for (place, _, holder), message_id in zip(plan.sent, ids, strict=True):
            plan.answers[place] = Sent(id=message_id, holder=holder)

    def _look_at_the_claimed(
        self, connection: sa.Connection, plan: _Plan, dropped: Mapping[str, int]
    ) -> None:
        rows = self._rows(connection, [session_id for _, session_id, _ in plan.claimed])
        for place, session_id, outcome in plan.claimed:
            went = dropped[session_id] if outcome is Outcome.INSERTED else 0
            plan.answers[place] = _claimed(rows[session_id], outcome, went)


def _is_own(worker: Worker, row: Any) -> bool:
    return (row.worker_id, row.incarnation) == (worker.worker_id, worker.incarnation)


def _claimed(row: Any, outcome: Outcome, dropped: int) -> Claimed:
    capabilities = row.capabilities
    return Claimed(
        outcome=outcome,
        holder=_holder(row),
        capabilities=None
        if capabilities is None
        else Capabilities(encoded=capabilities, elicitation=row.elicitation),
        born=row.born,
        dropped=dropped,
    )


def _holder(row: Any) -> Holder:
    return Holder(worker_id=row.worker_id, incarnation=row.incarnation, owner=row.owner)


def _decide(worker: Worker, batch: Batch, rows: Mapping[str, Any], waited: float) -> _Plan:
    """Decide what a batch does to the rows that there are."""
    plan = _Plan(answers=[None] * len(batch.writes))
    for place, write in enumerate(batch.writes):
        row = rows.get(write.session_id)
        match write:
            case Claim():
                plan.claimed.append(
                    (place, write.session_id, _claim(plan, worker, write, row, waited))
                )
            case Delete():
                plan.counted.append((place, write.session_id))
                if row is not None and _is_own(worker, row) and row.generation <= write.up_to:
                    plan.cleared.add(write.session_id)
                    plan.deleted.append(write.session_id)
            case SetOwner() | ClaimOwner() | SetCapabilities() | Send():
                has_ended = row is None or (_is_own(worker, row) and row.generation <= write.ended)
                if not has_ended:
                    plan.answers[place] = _say(plan, worker, place, write, row)
            case Acknowledge():
                is_own = row is not None and _is_own(worker, row)
                plan.answers[place] = is_own
                if is_own:
                    plan.acknowledged += [
                        {"which": write.session_id, "message_id": one} for one in write.message_ids
                    ]
    return plan


def _claim(plan: _Plan, worker: Worker, claim: Claim, row: Any, waited: float) -> Outcome:
    age = claim.age + waited
    is_own = row is not None and _is_own(worker, row)
    if row is None or (is_own and row.generation <= claim.ended):
        outcome = Outcome.INSERTED
        # Who deletes a session by hand may leave its messages.
        plan.cleared.add(claim.session_id)
        if row is not None:
            plan.deleted.append(claim.session_id)
            row = None
    elif is_own:
        outcome = Outcome.KEPT
    elif row.taken < age:
        return Outcome.LOST
    else:
        outcome = Outcome.TAKEN_OVER
    values = {
        "which": claim.session_id,
        "worker_id": worker.worker_id,
        "incarnation": worker.incarnation,
        "generation": claim.generation,
        "age": age,
        "owner": None if row is None else row.owner,
        "capabilities": None if row is None else row.capabilities,
        "elicitation": row is not None and row.elicitation,
    }
    if is_own and row is not None and row.generation > claim.generation:
        # It comes late: a later generation of the session has been written.
        values |= {"generation": row.generation, "age": row.taken}
    else:
        if claim.owner is not Keep.OWNER:
            values["owner"] = claim.owner
        if claim.capabilities is not None:
            values["capabilities"] = claim.capabilities.encoded
            values["elicitation"] = claim.capabilities.elicitation
    (plan.inserted if outcome is Outcome.INSERTED else plan.updated).append(values)
    return outcome


def _say(
    plan: _Plan,
    worker: Worker,
    place: int,
    write: SetOwner | ClaimOwner | SetCapabilities | Send,
    row: Any,
) -> Answer:
    """Decide about what concerns a session that there is, whoever holds it."""
    holder = _holder(row)
    match write:
        case Send():
            if (write.born is None or write.born == row.born) and not (
                write.elsewhere and _is_own(worker, row)
            ):
                plan.sent.append((place, write, holder))
            return None  # or the id, when it has one
        case SetCapabilities():
            values = {
                "new_capabilities": write.capabilities.encoded,
                "new_elicitation": write.capabilities.elicitation,
            }
            plan.able.append({"which": write.session_id, **values})
            return holder
        case SetOwner() | ClaimOwner():
            keeps = isinstance(write, ClaimOwner) and row.owner is not None
            owner = row.owner if keeps else write.owner
            if owner != row.owner:
                plan.owned.append({"which": write.session_id, "new_owner": owner})
            return Holder(worker_id=row.worker_id, incarnation=row.incarnation, owner=owner)
