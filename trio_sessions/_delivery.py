"""Messages on their way: one reader a worker, and what consumers hold.

Three loops run for all sessions of the worker: one listens to the store's bell, one fetches
what it rang for, one acknowledges what has been handled. Each survives whatever the store
does; then it waits a moment and catches up.
"""

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import trio

from trio_sessions._inbox import Inbox, Message
from trio_sessions._interrupts import uninterrupted
from trio_sessions._rows import Rows
from trio_sessions._settings import Settings
from trio_sessions._table import Entry, LocalTable, Row
from trio_sessions.errors import SessionsError
from trio_sessions.types import Undelivered

__all__ = ["Delivery"]

logger = logging.getLogger("trio_sessions.messages")

_BATCH = 200  # sessions fetched, and a tenth of the messages acknowledged, by one operation
_FETCHED = 32 * 1024 * 1024  # bytes fetched by one operation; but one message for each session
_SENT_ON = 1000, 8 * 1024 * 1024  # messages, or bytes, sent on by one operation
_UNSENT = 1000  # messages kept that could not be sent on
_BACKOFF = (0.1, 5.0)  # seconds between two attempts, the first and the longest


@uninterrupted
class Delivery:
    """The messages of one worker's sessions."""

    def __init__(self, *, table: LocalTable, rows: Rows, settings: Settings) -> None:
        self.dropped = 0
        """Messages that were in memory only, and were dropped."""
        self._table = table
        self._rows = rows
        self._settings = settings
        self._filled: dict[Inbox, None] = {}
        self._moving: Counter[str] = Counter()
        self._moved = trio.Event()
        self._unsent: list[tuple[float, Undelivered]] = []
        rows.confirmed = lambda entry: self.want(entry.inbox)  # it may be a takeover
        self._expired: dict[int, Inbox] = {}
        self._wanted: dict[Inbox, None] = {}
        self._batch = _BATCH
        self._look = True
        self._to_fetch = trio.Event()
        self._done: dict[int, Inbox] = {}
        self._to_acknowledge = trio.Event()

    # ---- inboxes ----

    def inbox(self, entry: Entry) -> Inbox:
        """Return the inbox of a session held here."""
        if entry.inbox is None:
            entry.inbox = Inbox(
                entry.session_id,
                size=self._settings.max_message_bytes,
                message_ttl=self._settings.message_ttl,
            )
        return entry.inbox

    def accept(self, entry: Entry, payload: str) -> bool:
        """Put a message into the inbox of a session held here; False: it must wait in the store."""
        inbox = self.inbox(entry)
        accepted = inbox.accept(payload, trio.current_time())
        if accepted:
            self._filled[inbox] = None
        return accepted

    @contextmanager
    def storing(self, entry: Entry) -> Iterator[Callable[[int], None]]:
        """A message for a session held here goes to the store; it is told the message's id."""
        inbox = self.inbox(entry)
        send = inbox.begin_to_store()
        message_id: int | None = None

        def stored(given: int) -> None:
            nonlocal message_id
            message_id = given

        try:
            yield stored
        finally:
            inbox.stored(send, message_id)
            current = self._table.get(entry.session_id)
            if current is not None and current.inbox is not inbox and message_id is not None:
                inbox = self.inbox(current)  # the session was removed, and added again
                inbox.stored(inbox.begin_to_store(), message_id)
            if inbox:
                self._filled[inbox] = None
            self.want(inbox)

    def _take_out(self, entries: Iterable[Entry]) -> list[tuple[Entry, Message]]:
        """Return what was only in memory; what has a row is counted when the store drops that."""
        left = []
        for entry in entries:
            if entry.inbox is not None:
                self._filled.pop(entry.inbox, None)
                left += [(entry, one) for one in entry.inbox.clear() if one.row is None]
        return left

    def begin_to_end(self, entries: Sequence[Entry]) -> list[Undelivered]:
        """These sessions are gone; return what is to be sent to whoever has taken them over.

        Until that has been done, others wait that send something to these sessions: so
        that it stays in order. What somebody has in hand cannot come again.
        """
        for entry in entries:
            if entry.inbox is not None:
                in_hand = entry.inbox.handed_out() - self._expired.keys()
                self._done.update(dict.fromkeys(in_hand, entry.inbox))
                self._to_acknowledge.set()
        now = trio.current_time()
        left = [
            Undelivered(
                session_id=entry.session_id,
                payload=message.payload,
                age=now - message.expires_at + self._settings.message_ttl,
            )
            for entry, message in self._take_out(entries)
        ]
        self._moving.update(message.session_id for message in left)
        return left

    async def send_on(self, messages: list[Undelivered]) -> None:
        """Send what `begin_to_end` has returned to the workers that hold the sessions now."""
        try:
            await self._send_on(messages)
        finally:
            self._moving -= Counter(message.session_id for message in messages)
            self._moved.set()
            self._moved = trio.Event()

    async def _send_on(self, messages: list[Undelivered]) -> None:
        """Send messages to workers that hold their sessions, and drop the others.

        Where the store cannot say who does, some are kept for the next pass.
        """
        remaining = list(_of_bounded_size(messages))
        try:
            while remaining:
                sent = await self._rows.send_on(remaining[0])
                self.dropped += len(remaining.pop(0)) - sent
        except SessionsError as exc:
            logger.warning("messages of removed sessions are to be sent on later: %s", exc)
        finally:
            now = trio.current_time()
            self._unsent += [(now, one) for one in chain.from_iterable(remaining)]
            self.dropped += len(self._unsent[_UNSENT:])
            del self._unsent[_UNSENT:]

    async def send_on_what_is_left(self) -> None:
        """Try again what could not be sent on, unless it is too old by now."""
        now = trio.current_time()
        messages = [replace(one, age=one.age + now - noted) for noted, one in self._unsent]
        self._unsent = []
        young = [one for one in messages if one.age < self._settings.message_ttl]
        self.dropped += len(messages) - len(young)
        await self._send_on(young)

    async def sent_on(self, session_id: str) -> None:
        """Wait until the messages of a session that is gone have been sent on."""
        while self._moving[session_id] > 0:
            await self._moved.wait()

    def drop_expired(self) -> None:
        """Drop what has waited in memory for longer than ``message_ttl``."""
        now = trio.current_time()
        for inbox in list(self._filled):
            self._expire(inbox, inbox.expired(now))
            if not inbox:
                del self._filled[inbox]

    def _expire(self, inbox: Inbox, messages: Iterable[Message]) -> None:
        for message in messages:
            if message.row is None:
                self.dropped += 1
            else:  # the sweep deletes and counts it; until then it must not be fetched again
                self._expired[message.row] = inbox

    def swept(self) -> None:
        """The store has dropped what was too old."""
        for row, inbox in self._expired.items():
            inbox.held.discard(row)
        self._expired.clear()

    def in_memory(self) -> int:
        return sum(map(len, self._filled))

    # ---- what consumers do ----

    def take(self, inbox: Inbox) -> Message | None:
        """Hand out the next message of an inbox that is open."""
        while (message := inbox.take()) is not None and message.expires_at < trio.current_time():
            self._expire(inbox, [message])
        if inbox.should_fetch():
            self.want(inbox)
        return message

    def finish(self, inbox: Inbox, message: Message) -> None:
        """A message has been handled: acknowledge it, if it has a row."""
        if message.row is not None:
            self._done[message.row] = inbox
            self._to_acknowledge.set()

    def put_back(self, inbox: Inbox, message: Message) -> None:
        """A message was not finished: the session's next reader gets it, if there is one."""
        if inbox.is_closed:
            self.dropped += message.row is None
            return
        inbox.put_back(message)
        self._filled[inbox] = None

    def want(self, inbox: Inbox | None) -> None:
        """Fetch what waits in the store for a session, soon, if its inbox is open."""
        if inbox is not None and inbox.reader is not None:
            self._wanted[inbox] = None
            self._to_fetch.set()

    def look(self) -> None:
        """Look in the store for messages of all sessions, soon."""
        self._look = True
        self._to_fetch.set()

    # ---- the loops ----

    async def listen(self) -> None:
        """Fetch whenever the store's bell rings."""
        await self._persist("listening for messages", self._listen)

    async def _listen(self, worked: Callable[[], None]) -> None:
        async with self._rows.open_bell() as bell:
            self.look()  # for what came before
            worked()
            while True:
                rung = await bell.wait()
                if rung is None:
                    self.look()
                self._want_all(rung or ())

    async def fetch(self) -> None:
        """Fetch what is wanted, for many sessions at a time."""
        await self._persist("fetching messages", self._fetch)

    async def _fetch(self, worked: Callable[[], None]) -> None:
        while True:
            if not self._wanted and not self._look:
                self._to_fetch = trio.Event()
                await self._to_fetch.wait()
            try:
                if self._look:
                    await self._look_for_all()
                await self._fetch_batch()
            except SessionsError:
                for inbox in self._wanted:
                    inbox.look_failed()
                raise
            worked()

    async def _look_for_all(self) -> None:
        self._look = False
        try:
            self._want_all(await self._rows.waiting())
        except SessionsError:
            self._look = True
            raise

    def _want_all(self, session_ids: Iterable[str]) -> None:
        for session_id in session_ids:
            entry = self._table.get(session_id)
            if entry is not None:
                self.want(entry.inbox)

    async def _fetch_batch(self) -> None:
        """Fetch for some inboxes; those of a failure come last, and fewer at a time.

        So one whose messages cannot be fetched does not keep the others from theirs.
        """
        batch = list(self._wanted)[: self._batch]
        for inbox in batch:  # whoever wants it from now on wants it once more
            del self._wanted[inbox]
        try:
            await self._write_rows(batch)
            asked = [
                (inbox, *room)
                for inbox in batch
                if self._may_fetch(inbox) and (room := inbox.wanted(_FETCHED // len(batch)))
            ]
            found = await self._rows.fetch([one for _, one, _ in asked]) if asked else {}
        except SessionsError:
            self._wanted.update(dict.fromkeys(batch))
            self._batch = max(1, len(batch) // 2)
            raise
        await trio.lowlevel.checkpoint()  # there may have been nothing to ask
        self._batch = min(_BATCH, self._batch * 2)
        now = trio.current_time()
        for inbox, wanted, mark in asked:
            inbox.add(found.get(inbox.session_id, ()), wanted, mark, now)
            if inbox:
                self._filled[inbox] = None
            if inbox.should_fetch():
                self.want(inbox)

    async def _write_rows(self, inboxes: Iterable[Inbox]) -> None:
        """Write the rows that are still to be written: without them nothing can be fetched.

        The next pass would do so, but it may be far.
        """
        entries = [self._table.get(inbox.session_id) for inbox in inboxes if inbox.reader]
        unwritten = {e.session_id: e for e in entries if e is not None and e.row is Row.UNWRITTEN}
        if unwritten:
            await self._rows.write([unwritten[session_id] for session_id in sorted(unwritten)])

    def _may_fetch(self, inbox: Inbox) -> bool:
        """Say whether it is open, and its session's row is known to be this session's.

        If it is not yet, the inbox is wanted again when it is.
        """
        entry = self._table.get(inbox.session_id)
        return inbox.reader is not None and entry is not None and entry.row is Row.CONFIRMED

    async def acknowledge(self) -> None:
        """Acknowledge what was handled, many messages at a time."""
        await self._persist("acknowledging messages", self._acknowledge)

    async def _acknowledge(self, worked: Callable[[], None]) -> None:
        while True:
            if not self._done:
                self._to_acknowledge = trio.Event()
                await self._to_acknowledge.wait()
            await self.acknowledge_now()
            worked()

    async def acknowledge_now(self) -> None:
        """Acknowledge one batch of what was handled."""
        batch = dict(list(self._done.items())[: 10 * _BATCH])
        if batch:
            await self._rows.acknowledge(sorted(batch))
        for message_id, inbox in batch.items():
            self._done.pop(message_id, None)  # somebody else may have been as quick
            inbox.held.discard(message_id)

    async def acknowledge_for(self, entries: Iterable[Entry]) -> None:
        """Acknowledge what was handled for removed sessions, or it would count as dropped."""
        inboxes = {entry.inbox for entry in entries if entry.inbox is not None}
        if any(inbox.held for inbox in inboxes):
            try:
                for _ in range(0, len(self._done), 10 * _BATCH):
                    await self.acknowledge_now()
            except SessionsError as exc:
                logger.debug("acknowledging messages failed: %s", exc)

    async def _persist(
        self, what: str, work: Callable[[Callable[[], None]], Awaitable[None]]
    ) -> None:
        """Do ``work`` again and again: an outage ends nothing, it only makes it wait."""
        first, longest = _BACKOFF
        pause = first

        def worked() -> None:
            nonlocal pause
            pause = first

        while True:
            try:
                await work(worked)
            except SessionsError as exc:
                log = logger.warning if pause == first else logger.debug
                log("%s failed, and goes on when the database is back: %s", what, exc)
            await trio.sleep(pause * (0.5 + random.random()))  # noqa: S311 -- jitter, no secret
            pause = min(2 * pause, longest)


def _of_bounded_size(messages: Iterable[Undelivered]) -> Iterator[list[Undelivered]]:
    """Cut into chunks for one operation each."""
    chunk: list[Undelivered] = []
    size = 0
    for message in messages:
        chunk.append(message)
        size += len(message.payload)
        if len(chunk) >= _SENT_ON[0] or size >= _SENT_ON[1]:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
