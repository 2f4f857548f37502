"""Fetching what waits in the store: one loop for all sessions of the worker.

It fetches what the store's bell rang for (`trio_sessions._listening`). It survives whatever the
store does; then it waits a moment and catches up.
See docs/decisions/0007-one-reader-a-worker.md.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import trio

from trio_sessions._claims import Claims
from trio_sessions._counters import Counters
from trio_sessions._edge import Edge, chunked
from trio_sessions._entry import Entry, Row
from trio_sessions._messages._inbox import Asked, Inbox
from trio_sessions._messages._inboxes import Inboxes
from trio_sessions._persisting import jittered
from trio_sessions._table import LocalTable
from trio_sessions.errors import SessionsError
from trio_sessions.types import StoredMessage

__all__ = ["Reading"]

_BATCH = 200  # sessions fetched by one operation
_FETCHED = 32 * 1024 * 1024  # bytes fetched by one operation; but one message for each session
_SLICE = 1000  # sessions wanted before the event loop gets its turn
_ROW_PAUSES = (0.1, 5.0)  # seconds until an unwritten row is tried again, first and longest


class Reading:
    """The inboxes that are to be fetched for, and the loop that does so."""

    def __init__(
        self,
        *,
        edge: Edge,
        claims: Claims,
        table: LocalTable,
        inboxes: Inboxes,
        counters: Counters,
    ) -> None:
        self._edge = edge
        self._counters = counters
        self._claims = claims
        self._table = table
        self._inboxes = inboxes
        self._wanted: dict[Inbox, None] = {}
        self._look = True
        self._batch = _BATCH
        self._unwritten: dict[Inbox, tuple[float, float]] = {}
        """Inboxes that are read although their row is not written: when it is tried again, and
        the pause that led there."""
        self._due = math.inf
        """When the first of them is due, or earlier."""
        self._something = trio.Event()

    # ---- what is wanted ----

    def want(self, inbox: Inbox | None) -> None:
        """Fetch what waits in the store for a session, soon, if its inbox is read."""
        if inbox is not None and inbox.reader is not None:
            inbox.expect_more()
            self._wanted[inbox] = None
            self._something.set()

    def look(self) -> None:
        """Look in the store for messages of all sessions, soon."""
        self._look = True
        self._something.set()

    def forget(self, inbox: Inbox) -> None:
        """Drop an inbox that has ended from those that are to be fetched for."""
        self._wanted.pop(inbox, None)

    async def _want_all(self, session_ids: Iterable[str]) -> None:
        for part in chunked(list(session_ids), _SLICE):
            for session_id in part:
                self.want(self._inboxes.get(session_id))
            await trio.lowlevel.checkpoint()

    # ---- the loops ----

    async def rung(self, session_ids: Collection[str] | None) -> None:
        """Fetch soon what the bell rings for; see `trio_sessions._listening.BellListener`."""
        if session_ids is None:
            self.look()
        await self._want_all(session_ids or ())

    async def fetch(self, worked: Callable[[], None]) -> None:
        """Fetch what is wanted, for many sessions at a time.

        Raises:
            SessionsError: the store is away; what was wanted still is.
        """
        while True:
            await self._wait()
            if self._look:
                await self._look_for_all()
            await self._fetch_batch()
            worked()

    async def _wait(self) -> None:
        """Wait until something is wanted, or an unwritten row is to be tried again."""
        self._want_due()
        while not self._wanted and not self._look:
            self._something = trio.Event()
            with trio.move_on_at(self._due):
                await self._something.wait()
            self._want_due()

    def _want_due(self) -> None:
        """Add inboxes whose session's row is due for another attempt to those to fetch for."""
        now = trio.current_time()
        if now < self._due:
            return
        for inbox in [one for one, (due, _) in self._unwritten.items() if due <= now]:
            if inbox.reader is None:
                del self._unwritten[inbox]
            self.want(inbox)
        later = (due for due, _ in self._unwritten.values() if due > now)
        self._due = min(later, default=math.inf)

    async def _look_for_all(self) -> None:
        self._look = False
        try:
            await self._want_all(await self._edge.waiting())
        except SessionsError:
            self._look = True
            raise

    async def _fetch_batch(self) -> None:
        """Fetch for some inboxes; those of a failure come last, and fewer at a time.

        So one whose messages cannot be fetched does not keep the others from theirs.
        """
        batch = list(self._wanted)[: self._batch]
        for inbox in batch:  # whoever wants it from now on wants it once more
            del self._wanted[inbox]
        self._write_rows(batch)
        asked: dict[Inbox, Asked] = {}
        now = trio.current_time()
        for inbox in batch:
            if self._is_ours(inbox) and inbox.should_fetch:
                one = inbox.ask(_FETCHED // len(batch), now)
                if one is not None:
                    asked[inbox] = one
        if asked:
            await self._fetch(asked)
        await trio.lowlevel.checkpoint()  # there may have been nothing to ask
        self._batch = min(_BATCH, self._batch * 2)

    async def _fetch(self, asked: dict[Inbox, Asked]) -> None:
        found: Mapping[str, Sequence[StoredMessage]] | None = None
        try:
            found = await self._edge.fetch([one.wanted for one in asked.values()])
        except SessionsError:
            self._wanted.update(dict.fromkeys(asked))
            self._batch = max(1, len(asked) // 2)
            raise
        finally:
            if found is None:
                for inbox, one in asked.items():
                    inbox.give_up_fetch(one)
        now = trio.current_time()
        for inbox, one in asked.items():
            messages = found.get(inbox.session_id, ())
            self._counters.count_fetched(message.age for message in messages)
            inbox.answer(one, messages, now)
            if inbox.should_fetch:
                self.want(inbox)

    def _entry(self, inbox: Inbox) -> Entry | None:
        return self._table.get(inbox.session_id) if inbox.reader is not None else None

    def _is_ours(self, inbox: Inbox) -> bool:
        """Say whether it is read, and its session's row is known to be this session's.

        If it is not yet, the inbox is wanted again when it is.
        """
        entry = self._entry(inbox)
        return entry is not None and entry.row is Row.CONFIRMED

    def _write_rows(self, inboxes: Iterable[Inbox]) -> None:
        """Claim unwritten rows of these inboxes' sessions: without them nothing can be fetched.

        The next pass would do so, but it may be far. One that cannot be written is tried again
        after a pause that grows (invariant 16); nobody waits for it here.
        """
        now = trio.current_time()
        first, longest = _ROW_PAUSES
        for inbox in inboxes:
            entry = self._entry(inbox)
            due, pause = self._unwritten.get(inbox, (-math.inf, first / 2))
            if entry is None or entry.row is Row.CONFIRMED:
                self._unwritten.pop(inbox, None)
            elif due <= now:
                if entry.row is Row.UNWRITTEN:
                    self._claims.write(entry)
                pause = min(2 * pause, longest)
                due = now + jittered(pause)
                self._unwritten[inbox] = due, pause
                self._due = min(self._due, due)
