"""When a pass runs: one now if somebody asks, and one every ``cleanup_interval``; never two."""

import logging

import trio

from trio_sessions._background import Background, is_cancellation
from trio_sessions._brake import Brake
from trio_sessions._calls import TransportCalls
from trio_sessions._claims import Claims
from trio_sessions._cleanup import Pass
from trio_sessions._counters import Counters
from trio_sessions._edge import Edge
from trio_sessions._logging import get_logger
from trio_sessions._messages import Messages
from trio_sessions._pacing import keep_pace
from trio_sessions._portions import Portions
from trio_sessions._restoring import Restorer
from trio_sessions._revoking import Revoking
from trio_sessions._sessions import Sessions
from trio_sessions._settings import Settings
from trio_sessions._strays import Strays
from trio_sessions._sweeping import Sweeper
from trio_sessions._table import LocalTable
from trio_sessions._unknown import Unknown
from trio_sessions._witness import Witness
from trio_sessions.errors import RegistryClosed, bare
from trio_sessions.types import CleanupReport, fingerprint

__all__ = ["Passes"]

logger = get_logger("trio_sessions.registry")


class _Running:
    """A pass under way, and what became of it."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.complete = False
        self.report: CleanupReport | None = None
        self.error: Exception | None = None
        self.crash: BaseException | None = None
        """What ends the whole registry."""


class Passes:
    """The passes of one registry."""

    def __init__(
        self,
        *,
        table: LocalTable,
        calls: TransportCalls,
        edge: Edge,
        claims: Claims,
        sessions: Sessions,
        messages: Messages,
        revoking: Revoking,
        restorer: Restorer,
        strays: Strays,
        witness: Witness,
        background: Background,
        counters: Counters,
        settings: Settings,
    ) -> None:
        self._table = table
        self._calls = calls
        self._edge = edge
        self._claims = claims
        self._sessions = sessions
        self._messages = messages
        self._revoking = revoking
        self._restorer = restorer
        self._strays = strays
        self._witness = witness
        self._sweeper = Sweeper(edge, counters, settings)
        self._background = background
        self._counters = counters
        self._settings = settings
        self._brake = Brake(settings.mass_missing_brake)
        self._portions = Portions(settings.batch_size)
        self._running: _Running | None = None
        self._last_report: CleanupReport | None = None
        self._logged_as_dropped = 0
        self._last_good: float | None = None
        self.unknown_transport = Unknown(table)
        self.unknown_row = Unknown(table)

    @property
    def last_report(self) -> CleanupReport | None:
        """What the last pass did that ran to its end."""
        return self._last_report

    def since_good(self, now: float) -> float | None:
        """Return the seconds since a pass ended for which the database answered; None: none has."""
        return None if self._last_good is None else now - self._last_good

    @property
    def running(self) -> trio.Event | None:
        """An event that is set when the running pass has ended; None: none runs."""
        return None if self._running is None else self._running.ended

    async def start(self) -> None:
        """Run the first pass, then go on in the background."""
        interval = self._settings.cleanup_interval
        await self._background.start_loop(keep_pace, self._run_paced, interval)

    async def run_one(self) -> CleanupReport:
        """Run a pass now, or join the one that runs, and return its report.

        Raises:
            RegistryClosed: it was cut by the closing of the registry.
        """
        running = await self._join()
        if running.error is not None:
            raise running.error
        if running.report is None:
            raise RegistryClosed("the registry was closed while the pass ran") from running.crash
        return running.report

    def new_pass(self) -> Pass:
        """Return a pass, to be run once."""
        return Pass(
            table=self._table,
            calls=self._calls,
            edge=self._edge,
            claims=self._claims,
            sessions=self._sessions,
            brake=self._brake,
            portions=self._portions,
            counters=self._counters,
            restorer=self._restorer,
            strays=self._strays,
            witness=self._witness,
            sweeper=self._sweeper,
            is_busy=self._messages.is_busy,
            revoking=self._revoking,
            settings=self._settings,
        )

    async def _join(self) -> _Running:
        running = self._running
        if running is None:
            running = self._running = _Running()
            try:
                self._background.start_interruptible(self._run, running)
            except BaseException:  # the handler of a signal; else no pass would ever run again
                self._running = None
                raise
        await running.ended.wait()
        return running

    async def _run_paced(self) -> bool:
        return (await self._join()).complete

    async def _run(self, running: _Running) -> None:
        if self._running is not running:  # it was started, and its starter does not know
            return
        one = self.new_pass()
        try:
            running.report = self._last_report = await one.run()
            await self._messages.after_pass(swept=one.swept)
        except Exception as exc:  # logged, counted, and raised by `cleanup`
            logger.exception("a pass failed; the next one follows as planned")
            self._counters.count_failed_pass()
            running.error = bare(exc)
        except BaseException as exc:  # noted for whoever joined; raised again
            if not is_cancellation(exc):
                running.crash = bare(exc)
            raise
        else:
            running.complete = one.database_answered
            if running.complete:
                self._last_good = trio.current_time()
            self._counters.count_pass(running.report, complete=running.complete)
            self._note_unknown(running.report)
            self.log_dropped()
            _log(running.report)
        finally:
            self._running = None
            running.ended.set()

    def _note_unknown(self, report: CleanupReport) -> None:
        began = trio.current_time() - report.duration
        self.unknown_transport.note(report.check_failures, began)
        self.unknown_row.note(report.refresh_failures, began)

    def log_dropped(self) -> None:
        """Log how many messages were dropped since the last time."""
        dropped = self._counters.messages_dropped
        if dropped > self._logged_as_dropped:
            logger.warning(
                "%d messages were dropped: older than message_ttl, or their session is gone",
                dropped - self._logged_as_dropped,
            )
        self._logged_as_dropped = dropped


def _log(report: CleanupReport) -> None:
    """Log what an operator wants to know of a pass."""
    if report.disconnected or report.missing or report.expired:
        logger.info(
            "removed %d disconnected and %d missing sessions, swept %d expired rows",
            len(report.disconnected),
            len(report.missing),
            report.expired,
        )
    if report.revoked or report.idle or report.aged:
        logger.info(
            "ended %d revoked, %d idle and %d aged sessions",
            len(report.revoked),
            len(report.idle),
            len(report.aged),
        )
    if logger.isEnabledFor(logging.DEBUG):
        for what in ("disconnected", "missing", "restored", "held", "revoked", "idle", "aged"):
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
