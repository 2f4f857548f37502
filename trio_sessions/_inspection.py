"""What operators ask: who holds what, and who lives.

The store answers. What this worker knows better than its rows do is put right here: a session whose
row is still to be written, and a row that a removed session has left.
See docs/decisions/0012-operate.md.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge
from trio_sessions._entry import Entry
from trio_sessions._histories import Histories
from trio_sessions._library import check_trio
from trio_sessions._settings import encode_worker_data
from trio_sessions._table import LocalTable
from trio_sessions.abc import InspectionStore, Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo

__all__ = ["Inspection", "Workers"]

_UNWRITTEN = "the session is held here, and its row could not be written yet"
_NOT_OURS = (
    "the database says that this worker holds the session, which it does not: it lags behind, or a "
    "statement came late, and the next pass deletes the row"
)


class Inspection:
    """Questions of one worker."""

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


async def _ask_for_page(
    store: InspectionStore, worker: Worker, *, selection: Selection, after: str, limit: int
) -> list[SessionInfo]:
    return await store.list_sessions(worker, selection, after=after, limit=limit)


class Workers:
    """The workers of one database, as `SessionRegistry.workers`."""

    def __init__(self, edge: Edge, histories: Histories) -> None:
        """Not for users."""
        self._edge = edge
        self._histories = histories

    async def list(self) -> list[WorkerInfo]:
        """Return the workers that the database knows, the oldest first; this one is among them.

        One round trip. A worker that has closed is not there any more; one that has died is
        *late* after three stamps, *gone* after its ``session_ttl``, and not there after the sweep.

        Raises:
            StoreUnavailable: the database cannot say.
            RegistryClosed: the registry is closed.
        """
        check_trio()
        return await self._edge.inspect(lambda store, worker: store.list_workers(worker), list)

    async def set_data(self, data: Mapping[str, Any]) -> None:
        """Replace what this worker tells the others of itself, as an address.

        Args:
            data: a JSON object of at most 65,536 bytes.

        Raises:
            TypeError, ValueError: JSON cannot carry it.
            MessageTooLarge: it is too large.
            StoreUnavailable: the database is away, and may have been told or not: ask again.
            RegistryClosed: the registry is closed.

        Cancellation: it may or may not have been replaced; whoever leaves waits for a thread that
        is at work on it, so that it does not land behind what is said next.
        """
        check_trio()
        await self._histories.announce(data=encode_worker_data("data", data))
