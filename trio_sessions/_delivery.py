"""Messages on their way: one reader a worker, and what consumers hold.

Three loops run for all sessions of the worker: one listens to the store's bell, one fetches
what it rang for, one acknowledges what has been handled. Each survives whatever the store
does; then it waits a moment and catches up.
"""

import logging
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import trio

from trio_sessions._inbox import Inbox, Message
from trio_sessions._json import decode
from trio_sessions._rows import Rows
from trio_sessions._settings import Settings
from trio_sessions._table import Entry, LocalTable
from trio_sessions.errors import SessionsError
from trio_sessions.types import fingerprint

__all__ = ["Delivery", "OpenInbox"]

logger = logging.getLogger("trio_sessions.messages")

_BATCH = 200  # sessions fetched, and a tenth of the messages acknowledged, by one operation
_BACKOFF = (0.1, 5.0)  # seconds between two attempts, the first and the longest
_PATIENCE = 1.0  # seconds for which messages in memory wait for older ones in a silent store


class Delivery:
    """The messages of one worker's sessions."""

    def __init__(self, *, table: LocalTable, rows: Rows, settings: Settings) -> None:
        self.dropped = 0
        """Messages that were in memory only, and were dropped."""
        self._table = table
        self._rows = rows
        self._settings = settings
        self._filled: dict[Inbox, None] = {}
        self._wanted: dict[Entry, None] = {}
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
    def overflow(self, entry: Entry) -> Iterator[Callable[[int], None]]:
        """A message for a session held here goes to the store; it is told the message's id."""
        overflow = self.inbox(entry).overflow
        overflow.begin()
        message_id: int | None = None

        def stored(given: int) -> None:
            nonlocal message_id
            message_id = given

        try:
            yield stored
        finally:
            overflow.end(message_id)
            current = self._table.get(entry.session_id)
            if current is not None:
                self.want(current)

    def inherit(self, entry: Entry, replaced: Entry) -> None:
        """A session was added again: its messages are for the new transport."""
        if replaced.inbox is not None:
            inbox = self.inbox(entry)
            replaced.inbox.hand_over(inbox)
            self._filled[inbox] = None

    def drop(self, entries: Iterable[Entry]) -> None:
        """These sessions are gone, and what was for them only in memory goes too."""
        for messages in self.take_out(entries).values():
            self.dropped += len(messages)

    def take_out(self, entries: Iterable[Entry]) -> dict[str, list[Message]]:
        """Return what sessions that are gone had only in memory, and forget it."""
        left: dict[str, list[Message]] = {}
        for entry in entries:
            if entry.inbox is not None:
                unstored = [message for message in entry.inbox.clear() if message.row is None]
                if unstored:
                    left[entry.session_id] = unstored
        return left

    async def send_on(self, left: dict[str, list[Message]]) -> None:
        """Send what removed sessions had only in memory to the workers that took them over.

        What the store does not take, for there is no such worker, is dropped and counted.
        """
        remaining = sum(map(len, left.values()))
        try:
            with trio.move_on_after(self._settings.store_timeout):
                for session_id, messages in left.items():
                    for message in messages:
                        if await self._rows.send(session_id, message.payload) is None:
                            break
                        remaining -= 1
        except SessionsError as exc:
            logger.warning("messages of removed sessions could not be sent on: %s", exc)
        self.dropped += remaining

    def drop_expired(self) -> None:
        """Drop what has waited in memory for longer than ``message_ttl``."""
        now = trio.current_time()
        for inbox in list(self._filled):
            self._count(inbox.expired(now), acknowledge=inbox)
            if not inbox:
                del self._filled[inbox]

    def in_memory(self) -> int:
        return sum(map(len, self._filled))

    def _count(self, messages: list[Message], *, acknowledge: Inbox | None = None) -> None:
        # Those with a row are counted with it, when the store drops it.
        self.dropped += sum(message.row is None for message in messages)
        if acknowledge is not None:
            for message in messages:
                self.dropped += message.row is not None
                self.finish(acknowledge, message)

    # ---- what consumers do ----

    def take(self, entry: Entry) -> Message | None:
        """Hand out the next message of an inbox that is open."""
        inbox = self.inbox(entry)
        while (message := inbox.take()) is not None and message.expires_at < trio.current_time():
            self._count([message], acknowledge=inbox)
        if inbox.should_fetch():
            self.want(entry)
        return message

    def finish(self, inbox: Inbox, message: Message) -> None:
        """A message has been handled: acknowledge it, if it has a row."""
        if message.row is not None:
            self._done[message.row] = inbox
            self._to_acknowledge.set()

    def put_back(self, entry: Entry, message: Message) -> None:
        """A message was not finished: the session's next inbox gets it, if there is one."""
        current = self._table.get(entry.session_id)
        if current is None:
            self._count([message])
            return
        inbox = self.inbox(current)
        inbox.put_back(message)
        if message.row is not None:
            inbox.held.add(message.row)
        self._filled[inbox] = None
        inbox.wake()

    def want(self, entry: Entry) -> None:
        """Fetch what waits in the store for a session, soon."""
        self._wanted[entry] = None
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
                self._want_open(rung or ())

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
                for entry in self._wanted:
                    self.inbox(entry).look_failed()
                raise
            worked()

    async def _look_for_all(self) -> None:
        self._look = False
        try:
            self._want_open(await self._rows.waiting())
        except SessionsError:
            self._look = True
            raise

    def _want_open(self, session_ids: Iterable[str]) -> None:
        """Fetch for those of these sessions whose inbox is open."""
        for session_id in session_ids:
            entry = self._table.get(session_id)
            if entry is not None and entry.inbox is not None and entry.inbox.is_open:
                self.want(entry)

    async def _fetch_batch(self) -> None:
        batch = list(self._wanted)[:_BATCH]
        for entry in batch:  # whoever wants it from now on wants it once more
            del self._wanted[entry]
        asked = [
            (entry, inbox, wanted, inbox.overflow.stored)
            for entry in batch
            if self._table.holds(entry)
            and (inbox := self.inbox(entry)).is_open
            and (wanted := inbox.wanted()) is not None
        ]
        if not asked:
            await trio.lowlevel.checkpoint()
            return
        try:
            found = await self._rows.fetch([wanted for _, _, wanted, _ in asked])
        except SessionsError:
            self._wanted.update(dict.fromkeys(entry for entry, _, _, _ in asked))
            raise
        now = trio.current_time()
        for entry, inbox, wanted, stored in asked:
            inbox.add(found.get(entry.session_id, ()), wanted, stored, now)
            self._filled[inbox] = None
            if inbox.should_fetch():
                self._wanted[entry] = None

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


