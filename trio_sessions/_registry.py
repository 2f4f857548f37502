"""The registry: what a worker holds, and what it may ask about the others' sessions.

Over 400 lines, because it is the public surface: most of them are docstrings.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from trio_sessions._calls import TransportCalls
from trio_sessions._cleanup import Pass
from trio_sessions._consumer import OpenInbox
from trio_sessions._delivery import Delivery
from trio_sessions._interrupts import interruptible, uninterrupted
from trio_sessions._jobs import Jobs
from trio_sessions._json import encode
from trio_sessions._library import check_trio
from trio_sessions._owners import Owners
from trio_sessions._pacing import keep_pace
from trio_sessions._rows import INHERITED, Rows
from trio_sessions._settings import Settings
from trio_sessions._table import Entry, LocalTable, Row
from trio_sessions.abc import Transport
from trio_sessions.errors import RegistryClosed, SessionNotFound, SessionsError, bare
from trio_sessions.types import (
    Capabilities,
    CleanupReport,
    RegistryStatistics,
    check_owner,
    check_session_id,
    fingerprint,
)

__all__ = ["SessionRegistry"]

logger = logging.getLogger("trio_sessions.registry")

_VOUCHING = 0.1  # of session_ttl: the longest silence of a healthy worker


class _RunningPass:
    """A pass under way, and what became of it."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.complete = False
        self.report: CleanupReport | None = None
        self.error: Exception | None = None
        self.crash: BaseException | None = None
        """What ends the whole registry."""


