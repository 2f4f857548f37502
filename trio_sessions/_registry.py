"""The registry: what a worker holds, and what it may ask about the others' sessions."""

import logging

import trio

from trio_sessions._calls import TransportCalls
from trio_sessions._cleanup import Pass
from trio_sessions._jobs import Jobs
from trio_sessions._pacing import keep_pace
from trio_sessions._rows import Rows
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable, Row
from trio_sessions.abc import Transport
from trio_sessions.errors import RegistryClosed, SessionNotFound, SessionsError, bare
from trio_sessions.types import (
    CleanupReport,
    RegistryStatistics,
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
        self._running: _RunningPass | None = None
        self._last_report: CleanupReport | None = None
        self._fleet_can_refresh = False
        self._closed = False
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
        check_session_id(session_id)
        check_transport(transport)
        self._check_open()
        entry, replaced = self._table.put(session_id, transport, trio.current_time())
        entry.row = Row.WRITING
        jobs = [self._jobs.write_row(entry)]
        if replaced is not None and replaced.transport is not transport:
            jobs.append(self._jobs.disconnect([replaced]))
        for job in jobs:
            await job.wait()

    async def get_session(self, session_id: str) -> Transport | None:
        """Return the transport of a session held here, else None. Never asks the database."""
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
        await trio.lowlevel.checkpoint()
        return self._table.ids()

    async def locate_session(self, session_id: str) -> str | None:
        """Return the ``worker_id`` that holds the session, None if there is none.

        Raises:
            StoreUnavailable: the session is not held here and the database cannot say.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        if check_session_id(session_id) in self._table:
            await trio.lowlevel.checkpoint()
            return self.worker_id
        self._check_open()
        holder = await self._rows.locate(session_id)
        return None if holder is None else holder.worker_id

    async def _wait_for_end(self, session_id: str) -> None:
        """Wait until the session is not held here any more.

        Raises:
            SessionNotFound: it is not held here now.
        """
        entry = self._table.get(check_session_id(session_id))
        if entry is None:
            await trio.lowlevel.checkpoint()
            raise SessionNotFound(f"session {fingerprint(session_id)} is not held by this worker")
        await entry.ended.wait()

    # ---- cleanup ----

    async def cleanup(self) -> CleanupReport:
        """Run one pass now, or join the one that is running, and return its report.

        Raises:
            RegistryClosed: the registry is closed, or was while the pass ran.

        Cancellation: the pass goes on; others may have joined it.
        """
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
            stuck_calls=self._calls.overdue(),
            stuck_tasks=self._calls.stuck_tasks(),
            operations_running=limiter.borrowed_tokens,
            operations_waiting=limiter.tasks_waiting,
            last_report=self._last_report,
            **self._counts,
        )

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

    async def _start(self) -> None:
        """Run the first pass, then go on in the background."""
        interval = self._settings.cleanup_interval
        await self._jobs.start_loop(keep_pace, self._run_paced_pass, interval)
        period = self._settings.session_ttl * _VOUCHING
        if interval > period:
            self._jobs.start_interruptible(self._keep_vouching, period)

    async def _close(self) -> None:
        """Disconnect everything and delete every row of this incarnation; bounded, never raises.

        Waits for what is under way first, so that no row is written after the deletion.
        """
        self._closed = True
        with trio.CancelScope(shield=True):
            self._jobs.interrupt()
            held = self._table.clear()
            self._jobs.disconnect(held)
            await self._jobs.finish()
            with trio.move_on_after(self._settings.store_timeout):
                await self._rows.delete(entry.session_id for entry in held)
                if not self._rows.leftover:
                    await self._rows.delete_all()


def check_transport(transport: object) -> None:
    """Raise `TypeError` unless ``transport`` has the methods of one."""
    if isinstance(transport, type):
        raise TypeError(f"transport must be an instance, not the class {transport.__name__}")
    for name in ("is_connected", "disconnect"):
        if not callable(getattr(transport, name, None)):
            raise TypeError(
                f"transport must have an async method {name}(); {type(transport).__name__} has none"
            )


def is_cancellation(error: BaseException) -> bool:
    """Say whether an error is that of a cancelled scope, be it of a nursery in it."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


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
