"""What operators ask: who holds what.

The store answers. What this worker knows better than its rows do is put right here: a session whose
row is still to be written, and a row that a removed session has left.
See docs/decisions/0012-operate.md.
"""

from collections.abc import Awaitable
from functools import partial

from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge
from trio_sessions._entry import Entry
from trio_sessions._table import LocalTable
from trio_sessions.abc import InspectionStore, Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.inspection import Selection, SessionInfo

__all__ = ["Inspection"]

_UNWRITTEN = "the session is held here, and its row could not be written yet"
_NOT_OURS = (
    "the database says that this worker holds the session, which it does not: it lags behind, or a "
    "statement came late, and the next pass deletes the row"
)


class Inspection:
    """The questions that operators ask of one worker."""

    def __init__(
        self, *, edge: Edge, claims: Claims, table: LocalTable, departures: Departures
    ) -> None:
        self._edge = edge
        self._claims = claims
        self._table = table
        self._departures = departures

    async def describe(self, session_id: str) -> SessionInfo | None:
        """See `SessionRegistry.describe_session`."""
        while True:
            known = entry, ended = self._known(session_id)
            if entry is not None:
                await self._claims.attempt([entry])
            info = await self._edge.inspect(
                lambda store, worker: store.describe(worker, session_id), SessionInfo | None
            )
            if self._known(session_id) != known:
                continue  # the answer may be of either session
            if info is None:
                if entry is not None:
                    raise StoreUnavailable(_UNWRITTEN) from entry.error
                return None
            if entry is None and self._edge.is_incarnation(info.incarnation):
                if ended:
                    return None
                raise StoreUnavailable(_NOT_OURS)
            return info

    def _known(self, session_id: str) -> tuple[Entry | None, int]:
        return self._table.get(session_id), self._departures.ended(session_id)

    async def page(self, selection: Selection, *, after: str, limit: int) -> list[SessionInfo]:
        """See `SessionRegistry.list_sessions`."""
        while True:
            page = await self._edge.inspect(
                partial(_ask_for_page, selection=selection, after=after, limit=limit), list
            )
            held = [
                one
                for one in page
                if one.session_id in self._table or not self._edge.is_incarnation(one.incarnation)
            ]
            if held or len(page) < limit:
                return held
            after = page[-1].session_id


def _ask_for_page(
    store: InspectionStore, worker: Worker, *, selection: Selection, after: str, limit: int
) -> Awaitable[list[SessionInfo]]:
    return store.list_sessions(worker, selection, after=after, limit=limit)
