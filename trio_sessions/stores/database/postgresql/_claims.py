"""Claims and deletions."""

from typing import Any

from trio_sessions.abc import Worker
from trio_sessions.stores.database.postgresql._kinds import OWN, Kind, Names, asked, born, own
from trio_sessions.types import Capabilities, Holder
from trio_sessions.writes import Claim, Claimed, Delete, Keep, Outcome

__all__ = ["CLAIMS", "DELETIONS"]

_CLAIM = """
                generation bigint, age float8, ended bigint, says boolean, owner text,
                capabilities text, elicitation boolean"""
_TAKEN_AT = "(now() - make_interval(secs => c.age))"


def _claims(names: Names) -> str:
    """What is there is locked and updated, what is not is inserted.

    ``there`` and the lock are of one snapshot: what is there and cannot be locked is locked by
    somebody else, or was deleted just now. What is not there and cannot be inserted was
    inserted by somebody else just now. Both are to be asked again. ``late`` is a claim of an
    earlier generation than that of the row.
    """
    return f"""{asked(names, "claims", _CLAIM)}, claim_locks AS MATERIALIZED (
            SELECT s.* FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT id FROM claims WHERE there))
            ORDER BY s.session_id FOR UPDATE SKIP LOCKED
        ), claim_found AS MATERIALIZED (
            SELECT c.*, CASE
                    WHEN {own("l")} AND l.generation <= c.ended THEN 'inserted'
                    WHEN {own("l")} THEN 'kept'
                    WHEN l.taken_at <= {_TAKEN_AT} THEN 'taken over'
                    ELSE 'lost'
                END AS outcome,
                {own("l")} AND l.generation > c.generation AS late,
                l.worker_id AS held_by, l.incarnation AS held_as, l.owner AS owned_by,
                l.capabilities AS able, l.elicitation AS asked, {born("l")} AS born
            FROM claims AS c JOIN claim_locks AS l ON l.session_id = c.id
        ), claim_drops AS (
            DELETE FROM {names.messages} AS m USING claim_found AS c
            WHERE m.session_id = c.id AND c.outcome = 'inserted'
            RETURNING m.session_id
        ), claim_updates AS (
            UPDATE {names.sessions} AS s SET
                worker_id = {OWN["worker_id"]},
                incarnation = {OWN["incarnation"]},
                generation = CASE WHEN c.late THEN s.generation ELSE c.generation END,
                owner = CASE
                    WHEN c.says AND NOT c.late THEN c.owner
                    WHEN c.outcome <> 'inserted' THEN s.owner END,
                capabilities = CASE
                    WHEN c.capabilities IS NOT NULL AND NOT c.late THEN c.capabilities
                    WHEN c.outcome <> 'inserted' THEN s.capabilities END,
                elicitation = CASE
                    WHEN c.capabilities IS NOT NULL AND NOT c.late THEN c.elicitation
                    WHEN c.outcome <> 'inserted' THEN s.elicitation ELSE false END,
                created_at = CASE
                    WHEN c.outcome = 'inserted' THEN clock_timestamp() ELSE s.created_at END,
                taken_at = CASE
                    WHEN c.outcome = 'inserted' THEN {_TAKEN_AT}
                    WHEN c.late THEN s.taken_at ELSE greatest(s.taken_at, {_TAKEN_AT}) END,
                last_accessed = clock_timestamp()
            FROM claim_found AS c
            WHERE s.session_id = c.id AND c.outcome <> 'lost'
            RETURNING s.session_id, s.owner, s.capabilities, s.elicitation, {born("s")} AS born
        ), claim_inserts AS (
            INSERT INTO {names.sessions} AS s (
                session_id, worker_id, incarnation, generation, owner, capabilities,
                elicitation, created_at, taken_at, last_accessed
            )
            SELECT c.id, {OWN["worker_id"]}, {OWN["incarnation"]}, c.generation, c.owner,
                c.capabilities, c.elicitation, clock_timestamp(), {_TAKEN_AT}, clock_timestamp()
            FROM claims AS c WHERE NOT c.there ORDER BY c.id
            ON CONFLICT (session_id) DO NOTHING
            RETURNING s.session_id, s.owner, s.capabilities, s.elicitation, {born("s")} AS born
        )"""