@uninterrupted
class SessionRegistry:
    """The sessions of one worker. Made by `open_registry` or `serve_registry`.

    All its methods belong to one Trio run. Those named ``*_sync`` and `statistics` never
    wait; every async method is a checkpoint.

    A ``session_id`` that cannot be one raises `InvalidSessionId`, whatever the method.
    """

    worker_id: str
    """This worker, as the other workers see it; unique unless you chose it yourself."""

    def __init__(
        self,
        *,
        rows: Rows,
        table: LocalTable,
        calls: TransportCalls,
        delivery: Delivery,
        jobs: Jobs,
        settings: Settings,
    ) -> None:
        """Not for users: `open_registry` puts the parts together."""
        self.worker_id = rows.worker.worker_id
        self._rows = rows
        self._table = table
        self._calls = calls
        self._settings = settings
        self._jobs = jobs
        self._owners = Owners(
            table=table, rows=rows, write=jobs.write_rows, batch_size=settings.batch_size
        )
        self._delivery = delivery
        self._reads = False
        """The loops that read messages have been started; most programs need none."""
        self._running: _RunningPass | None = None
        self._last_report: CleanupReport | None = None
        self._fleet_can_refresh = False
        self._closed = False
        self._logged_as_dropped = 0
        self._counts = dict.fromkeys(
            (
                "passes",
                "failed_passes",
                "incomplete_passes",
                "removed_disconnected",
                "removed_missing",
                "restored",
                "expired",
                "check_failures",
                "refresh_failures",
            ),
            0,
        )

    # ---- sessions ----

    async def add_session(self, session_id: str, transport: Transport) -> None:
        """Hold ``session_id`` from now on, and write its row.

        The session is usable before this returns. If the id is held already, here or by
        another worker, it is taken over: the newest transport wins and the older one is
        disconnected (another worker's at that worker's next pass); its owner stays.

        If the row cannot be written because the database is away, nothing is raised: the
        session stays, which is logged, and the next pass writes the row.

        Args:
            session_id: 1 to 255 characters, UTF-8, no NUL.
            transport: the live connection; the registry disconnects it from now on.

        Raises:
            InvalidSessionId: as for every method.
            TypeError: ``transport`` lacks ``is_connected()`` or ``disconnect()``.
            RegistryClosed: the registry is closed.

        Cancellation: the session stays added, and its row is written all the same.
        """
        check_trio()
        check_session_id(session_id)
        check_transport(transport)
        self._check_open()
        entry, replaced = self._table.put(session_id, transport, trio.current_time())
        earlier = self._rows.leaving(session_id) if replaced is None else [replaced]
        if replaced is None:
            entry.pending.leftover = self._rows.may_be_left_behind(session_id)
        entry.row = Row.WRITING
        jobs = [self._jobs.write_row(entry, earlier)]
        if replaced is not None and replaced.transport is not transport:
            jobs.append(self._jobs.disconnect([replaced]))
        for job in jobs:
            await job.wait()

    async def get_session(self, session_id: str) -> Transport | None:
        """Return the transport of a session held here, else None. Never asks the database."""
        check_trio()
        transport = self.get_session_sync(session_id)
        await trio.lowlevel.checkpoint()
        return transport

    def get_session_sync(self, session_id: str) -> Transport | None:
        """Return the transport of a session held here, else None. No checkpoint."""
        entry = self._table.get(check_session_id(session_id))
        return None if entry is None else entry.transport

    async def remove_session(self, session_id: str) -> None:
        """End a session held here: un-publish it, disconnect it, delete its row.

        An unknown id is no error, nor is a transport that fails to disconnect (logged),
        nor a database that is away (the row goes at a later pass). Another worker's row
        is never touched.

        Raises:
            RegistryClosed: the registry is closed.

        Cancellation: the removal goes on without the caller.
        """
        check_trio()
        check_session_id(session_id)
        self._check_open()
        entry = self._table.get(session_id)
        if entry is None:
            await trio.lowlevel.checkpoint()
            return
        self._table.discard(entry)
        await self._jobs.retire([entry]).wait()

    async def session_exists(self, session_id: str) -> bool | None:
        """Say whether any worker holds the session.

        Returns:
            True or False, or None: it could not be verified (answer 503, not 404).
        """
        check_trio()
        if check_session_id(session_id) in self._table:
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
        return self._table.ids()

    async def locate_session(self, session_id: str) -> str | None:
        """Return the ``worker_id`` that holds the session, None if there is none.

        Raises:
            StoreUnavailable: the session is not held here and the database cannot say.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        check_trio()
        if check_session_id(session_id) in self._table:
            await trio.lowlevel.checkpoint()
            return self.worker_id
        self._check_open()
        holder = await self._rows.locate(session_id)
        return None if holder is None else holder.worker_id

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
        await self._owners.set_owner(session_id, owner)

    async def claim_session_owner(self, session_id: str, owner: str) -> str | None:
        """Set who owns a session unless it is owned: the first claim of all workers wins.

        Returns:
            The owner that the session has now; None if that cannot be verified: the
            database is away, or knows no such session.

        Raises:
            TypeError, ValueError: ``owner`` cannot be one.
            RegistryClosed: the registry is closed.

        Cancellation: the claim may or may not have been made.
        """
        check_trio()
        check_session_id(session_id)
        check_owner(owner)
        self._check_open()
        return await self._owners.claim_owner(session_id, owner)

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
        return await self._owners.get_owner(session_id)

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
        limit = self._settings.max_message_bytes
        encoded = encode(capabilities, what="capabilities", limit=limit)
        self._check_open()
        asked = capabilities.get("elicitation") not in (None, False)
        await self._owners.set_capabilities(
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
        return await self._owners.get_capabilities(session_id)

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
        return await self._owners.elicitation_capable()

    # ---- messages ----

    async def broadcast(self, session_id: str, message: Any, *, durable: bool = False) -> None:
        """Send a message to a session, wherever it is held.

        A message to a session held here goes straight to its inbox, without the database,
        if there is room. Others wait in the database until the session's holder has handled
        them, at most ``message_ttl``. What one worker sends to one session stays in order;
        messages sent by several workers may overtake each other.

        Args:
            session_id: the session.
            message: any JSON value, of at most ``max_message_bytes``; integers of at most 64
                bits, lists and dicts nested at most 254 deep.
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
        if durable:
            check_session_id(session_id)
        elif self.accept(session_id, message):
            await trio.lowlevel.checkpoint()
            return
        payload = self._encode(message)
        await self._delivery.sent_on(session_id)
        entry = self._table.get(session_id)
        if entry is None:
            sent = await self._rows.send(session_id, payload)
            entry = self._table.get(session_id)
            if sent is None or (entry is None and self._rows.is_own(sent.holder)):
                raise SessionNotFound(f"session {fingerprint(session_id)} is held by no worker")
            if entry is not None:  # it has been added meanwhile
                with self._delivery.storing(entry) as stored:
                    stored(sent.id)
            return
        with self._delivery.storing(entry) as stored:
            await self._owners.write(session_id)
            sent = await self._rows.send(session_id, payload)
            if sent is None:
                raise SessionNotFound(f"session {fingerprint(session_id)} was removed just now")
            stored(sent.id)

    def _encode(self, message: Any) -> str:
        self._check_open()
        return encode(message, what="the message", limit=self._settings.max_message_bytes)

    def accept(self, session_id: str, message: Any) -> bool:
        """Put a message into the inbox of a session that is held here and has room.

        Synchronous, for `broadcast` here and on asyncio's side, which checks the rest.

        Returns:
            False if the message is still to be sent.
        """
        entry = self._table.get(check_session_id(session_id))
        return entry is not None and self._delivery.accept(entry, self._encode(message))

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
        return OpenInbox(self._delivery, partial(self._entry_to_read, session_id))

    def _entry_to_read(self, session_id: str) -> Entry:
        self._check_open()
        entry = self._table.get(session_id)
        if entry is None:
            raise SessionNotFound(f"session {fingerprint(session_id)} is not held by this worker")
        if not self._reads:
            self._reads = True
            for loop in (self._delivery.listen, self._delivery.fetch, self._delivery.acknowledge):
                self._jobs.start_lasting(loop)
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
        async with OpenInbox(self._delivery, partial(self._entry_to_read, session_id)) as inbox:
            assert inbox.transport is not None
            async for message in inbox:
                try:
                    await interruptible(_awaitable(handler(message, inbox.transport)))
                except BaseException as exc:
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
        running = await self._join_pass()
        if running.error is not None:
            raise running.error
        if running.report is None:
            raise RegistryClosed("the registry was closed while the pass ran") from running.crash
        return running.report

    def statistics(self) -> RegistryStatistics:
        """Return counters and gauges as they are now. No checkpoint, no database.

        Counting the unconfirmed sessions walks the table, about 2 ms for 50,000.
        """
        limiter = self._rows.worker.limiter.statistics()
        return RegistryStatistics(
            worker_id=self.worker_id,
            closed=self._closed,
            sessions=len(self._table),
            unconfirmed=self._table.count((Row.UNWRITTEN, Row.WRITING)),
            leftover_rows=len(self._rows.leftover),
            disconnect_failures=self._jobs.disconnect_failures,
            messages_in_memory=self._delivery.in_memory(),
            messages_dropped=self._messages_dropped(),
            stuck_calls=self._calls.overdue(),
            stuck_tasks=self._calls.refusing_companions(),
            operations_running=limiter.borrowed_tokens,
            operations_waiting=limiter.tasks_waiting,
            last_report=self._last_report,
            **self._counts,
        )

    def _messages_dropped(self) -> int:
        return self._delivery.dropped + self._rows.messages_dropped

    def _log_dropped(self) -> None:
        """Say how many messages were dropped since this was last said."""
        dropped = self._messages_dropped()
        if dropped > self._logged_as_dropped:
            logger.warning(
                "%d messages were dropped: older than message_ttl, or their session is gone",
                dropped - self._logged_as_dropped,
            )
        self._logged_as_dropped = dropped

    # ---- the pass and its loop ----

    async def _join_pass(self) -> _RunningPass:
        if self._running is None:
            self._running = _RunningPass()
            self._jobs.start_interruptible(self._run_pass, self._running)
        running = self._running
        await running.ended.wait()
        return running

    async def _run_pass(self, running: _RunningPass) -> None:
        one = Pass(
            table=self._table,
            calls=self._calls,
            rows=self._rows,
            retire=self._jobs.retire,
            settings=self._settings,
        )
        try:
            running.report = self._last_report = await one.run()
            if one.swept:
                self._delivery.swept()
            await self._delivery.send_on_what_is_left()
            self._delivery.drop_expired()
            self._delivery.look()
        except Exception as exc:
            logger.exception("a pass failed; the next one follows as planned")
            self._counts["failed_passes"] += 1
            running.error = bare(exc)
        except BaseException as exc:
            if not is_cancellation(exc):
                running.crash = bare(exc)
            raise
        else:
            running.complete = one.database_answered
            self._count(running.report, complete=running.complete)
            self._log_dropped()
            _log(running.report)
        finally:
            self._fleet_can_refresh = running.complete
            self._running = None
            running.ended.set()

    def _count(self, report: CleanupReport, *, complete: bool) -> None:
        self._counts["passes"] += 1
        self._counts["incomplete_passes"] += not complete
        self._counts["removed_disconnected"] += len(report.disconnected)
        self._counts["removed_missing"] += len(report.missing)
        self._counts["restored"] += len(report.restored)
        self._counts["expired"] += report.expired
        self._counts["check_failures"] += len(report.check_failures)
        self._counts["refresh_failures"] += len(report.refresh_failures)

    async def _run_paced_pass(self) -> bool:
        return (await self._join_pass()).complete

    async def _keep_vouching(self, period: float) -> None:
        """Vouch for the fleet between two passes that are far apart, if the last one could."""
        while True:
            await trio.sleep(period)
            if self._fleet_can_refresh:
                try:
                    await self._rows.vouch()
                except SessionsError as exc:
                    logger.warning("could not vouch for the fleet: %s", exc)

    # ---- lifetime: for `open_registry` ----

    def _check_open(self) -> None:
        if self._closed:
            raise RegistryClosed(
                "the registry is closed: use it inside the `async with open_registry(...)` block"
            )
        if self._rows.is_inherited:
            raise RegistryClosed(INHERITED)

    async def _start(self) -> None:
        """Run the first pass, then go on in the background."""
        interval = self._settings.cleanup_interval
        await self._jobs.start_loop(keep_pace, self._run_paced_pass, interval)
        period = self._settings.session_ttl * _VOUCHING
        if interval > period:
            self._jobs.start_lasting(self._keep_vouching, period)

    async def _close(self) -> None:
        """Disconnect everything and delete every row of this incarnation; bounded, never raises.

        Waits for what is under way first, so that no row is written after the deletion.
        A forked child touches nothing: all of it is its parent's.
        """
        self._closed = True
        if self._rows.is_inherited:
            return
        with trio.CancelScope(shield=True):
            self._jobs.interrupt()
            held = self._table.clear()
            unread = self._delivery.begin_to_end(held)
            self._jobs.disconnect(held)
            await self._jobs.finish()
            with trio.move_on_after(self._settings.store_timeout):
                await self._delivery.send_on(unread)
                await self._delivery.send_on_what_is_left()
                await self._delivery.acknowledge_for(held)
                await self._rows.delete(entry.session_id for entry in held)
                if not self._rows.leftover:
                    await self._rows.delete_all()
            self._log_dropped()


