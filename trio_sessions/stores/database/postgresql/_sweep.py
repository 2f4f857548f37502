"""The sweep: stamp and vouch, then delete what has expired; one round trip.

On PostgreSQL the one owner of who holds a lease.

```
 BEGIN  stamp and vouch       COMMIT   stays, whatever becomes of the rest: a backlog that takes
                                       too long must not cost the lease of who sweeps
 BEGIN  sessions, messages    COMMIT   if the stamp was set
 BEGIN  rows of workers       COMMIT   of whom no session is left now
```

**What has expired is judged as of the last vouching**, not of the moment at which a statement
begins. The server may have been frozen between the first transaction and the second: then time has
passed in which nobody could stamp, and no gap is noted yet. See docs/decisions/0010-evidence.md.
"""

from collections.abc import Mapping
from functools import lru_cache

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.stores._lease import REMEMBERED
from trio_sessions.stores.database._questions import identity
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.postgresql._clearing import LIMIT, clearing
from trio_sessions.stores.database.postgresql._kinds import OWN, Names, own
from trio_sessions.stores.database.postgresql._mail import forgetting
from trio_sessions.stores.database.postgresql._pipeline import one_after_the_other
from trio_sessions.stores.database.postgresql._witness import told, vouched_for
from trio_sessions.stores.database.postgresql._workers import stamp_and_vouch, stamped, vouch
from trio_sessions.types import Stamp, Swept

__all__ = ["Sweep"]

_SESSION_TTL = "CAST(%(session_ttl)s AS float8)"


def _as_of(names: Names) -> str:
    """Return the CTE that says as of when is judged; it has no row if nothing is to be swept."""
    return f"""known AS MATERIALIZED (
            SELECT least(f.vouched_at, now()) AS as_of,
                coalesce(f.unbroken_since, '-infinity') AS unbroken_since,
                greatest({_SESSION_TTL}, ttl.longest) AS longest,
                least({_SESSION_TTL}, ttl.shortest) AS shortest
            FROM {names.fleet} AS f CROSS JOIN (
                SELECT max(session_ttl) AS longest, min(session_ttl) AS shortest
                FROM {names.workers}
            ) AS ttl
            WHERE f.id = 1 AND {vouched_for(names)}
        )"""


def _ago(seconds: str) -> str:
    return f"k.as_of - make_interval(secs => {seconds})"


@lru_cache
def _sweep_sessions(names: Names) -> str:
    """Return the statement that sweeps sessions and messages.

    Most rows were refreshed within the shortest ttl, or are those of the living, who are few: the
    others alone need a look at their holder's row.
    """
    ttl = _ago("coalesce(w.session_ttl, k.longest)")
    recent = f"(SELECT {_ago('k.shortest')} FROM known AS k)"
    stale = (
        "m.created_at < now() - make_interval(secs => CAST(%(message_ttl)s AS float8)) "
        "AND EXISTS (SELECT FROM known)"
    )
    return f"""WITH {_as_of(names)}, living AS MATERIALIZED (
            SELECT w.incarnation FROM {names.workers} AS w CROSS JOIN known AS k
            WHERE least(w.stamped_at, w.passed_at) >= {_ago("w.session_ttl")}
        ), found AS MATERIALIZED (
            SELECT s.session_id, s.last_accessed > clock_timestamp() AS ahead
            FROM {names.sessions} AS s
            LEFT JOIN {names.workers} AS w ON w.incarnation = s.incarnation
            WHERE NOT ({own("s")}) AND EXISTS (SELECT FROM known)
                AND (s.last_accessed > clock_timestamp() OR (
                    s.last_accessed < {recent}
                    AND s.incarnation NOT IN (SELECT l.incarnation FROM living AS l)
                )) AND (s.last_accessed > clock_timestamp() OR EXISTS (
                    SELECT FROM known AS k
                    WHERE k.unbroken_since <= {ttl} AND s.last_accessed < {ttl}
                ))
            ORDER BY s.session_id LIMIT {LIMIT} FOR UPDATE OF s SKIP LOCKED
        ), righted AS (
            UPDATE {names.sessions} AS s SET last_accessed = clock_timestamp()
            WHERE s.session_id = ANY (ARRAY(SELECT f.session_id FROM found AS f WHERE f.ahead))
            RETURNING s.session_id
        ), expired AS MATERIALIZED (
            SELECT f.session_id FROM found AS f WHERE NOT f.ahead
        ), {clearing(names, "expired", guard=f"NOT ({own('s')})", stale=stale)}
        SELECT (SELECT count(*) FROM gone) AS sessions,
            (SELECT count(*) FROM dropped) AS messages,
            (SELECT count(*) FROM righted) AS righted,
            (SELECT has_some FROM logs_gone) AS entries,
            (SELECT count(*) FROM found) >= {LIMIT} OR (SELECT is_full FROM logs_gone)
                OR (SELECT count(*) FROM dropped) >= {LIMIT} AS is_full"""


