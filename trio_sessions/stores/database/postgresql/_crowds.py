"""Claims that are refused because their owner has as many sessions as it may.

To count and to write is one step only if nobody else writes such a claim meanwhile: a lock for each
owner comes first, in a statement of its own, so that the count is of a snapshot that was taken when
the lock was there. Batches without such claims know nothing of it.
"""

from functools import lru_cache

from trio_sessions.stores.database.postgresql._kinds import Names, own

__all__ = ["lock_owners", "many_cte"]


@lru_cache
def lock_owners(names: Names) -> str:
    """Return the statement that locks the owners of a batch, in one order everywhere."""
    return f"""
        SELECT CAST(pg_advisory_xact_lock(owners.key) AS text) FROM (
            SELECT DISTINCT hashtextextended('{names.sessions} ' || c.owner, 0) AS key
            FROM json_to_recordset(CAST(%(claims)s AS json)) AS c(owner text, most integer)
            WHERE c.most IS NOT NULL ORDER BY 1
        ) AS owners"""


def many_cte(names: Names) -> str:
    """Return the CTEs that say whose claims are refused: ``claim_many``.

    What an owner has already comes first, for it is no further session; the others in their order,
    as long as there is room.
    """
    return f"""claim_limits AS MATERIALIZED (
            SELECT c.n, c.id, c.owner, c.most, EXISTS (
                SELECT FROM {names.sessions} AS s
                WHERE s.session_id = c.id AND s.owner = c.owner
                    AND NOT ({own("s")} AND s.generation <= c.ended)
            ) AS has
            FROM claims AS c
            WHERE c.most IS NOT NULL AND c.id NOT IN (SELECT id FROM claim_revoked)
        ), claim_owners AS MATERIALIZED (
            SELECT o.owner, (
                SELECT count(*) FROM {names.sessions} AS s
                WHERE s.owner = o.owner AND s.session_id NOT IN (SELECT id FROM claim_limits)
                    AND ({own("s")} OR EXISTS (
                        SELECT FROM {names.workers} AS w WHERE w.incarnation = s.incarnation
                            AND w.stamped_at
                                >= clock_timestamp() - make_interval(secs => w.session_ttl)
                    ))
            ) AS number
            FROM (SELECT DISTINCT owner FROM claim_limits) AS o
        ), claim_many AS MATERIALIZED (
            SELECT p.id FROM (
                SELECT l.*,
                    row_number() OVER (PARTITION BY l.owner ORDER BY l.has DESC, l.n) AS place
                FROM claim_limits AS l
            ) AS p JOIN claim_owners AS o ON o.owner = p.owner
            WHERE NOT p.has AND p.place + o.number > p.most
        ),"""
