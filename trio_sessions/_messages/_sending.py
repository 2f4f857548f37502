"""Storing a message for a session, wherever it is held."""

import outcome

from trio_sessions._departures import Departures
from trio_sessions._entry import Row
from trio_sessions._json import size_of
from trio_sessions._messages._forwarding import Forwarding
from trio_sessions._messages._inboxes import Inboxes
from trio_sessions._orders import Order
from trio_sessions._table import LocalTable
from trio_sessions.errors import StoreUnavailable
from trio_sessions.types import Sent
from trio_sessions.writes import Send

__all__ = ["SendOrder"]


class SendOrder(Order[Sent | None]):
    """One message on its way to the store.

    Args:
        session_id: for whom.
        payload: its JSON.
        table: the sessions held here.
        departures: what removed ones have left.
        forwarding: what is not to be overtaken.
        inboxes: told that it is on its way, and of its id. Make it only to give it away.
    """

    is_grouped = True

    __slots__ = ("_departures", "_forwarding", "_inboxes", "_payload", "_table")

    def __init__(
        self,
        session_id: str,
        payload: str,
        *,
        table: LocalTable,
        departures: Departures,
        forwarding: Forwarding,
        inboxes: Inboxes,
    ) -> None:
        super().__init__(session_id, size=size_of(payload))
        self._payload = payload
        self._table = table
        self._departures = departures
        self._forwarding = forwarding
        self._inboxes = inboxes
        inboxes.begin_to_store(session_id)

    def make(self) -> Send:
        entry = self._table.get(self.session_id)
        self._forwarding.check_order(self.session_id, None if entry is None else entry.born)
        if entry is not None and entry.row is Row.UNWRITTEN:
            raise StoreUnavailable(
                f"the session's row could not be written: {entry.error}"
            ) from entry.error
        return Send(
            session_id=self.session_id,
            payload=self._payload,
            ended=self._departures.ended(self.session_id),
        )

    def conclude(self, result: outcome.Outcome[Sent | None] | None) -> None:
        sent = result.value if isinstance(result, outcome.Value) else None
        if sent is not None and self.session_id in self._table:
            self._inboxes.of(self.session_id)  # made now, if it is not there: it has one waiting
        self._inboxes.stored(self.session_id, None if sent is None else sent.id)