@lru_cache
def _sweep_workers(names: Names) -> str:
    """Return the statement that sweeps the rows of workers without a lease and a session.

    A worker that wakes at this moment, and writes a session, stamps its row in the same
    transaction: whoever comes second finds that out.
    """
    ttl = _ago("w.session_ttl")
    ahead = "greatest(w.stamped_at, w.passed_at) > clock_timestamp()"
    others = f"w.incarnation <> {OWN['incarnation']}"
    return f"""WITH {_as_of(names)}, righted AS (
            UPDATE {names.workers} AS r SET
                stamped_at = least(r.stamped_at, clock_timestamp()),
                passed_at = least(r.passed_at, clock_timestamp())
            WHERE r.incarnation = ANY (ARRAY(
                SELECT w.incarnation FROM {names.workers} AS w
                WHERE {ahead} AND {others} AND EXISTS (SELECT FROM known)
                ORDER BY w.incarnation LIMIT {LIMIT} FOR NO KEY UPDATE SKIP LOCKED
            ))
        ), lapsed AS MATERIALIZED (
            SELECT w.incarnation FROM {names.workers} AS w
            WHERE {others} AND NOT {ahead} AND EXISTS (
                    SELECT FROM known AS k WHERE k.unbroken_since <= {ttl}
                        AND least(w.stamped_at, w.passed_at) < {ttl}
                )
                AND NOT EXISTS (
                    SELECT FROM {names.sessions} AS s WHERE s.incarnation = w.incarnation
                )
            ORDER BY w.incarnation LIMIT {LIMIT} FOR UPDATE OF w SKIP LOCKED
        ), removed AS (
            DELETE FROM {names.workers} AS w
            WHERE w.incarnation = ANY (ARRAY(SELECT l.incarnation FROM lapsed AS l))
            RETURNING w.incarnation, w.history
        ), remembered AS (
            INSERT INTO {names.gone} AS g (incarnation, history, gone_at)
            SELECT r.incarnation, r.history, clock_timestamp()
            FROM removed AS r ORDER BY r.incarnation
            ON CONFLICT (incarnation) DO UPDATE
                SET history = excluded.history, gone_at = excluded.gone_at
        ), forgotten AS (
            DELETE FROM {names.gone} AS g WHERE g.incarnation = ANY (ARRAY(
                SELECT o.incarnation FROM {names.gone} AS o
                WHERE o.gone_at < now() - make_interval(secs => {REMEMBERED})
                    AND EXISTS (SELECT FROM known)
                ORDER BY o.incarnation LIMIT {LIMIT} FOR UPDATE SKIP LOCKED
            ))
        ), {forgetting(names, "SELECT r.incarnation FROM removed AS r")}
        SELECT count(*) AS number FROM removed"""


class Sweep:
    """The operation that sweeps one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self._names = Names.of(tables)

    def __call__(
        self,
        connection: sa.Connection,
        worker: Worker,
        durations: Mapping[str, float],
        limit: int,
        stamp: Stamp | None,
    ) -> Swept:
        """Stamp, vouch and sweep; see `RowStore.sweep`."""
        names, session_ttl = self._names, durations["session_ttl"]
        parameters = {
            **identity(worker),
            **told(stamp),
            "session_ttl": float(session_ttl),
            "message_ttl": float(durations["message_ttl"]),
            "gap": durations["max_gap"] / session_ttl,
            "limit": limit,
            "passed": True,
        }
        statements = [vouch(names) if stamp is None else stamp_and_vouch(names)]
        if limit:
            statements += [_sweep_sessions(names), _sweep_workers(names)]
        first, *rest = one_after_the_other(connection, statements, parameters)
        has_become = None if stamp is None else stamped(stamp, first[0])
        if not rest:
            return Swept(sessions=0, messages=0, more=False, stamped=has_become)
        [swept] = rest[0]
        advances = swept.entries or swept.sessions + swept.messages + swept.righted > 0
        return Swept(
            sessions=swept.sessions,
            messages=swept.messages,
            more=swept.is_full and advances,
            stamped=has_become,
        )
