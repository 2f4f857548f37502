"""Adoptions: claims of sessions that somebody else holds until now, and is named.

A chain of its own, much shorter than that of claims: nothing is inserted, nobody's messages go,
and who asks for none pays for none.
"""

from trio_sessions.stores.database.postgresql._claims import (
    CLAIM,
    TAKEN_AT,
    decode_claim,
    encode_claim,
    is_ahead,
    revoked_cte,
)
from trio_sessions.stores.database.postgresql._doubt import DOUBT
from trio_sessions.stores.database.postgresql._kinds import OWN, Kind, Names, asked, born, own
from trio_sessions.writes import Outcome

__all__ = ["ADOPTIONS"]

_NOT_ADOPTED = Outcome.NOT_ADOPTED.value


def _adoptions(names: Names) -> str:
    """Return the CTEs that lock rows, and take over those held by whom the adoption names.

    Where the database is in doubt nothing is even locked: the row may be an older copy.
    """
    return f"""{asked(names, "adoptions", f"{CLAIM}, only_from text")},
        {revoked_cte(names, "adoption", "adoptions")}, adoption_locks AS MATERIALIZED (
            SELECT s.session_id, s.worker_id, s.incarnation, s.generation
            FROM {names.sessions} AS s
            WHERE s.session_id = ANY (ARRAY(
                SELECT id FROM adoptions WHERE there AND id NOT IN (SELECT id FROM adoption_revoked)
            )) AND NOT {DOUBT}
            ORDER BY s.session_id FOR UPDATE SKIP LOCKED
        ), adoption_found AS MATERIALIZED (
            SELECT c.*, CASE
                    WHEN {own("l")} THEN CASE
                        WHEN l.generation = c.generation AND l.generation > c.ended THEN 'kept'
                        ELSE '{_NOT_ADOPTED}' END
                    WHEN c.only_from IN (l.worker_id, l.incarnation) THEN 'taken over'
                    ELSE '{_NOT_ADOPTED}'
                END AS outcome
            FROM adoptions AS c JOIN adoption_locks AS l ON l.session_id = c.id
        ), adopted AS (
            UPDATE {names.sessions} AS s SET
                worker_id = {OWN["worker_id"]},
                incarnation = {OWN["incarnation"]},
                generation = c.generation,
                owner = CASE WHEN c.says THEN c.owner ELSE s.owner END,
                capabilities = coalesce(c.capabilities, s.capabilities),
                elicitation = CASE
                    WHEN c.capabilities IS NULL THEN s.elicitation ELSE c.elicitation END,
                data = CASE WHEN c.brings THEN c.data ELSE s.data END,
                taken_at = CASE
                    WHEN {is_ahead("s")} THEN {TAKEN_AT}
                    ELSE greatest(s.taken_at, {TAKEN_AT}) END,
                last_accessed = clock_timestamp()
            FROM adoption_found AS c
            WHERE s.session_id = c.id AND c.outcome <> '{_NOT_ADOPTED}'
            RETURNING s.session_id, s.owner, s.capabilities, s.elicitation, s.data,
                {born("s")} AS born
        )"""


def _answers(names: Names) -> str:
    return f"""
        SELECT 'adoptions', c.n,
            CASE WHEN c.id IN (SELECT id FROM adoption_revoked) THEN 'revoked'
                WHEN {DOUBT} THEN 'doubtful'
                WHEN NOT c.there OR f.outcome = '{_NOT_ADOPTED}' THEN '{_NOT_ADOPTED}'
                WHEN a.session_id IS NOT NULL THEN f.outcome
                ELSE 'locked' END,
            NULL, NULL, a.owner, a.capabilities, a.elicitation, a.born, 0, a.data
        FROM adoptions AS c
        LEFT JOIN adoption_found AS f ON f.n = c.n
        LEFT JOIN adopted AS a ON a.session_id = c.id"""


ADOPTIONS = Kind(
    name="adoptions",
    writes=(),  # they are claims, that name somebody
    ctes=_adoptions,
    writing=("adopted",),
    answers=_answers,
    tells_data=True,
    encode=lambda claim: {**encode_claim(claim), "only_from": claim.only_from},
    decode=decode_claim,
)