def check_transport(transport: object) -> None:
    """Raise `TypeError` unless ``transport`` has the methods of one."""
    if isinstance(transport, type):
        raise TypeError(f"transport must be an instance, not the class {transport.__name__}")
    for name in ("is_connected", "disconnect"):
        if not callable(getattr(transport, name, None)):
            raise TypeError(
                f"transport must have an async method {name}(); {type(transport).__name__} has none"
            )


def is_cancellation(error: BaseException, *others: type[BaseException]) -> bool:
    """Say whether an error is that of a cancelled scope, be it of a nursery in it.

    Args:
        error: the error.
        others: what counts as a cancellation, too.
    """
    kinds: tuple[type[BaseException], ...] = (trio.Cancelled, *others)
    if isinstance(error, BaseExceptionGroup):
        return error.split(kinds)[1] is None
    return isinstance(error, kinds)


def _awaitable(returned: Awaitable[object]) -> Awaitable[object]:
    if not inspect.isawaitable(returned):
        raise TypeError(
            f"handler must be an async function, but it returned {type(returned).__name__}, "
            "which cannot be awaited"
        )
    return returned


def _log(report: CleanupReport) -> None:
    """Say once a pass what an operator wants to know."""
    if report.disconnected or report.missing or report.expired:
        logger.info(
            "removed %d disconnected and %d missing sessions, swept %d expired rows",
            len(report.disconnected),
            len(report.missing),
            report.expired,
        )
    if logger.isEnabledFor(logging.DEBUG):
        for what in ("disconnected", "missing", "restored"):
            for session_id in getattr(report, what):
                logger.debug("%s: session %s", what, fingerprint(session_id))
    for what, failures in (
        ("transports did not say whether they are connected", report.check_failures),
        ("rows could not be refreshed", report.refresh_failures),
    ):
        if failures:
            session_id, error = next(iter(failures.items()))
            logger.warning(
                "%d %s and their sessions are kept; the first is session %s: %r",
                len(failures),
                what,
                fingerprint(session_id),
                error,
                exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
            )
