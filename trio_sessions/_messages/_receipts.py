"""Acknowledging what was handled, for many messages and sessions at a time.

An inbox that has something to acknowledge (`trio_sessions._messages._held` knows what) has one
receipt: with the writer, or, after a failure, waiting for a pause of its own to end. No receipt
waits for another's; those of one moment share the writer's batch. It says what was handled when it
leaves::

    handled ──> at the writer ── answered ──> done, or the next receipt for what came meanwhile
                  ^      └────── failed ───┐
                  └── after a pause that grows

A receipt belongs to its inbox, and ends with it: when the session leaves, one last
acknowledgement goes before whatever else is written of the session, and is not repeated. A later
one might delete a message that the session's next time here has yet to handle (invariant 15).
See docs/decisions/0009-one-writer.md.
"""

import math
import random

import outcome
import trio

from trio_sessions._logging import get_logger
from trio_sessions._messages._held import Stage
from trio_sessions._messages._inbox import Inbox
from trio_sessions._orders import Order
from trio_sessions._writer import Writer
from trio_sessions.writes import Acknowledge

__all__ = ["Receipts"]

logger = get_logger("trio_sessions.messages")

_ROWS = 500  # of one session, acknowledged at a time: a batch may have as many sessions as writes
_PAUSES = (0.1, 5.0)  # seconds until a receipt that failed is repeated, the first and the longest


def _size(count: int) -> int:
    return 8 * count


class _Receipt(Order[bool]):
    """An order that acknowledges what of an inbox is handled when it leaves."""

    __slots__ = ("_inbox", "_receipts", "_rows")

    def __init__(self, receipts: "Receipts", inbox: Inbox, count: int) -> None:
        super().__init__(inbox.session_id, size=_size(count))
        self._receipts = receipts
        self._inbox = inbox
        self._rows: tuple[int, ...] = ()

    def make(self) -> Acknowledge | None:
        self._rows = self._receipts.due(self._inbox)
        if not self._rows:  # the inbox has ended
            return None
        return Acknowledge(session_id=self.session_id, message_ids=self._rows)

    def conclude(self, result: outcome.Outcome[bool] | None) -> None:
        if isinstance(result, outcome.Error):
            self._receipts.failed(self._inbox, result.error)
        else:
            self._receipts.settle(self._inbox, self._rows)


class _LastReceipt(Order[bool]):
    """An order that acknowledges what was handled of an inbox that has ended."""

    __slots__ = ("_rows",)

    def __init__(self, session_id: str, rows: tuple[int, ...]) -> None:
        super().__init__(session_id, size=_size(len(rows)))
        self._rows = rows

    def make(self) -> Acknowledge:
        return Acknowledge(session_id=self.session_id, message_ids=self._rows)


class Receipts:
    """The receipts of all inboxes, and when each goes to the writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._given: set[Inbox] = set()
        """Inboxes that have a receipt."""
        self._pauses: dict[Inbox, float] = {}
        """Those whose last receipt failed, and the pause that followed."""
        self._again: dict[float, list[Inbox]] = {}
        """Those that pause, by the moment when that ends. Some may have ended since."""
        self._paused = trio.Event()
        self._offset = random.random() * _PAUSES[1]  # noqa: S311 -- no secret

    def note(self, inbox: Inbox) -> None:
        """Give an inbox a receipt, if it has something to acknowledge and none yet."""
        if inbox not in self._given and inbox.has_handled:
            self._given.add(inbox)
            self._give(inbox)

    def close(self, inbox: Inbox, *, moved: bool) -> None:
        """Acknowledge what was handed out of an inbox that has ended, a last time.

        Args:
            inbox: whose session is not held here any more.
            moved: what is in hand is delivered by the next holder.
        """
        self.forget(inbox)
        if rows := inbox.held.depart(moved=moved):
            self._writer.give(_LastReceipt(inbox.session_id, tuple(sorted(rows))))

    def forget(self, inbox: Inbox) -> None:
        """Cancel the inbox's receipt: if it leaves all the same, it acknowledges nothing."""
        self._given.discard(inbox)
        self._pauses.pop(inbox, None)

    async def repeat(self) -> None:
        """Repeat what failed, when its pause is over."""
        while True:
            self._paused = trio.Event()
            with trio.move_on_at(min(self._again, default=math.inf)):
                await self._paused.wait()
            now = trio.current_time()
            for due in [due for due in self._again if due <= now]:
                for inbox in self._again.pop(due):
                    if inbox in self._given:
                        self._give(inbox)

    def _end_of(self, pause: float) -> float:
        """Return the end of a pause that begins now, and is jittered by half of it.

        As all of one length end at the same moments, those of an outage share a batch again; the
        moments of other workers are others.
        """
        begins = trio.current_time() - self._offset
        return math.ceil(begins / pause + 0.5) * pause + self._offset

    def _give(self, inbox: Inbox) -> None:
        count = min(inbox.held.count(Stage.HANDLED), _ROWS)
        self._writer.give(_Receipt(self, inbox, count))

    # ---- what a receipt asks, and tells ----

    def due(self, inbox: Inbox) -> tuple[int, ...]:
        """Return what is to be acknowledged; nothing, if the inbox has ended."""
        return inbox.held.handled(_ROWS) if inbox in self._given else ()

    def settle(self, inbox: Inbox, rows: tuple[int, ...]) -> None:
        """Note that rows are acknowledged; what was handled meanwhile is next."""
        inbox.acknowledged(rows)
        if inbox in self._given:
            self.forget(inbox)
            self.note(inbox)

    def failed(self, inbox: Inbox, error: BaseException) -> None:
        """Repeat a receipt after a pause that grows (invariant 16)."""
        if inbox not in self._given:
            return
        log = logger.debug if self._pauses else logger.warning
        log("acknowledging messages failed, and is repeated: %s", error)
        first, longest = _PAUSES
        pause = min(2 * self._pauses.get(inbox, first / 2), longest)
        self._pauses[inbox] = pause
        self._again.setdefault(self._end_of(pause), []).append(inbox)
        self._paused.set()
