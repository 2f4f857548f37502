"""The registry: what a worker holds, and what it may ask about the others' sessions.

The public surface: each method a line or two of work. Over 400 lines, for most of it is docstrings,
and users look for all of them in one place.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import trio

from trio_sessions._adapters import AdapterMethods
from trio_sessions._background import is_cancellation
from trio_sessions._calls import check_transport
from trio_sessions._checks import awaitable
from trio_sessions._entry import Entry
from trio_sessions._house import House
from trio_sessions._interrupts import interruptible, uninterrupted
from trio_sessions._json import encode
from trio_sessions._library import check_trio
from trio_sessions._logging import get_logger
from trio_sessions._messages import OpenInbox
from trio_sessions.abc import Transport
from trio_sessions.errors import SessionNotFound, SessionsError
from trio_sessions.types import (
    Capabilities,
    CleanupReport,
    RegistryStatistics,
    check_owner,
    check_session_id,
    fingerprint,
)

__all__ = ["SessionRegistry"]

logger = get_logger("trio_sessions.registry")


@uninterrupted
class SessionRegistry(AdapterMethods):
    """The sessions of one worker. Made by `open_registry` or `serve_registry`.

    All its methods belong to one Trio run. Those named ``*_sync``, `statistics` and `health`
    never wait; every async method is a checkpoint.

    A ``session_id`` that cannot be one raises `InvalidSessionId`, whatever the method.
    """

    worker_id: str
    """This worker, as the other workers see it; unique unless you chose it yourself."""

    def __init__(self, house: House) -> None:
        """Not for users: `open_registry` puts the parts together."""
        super().__init__(house)
        self.worker_id = house.worker_id

    # ---- sessions ----

    async def add_session(
        self,
        session_id: str,
        transport: Transport,
        *,
        owner: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold ``session_id`` from now on, and write its row.

        The session is usable before this returns. If the id is held already, here or by
        another worker, it is taken over: the newest transport wins and the older one is
        disconnected (another worker's at that worker's next pass); owner and data stay.

        If the row cannot be written because the database is away, nothing is raised: the
        session stays, which is logged, and the next pass writes the row.

        Args:
            session_id: 1 to 255 characters, UTF-8, no NUL.
            transport: the live connection; the registry disconnects it from now on.
            owner: written with the row, in place of one that it had; None: that stays.
            data: likewise; a JSON object of at most 65,536 bytes, see `set_session_data`.

        Raises:
            InvalidSessionId: as for every method.
            TypeError, ValueError: ``transport``, ``owner`` or ``data`` cannot be one.
            MessageTooLarge, NotSupported: ``data`` is too large, or the store keeps none.
            TooManySessions, RegistryDraining, RegistryClosed: it was not let in, nothing written.
            SessionRevoked: the id was revoked; the transport was disconnected.

        Cancellation: the session stays added, and its row is written all the same.
        """
        check_trio()
        check_session_id(session_id)
        check_transport(transport)
        if owner is not None:
            check_owner(owner)
        encoded = self._encode_data(data)
        self._check_open()
        self._house.admission.check(session_id)
        await self._house.sessions.add(session_id, transport, owner=owner, data=encoded)

    async def get_session(self, session_id: str) -> Transport | None:
        """Return the transport of a session held here, else None. Never asks the database."""
        check_trio()
        transport = self.get_session_sync(session_id)
        await trio.lowlevel.checkpoint()
        return transport

    def get_session_sync(self, session_id: str) -> Transport | None:
        """Return the transport of a session held here, else None. No checkpoint."""
        entry = self._house.table.get(check_session_id(session_id))
        return None if entry is None else entry.transport

    async def remove_session(self, session_id: str, *, transport: Transport | None = None) -> None:
        """End a session held here: un-publish it, disconnect it, delete its row.

        An unknown id is no error, nor is a transport that fails to disconnect (logged),
        nor a database that is away (the row goes at a later pass). Another worker's row
        is never touched.

        Args:
            session_id: the session.
            transport: end it only if this very transport still holds it, in one step: so
                that a handler that ends cannot remove its successor. None: whatever holds it.

        Raises:
            RegistryClosed: the registry is closed.

        Cancellation: the removal goes on without the caller.
        """
        check_trio()
        check_session_id(session_id)
        self._check_open()
        await self._house.sessions.remove(session_id, transport)

    def touch(self, session_id: str) -> None:
        """Note that a session held here was heard of, for ``limits.idle_timeout``.

        Synchronous, no checkpoint; an id that is not held here is no error. The end of each
        message that is handled counts by itself.
        """
        entry = self._house.table.get(check_session_id(session_id))
        if entry is not None:
            entry.note_activity(trio.current_time())

    async def session_exists(self, session_id: str) -> bool | None:
        """Say whether any worker holds the session.

        Returns:
            True or False, or None: it could not be verified (answer 503, not 404).
        """
        check_trio()
        if check_session_id(session_id) in self._house.table:
            await trio.lowlevel.checkpoint()
            return True
        try:
            return await self.locate_session(session_id) is not None
        except SessionsError as exc:
            logger.warning(
                "cannot tell whether session %s exists: %s", fingerprint(session_id), exc
            )
            return None

    async def get_all_session_ids(self) -> list[str]:
        """Return the ids of the sessions held here, in the order they were added."""
        check_trio()
        await trio.lowlevel.checkpoint()
        return self._house.table.ids()

    async def locate_session(self, session_id: str) -> str | None:
        """Return the ``worker_id`` that holds the session, None if there is none.

        Raises:
            StoreUnavailable: the session is not held here and the database cannot say.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        check_trio()
        if check_session_id(session_id) in self._house.table:
            await trio.lowlevel.checkpoint()
            return self.worker_id
        self._check_open()
        return await self._house.owners.locate(session_id)

    # ---- owners and capabilities ----

    async def set_session_owner(self, session_id: str, owner: str | None) -> None:
        """Set who owns a session, wherever it is held.

        For a session held here whose row cannot be written now, the owner is written with it
        later, and then replaces one that was claimed or set meanwhile.

        Args:
            session_id: the session.
            owner: 1 to 320 characters; None: nobody.

        Raises:
            TypeError, ValueError: ``owner`` cannot be one.
            SessionNotFound: the database has confirmed that no worker holds the session.
            StoreUnavailable: the database is away; the owner may or may not have been set.
            RegistryClosed: the registry is closed.

        Cancellation: the owner may or may not have been set.
        """
        check_trio()
        check_session_id(session_id)
        if owner is not None:
            check_owner(owner)
        self._check_open()
        await self._house.owners.set_owner(session_id, owner)

    async def claim_session_owner(self, session_id: str, owner: str) -> str | None:
        """Set who owns a session unless it is owned: the first claim of all workers wins.

        Returns:
            The owner that the session has now; None if that cannot be verified: the
            database is away, knows no such session, or went back not long ago and shows one without
            an owner that another worker holds.

        Raises:
            TypeError, ValueError: ``owner`` cannot be one.
            RegistryClosed: the registry is closed.

        Cancellation: the claim may or may not have been made.
        """
        check_trio()
        check_session_id(session_id)
        check_owner(owner)
        self._check_open()
        return await self._house.owners.claim_owner(session_id, owner)

    async def get_session_owner(self, session_id: str) -> str | None:
        """Return who owns a session; None: nobody, or there is no such session.

        The database is asked each time, so that the answer is never stale. Only of a session
        held here whose row cannot be written now the answer is what was said here.

        Raises:
            StoreUnavailable: the database cannot say.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        check_trio()
        check_session_id(session_id)
        self._check_open()
        return await self._house.owners.get_owner(session_id)

    async def store_client_capabilities(
        self, session_id: str, capabilities: dict[str, Any]
    ) -> None:
        """Replace what the client of a session can do, for all workers to see.

        Args:
            session_id: the session.
            capabilities: a dict that JSON can carry, of at most ``max_message_bytes``.

        Raises:
            TypeError, ValueError: JSON cannot carry it.
            MessageTooLarge: it is too large.
            SessionNotFound, StoreUnavailable, RegistryClosed: as `set_session_owner`.

        Cancellation: they may or may not have been replaced.
        """
        check_trio()
        check_session_id(session_id)
        if not isinstance(capabilities, dict):
            raise TypeError(f"capabilities must be a dict, not {type(capabilities).__name__}")
        limit = self._house.settings.max_message_bytes
        encoded = encode(capabilities, what="capabilities", limit=limit)
        self._check_open()
        asked = capabilities.get("elicitation") not in (None, False)
        await self._house.owners.set_capabilities(
            session_id, Capabilities(encoded=encoded, elicitation=asked)
        )

    async def get_client_capabilities(self, session_id: str) -> dict[str, Any] | None:
        """Return what the client of a session can do; None if nothing was stored.

        Raises:
            StoreUnavailable: the database cannot say.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        check_trio()
        check_session_id(session_id)
        self._check_open()
        return await self._house.owners.get_capabilities(session_id)

    async def has_elicitation_capability(self, session_id: str) -> bool:
        """Say whether the client's capabilities have ``elicitation``, be it an empty dict.

        Raises:
            StoreUnavailable: the database cannot say.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        check_trio()
        capabilities = await self.get_client_capabilities(session_id)
        return (capabilities or {}).get("elicitation") not in (None, False)

    async def get_elicitation_capable_sessions(self) -> list[str]:
        """Return the ids of all sessions, of all workers, whose clients have ``elicitation``.

        Raises:
            StoreUnavailable: the database cannot say.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        check_trio()
        self._check_open()
        return await self._house.owners.elicitation_capable()

    # ---- messages ----

    async def broadcast(self, session_id: str, message: Any, *, durable: bool = False) -> None:
        """Send a message to a session, wherever it is held.

        A message to a session held here goes straight to its inbox, without the database,
        if there is room. Others wait in the database until the session's holder has handled
        them, at most ``message_ttl``. What one worker sends to one session stays in order;
        messages sent by several workers may overtake each other.

        Args:
            session_id: the session.
            message: any JSON value, of at most ``max_message_bytes``.
            durable: store it in the database also if the session is held here, so that it
                outlives this worker.

        Raises:
            TypeError, ValueError: JSON cannot carry the message (NaN and infinity neither).
            MessageTooLarge: it is too large.
            SessionNotFound: the database has confirmed that no worker holds the session.
            StoreUnavailable: the database is needed and away; the message may or may not
                have been stored.
            RegistryClosed: the registry is closed.

        Cancellation: the message may or may not have been sent.
        """
        check_trio()
        payload = self._take_in(session_id, message, durable=durable)
        if payload is None:
            await trio.lowlevel.checkpoint()
        else:
            await self._send(session_id, payload, durable=durable)

    def _take_in(self, session_id: str, message: Any, *, durable: bool) -> str | None:
        """Put a message into the inbox of its session, if it is held here and has room.

        Synchronous: with `_send` it is `broadcast`, here and on asyncio's side.

        Returns:
            The message's JSON, if it is still to be sent.
        """
        check_session_id(session_id)
        self._check_open()
        house = self._house
        payload = encode(message, what="the message", limit=house.settings.max_message_bytes)
        return None if not durable and house.messages.accept(session_id, payload) else payload

    async def _send(self, session_id: str, payload: str, *, durable: bool) -> None:
        await self._house.messages.send(session_id, payload, durable=durable)

    def open_inbox(self, session_id: str) -> OpenInbox:
        """Open the inbox of a session that is held here, for one consumer at a time.

        ::

            async with registry.open_inbox(session_id) as inbox:
                async for message in inbox:
                    await handle(message)

        The iteration ends when the session is removed, here or by another worker, or the
        registry is closed; an outage of the database does not end it. A message is
        acknowledged when the next one is asked for, or the block is left normally. If the
        block is left by an exception or cancelled, the last one is delivered again to the
        session's next inbox. Each delivery is a fresh value, which may be changed.

        Raises:
            SessionNotFound: on entering: this worker does not hold the session.
            RuntimeError: on entering: somebody else reads it.
            RegistryClosed: on entering: the registry is closed.

        Cancellation: no message is lost.
        """
        check_session_id(session_id)
        return self._reader(session_id, streams=True)

    def _reader(self, session_id: str, *, streams: bool) -> OpenInbox:
        """Return an inbox to be opened; see `open_inbox`.

        Args:
            session_id: the session.
            streams: it is not idle as long as this is open.
        """
        find = partial(self._entry_to_read, session_id)
        return OpenInbox(self._house.messages, find, streams=streams)

    def _entry_to_read(self, session_id: str) -> Entry:
        self._check_open()
        entry = self._house.table.get(session_id)
        if entry is None:
            raise SessionNotFound(f"session {fingerprint(session_id)} is not held by this worker")
        self._house.read_messages()
        return entry

    async def respond(
        self, session_id: str, handler: Callable[[Any, Transport], Awaitable[object]]
    ) -> None:
        """Await ``handler(message, transport)`` for each message, until the session is removed.

        What the handler raises comes out as it is, and its message counts as handled: it
        would be poison for ever.

        Raises:
            TypeError: ``handler`` is not callable, or returned nothing that can be awaited.
            SessionNotFound, RuntimeError, RegistryClosed: as `open_inbox`.

        Cancellation: the message that is being handled is delivered again to the session's
        next inbox; after Ctrl-C too.
        """
        check_trio()
        check_session_id(session_id)
        if not callable(handler):
            raise TypeError(f"handler must be an async function, not {type(handler).__name__}")
        async with self._reader(session_id, streams=False) as inbox:
            assert inbox.transport is not None
            async for message in inbox:
                try:
                    await interruptible(awaitable("handler", handler(message, inbox.transport)))
                except BaseException as exc:  # of the user's handler; raised again
                    if not is_cancellation(exc, KeyboardInterrupt):
                        inbox.finish()
                    raise

    # ---- cleanup ----

    async def cleanup(self) -> CleanupReport:
        """Run one pass now, or join the one that is running, and return its report.

        Raises:
            RegistryClosed: the registry is closed, or was while the pass ran.

        Cancellation: the pass goes on; others may have joined it.
        """
        check_trio()
        self._check_open()
        return await self._house.passes.run_one()

    def statistics(self) -> RegistryStatistics:
        """Return counters and gauges as they are now. No checkpoint, no database.

        Nothing is counted for it, however many sessions there are.
        """
        return self._house.statistics()
