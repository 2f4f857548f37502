"""What has expired, in SQL: whose lease has run out, which rows, which workers.

The one owner of who holds a lease, where a database has no statements of its own for it.

A worker's lease runs from its last stamp, or from the last pass of it that ended if that is
earlier, for its own ``session_ttl``. A row expires if the lease of its holder has run out and the
row was not refreshed for as long. A holder without a row has no lease: then the longest
``session_ttl`` known counts. Nothing expires unless the fleet's series of vouchings is as old, and
has not ended since: the host may have slept after the sweeper had vouched.

The bind parameters are session_ttl, the sweeper's own, and max_gap, in seconds.
"""

from typing import Any

import sqlalchemy as sa

from trio_sessions.stores._lease import REMEMBERED
from trio_sessions.stores.database._clock import ago
from trio_sessions.stores.database._questions import all_own
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._fleet import is_ahead

__all__ = ["expired", "forgettable", "found_by_sweep", "has_gone", "lapsed"]


def expired(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the row is of another incarnation, and has expired"."""
    row, holder = tables.sessions.c, tables.workers.alias("holder").c
    alive = sa.select(tables.workers.c.incarnation).where(sa.not_(_has_lapsed(tables)))
    holders_own = (
        sa.select(holder.session_ttl)
        .where(holder.incarnation == row.incarnation)
        .correlate(tables.sessions)
        .scalar_subquery()
    )
    ttl = sa.func.coalesce(holders_own, _of_all_ttls(tables, sa.func.max))
    # What rules out by far the most rows comes first, and is worked out once for all of them.
    shortest_ago = sa.select(ago(_of_all_ttls(tables, sa.func.min))).scalar_subquery()
    return sa.and_(
        _unbroken_since(tables, shortest_ago),
        row.last_accessed < shortest_ago,
        row.incarnation.not_in(alive),
        sa.not_(all_own(tables)),
        row.last_accessed < ago(ttl),
        _unbroken_since(tables, ago(ttl), tables.sessions),
    )


def found_by_sweep(tables: Tables) -> sa.Select[Any]:
    """Return the select of some rows of other incarnations that a sweep is about.

    Their ids, and whether they were refreshed in the future; else they have expired.
    """
    row = tables.sessions.c
    ahead = is_ahead(tables)
    return (
        sa.select(row.session_id, ahead.label("ahead"))
        .where(sa.or_(ahead, expired(tables)), sa.not_(all_own(tables)))
        .order_by(row.session_id)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )


def lapsed(tables: Tables) -> sa.Select[Any]:
    """Return the select of the other incarnations whose lease has run out, with no session left."""
    worker = tables.workers.c
    sessions = sa.exists(
        sa.select(tables.sessions.c.session_id)
        .where(tables.sessions.c.incarnation == worker.incarnation)
        .correlate(tables.workers)
    )
    return sa.select(worker.incarnation, worker.history).where(
        worker.incarnation != sa.bindparam("own_incarnation"),
        _has_lapsed(tables),
        _unbroken_since(tables, ago(worker.session_ttl), tables.workers),
        sa.not_(sessions),
    )


def has_gone(tables: Tables, max_gap: sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    """Return "a sweep would find the worker's lease to have run out, if it asked now"."""
    unbroken = _unbroken_since(
        tables, ago(tables.workers.c.session_ttl), tables.workers, gap=max_gap
    )
    return sa.and_(_has_lapsed(tables), unbroken)


def forgettable(tables: Tables) -> sa.ColumnElement[bool]:
    """Return "the incarnation went so long ago that it need not be known any more"."""
    return tables.gone.c.gone_at < ago(sa.literal(REMEMBERED, sa.Float))


def _has_lapsed(tables: Tables) -> sa.ColumnElement[bool]:
    worker = tables.workers.c
    ttl_ago = ago(worker.session_ttl)
    return sa.or_(worker.stamped_at < ttl_ago, worker.passed_at < ttl_ago)


def _of_all_ttls(tables: Tables, which: Any) -> sa.ScalarSelect[Any]:
    """Return the longest or the shortest session_ttl of the workers known and the sweeper."""
    sweepers = sa.select(sa.bindparam("session_ttl", type_=sa.Float).label("ttl"))
    known = sweepers.union_all(sa.select(tables.workers.alias("known").c.session_ttl)).subquery()
    return sa.select(which(known.c.ttl)).scalar_subquery()


def _unbroken_since(
    tables: Tables,
    moment: sa.ColumnElement[Any],
    *of: sa.FromClause,
    gap: sa.ColumnElement[float] | None = None,
) -> sa.ColumnElement[bool]:
    """Return "the series of vouchings goes on, and began by then, or has no beginning".

    Args:
        tables: the tables.
        moment: the moment.
        of: the table whose row the moment is of.
        gap: seconds of silence that the series outlives; None: the bind parameter max_gap.
    """
    fleet = tables.fleet.c
    old_enough = sa.or_(fleet.unbroken_since.is_(None), fleet.unbroken_since <= moment)
    max_gap = sa.bindparam("max_gap", type_=sa.Float) if gap is None else gap
    goes_on = fleet.vouched_at >= ago(max_gap)
    return sa.exists(sa.select(fleet.id).where(goes_on, old_enough).correlate(*of))
