"""The inboxes of the sessions held here, by session id. No I/O.

See docs/decisions/0007-one-reader-a-worker.md.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from trio_sessions._counters import Counters
from trio_sessions._edge import chunked
from trio_sessions._messages._inbox import Inbox
from trio_sessions._messages._line import Waiting
from trio_sessions._settings import Settings

__all__ = ["Inboxes"]

_SLICE = 200  # inboxes looked at before the event loop gets its turn; each may be full


class Inboxes:
    """The inboxes by session id; each is made for its first message, or when it is opened."""

    def __init__(self, settings: Settings, counters: Counters) -> None:
        self._settings = settings
        self._counters = counters
        self._inboxes: dict[str, Inbox] = {}
        self._waiting = Waiting()
        self._coming: Counter[str] = Counter()
        """Messages of this worker that wait until they may go to the store, by session."""
        self._storing: Counter[str] = Counter()
        """Messages of this worker on their way to the store, by session, wherever it is held:
        it may come here meanwhile."""

    def get(self, session_id: str) -> Inbox | None:
        """Return the inbox of a session, if it has one."""
        return self._inboxes.get(session_id)

    def of(self, session_id: str) -> Inbox:
        """Return the inbox of a session that is held here."""
        inbox = self._inboxes.get(session_id)
        if inbox is None:
            inbox = self._inboxes[session_id] = Inbox(
                session_id,
                size=self._settings.max_message_bytes,
                message_ttl=self._settings.message_ttl,
                storing=self._storing,
                waiting=self._waiting,
            )
        return inbox

    @contextmanager
    def coming(self, session_id: str) -> Iterator[None]:
        """Count a message that waits for its turn: what is sent meanwhile goes behind it."""
        self._coming[session_id] += 1
        try:
            yield
        finally:
            self._coming[session_id] -= 1
            if not self._coming[session_id]:
                del self._coming[session_id]

    def has_coming(self, session_id: str) -> bool:
        """Say whether a message for this session waits for its turn."""
        return session_id in self._coming

    def begin_to_store(self, session_id: str) -> None:
        """Note that a message is on its way to the store; `stored` must follow."""
        self._storing[session_id] += 1

    def stored(self, session_id: str, row: int | None) -> None:
        """Note the row of a message that was stored; None: it was not, or nobody can say."""
        self._storing[session_id] -= 1
        if not self._storing[session_id]:
            del self._storing[session_id]
        inbox = self._inboxes.get(session_id)
        if inbox is not None:
            if row is not None:
                inbox.note_row(row)
            inbox.wake()

    def end(self, session_id: str) -> Inbox | None:
        """Take out the inbox of a session that is not held any more."""
        inbox = self._inboxes.pop(session_id, None)
        if inbox is not None:
            inbox.end()
        return inbox

    def in_memory(self) -> int:
        """Count the messages that wait in memory."""
        return self._waiting.number

    async def after_pass(self, *, swept: bool) -> None:
        """Drop what has waited in memory for longer than ``message_ttl``.

        Args:
            swept: the store has dropped what was too old before; what is dropped now is left
                for the next sweep, if it has a row.
        """
        for part in chunked(list(self._inboxes.values()), _SLICE):
            now = trio.current_time()
            for inbox in part:
                if swept:
                    inbox.swept()
                self._counters.count_dropped(inbox.held.expire(now))
            await trio.lowlevel.checkpoint()
