"""The rows of workers, and the fleet's: histories, stamps, and the series of vouchings.

Locks are taken in this order everywhere: rows of sessions, messages, the worker's row, the
fleet's row.
"""

from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores._lease import DOUBT
from trio_sessions.stores.database._questions import identity
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.postgresql._doubt import SERVER
from trio_sessions.stores.database.postgresql._kinds import OWN, Names, all_own
from trio_sessions.stores.database.postgresql._pipeline import in_one_round_trip
from trio_sessions.stores.database.postgresql._witness import CLOCK, STAMPED, known, told
from trio_sessions.types import Begun, Presence, Stamp, Stamped

__all__ = ["Workers", "stamp_and_vouch", "stamped", "vouch"]


def _vouched(names: Names, source: str = "") -> str:
    """Return the CTE that vouches that workers can reach the database now.

    A gap in the series, or a clock that was set back, starts a new one. A doubt lasts no longer
    than it can, whatever the clock was when it was noted. Where the server is another one than
    before, it may have forgotten what others have written, and they find out at their next stamps.

    Args:
        names: the names of our tables.
        source: where to take the row from that is inserted.
    """
    longest = f"FROM {names.workers} AS each"
    others_know = _in(f"{DOUBT} * (SELECT max(each.stamp_interval) {longest})")
    at_most = _in(f"{DOUBT} * (SELECT max(each.cleanup_interval) {longest})")
    return f"""vouched AS (
            INSERT INTO {names.fleet} AS f (id, vouched_at, unbroken_since, server)
            SELECT 1, clock_timestamp(),
                CASE WHEN EXISTS (SELECT FROM {names.sessions}) THEN clock_timestamp() END,
                {SERVER}
            {source}
            ON CONFLICT (id) DO UPDATE SET
                vouched_at = clock_timestamp(),
                unbroken_since = CASE
                    WHEN abs(extract(epoch FROM clock_timestamp() - f.vouched_at))
                        > CAST(%(gap)s AS float8) * greatest(
                            (SELECT max(each.session_ttl) {longest}),
                            CAST(%(session_ttl)s AS float8)
                        ) OR f.unbroken_since > clock_timestamp()
                    THEN clock_timestamp() ELSE f.unbroken_since END,
                server = excluded.server,
                doubtful_until = CASE
                    WHEN f.server <> excluded.server
                    THEN greatest(f.doubtful_until, {others_know})
                    WHEN f.doubtful_until > {at_most} THEN {at_most}
                    ELSE f.doubtful_until END
        )"""


def _in(seconds: str) -> str:
    return f"(clock_timestamp() + make_interval(secs => {seconds}))"


@lru_cache
def vouch(names: Names) -> str:
    """Return the statement that only vouches."""
    return f"WITH {_vouched(names)} SELECT 1 AS done"


@lru_cache
def stamp_and_vouch(names: Names) -> str:
    """Return the statement that stamps, and vouches if it did; `stamped` reads its answer."""
    return f"""WITH stamped AS (
            UPDATE {names.workers} AS w SET {STAMPED}, passed_at = CASE
                WHEN CAST(%(passed)s AS boolean) THEN clock_timestamp()
                ELSE least(w.passed_at, clock_timestamp()) END
            WHERE {known("w")}
            RETURNING w.beat
        ), {_vouched(names, "FROM stamped")}
        SELECT (SELECT s.beat FROM stamped AS s) AS beat,
            EXISTS (SELECT FROM {names.workers} AS w WHERE {known("w")}) AS was_there,
            CASE WHEN CAST(%(passed)s AS boolean) THEN (
                SELECT count(*) FROM {names.sessions} AS s WHERE {all_own("s")}
            ) END AS number,
            CAST(extract(epoch FROM clock_timestamp()) AS float8) AS clock"""


def stamped(stamp: Stamp, row: Any) -> Stamped:
    """Return what has become of a stamp.

    Raises:
        StoreUnavailable: the row is there, and was not stamped.
    """
    if row.beat is None and row.was_there:
        raise StoreUnavailable(
            "PostgreSQL: this worker's row is there and was not stamped: look for a trigger on "
            "UPDATE of the workers' table that returns NULL"
        )
    new = None if row.beat is None else Stamp(history=stamp.history, beat=row.beat)
    return Stamped(stamp=new, rows=row.number, clock=row.clock)


