"""Claims and deletions, as CTEs of the one statement that commits a batch.

No row is waited for, what an ended session has left goes in pieces and before its row, and the
newest connection wins. See docs/decisions/0009-one-writer.md; 0012-operate.md for revoked ids and
the limit of an owner.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from trio_sessions.abc import Worker
from trio_sessions.stores._crowds import is_limited
from trio_sessions.stores._pieces import ENTRIES, PIECE
from trio_sessions.stores._refusals import REFUSALS
from trio_sessions.stores.database.postgresql._crowds import let_in, many_cte
from trio_sessions.stores.database.postgresql._kinds import (
    BUSY,
    OWN,
    UNFINISHED,
    Kind,
    Names,
    asked,
    born,
    limited_to,
    own,
)
from trio_sessions.types import Capabilities, Holder
from trio_sessions.writes import Claim, Claimed, Delete, Keep, Outcome, Unfinished

__all__ = [
    "CLAIM",
    "CLAIMS",
    "DELETIONS",
    "LIMITED_CLAIMS",
    "TAKEN_AT",
    "decode_claim",
    "encode_claim",
    "is_ahead",
    "revoked_cte",
]

CLAIM = """
                generation bigint, age float8, ended bigint, says boolean, owner text,
                capabilities text, elicitation boolean, brings boolean, data text, most integer"""
"""What a claim has besides ``n`` and ``id``, as `asked` reads it."""
TAKEN_AT = "(now() - make_interval(secs => c.age))"
"""When the session of a claim, ``c``, was added."""


def is_ahead(alias: str) -> str:
    """Return "a row was taken in the future": the clock was set back."""
    return f"{alias}.taken_at > clock_timestamp()"


def revoked_cte(names: Names, name: str, claims: str) -> str:
    """Return the CTE ``<name>_revoked``: the ids that are refused, of the CTE ``claims``."""
    return f"""{name}_revoked AS MATERIALIZED (
            SELECT r.session_id AS id FROM {names.revoked} AS r
            WHERE r.session_id = ANY (ARRAY(SELECT id FROM {claims}))
                AND r.until > clock_timestamp()
        )"""


def _drops(names: Names, name: str, ended: str, condition: str = "true") -> str:
    """Return CTEs that delete messages and logs of sessions that have ended, so many at a time.

    ``<name>_drops`` says how many messages, ``<name>_left`` which sessions have more of either,
    and must wait; ``<name>_advances`` whether anything went. The looks for more cost nothing as
    long as all have gone.

    Args:
        names: the names of our tables.
        name: what the names of the CTEs begin with.
        ended: the CTE of the sessions, locked; the column is ``id``.
        condition: which of its rows, ``e``, are meant.
    """
    lines = PIECE * ENTRIES

    def oldest(table: str, number: int) -> str:
        return f"""SELECT oldest.id FROM {ended} AS e CROSS JOIN LATERAL (
                SELECT m.id FROM {table} AS m
                WHERE m.session_id = e.id ORDER BY m.id {limited_to(number)}
            ) AS oldest
            WHERE {condition} LIMIT {number}"""

    def is_more(table: str, found: str, number: int) -> str:
        return f"""(SELECT count(*) FROM {found}) >= {number} AND (
                    SELECT m.id FROM {table} AS m
                    WHERE m.session_id = e.id AND m.id NOT IN (SELECT d.id FROM {found} AS d)
                    ORDER BY m.id LIMIT 1
                ) IS NOT NULL"""

    return f"""{name}_doomed AS MATERIALIZED (
            {oldest(names.messages, PIECE)}
        ), {name}_dropped AS (
            DELETE FROM {names.messages} AS m
            WHERE m.id = ANY (ARRAY(SELECT d.id FROM {name}_doomed AS d))
            RETURNING m.session_id
        ), {name}_drops AS MATERIALIZED (
            SELECT d.session_id AS id, count(*) AS number FROM {name}_dropped AS d GROUP BY 1
        ), {name}_lines AS MATERIALIZED (
            {oldest(names.logs, lines)}
        ), {name}_unlogged AS (
            DELETE FROM {names.logs} AS m
            WHERE m.id = ANY (ARRAY(SELECT d.id FROM {name}_lines AS d))
            RETURNING m.id
        ), {name}_left AS MATERIALIZED (
            SELECT e.id FROM {ended} AS e
            WHERE {condition} AND (
                {is_more(names.messages, f"{name}_doomed", PIECE)}
                OR {is_more(names.logs, f"{name}_lines", lines)}
            )
        ), {name}_advances AS MATERIALIZED (
            SELECT EXISTS (SELECT FROM {name}_dropped) OR EXISTS (SELECT FROM {name}_unlogged)
                AS holds
        )"""


_LET_IN = f" AND {let_in('id')}"


def _claims(names: Names, *, limited: bool = False) -> str:
    """Return the CTEs that lock and update the rows that are there, and insert the others.

    ``there`` and the lock are of one snapshot: what is there and cannot be locked is locked by
    somebody else, or was deleted just now. What is not there and cannot be inserted was
    inserted by somebody else just now. Both are to be asked again. ``late`` is a claim of an
    earlier generation than that of the row. A revoked id is refused before anything is locked.

    ``unready`` is a row of an ended session that the statement before could not lock: what was
    stored for that since is not in this snapshot, and would be the new session's.
    """
    return f"""{asked(names, "claims", CLAIM)}, {revoked_cte(names, "claim", "claims")},
        {many_cte(names) if limited else ""} claim_unready AS MATERIALIZED (
            SELECT a.id FROM claims_asked AS a JOIN claims_there AS t ON t.session_id = a.id
            WHERE t.mine AND t.generation <= a.ended
                AND t.locker IS DISTINCT FROM CAST(pg_current_xact_id_if_assigned() AS xid)
        ), claim_locks AS MATERIALIZED (
            SELECT s.* FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(
                SELECT id FROM claims
                WHERE there AND id NOT IN (SELECT id FROM claim_revoked)
                    AND id NOT IN (SELECT id FROM claim_unready){_LET_IN if limited else ""}
            ))
            ORDER BY s.session_id FOR UPDATE SKIP LOCKED
        ), claim_found AS MATERIALIZED (
            SELECT c.*, CASE
                    WHEN {own("l")} AND l.generation <= c.ended THEN 'inserted'
                    WHEN {own("l")} THEN 'kept'
                    WHEN l.taken_at <= {TAKEN_AT} OR {is_ahead("l")} THEN 'taken over'
                    ELSE 'lost'
                END AS outcome,
                {own("l")} AND l.generation > c.generation AS late,
                l.worker_id AS held_by, l.incarnation AS held_as, l.owner AS owned_by,
                l.capabilities AS able, l.elicitation AS asked, l.data AS described,
                {born("l")} AS born
            FROM claims AS c JOIN claim_locks AS l ON l.session_id = c.id
        ), {_drops(names, "claim", "claim_found", "e.outcome = 'inserted'")}, claim_updates AS (
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
                data = CASE
                    WHEN c.brings AND NOT c.late THEN c.data
                    WHEN c.outcome <> 'inserted' THEN s.data END,
                created_at = CASE
                    WHEN c.outcome = 'inserted' THEN clock_timestamp() ELSE s.created_at END,
                taken_at = CASE
                    WHEN c.outcome = 'inserted' THEN {TAKEN_AT}
                    WHEN c.late THEN least(s.taken_at, clock_timestamp())
                    WHEN {is_ahead("s")} THEN {TAKEN_AT}
                    ELSE greatest(s.taken_at, {TAKEN_AT}) END,
                last_accessed = clock_timestamp()
            FROM claim_found AS c
            WHERE s.session_id = c.id AND c.outcome <> 'lost'
                AND NOT EXISTS (SELECT FROM claim_left AS x WHERE x.id = c.id)
            RETURNING s.session_id, s.owner, s.capabilities, s.elicitation, s.data,
                {born("s")} AS born
        ), claim_inserts AS (
            INSERT INTO {names.sessions} AS s (
                session_id, worker_id, incarnation, generation, owner, capabilities,
                elicitation, data, created_at, taken_at, last_accessed
            )
            SELECT c.id, {OWN["worker_id"]}, {OWN["incarnation"]}, c.generation, c.owner,
                c.capabilities, c.elicitation, c.data, clock_timestamp(), {TAKEN_AT},
                clock_timestamp()
            FROM claims AS c
            WHERE NOT c.there
                AND id NOT IN (SELECT id FROM claim_revoked){_LET_IN if limited else ""}
            ORDER BY c.id
            ON CONFLICT (session_id) DO NOTHING
            RETURNING s.session_id, s.owner, s.capabilities, s.elicitation, s.data,
                {born("s")} AS born
        )"""


def _claim_answers(names: Names, *, limited: bool = False) -> str:
    too_many = f"""WHEN c.id IN (SELECT id FROM claim_many) THEN '{Outcome.TOO_MANY.value}'
                WHEN c.id IN (SELECT id FROM claim_busy) THEN '{BUSY}'"""
    return f"""
        SELECT 'claims', c.n,
            CASE WHEN c.id IN (SELECT id FROM claim_revoked) THEN 'revoked'
                {too_many if limited else ""}
                WHEN x.id IS NOT NULL AND (SELECT holds FROM claim_advances) THEN 'unfinished'
                WHEN i.session_id IS NOT NULL THEN 'inserted'
                WHEN u.session_id IS NOT NULL OR f.outcome = 'lost' THEN f.outcome
                ELSE 'locked' END,
            f.held_by, f.held_as,
            CASE WHEN f.outcome = 'lost' THEN f.owned_by ELSE coalesce(i.owner, u.owner) END,
            CASE WHEN f.outcome = 'lost' THEN f.able
                ELSE coalesce(i.capabilities, u.capabilities) END,
            CASE WHEN f.outcome = 'lost' THEN f.asked
                ELSE coalesce(i.elicitation, u.elicitation) END,
            CASE WHEN f.outcome = 'lost' THEN f.born ELSE coalesce(i.born, u.born) END,
            coalesce(d.number, 0),
            CASE WHEN f.outcome = 'lost' THEN f.described ELSE coalesce(i.data, u.data) END
        FROM claims AS c
        LEFT JOIN claim_drops AS d ON d.id = c.id
        LEFT JOIN claim_left AS x ON x.id = c.id
        LEFT JOIN claim_found AS f ON f.n = c.n
        LEFT JOIN claim_updates AS u ON u.session_id = c.id
        LEFT JOIN claim_inserts AS i ON i.session_id = c.id"""


def encode_claim(claim: Claim) -> dict[str, Any]:
    """Return a claim for the parameter."""
    capabilities = claim.capabilities
    says = claim.owner is not Keep.AS_IS
    brings = claim.data is not Keep.AS_IS
    return {
        "id": claim.session_id,
        "generation": claim.generation,
        "age": claim.age,
        "ended": claim.ended,
        "says": says,
        "owner": claim.owner if says else None,
        "capabilities": None if capabilities is None else capabilities.encoded,
        "elicitation": capabilities is not None and capabilities.elicitation,
        "brings": brings,
        "data": claim.data if brings else None,
        "most": claim.most_of_owner if is_limited(claim) else None,
    }


def decode_claim(worker: Worker, row: Any) -> Claimed | Unfinished:
    """Return the answer to a claim."""
    if row.state == UNFINISHED:
        return Unfinished(dropped=row.number)
    outcome = Outcome(row.state)
    if outcome in REFUSALS:
        return REFUSALS[outcome]
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
        data=row.data,
        born=row.born,
        dropped=row.number,
    )


CLAIMS = Kind(
    name="claims",
    writes=(Claim,),
    ctes=_claims,
    writing=("claim_dropped", "claim_unlogged", "claim_updates", "claim_inserts"),
    answers=_claim_answers,
    tells_data=True,
    encode=encode_claim,
    decode=decode_claim,
)


LIMITED_CLAIMS = replace(
    CLAIMS, ctes=partial(_claims, limited=True), answers=partial(_claim_answers, limited=True)
)
"""The same, where one of them may be refused for its owner has too many sessions."""


def _deletions(names: Names) -> str:
    """Return the CTEs of deletions.

    Messages and logs go first; what came since the snapshot goes by the foreign key.
    """
    mine = f"{own('s')} AND s.generation <= d.up_to"
    there = "t.mine AND t.generation <= a.up_to"
    return f"""{asked(names, "deletions", "up_to bigint", there=there)},
        deletion_locks AS MATERIALIZED (
            SELECT s.session_id, s.worker_id, s.incarnation, s.generation
            FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(SELECT id FROM deletions WHERE there))
            ORDER BY s.session_id FOR UPDATE SKIP LOCKED
        ), deletion_mine AS MATERIALIZED (
            SELECT d.id FROM deletions AS d JOIN deletion_locks AS s ON s.session_id = d.id
            WHERE {mine}
        ), {_drops(names, "deletion", "deletion_mine")}, deleted AS (
            DELETE FROM {names.sessions} AS s
            USING deletions AS d JOIN deletion_locks AS l ON l.session_id = d.id
            WHERE s.session_id = d.id AND {mine}
                AND NOT EXISTS (SELECT FROM deletion_left AS x WHERE x.id = d.id)
            RETURNING s.session_id
        )"""


def _deletion_answers(names: Names) -> str:
    return """
        SELECT 'deletions', d.n,
            CASE WHEN gone.session_id IS NULL AND c.number > 0
                    OR x.id IS NOT NULL AND (SELECT holds FROM deletion_advances) THEN 'unfinished'
                WHEN d.there AND gone.session_id IS NULL THEN 'locked' ELSE 'done' END,
            NULL, NULL, NULL, NULL, false, NULL, coalesce(c.number, 0)
        FROM deletions AS d
        LEFT JOIN deleted AS gone ON gone.session_id = d.id
        LEFT JOIN deletion_drops AS c ON c.id = d.id
        LEFT JOIN deletion_left AS x ON x.id = d.id"""


def _decode_deletion(worker: Worker, row: Any) -> int | Unfinished:
    return Unfinished(dropped=row.number) if row.state == UNFINISHED else int(row.number)


DELETIONS = Kind(
    name="deletions",
    writes=(Delete,),
    ctes=_deletions,
    writing=("deletion_dropped", "deletion_unlogged", "deleted"),
    answers=_deletion_answers,
    encode=lambda write: {"id": write.session_id, "up_to": write.up_to},
    decode=_decode_deletion,
)
