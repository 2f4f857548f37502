"""Claims that are refused because their owner has as many sessions as it may.

To count and to write is one step only if nobody else writes such a claim meanwhile: a lock for each
owner comes first, in a statement of its own, so that the count is of a snapshot that was taken when
the lock was there. Batches without such claims know nothing of it.

Nobody waits for that lock, for all else that is in the batch would wait with it, and a batch that
begins late is taken for one that had a slow way. Claims of an owner whose lock somebody else has
are answered as locked, and are asked again. The statement of the locks tells the next one which
there are by a setting of the transaction: to try once more would get a lock that was let go after
the snapshot.
"""

from functools import lru_cache

from trio_sessions.stores.database.postgresql._kinds import Names, own

__all__ = ["let_in", "lock_owners", "many_cte"]

_OWNERS = "trio_sessions.owners"


def _key(names: Names) -> str:
    """Return the key of the lock of the owner of a claim, ``c``."""
    return f"hashtextextended('{names.sessions} ' || c.owner, 0)"


@lru_cache
def lock_owners(names: Names) -> str:
    """Return the statement that locks those owners of a batch that nobody else has locked."""
    return f"""
        SELECT set_config('{_OWNERS}', coalesce((
            SELECT string_agg(CAST(owners.key AS text), ',') FROM (
                SELECT DISTINCT {_key(names)} AS key
                FROM json_to_recordset(CAST(%(claims)s AS json)) AS c(owner text, most integer)
                WHERE c.most IS NOT NULL OFFSET 0
            ) AS owners WHERE pg_try_advisory_xact_lock(owners.key)
        ), ''), true)"""


def many_cte(names: Names) -> str:
    """Return the CTEs that say whose claims are refused: ``claim_many``, and ``claim_busy``.

    What an owner has already comes first, for it is no further session; the others in their order,
    as long as there is room. What has ended, and is about to be replaced, is nobody's. No more rows
    are read than an owner may have sessions, but for those of workers that are gone.
    """
    return f"""claim_counted AS MATERIALIZED (
            SELECT CAST(unnest(string_to_array(current_setting('{_OWNERS}'), ',')) AS bigint) AS key
        ), claim_busy AS MATERIALIZED (
            SELECT c.id FROM claims AS c
            WHERE c.most IS NOT NULL AND c.id NOT IN (SELECT id FROM claim_revoked)
                AND {_key(names)} NOT IN (SELECT key FROM claim_counted)
        ), claim_limits AS MATERIALIZED (
            SELECT c.n, c.id, c.owner, c.most, (
                SELECT CASE
                    WHEN {own("s")} AND s.generation <= c.ended THEN 'ended'
                    WHEN s.owner = c.owner THEN 'has'
                END
                FROM {names.sessions} AS s WHERE s.session_id = c.id
            ) AS before
            FROM claims AS c
            WHERE c.most IS NOT NULL AND c.id NOT IN (SELECT id FROM claim_revoked)
                AND c.id NOT IN (SELECT id FROM claim_busy)
        ), claim_owners AS MATERIALIZED (
            SELECT o.owner, (
                SELECT count(*) FROM (
                    SELECT FROM {names.sessions} AS s
                    WHERE s.owner = o.owner
                        AND s.session_id NOT IN (
                            SELECT id FROM claim_limits WHERE before IS NOT NULL
                        )
                        AND ({own("s")} OR EXISTS (
                            SELECT FROM {names.workers} AS w WHERE w.incarnation = s.incarnation
                                AND w.stamped_at
                                    >= clock_timestamp() - make_interval(secs => w.session_ttl)
                        ))
                    LIMIT o.most
                ) AS few
            ) AS number
            FROM (SELECT owner, max(most) AS most FROM claim_limits GROUP BY owner) AS o
        ), claim_many AS MATERIALIZED (
            SELECT p.id FROM (
                SELECT l.*, coalesce(l.before = 'has', false) AS has, row_number() OVER (
                    PARTITION BY l.owner ORDER BY coalesce(l.before = 'has', false) DESC, l.n
                ) AS place
                FROM claim_limits AS l
            ) AS p JOIN claim_owners AS o ON o.owner = p.owner
            WHERE NOT p.has AND p.place + o.number > p.most
        ),"""


def let_in(column: str) -> str:
    """Return "the claim of this id is neither refused, nor is its owner locked"."""
    return (
        f"{column} NOT IN (SELECT id FROM claim_many) "
        f"AND {column} NOT IN (SELECT id FROM claim_busy)"
    )
