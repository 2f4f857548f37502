"""Acknowledging what was handled, for many messages and sessions at a time.

A receipt belongs to its inbox, and ends with it: when the session leaves, one last
acknowledgement goes before whatever else is written of the session, and is not repeated. A later
one might delete a message that the session's next time here has yet to handle (invariant 15).
See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Callable

import trio

from trio_sessions._messages._inbox import Inbox
from trio_sessions._orders import Order
from trio_sessions._writer import Writer
from trio_sessions.errors import SessionsError, StoreUnavailable
from trio_sessions.writes import Acknowledge

__all__ = ["Receipts"]

_SESSIONS = 1000  # acknowledged at a time
_ROWS = 2000  # of one session


class _AcknowledgeOrder(Order[bool]):
    __slots__ = ("_rows",)

    def __init__(self, session_id: str, rows: tuple[int, ...]) -> None:
        super().__init__(session_id, size=8 * len(rows))
        self._rows = rows

    def make(self) -> Acknowledge:
        return Acknowledge(session_id=self.session_id, message_ids=self._rows)


class Receipts:
    """What was handled and is still to be acknowledged."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._done: dict[Inbox, dict[int, None]] = {}
        self._arrived = trio.Event()

    def note(self, inbox: Inbox, row: int) -> None:
        """Acknowledge a row, soon."""
        self._done.setdefault(inbox, {})[row] = None
        self._arrived.set()

    def close(self, inbox: Inbox, in_hand: set[int]) -> None:
        """Acknowledge what was handled, and what is in hand, a last time."""
        rows = {*self._done.pop(inbox, ()), *in_hand}
        if rows:
            self._writer.give(_AcknowledgeOrder(inbox.session_id, tuple(sorted(rows))))

    async def acknowledge(self, worked: Callable[[], None]) -> None:
        """Acknowledge whenever there is something.

        Raises:
            StoreUnavailable: some could not be; they stay.
        """
        while True:
            if not self._done:
                self._arrived = trio.Event()
                await self._arrived.wait()
            await self._acknowledge_some()
            worked()

    async def _acknowledge_some(self) -> None:
        orders = {}
        for inbox, done in list(self._done.items())[:_SESSIONS]:
            rows = tuple(sorted(done)[:_ROWS])
            orders[inbox, rows] = self._writer.give(_AcknowledgeOrder(inbox.session_id, rows))
        failure: SessionsError | None = None
        for (inbox, rows), order in orders.items():
            try:
                await order.wait()
            except SessionsError as exc:
                failure = exc
            else:
                self._settle(inbox, rows)
        if failure is not None:
            raise StoreUnavailable(f"some are still to be: {failure}") from failure

    def _settle(self, inbox: Inbox, rows: tuple[int, ...]) -> None:
        inbox.forget(rows)
        done = self._done.get(inbox)
        if done is not None:
            for row in rows:
                done.pop(row, None)
            if not done:
                del self._done[inbox]