class OpenInbox:
    """The messages of one session, for one consumer; made by `SessionRegistry.open_inbox`."""

    def __init__(self, delivery: Delivery, entry: Callable[[], Entry]) -> None:
        self._delivery = delivery
        self._find_entry = entry
        self._entry: Entry | None = None
        self._look_until = math.inf
        self._reading: Message | None = None

    @property
    def entry(self) -> Entry:
        assert self._entry is not None, "the inbox is not open"
        return self._entry

    def open(self) -> None:
        """Open it. Synchronous, for `__aenter__` here and on asyncio's side."""
        entry = self._find_entry()
        inbox = self._delivery.inbox(entry)
        if inbox.is_open:
            raise RuntimeError(
                f"the inbox of session {fingerprint(entry.session_id)} is open already: "
                "messages stay in order only if one consumer reads them"
            )
        inbox.is_open, inbox.looked = True, False
        self._look_until = trio.current_time() + _PATIENCE
        self._entry = entry
        self._delivery.want(entry)

    def close(self, *, finished: bool) -> None:
        """Close it; ``finished``: the last message counts as handled."""
        if self._reading is not None and not finished:
            self._delivery.put_back(self.entry, self._reading)
            self._reading = None
        self.finish()
        self._delivery.inbox(self.entry).is_open = False

    def finish(self) -> None:
        """Acknowledge the last message."""
        if self._reading is not None:
            self._delivery.finish(self._delivery.inbox(self.entry), self._reading)
            self._reading = None

    def next_nowait(self) -> tuple[bool, object]:
        """Return True and the next message, or False and whether there will be one."""
        self.finish()
        if self.entry.has_ended:
            return False, False
        message = self._delivery.take(self.entry)
        if message is None:
            return False, True
        self._reading = message
        return True, decode(message.payload)

    async def wait(self) -> None:
        """Wait until `next_nowait` may have another answer."""
        inbox = self._delivery.inbox(self.entry)
        if inbox.can_take() or self.entry.has_ended:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_at(math.inf if inbox.looked else self._look_until):
            await inbox.arrival().wait()
            return
        inbox.look_failed()

    async def __aenter__(self) -> Self:
        await trio.lowlevel.checkpoint()
        self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(finished=error is None)

    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        self.finish()
        await trio.lowlevel.checkpoint()
        while True:
            is_message, value = self.next_nowait()
            if is_message:
                return value
            if not value:
                raise StopAsyncIteration
            await self.wait()