def _claim_answers(names: Names) -> str:
    return """
        SELECT 'claims', c.n,
            CASE WHEN i.session_id IS NOT NULL THEN 'inserted'
                WHEN u.session_id IS NOT NULL OR f.outcome = 'lost' THEN f.outcome
                ELSE 'locked' END,
            f.held_by, f.held_as,
            CASE WHEN f.outcome = 'lost' THEN f.owned_by ELSE coalesce(i.owner, u.owner) END,
            CASE WHEN f.outcome = 'lost' THEN f.able
                ELSE coalesce(i.capabilities, u.capabilities) END,
            CASE WHEN f.outcome = 'lost' THEN f.asked
                ELSE coalesce(i.elicitation, u.elicitation) END,
            CASE WHEN f.outcome = 'lost' THEN f.born ELSE coalesce(i.born, u.born) END,
            CASE WHEN f.outcome = 'inserted' THEN
                (SELECT count(*) FROM claim_drops AS d WHERE d.session_id = c.id) ELSE 0 END
        FROM claims AS c
        LEFT JOIN claim_found AS f ON f.n = c.n
        LEFT JOIN claim_updates AS u ON u.session_id = c.id
        LEFT JOIN claim_inserts AS i ON i.session_id = c.id"""


def _encode_claim(claim: Claim) -> dict[str, Any]:
    capabilities = claim.capabilities
    says = claim.owner is not Keep.OWNER
    return {
        "id": claim.session_id,
        "generation": claim.generation,
        "age": claim.age,
        "ended": claim.ended,
        "says": says,
        "owner": claim.owner if says else None,
        "capabilities": None if capabilities is None else capabilities.encoded,
        "elicitation": capabilities is not None and capabilities.elicitation,
    }


def _decode_claim(worker: Worker, row: Any) -> Claimed:
    outcome = Outcome(row.state)
    is_lost = outcome is Outcome.LOST
    return Claimed(
        outcome=outcome,
        holder=Holder(
            worker_id=row.worker_id if is_lost else worker.worker_id,
            incarnation=row.incarnation if is_lost else worker.incarnation,
            owner=row.owner,
        ),
        capabilities=None
        if row.capabilities is None
        else Capabilities(encoded=row.capabilities, elicitation=row.elicitation),
        born=row.born,
        dropped=row.number,
    )


CLAIMS = Kind(
    name="claims",
    writes=(Claim,),
    ctes=_claims,
    answers=_claim_answers,
    encode=_encode_claim,
    decode=_decode_claim,
)


def _deletions(names: Names) -> str:
    """Their messages go by the foreign key, and are counted by the snapshot before."""
    mine = f"{own('s')} AND s.generation <= d.up_to"
    there = "t.mine AND t.generation <= a.up_to"
    return f"""{asked(names, "deletions", "up_to bigint", there=there)},
        deletion_locks AS MATERIALIZED (
            SELECT s.session_id FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT id FROM deletions WHERE there))
            ORDER BY s.session_id FOR UPDATE SKIP LOCKED
        ), deleted AS (
            DELETE FROM {names.sessions} AS s
            USING deletions AS d JOIN deletion_locks AS l ON l.session_id = d.id
            WHERE s.session_id = d.id AND {mine}
            RETURNING s.session_id
        )"""


def _deletion_answers(names: Names) -> str:
    return f"""
        SELECT 'deletions', d.n,
            CASE WHEN d.there AND gone.session_id IS NULL THEN 'locked' ELSE 'done' END,
            NULL, NULL, NULL, NULL, false, NULL,
            (SELECT count(*) FROM {names.messages} AS m WHERE m.session_id = gone.session_id)
        FROM deletions AS d LEFT JOIN deleted AS gone ON gone.session_id = d.id"""


DELETIONS = Kind(
    name="deletions",
    writes=(Delete,),
    ctes=_deletions,
    answers=_deletion_answers,
    encode=lambda write: {"id": write.session_id, "up_to": write.up_to},
    decode=lambda _, row: int(row.number),
)
