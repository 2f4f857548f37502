"""What a batch does to the rows that there are: decided, not yet done."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from trio_sessions.abc import Worker
from trio_sessions.stores._adoption import adopts, is_of_whom_it_names
from trio_sessions.stores._crowds import Crowds, is_limited
from trio_sessions.stores._doubt import doubtful
from trio_sessions.stores._refusals import REFUSALS
from trio_sessions.types import Capabilities, Holder
from trio_sessions.writes import (
    Acknowledge,
    Answer,
    Append,
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Delete,
    Differs,
    Keep,
    Outcome,
    Post,
    Send,
    SetCapabilities,
    SetData,
    SetOwner,
    Unfinished,
    Write,
)

__all__ = ["Plan", "claimed", "decide", "has_ended", "rests_on_absence"]


@dataclass(slots=True)
class Plan:
    """The plan of a batch: what is to be done, and what is to be answered."""

    answers: list[Answer]
    cleared: set[str] = field(default_factory=set)
    """Sessions whose messages and logs go."""
    deleted: list[str] = field(default_factory=list)
    inserted: list[dict[str, Any]] = field(default_factory=list)
    updated: list[dict[str, Any]] = field(default_factory=list)
    owned: list[dict[str, Any]] = field(default_factory=list)
    able: list[dict[str, Any]] = field(default_factory=list)
    described: list[dict[str, Any]] = field(default_factory=list)
    sent: list[tuple[int, Send, Holder]] = field(default_factory=list)
    posted: list[tuple[int, Post]] = field(default_factory=list)
    """Letters, which rest on no row of a session."""
    appended: list[tuple[int, Append]] = field(default_factory=list)
    acknowledged: list[dict[str, Any]] = field(default_factory=list)
    counted: list[tuple[int, str]] = field(default_factory=list)
    """Deletions, whose answer is the number of messages that went."""
    claimed: list[tuple[int, str, Outcome]] = field(default_factory=list)

    def put_off(self, session_ids: Collection[str], dropped: Mapping[str, int]) -> None:
        """Take out what would be done to sessions of which something must go first.

        Args:
            session_ids: the sessions.
            dropped: how many messages of each were deleted.
        """
        self.deleted = [one for one in self.deleted if one not in session_ids]
        self.inserted = [one for one in self.inserted if one["which"] not in session_ids]
        places = [(place, one) for place, one in self.counted if one in session_ids]
        places += [(place, one) for place, one, _ in self.claimed if one in session_ids]
        self.counted = [one for one in self.counted if one[1] not in session_ids]
        self.claimed = [one for one in self.claimed if one[1] not in session_ids]
        for place, session_id in places:
            self.answers[place] = Unfinished(dropped=dropped.get(session_id, 0))

    def grow_older(self, seconds: float) -> None:
        """Add the time that has passed since the decision to the ages of claims."""
        for values in (*self.inserted, *self.updated):
            values["age"] += seconds


def is_held_by(worker: Worker, row: Any) -> bool:
    """Say whether this incarnation holds a row."""
    return (row.worker_id, row.incarnation) == (worker.worker_id, worker.incarnation)


def claimed(row: Any, outcome: Outcome, dropped: int) -> Claimed:
    """Return the answer to a claim, of the row as it stands after it."""
    capabilities = row.capabilities
    return Claimed(
        outcome=outcome,
        holder=_holder(row),
        capabilities=None
        if capabilities is None
        else Capabilities(encoded=capabilities, elicitation=row.elicitation),
        data=row.data,
        born=row.born,
        dropped=dropped,
    )


def _holder(row: Any) -> Holder:
    return Holder(worker_id=row.worker_id, incarnation=row.incarnation, owner=row.owner)


def rests_on_absence(worker: Worker, write: Write[object], row: Any) -> bool:
    """Say whether the answer to a write would rest on what is not there, or on an older copy.

    Args:
        worker: whose write it is.
        write: the write.
        row: that of its session, if there is one.
    """
    if adopts(write):
        return True
    if not isinstance(write, SetOwner | ClaimOwner | SetCapabilities | SetData | Send | Append):
        return False
    if row is None:
        return True
    # Who writes the row anew may still have to say who owns the session.
    return isinstance(write, ClaimOwner) and row.owner is None and not is_held_by(worker, row)


def decide(
    worker: Worker,
    batch: Batch,
    rows: Mapping[str, Any],
    waited: float,
    *,
    revoked: Collection[str],
    crowds: Crowds,
    in_doubt: bool,
) -> Plan:
    """Decide what a batch does to the rows that there are.

    Args:
        worker: whose batch it is.
        batch: the batch.
        rows: the rows by session id.
        waited: seconds since the ages were told that are in the batch.
        revoked: ids that no claim may bring back.
        crowds: of the owners that a claim may be refused for.
        in_doubt: what is not there may have been forgotten.
    """
    plan = Plan(answers=[None] * len(batch.writes), posted=list(batch.of(Post)))
    for place, write in enumerate(batch.writes):
        row = rows.get(write.session_id)
        refusal = _refusal(worker, write, row, revoked, crowds, in_doubt=in_doubt)
        if refusal is not None:
            plan.answers[place] = refusal
            continue
        match write:
            case Claim():
                plan.claimed.append(
                    (place, write.session_id, _claim(plan, worker, write, row, waited))
                )
            case Delete():
                plan.counted.append((place, write.session_id))
                if row is not None and is_held_by(worker, row) and row.generation <= write.up_to:
                    plan.cleared.add(write.session_id)
                    plan.deleted.append(write.session_id)
            case SetOwner() | ClaimOwner() | SetCapabilities() | SetData() | Send() | Append():
                if row is not None and not has_ended(worker, row, write.ended):
                    plan.answers[place] = _say(plan, worker, place, write, row)
            case Acknowledge():
                is_own = row is not None and is_held_by(worker, row)
                plan.answers[place] = is_own
                if is_own:
                    plan.acknowledged += [
                        {"which": write.session_id, "message_id": one} for one in write.message_ids
                    ]
    return plan


def _refusal(
    worker: Worker,
    write: Write[object],
    row: Any,
    revoked: Collection[str],
    crowds: Crowds,
    *,
    in_doubt: bool,
) -> Answer:
    """Return the answer to a write that may not be done whatever its row is; else None."""
    if isinstance(write, Claim) and write.session_id in revoked:
        return REFUSALS[Outcome.REVOKED]
    if in_doubt and rests_on_absence(worker, write, row):
        return doubtful()
    if isinstance(write, Claim) and write.only_from is not None:
        return None if _may_adopt(worker, write, row) else REFUSALS[Outcome.NOT_ADOPTED]
    if isinstance(write, Claim) and is_limited(write):
        has_already = row is not None and row.owner == write.owner
        has_already = has_already and not has_ended(worker, row, write.ended)
        if not crowds.let_in(write, has_already=has_already):
            return REFUSALS[Outcome.TOO_MANY]
    return None


def has_ended(worker: Worker, row: Any, ended: int) -> bool:
    """Say whether a row is what a session that has ended here has left."""
    return is_held_by(worker, row) and bool(row.generation <= ended)


def _may_adopt(worker: Worker, claim: Claim, row: Any) -> bool:
    if row is None:
        return False
    if is_held_by(worker, row):
        return bool(claim.ended < row.generation == claim.generation)
    return is_of_whom_it_names(claim, worker_id=row.worker_id, incarnation=row.incarnation)


def _claim(plan: Plan, worker: Worker, claim: Claim, row: Any, waited: float) -> Outcome:
    """Decide about a claim; its answer is the row, once it is written."""
    age = claim.age + waited
    is_own = row is not None and is_held_by(worker, row)
    if row is None or (is_own and row.generation <= claim.ended):
        outcome = Outcome.INSERTED
        # Who deletes a session by hand may leave its messages.
        plan.cleared.add(claim.session_id)
        if row is not None:
            plan.deleted.append(claim.session_id)
            row = None
    elif is_own:
        outcome = Outcome.KEPT
    elif not row.taken_ahead and row.taken < age and claim.only_from is None:
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
        "data": None if row is None else row.data,
    }
    if is_own and row is not None and row.generation > claim.generation:
        # It comes late: a later generation of the session has been written.
        values |= {"generation": row.generation, "age": max(row.taken, 0.0)}
    else:
        if claim.owner is not Keep.AS_IS:
            values["owner"] = claim.owner
        if claim.capabilities is not None:
            values["capabilities"] = claim.capabilities.encoded
            values["elicitation"] = claim.capabilities.elicitation
        if claim.data is not Keep.AS_IS:
            values["data"] = claim.data
    (plan.inserted if outcome is Outcome.INSERTED else plan.updated).append(values)
    return outcome


def _say(
    plan: Plan,
    worker: Worker,
    place: int,
    write: SetOwner | ClaimOwner | SetCapabilities | SetData | Send | Append,
    row: Any,
) -> Answer:
    """Decide about what concerns a session that there is, whoever holds it."""
    holder = _holder(row)
    match write:
        case Send():
            if (write.born is None or write.born == row.born) and not (
                write.elsewhere and is_held_by(worker, row)
            ):
                plan.sent.append((place, write, holder))
            return None  # or the id, when it has one
        case Append():
            if write.born is None or write.born == row.born:
                plan.appended.append((place, write))
            return None  # or the id
        case SetCapabilities():
            values = {
                "new_capabilities": write.capabilities.encoded,
                "new_elicitation": write.capabilities.elicitation,
            }
            plan.able.append({"which": write.session_id, **values})
            return holder
        case SetData():
            if write.only_if is not Keep.AS_IS and write.only_if != row.data:
                return Differs(data=row.data)
            plan.described.append({"which": write.session_id, "new_data": write.data})
            return holder
        case SetOwner() | ClaimOwner():
            keeps = isinstance(write, ClaimOwner) and row.owner is not None
            owner = row.owner if keeps else write.owner
            if owner != row.owner:
                plan.owned.append({"which": write.session_id, "new_owner": owner})
            return Holder(worker_id=row.worker_id, incarnation=row.incarnation, owner=owner)
