"""What operators are told of a store in memory. Synchronous, no clock."""

from collections.abc import Callable, Iterator
from datetime import datetime

from trio_sessions.inspection import Selection, SessionInfo
from trio_sessions.stores.memory._row import Row
from trio_sessions.stores.memory._rows import Rows
from trio_sessions.stores.memory._workers import Workers

__all__ = ["inform", "page"]


def page(
    rows: Rows, selection: Selection, now: float, *, after: str, limit: int
) -> Iterator[tuple[str, Row]]:
    """Yield the rows of one page, by id."""
    fitting = (
        session_id
        for session_id, row in rows.items()
        if session_id > after and _fits(row, selection, now)
    )
    for session_id in sorted(fitting)[:limit]:
        yield session_id, rows[session_id]


def _fits(row: Row, selection: Selection, now: float) -> bool:
    return (
        selection.owner in {None, row.owner}
        and selection.worker_id in {None, row.worker_id}
        and (selection.older_than is None or now - row.created_at > selection.older_than)
    )


def inform(
    session_id: str, row: Row, workers: Workers, now: float, moment: Callable[[float], datetime]
) -> SessionInfo:
    """Return what a row says.

    Args:
        session_id: the row's.
        row: the row.
        workers: know who lives.
        now: the moment, on whatever clock the rows have.
        moment: makes a moment of that clock one of the calendar.
    """
    return SessionInfo(
        session_id=session_id,
        worker_id=row.worker_id,
        incarnation=row.incarnation,
        worker_state=workers.state(row.incarnation, now),
        owner=row.owner,
        created=moment(row.created_at),
        last_accessed=moment(row.last_accessed),
        age=max(0.0, now - row.created_at),
        idle=max(0.0, now - row.last_accessed),
        waiting=len(row.messages),
    )
