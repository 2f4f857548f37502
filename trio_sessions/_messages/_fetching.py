"""The fetch of one inbox that is under way, and what it cannot have seen. Synchronous.

Whether to fetch is decided by the inbox: see `trio_sessions._messages._inbox`. What a fetch
cannot have seen rests on the order of a sender: see docs/decisions/0007-one-reader-a-worker.md.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from trio_sessions._json import size_of
from trio_sessions._messages._held import Held, Stage
from trio_sessions._messages._line import Line, Message
from trio_sessions.types import StoredMessage, Wanted

__all__ = ["MOST", "Asked", "Fetching", "Found"]

MOST = 100  # messages in memory for one session; while some are early, so many rows more
_SURELY = 0.1  # seconds by which a row is younger that counts as younger; clocks are rounded
PATIENCE = 1.0  # seconds for which what is in memory waits for older rows in a silent store


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A fetch that is under way for one inbox."""

    wanted: Wanted
    at: float
    """When it was asked, on Trio's clock."""
    stored: int
    """How many rows of this worker had been stored when it was asked."""
    news: int
    """How often there had been news of rows until then: a later bell is for what came later."""


class Found(enum.Enum):
    """What the answer to a fetch says of the rows in the store."""

    NOTHING = enum.auto()
    """It comes too late: the fetch was abandoned."""
    SOME = enum.auto()
    """There may be more."""
    ALL_BUT_NEWS = enum.auto()
    """That was all, but for what may have come since."""
    ALL = enum.auto()
    """That was all."""


class Fetching:
    """The fetches of one inbox, one at a time; see the head of this file.

    Args:
        session_id: whose messages are fetched.
        held: those that are here.
        line: those of them that wait.
        size: bytes that may wait.
        message_ttl: seconds for which a message may wait.
    """

    __slots__ = (
        "_asked",
        "_held",
        "_limit",
        "_line",
        "_news",
        "_own",
        "_session_id",
        "_silent_at",
        "_stored",
        "_ttl",
    )

    def __init__(
        self, session_id: str, held: Held, line: Line, size: int, message_ttl: float
    ) -> None:
        self._session_id = session_id
        self._held = held
        self._line = line
        self._limit = size
        self._ttl = message_ttl
        self._asked: Asked | None = None
        self._news = 0
        self._stored = 0
        self._own: int | None = None
        """The newest row of this worker that has not been fetched."""
        self._silent_at = float("-inf")

    @property
    def is_under_way(self) -> bool:
        """Whether a fetch is under way."""
        return self._asked is not None

    @property
    def own_waits(self) -> bool:
        """Whether a row of this worker is in the store that has not been fetched."""
        return self._own is not None

    @property
    def silent_at(self) -> float:
        """The moment from which what is in memory waits for older rows no longer."""
        return self._silent_at

    # ---- what comes into the store ----

    def note_news(self) -> None:
        """Note that rows may have come into the store."""
        self._news += 1

    def note_own(self, row: int, *, is_here: bool) -> None:
        """Note that this worker has stored a row; it may have been fetched already."""
        self._stored += 1
        if not is_here:
            self._own = row if self._own is None else max(self._own, row)

    def forget_own(self) -> None:
        """Forget this worker's own row: it was another session's, or the store went back."""
        self._own = None

    # ---- the fetch ----

    def begin(self, most: int, now: float) -> Asked | None:
        """Begin a fetch of ``most`` bytes at most; None: there is no room.

        What is early has no part in the room, and what is in doubt is asked for once more,
        however full it is: nothing goes out before. `end`, `fail` or `abandon` must follow.
        """
        inside = [one for one in self._line.due if not self._held.is_in_doubt(one)]
        size = sum(one.size for one in inside)
        count, room = MOST - len(inside), min(self._limit - size, most)
        if doubtful := self._held.count(Stage.IN_DOUBT):
            count = max(count, doubtful + 1)
            room = max(room, min(self._limit, most))
        elif count <= 0 or room <= 0:
            return None
        wanted = Wanted(
            session_id=self._session_id,
            held=self._held.not_to_be_fetched,
            count=count,
            size=room,
        )
        self._asked = Asked(wanted, now, self._stored, self._news)
        return self._asked

    def end(self, asked: Asked, found: Sequence[StoredMessage], now: float) -> Found:
        """End a fetch: put what it found into the line; return what that says of the store."""
        if self._asked is not asked:
            return Found.NOTHING
        self._asked = None
        self.expect(now)
        for one in found:
            self._take_in(one, asked.at, now)
        size = sum(size_of(one.payload) for one in found)
        if len(found) >= asked.wanted.count or size >= asked.wanted.size:
            return Found.SOME
        self._held.drop_doubtful()
        if self._stored == asked.stored:
            self._own = None
        has_more = self._own is not None or self._news != asked.news
        return Found.ALL_BUT_NEWS if has_more else Found.ALL

    def _take_in(self, one: StoredMessage, asked_at: float, now: float) -> None:
        if one.id == self._own:  # a sender's rows become visible in order
            self._own = None
        self._held.confirm(one.id)
        if self._held.stage(one.id) is None:
            message = Message(one.payload, now - one.age + self._ttl, one.id, self._held.life)
            after = asked_at - one.age + self._ttl - _SURELY  # it was stored no earlier
            self._held.add_row(one.id, message, after=after)

    def fail(self, asked: Asked) -> bool:
        """Note that a fetch has failed; False: it was abandoned."""
        if self._asked is not asked:
            return False
        self._asked = None
        self._silent_at = float("-inf")  # what is in memory need not wait any longer
        return True

    def abandon(self) -> None:
        """Ignore the answer to the current fetch."""
        self._asked = None

    # ---- how long older rows are waited for ----

    def expect(self, now: float) -> None:
        """Let what is in memory wait for older rows, for `PATIENCE` from now on."""
        self._silent_at = now + PATIENCE