_AFTER = "CAST(%(after)s AS text)"


@lru_cache
def _lock(names: Names) -> str:
    """Return the statement that comes before a history is begun.

    A sweep may be about to take the worker's row: whoever has waited for it looks whether it did.
    """
    return f"""SELECT FROM {names.workers} AS w WHERE w.incarnation = {OWN["incarnation"]}
        FOR UPDATE"""


@lru_cache
def _begin(names: Names) -> str:
    """Return the statement that begins a history, and notes whether the database went back.

    Worker and fleet one after the other, and neither before it is known whether the worker has
    lost its lease.
    """
    longest = f"""{DOUBT} * greatest(
                    CAST(%(cleanup_interval)s AS float8),
                    (SELECT max(each.cleanup_interval) FROM {names.workers} AS each)
                )"""
    presence = (
        "session_ttl",
        "cleanup_interval",
        "stamp_interval",
        "version",
        "data",
        "draining",
    )
    values = {
        "worker_id": OWN["worker_id"],
        "history": "%(history)s",
        "beat": "1",
        "stamped_at": "clock_timestamp()",
        "passed_at": "clock_timestamp()",
        **{column: f"%({column})s" for column in presence},
    }
    return f"""WITH told AS MATERIALIZED (
            SELECT EXISTS (
                SELECT FROM {names.gone} AS g
                WHERE g.incarnation = {OWN["incarnation"]} AND g.history = {_AFTER}
            ) AS was_swept
        ), begun AS (
            INSERT INTO {names.workers} AS w (incarnation, {", ".join(values)})
            SELECT {OWN["incarnation"]}, {", ".join(values.values())} FROM told
            ON CONFLICT (incarnation) DO UPDATE SET
                {", ".join(f"{column} = excluded.{column}" for column in values)}
            RETURNING w.incarnation
        ), noted AS (
            INSERT INTO {names.fleet} AS f (
                id, vouched_at, unbroken_since, server, doubtful_until
            )
            SELECT 1, clock_timestamp(), clock_timestamp(), {SERVER},
                {_in(longest)}
            FROM told CROSS JOIN begun
            WHERE {_AFTER} IS NOT NULL AND NOT told.was_swept
            ON CONFLICT (id) DO UPDATE
                SET doubtful_until = greatest(f.doubtful_until, excluded.doubtful_until),
                    unbroken_since = clock_timestamp()
            RETURNING f.doubtful_until
        )
        SELECT told.was_swept, CAST(extract(
                epoch FROM (SELECT n.doubtful_until FROM noted AS n) - clock_timestamp()
            ) AS float8) AS doubt, {CLOCK} AS clock
        FROM told"""


class Workers:
    """The operations that begin histories and stamp, in one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self._names = Names.of(tables)

    def begin(
        self,
        connection: sa.Connection,
        worker: Worker,
        history: str,
        presence: Presence,
        *,
        after: str | None,
    ) -> Begun:
        """Write the worker's row anew; see `WorkerStore.begin`."""
        parameters = {
            **identity(worker),
            "history": history,
            "session_ttl": float(presence.session_ttl),
            "cleanup_interval": float(presence.cleanup_interval),
            "stamp_interval": float(presence.stamp_interval),
            "version": presence.version,
            "data": presence.data,
            "draining": presence.draining,
            "after": after,
        }
        statements = [_lock(self._names), _begin(self._names)]
        [row] = in_one_round_trip(connection, statements, parameters)
        return Begun(was_swept=row.was_swept, doubt=row.doubt or 0.0, clock=row.clock)

    def stamp(
        self, connection: sa.Connection, worker: Worker, stamp: Stamp, *, passed: bool
    ) -> Stamped:
        """Stamp the worker's row, and vouch; see `WorkerStore.stamp`."""
        parameters = {
            **identity(worker),
            **told(stamp),
            "passed": passed,
            "gap": MAX_GAP,
            "session_ttl": 0.0,  # that of its own row counts
        }
        [row] = in_one_round_trip(connection, [stamp_and_vouch(self._names)], parameters)
        return stamped(stamp, row)
