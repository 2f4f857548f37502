"""Forwarding what was only in memory, when a session has left, to whoever holds it now.

The messages stand in the session's line at the writer before anything else that is sent to it, so
they are not overtaken. They are for the session of their birth, held by somebody else; where there
is none, they are dropped.

What was in memory is delivered at most once. So one whose answer was lost goes again only when the
beats say that it was not committed, and is dropped where they cannot (`Witness.fate`).

One that could not be forwarded is *kept*, and nothing of this worker overtakes it: whatever is sent
to its session has it given to the writer first, and goes to the store too; what was given already
and stands behind it is refused. See docs/decisions/0009-one-writer.md; 0007-one-reader-a-worker.md
for why they are forwarded at all.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import outcome
import trio

from trio_sessions._counters import Counters
from trio_sessions._edge import Edge
from trio_sessions._entry import Entry
from trio_sessions._json import size_of
from trio_sessions._logging import get_logger
from trio_sessions._messages._inboxes import Inboxes
from trio_sessions._messages._line import Message, has_expired
from trio_sessions._orders import Order
from trio_sessions._witness import Account, Fate, Witness
from trio_sessions._writer import Writer
from trio_sessions.errors import SessionsError, StoreUnavailable
from trio_sessions.types import Sent
from trio_sessions.writes import Send

__all__ = ["Forwarding"]

logger = get_logger("trio_sessions.messages")

_UNSENT = 1000  # messages kept that could not be forwarded


@dataclass(frozen=True, slots=True, kw_only=True)
class _Forwarded:
    """A message, and the session that it is for."""

    session_id: str
    payload: str
    born: str | None
    generation: int
    sent_at: float
    expires_at: float


class _ForwardOrder(Order[Sent | None]):
    is_grouped = True

    __slots__ = ("_before", "_forwarding", "_letter")

    def __init__(self, forwarding: "Forwarding", letter: _Forwarded) -> None:
        super().__init__(letter.session_id, size=size_of(letter.payload))
        self._letter = letter
        self._forwarding = forwarding
        forwarding.inboxes.begin_to_store(letter.session_id)
        self._before: Account | None = None
        """How the beats stood when it left last; None: it has surely not been stored."""

    def make(self) -> Send | None:
        now, letter = trio.current_time(), self._letter
        if has_expired(letter.expires_at, now):
            return None
        self._forwarding.check_order(self.session_id, letter.born)
        self._before = self._forwarding.witness.account()
        return Send(
            session_id=letter.session_id,
            payload=letter.payload,
            age=now - letter.sent_at,
            ended=letter.generation,
            born=letter.born,
            elsewhere=letter.born is None,
        )

    def note_undone(self) -> None:
        self._before = None

    def conclude(self, result: outcome.Outcome[Sent | None] | None) -> None:
        if isinstance(result, outcome.Error):
            self._forwarding.keep(self._letter, self._before, result.error)
        elif not isinstance(result, outcome.Value) or result.value is None:
            self._forwarding.drop()
        sent = result.value if isinstance(result, outcome.Value) else None
        self._forwarding.inboxes.stored(self.session_id, None if sent is None else sent.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsent:
    """A message that could not be forwarded, or perhaps was: its answer was lost."""

    letter: _Forwarded
    before: Account | None
    """How the beats stood when it left; None: it was surely not committed."""
    departed: int
    """How many had departed when its answer was given up."""


class Forwarding:
    """The messages on their way to the next holders.

    Args:
        writer: takes it.
        edge: stamps, where nothing else tells what became of what was lost.
        witness: says that.
        inboxes: told what is on its way: its session may come back meanwhile.
        counters: count what is dropped.
        message_ttl: seconds for which a message may wait.
    """

    def __init__(
        self,
        *,
        writer: Writer,
        edge: Edge,
        witness: Witness,
        inboxes: Inboxes,
        counters: Counters,
        message_ttl: float,
    ) -> None:
        self.witness = witness
        self.inboxes = inboxes
        self._writer = writer
        self._edge = edge
        self._counters = counters
        self._message_ttl = message_ttl
        self._kept: dict[str, deque[_Unsent]] = {}
        """What could not be forwarded, by session, in order."""
        self._number = 0

    def forward(self, entry: Entry, messages: Sequence[Message], *, stays: bool = False) -> None:
        """Forward the messages of a session that is not held here any more.

        Args:
            entry: the session.
            messages: what nobody has handled.
            stays: its row is still this worker's, and takes them for the next holder.
        """
        for message in messages:
            letter = _Forwarded(
                session_id=entry.session_id,
                payload=message.payload,
                born=entry.born,
                generation=0 if stays else entry.generation,
                sent_at=message.expires_at - self._message_ttl,
                expires_at=message.expires_at,
            )
            self._writer.give(_ForwardOrder(self, letter))

    def drop(self) -> None:
        """Count a message that nobody will read."""
        self._counters.count_dropped(1)

    def keep(self, letter: _Forwarded, before: Account | None, error: BaseException) -> None:
        """Keep what could not be forwarded, within bounds, until it is tried again."""
        if self._number >= _UNSENT:
            self.drop()
            return
        if not self._number:
            logger.warning("messages of removed sessions are to be forwarded later: %s", error)
        unsent = _Unsent(letter=letter, before=before, departed=self.witness.departed)
        self._kept.setdefault(letter.session_id, deque()).append(unsent)
        self._number += 1

    def keeps(self, session_id: str, born: str | None) -> bool:
        """Say whether messages to a session are kept, which others must not overtake.

        Args:
            session_id: its id.
            born: its birth, if that is known: those of another session of the id do not count.
        """
        kept = self._kept.get(session_id, ())
        return any(born is None or one.letter.born == born for one in kept)

    def check_order(self, session_id: str, born: str | None) -> None:
        """Raise `StoreUnavailable` where `keeps` says so."""
        if self.keeps(session_id, born):
            raise StoreUnavailable("messages to the session that were sent before are not stored")

    def forward_again(self, session_id: str) -> list[Order[Sent | None]]:
        """Forward the messages kept of a session, as far as they surely were not stored.

        Drop those that perhaps were. Where nobody can say yet, that one and what follows stay.
        """
        orders = list[Order[Sent | None]]()
        kept = self._kept.get(session_id, ())
        while kept and (fate := self._fate(kept[0])) is not Fate.UNKNOWN:
            letter = kept.popleft().letter
            self._number -= 1
            if not kept:
                del self._kept[session_id]
            if fate is Fate.NOT_THERE:
                orders.append(self._writer.give(_ForwardOrder(self, letter)))
            else:
                self.drop()
        return orders

    async def forward_what_is_left(self) -> None:
        """Forward once more what is kept, of all sessions."""
        if any(self._fate(one) is Fate.UNKNOWN for kept in self._kept.values() for one in kept):
            try:
                await self._edge.stamp(passed=False)
            except SessionsError as exc:
                logger.debug("what became of forwarded messages is not known yet: %s", exc)
        orders = [order for one in list(self._kept) for order in self.forward_again(one)]
        for order in orders:
            await order.settled()

    def _fate(self, one: _Unsent) -> Fate:
        if one.before is None:
            return Fate.NOT_THERE
        return self.witness.fate(one.before, one.departed)

    def drop_what_is_left(self) -> None:
        """Drop, and count, what could not be forwarded."""
        self._counters.count_dropped(self._number)
        self._kept.clear()
        self._number = 0
