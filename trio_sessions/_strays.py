"""Rows of this very incarnation that no session here has: a late statement has written them.

An INSERT that was held up on its way, was told as failed, and lands when its session has been
removed: nobody would ever delete it. The store says with each stamp how many rows this worker has;
only where that is more than there are sessions, somebody looks which they are.

See docs/decisions/0010-evidence.md.
"""

from collections.abc import Iterable

from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge
from trio_sessions._entry import Row
from trio_sessions._logging import get_logger
from trio_sessions._table import LocalTable
from trio_sessions._undecided import Undecided
from trio_sessions.errors import SessionsError

__all__ = ["Strays"]

logger = get_logger("trio_sessions.cleanup")


class Strays:
    """A search for the rows that late statements of this worker have left."""

    def __init__(
        self,
        *,
        edge: Edge,
        claims: Claims,
        undecided: Undecided,
        departures: Departures,
        table: LocalTable,
    ) -> None:
        self._edge = edge
        self._claims = claims
        self._undecided = undecided
        self._departures = departures
        self._table = table

    async def delete(self, rows: int | None) -> None:
        """Delete the rows of this incarnation that no session has; does not raise.

        Args:
            rows: how many rows this incarnation has; None: that is unknown.
        """
        if rows is None or rows <= self._expected():
            return
        try:
            found, last = 0, ""
            while page := await self._edge.own_rows(last):
                found += self._note(page)
                last = page[-1][0]
        except SessionsError as exc:
            logger.warning("rows that no session has could not be looked for: %s", exc)
            return
        if found:
            logger.info("found %d rows that late statements have written", found)
            await self._claims.delete_what_is_due()

    def _note(self, rows: Iterable[tuple[str, int]]) -> int:
        """Note which of these rows no session here has, for they are due; return how many."""
        strays = 0
        for session_id, generation in rows:
            if (
                session_id not in self._table
                and not self._departures.ended(session_id)
                and not self._undecided.expects(session_id)
            ):
                self._departures.find(session_id, generation)
                strays += 1
        return strays

    def _expected(self) -> int:
        """Return how many rows there may be: those of sessions, and of removed ones."""
        return self._table.count(Row.CONFIRMED, Row.WRITING) + len(self._departures)
