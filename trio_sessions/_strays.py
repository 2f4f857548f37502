"""Rows of this very incarnation that no session here has: a late statement has written them.

An INSERT that was held up on its way, was told as failed, and lands when its session has been
removed: nobody would ever delete it. The store says with each stamp how many rows this worker has;
only where that is more than there are sessions, somebody looks which they are.
"""

from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge
from trio_sessions._entry import Row
from trio_sessions._logging import get_logger
from trio_sessions._table import LocalTable
from trio_sessions.errors import SessionsError

__all__ = ["Strays"]

logger = get_logger("trio_sessions.cleanup")


class Strays:
    """Finds and deletes what late statements of this worker have left."""

    def __init__(
        self, *, edge: Edge, claims: Claims, departures: Departures, table: LocalTable
    ) -> None:
        self._edge = edge
        self._claims = claims
        self._departures = departures
        self._table = table

    async def delete(self, rows: int | None) -> None:
        """Delete them, if there are any; does not raise.

        Args:
            rows: how many rows this incarnation has; None: that is unknown.
        """
        if rows is None or rows <= self._expected():
            return
        try:
            found, last = 0, ""
            while page := await self._edge.own_rows(last):
                found += self._claims.note_strays(page)
                last = page[-1][0]
        except SessionsError as exc:
            logger.warning("rows that no session has could not be looked for: %s", exc)
            return
        if found:
            logger.info("found %d rows that late statements have written", found)
            await self._claims.delete_what_is_due()

    def _expected(self) -> int:
        """Return how many rows there may be: those of sessions, and of removed ones."""
        return self._table.count(Row.CONFIRMED, Row.WRITING) + len(self._departures)
