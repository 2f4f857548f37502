"""The door of the room of messages: what the registry, a pass and a reader ask of it.

See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Collection, Sequence

import trio

from trio_sessions._claims import Claims
from trio_sessions._counters import Counters
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge
from trio_sessions._entry import Entry, Row
from trio_sessions._interrupts import uninterrupted
from trio_sessions._logging import get_logger
from trio_sessions._messages._forwarding import Forwarding
from trio_sessions._messages._inbox import Inbox, Message
from trio_sessions._messages._inboxes import Inboxes
from trio_sessions._messages._line import has_expired
from trio_sessions._messages._reading import Reading
from trio_sessions._messages._receipts import Receipts
from trio_sessions._messages._sending import SendOrder
from trio_sessions._persisting import persist
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable
from trio_sessions._witness import Witness
from trio_sessions._writer import Writer
from trio_sessions.errors import SessionNotFound
from trio_sessions.types import fingerprint

__all__ = ["Messages"]

logger = get_logger("trio_sessions.messages")


@uninterrupted
class Messages:
    """The messages of one worker's sessions."""

    def __init__(
        self,
        *,
        edge: Edge,
        writer: Writer,
        claims: Claims,
        table: LocalTable,
        departures: Departures,
        counters: Counters,
        witness: Witness,
        settings: Settings,
    ) -> None:
        self._edge = edge
        self._writer = writer
        self._claims = claims
        self._table = table
        self._departures = departures
        self._counters = counters
        self._settings = settings
        self._inboxes = Inboxes(settings, counters)
        self._receipts = Receipts(writer)
        self._forwarding = Forwarding(
            writer=writer,
            edge=edge,
            witness=witness,
            inboxes=self._inboxes,
            counters=counters,
            message_ttl=settings.message_ttl,
        )
        self._reading = Reading(
            edge=edge, claims=claims, table=table, inboxes=self._inboxes, counters=counters
        )
        claims.notify(self)

    # ---- sending ----

    def accept(self, session_id: str, payload: str) -> bool:
        """Put a message into the inbox of a session held here; False: it must go to the store."""
        return not self._inboxes.has_coming(session_id) and self._accept_in_turn(
            session_id, payload
        )

    def _accept_in_turn(self, session_id: str, payload: str) -> bool:
        entry = self._table.get(session_id)
        if entry is None:
            return False
        if entry.born is not None and self._forwarding.keeps(session_id, entry.born):
            return False  # it has come back, and they are to go before
        inbox = self._inboxes.of(session_id)
        accepted = inbox.accept(payload, trio.current_time())
        if accepted:
            self._counters.count_kept()
        return accepted

    async def send(self, session_id: str, payload: str, *, durable: bool) -> None:
        """Send a message to a session, wherever it is held.

        Raises:
            SessionNotFound: the store has confirmed that nobody holds it.
            StoreUnavailable: it is needed, and away; or messages to the session that were sent
                before could not be forwarded, and nobody can say yet what became of them.

        Cancellation: a message that has not left for the store is withdrawn.
        """
        with self._inboxes.coming(session_id):
            await self._writer.admit()
            if session_id in self._table:
                await self._inboxes.of(session_id).wait_until_may_store()
                if not durable and self._accept_in_turn(session_id, payload):
                    return
            order = self._store(session_id, payload)
        sent = await self._writer.answer(order)
        if sent is not None:
            self._counters.count_stored()
        self._reading.want(self._inboxes.get(session_id))
        is_held = session_id in self._table
        if sent is None or (not is_held and self._edge.is_own(sent.holder)):
            raise SessionNotFound(f"session {fingerprint(session_id)} is held by no worker")

    def _store(self, session_id: str, payload: str) -> SendOrder:
        entry = self._table.get(session_id)
        if entry is not None and entry.row is Row.UNWRITTEN:
            self._claims.write(entry)
        self._forwarding.forward_again(session_id)
        self._forwarding.check_order(session_id, None if entry is None else entry.born)
        order = SendOrder(
            session_id,
            payload,
            table=self._table,
            departures=self._departures,
            forwarding=self._forwarding,
            inboxes=self._inboxes,
        )
        self._writer.give(order)
        return order

    # ---- what becomes of sessions ----

    def claimed(
        self, entry: Entry, *, is_other: bool, has_moved: bool, was_forgotten: bool
    ) -> None:
        """Fetch what was sent before; see `trio_sessions._claims.ClaimListener`."""
        inbox = self._inboxes.get(entry.session_id)
        if inbox is None:
            return
        if was_forgotten:
            inbox.forget_rows()
            self._receipts.forget(inbox)
        now = trio.current_time()
        dropped = inbox.claimed(is_other=is_other, has_moved=has_moved, now=now)
        self._counters.count_dropped(sum(one.row is None for one in dropped))
        self._reading.want(inbox)

    def add_again(self, entry: Entry, replaced: Entry) -> None:
        """Pass what waits for a session on to the transport that holds it now."""
        inbox = self._inboxes.get(entry.session_id)
        if inbox is not None:
            inbox.add_again(
                detach=entry.transport is not replaced.transport,
                seal=replaced.born is not None,
                until=trio.current_time() + self._settings.disconnect_timeout,
            )

    def depart(self, entries: Sequence[Entry], *, moved: bool, stays: bool = False) -> None:
        """Forward what is unread of sessions that have ended here, and acknowledge the rest.

        Args:
            entries: the sessions.
            moved: they may be held elsewhere now, and what is in hand be delivered there.
            stays: their rows are still this worker's, and wait for the next holder.
        """
        for entry in entries:
            inbox = self._inboxes.get(entry.session_id)
            if inbox is None:
                continue
            self._reading.forget(inbox)
            self._inboxes.end(entry.session_id)
            unread = [one for one in inbox.held.clear() if one.row is None]
            self._forwarding.forward(entry, unread, stays=stays)
            self._receipts.close(inbox, moved=moved)

    async def after_pass(self, *, swept: bool) -> None:
        """Drop what is too old, forward what is left over, and look for stored messages.

        Args:
            swept: the store has dropped what was older than ``message_ttl``.
        """
        await self._inboxes.after_pass(swept=swept)
        await self._forwarding.forward_what_is_left()
        self._reading.look()

    async def close(self) -> None:
        """Forward once more what could not be forwarded."""
        await self._forwarding.forward_what_is_left()

    def drop_what_is_left(self) -> None:
        """Drop, and count, what could not be forwarded."""
        self._forwarding.drop_what_is_left()

    def in_memory(self) -> int:
        """Count the messages that wait in memory."""
        return self._inboxes.in_memory()

    # ---- what readers do ----

    def open(self, entry: Entry, reader: object, *, streams: bool) -> Inbox:
        """Begin to read the messages of a session held here.

        Args:
            entry: the session.
            reader: who reads; one at a time.
            streams: the session is in use for as long as the inbox is open.

        Raises:
            RuntimeError: somebody reads them already.
        """
        inbox = self._inboxes.of(entry.session_id)
        if inbox.reader is not None:
            raise RuntimeError(
                f"the inbox of session {fingerprint(entry.session_id)} is open already: "
                "messages stay in order only if one consumer reads them"
            )
        inbox.open(reader, trio.current_time(), streams=streams)
        self._reading.want(inbox)
        return inbox

    def take(self, inbox: Inbox, reader: object) -> Message | None:
        """Hand out the next message; `finish` or `put_back` must follow."""
        now = trio.current_time()
        while (message := inbox.take(reader, now)) is not None and has_expired(
            message.expires_at, now
        ):
            self._counters.count_dropped(inbox.held.expire_in_hand(reader))
        if inbox.should_fetch:
            self._reading.want(inbox)
        return message

    def finish(self, inbox: Inbox, reader: object) -> None:
        """Acknowledge the message that a reader has, if it has one: it was handled."""
        if inbox.finish(reader):
            self.touch(inbox)
            self._receipts.note(inbox)

    def put_back(self, inbox: Inbox, reader: object) -> None:
        """Keep what a reader has not finished for the session's next reader, if there is one."""
        self._counters.count_dropped(inbox.put_back(reader))
        self._receipts.note(inbox)

    def touch(self, inbox: Inbox) -> None:
        """Note that a session was heard of, where there is an ``idle_timeout``."""
        if self._settings.limits.idle_timeout is not None:
            entry = self._table.get(inbox.session_id)
            if entry is not None:
                entry.note_activity(trio.current_time())

    def is_busy(self, entry: Entry) -> bool:
        """Say whether a message of a session is being handled, or its inbox is open as a stream."""
        inbox = self._inboxes.get(entry.session_id)
        return inbox is not None and inbox.is_busy

    def is_quiet(self, entry: Entry) -> bool:
        """Say whether nothing of a session is in hand, in memory alone, or to be acknowledged."""
        inbox = self._inboxes.get(entry.session_id)
        return inbox is None or inbox.held.is_quiet

    # ---- the loops ----

    async def rung(self, session_ids: Collection[str] | None) -> None:
        """Fetch what the bell rings for; see `trio_sessions._listening.BellListener`."""
        await self._reading.rung(session_ids)

    async def fetch(self) -> None:
        """Fetch what waits in the store."""
        await persist("fetching messages", self._reading.fetch, logger)

    async def acknowledge(self) -> None:
        """Acknowledge again what could not be acknowledged."""
        await self._receipts.repeat()
