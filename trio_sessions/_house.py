"""The house: the parts of one registry, put together, started, and closed in order.

::

    registry ─> passes ─> sessions ─> messages ─> claims, owners ─> writer ─> edge ─> store
                   │          └─> transports         └─> departures, table
                   └─> transports, edge (refresh, sweep)
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from trio_sessions._admission import Admission
from trio_sessions._adopting import Adopting
from trio_sessions._asking import INHERITED
from trio_sessions._background import Background
from trio_sessions._calls import TransportCalls
from trio_sessions._claims import Claims
from trio_sessions._counters import Counters
from trio_sessions._departures import Departures
from trio_sessions._draining import Draining
from trio_sessions._edge import Edge
from trio_sessions._entry import Row
from trio_sessions._hearsay import Hearsay
from trio_sessions._histories import Histories
from trio_sessions._inspection import Inspection
from trio_sessions._lag import LoopLag
from trio_sessions._leaving import Leaving
from trio_sessions._life import Life, Phase
from trio_sessions._listening import Listening
from trio_sessions._logging import get_logger
from trio_sessions._logs import LogRoom, Logs
from trio_sessions._mail import Mail
from trio_sessions._messages import Messages
from trio_sessions._moves import Moves
from trio_sessions._owners import Owners
from trio_sessions._passes import Passes
from trio_sessions._restoring import Restorer
from trio_sessions._revoking import Revoking
from trio_sessions._session_data import SessionData
from trio_sessions._sessions import Sessions
from trio_sessions._settings import Settings
from trio_sessions._stamping import keep_stamping
from trio_sessions._strays import Strays
from trio_sessions._table import LocalTable
from trio_sessions._topics import Topics
from trio_sessions._undecided import Undecided
from trio_sessions._witness import Witness
from trio_sessions._workers import Workers
from trio_sessions._writer import Writer
from trio_sessions.abc import Part
from trio_sessions.errors import RegistryClosed
from trio_sessions.types import RegistryHealth, RegistryStatistics

__all__ = ["House"]

logger = get_logger("trio_sessions.registry")


class House:
    """One registry's parts."""

    def __init__(
        self,
        *,
        edge: Edge,
        witness: Witness,
        table: LocalTable,
        calls: TransportCalls,
        background: Background,
        life: Life,
        settings: Settings,
    ) -> None:
        if settings.limits.max_sessions_per_owner is not None:
            edge.check_keeps(Part.LIMITS, "LimitStore")
        self.settings = settings
        self._life = life
        self.table = table
        self.background = background
        self.admission = Admission(table, settings.limits)
        self._edge = edge
        self._calls = calls
        self._counters = counters = Counters()
        self._departures = departures = Departures()
        undecided = Undecided()
        self._witness = witness
        self._histories = histories = Histories(
            edge=edge, witness=witness, presence=settings.presence(), counters=counters
        )
        self._writer = writer = Writer(
            edge,
            histories,
            counters,
            life,
            rows=settings.batch_size,
            timeout=settings.store_timeout,
        )
        claims = Claims(
            writer=writer, witness=witness, table=table, departures=departures, counters=counters
        )
        self._listening = Listening(edge, background)
        self._mail = Mail(
            edge=edge,
            writer=writer,
            listening=self._listening,
            background=background,
            counters=counters,
            life=life,
            settings=settings,
        )
        self._restorer = Restorer(
            histories=histories, witness=witness, claims=claims, table=table, mail=self._mail
        )
        self.messages = Messages(
            edge=edge,
            writer=writer,
            claims=claims,
            table=table,
            departures=departures,
            counters=counters,
            witness=witness,
            settings=settings,
        )
        self._listening.tell(self.messages)
        self.owners = Owners(
            edge=edge, writer=writer, claims=claims, table=table, departures=departures
        )
        self.session_data = SessionData(
            edge=edge, writer=writer, claims=claims, table=table, departures=departures
        )
        self.adopting = Adopting(
            edge=edge,
            writer=writer,
            claims=claims,
            table=table,
            undecided=undecided,
            departures=departures,
            admission=self.admission,
            life=life,
        )
        self.inspection = Inspection(edge=edge, claims=claims, table=table, departures=departures)
        self.workers = Workers(edge, histories, self._mail)
        self.topics = Topics(self._mail)
        self.log_room = LogRoom(
            edge=edge,
            writer=writer,
            claims=claims,
            table=table,
            departures=departures,
            background=background,
            settings=settings,
        )
        self.logs = Logs(self.log_room, self.check_open)
        self.sessions = Sessions(
            table=table,
            calls=calls,
            claims=claims,
            departures=departures,
            messages=self.messages,
            background=background,
            counters=counters,
            settings=settings,
        )
        self.draining = Draining(
            admission=self.admission,
            edge=edge,
            histories=histories,
            table=table,
            messages=self.messages,
            sessions=self.sessions,
            departures=departures,
            background=background,
            life=life,
        )
        self.revoking = Revoking(
            edge=edge,
            table=table,
            claims=claims,
            sessions=self.sessions,
            settings=settings,
        )
        self.passes = Passes(
            table=table,
            calls=calls,
            edge=edge,
            claims=claims,
            sessions=self.sessions,
            messages=self.messages,
            revoking=self.revoking,
            restorer=self._restorer,
            strays=Strays(
                edge=edge, claims=claims, undecided=undecided, departures=departures, table=table
            ),
            witness=witness,
            background=background,
            counters=counters,
            settings=settings,
        )
        Moves(
            adopting=self.adopting,
            mail=self._mail,
            table=table,
            edge=edge,
            witness=witness,
            sessions=self.sessions,
            background=background,
            batch_size=settings.batch_size,
        )
        Hearsay(
            owners=self.owners,
            data=self.session_data,
            mail=self._mail,
            table=table,
            edge=edge,
            background=background,
            life=life,
        )
        self._reads = False
        """The loops that read messages have been started; most programs need none."""
        self._lag = LoopLag()
        self._measures = False
        """The task that measures the loop has been started; only who asks pays for it."""
        self._clock = trio.lowlevel.current_clock()  # is asked after the end of the run, too

    @property
    def worker_id(self) -> str:
        """This worker, as the other workers see it."""
        return self._edge.worker.worker_id

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child of the process that opened it."""
        return self._edge.is_inherited

    @property
    def is_closed(self) -> bool:
        """Whether it is closed, or closing."""
        return not self._life.is_open

    def check_open(self) -> None:
        """Raise `RegistryClosed` unless it can be used."""
        self._life.check_open()
        if self._edge.is_inherited:
            raise RegistryClosed(INHERITED)

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Run the first pass, go on in the background for the block, and close behind it."""
        try:
            await self._start()
            yield
        finally:
            await self._close()

    async def _start(self) -> None:
        self.background.start_service(self._writer.run)
        self._mail.open()
        await self._histories.begin()
        await self.passes.start()
        self.background.start_lasting(
            partial(
                keep_stamping,
                edge=self._edge,
                witness=self._witness,
                restorer=self._restorer,
                interval=self.settings.stamp_interval,
            )
        )

        if self._edge.keeps(Part.REVOCATION):
            self.background.start_lasting(self.revoking.keep_looking)
        if self.settings.handlers:
            self._mail.start()

    def read_messages(self) -> None:
        """Start the loops that read messages, unless they run."""
        if not self._reads:
            self._reads = True
            self._listening.start()
            for loop in (self.messages.fetch, self.messages.acknowledge):
                self.background.start_lasting(loop)

    async def _close(self) -> None:
        """Disconnect everything and delete every row of this incarnation; never raises.

        Bounded: one ``store_timeout`` for all that is still to be written and for closing the
        store, which has a quarter of it in any case; and meanwhile one ``disconnect_timeout`` for
        the transports. A forked child touches nothing: all of it is its parent's.
        """
        self._life.go(Phase.CLOSING)
        if self._edge.is_inherited:
            return
        with trio.CancelScope(shield=True):
            deadline = trio.current_time() + self.settings.store_timeout
            self._edge.close_by(deadline)
            self._mail.close()  # before, for a handler that is interrupted says why
            self.background.interrupt()
            leaving = await self.sessions.end_all()
            await self._write_what_is_left(deadline, leaving)
            await self.background.finish_loops()
            self._mail.end()
            self.passes.log_dropped()

    async def _write_what_is_left(self, deadline: float, leaving: Sequence[Leaving]) -> None:
        with trio.move_on_at(deadline):
            await self.background.finish_loops()
            for one in leaving:
                await one.gone()
                await trio.lowlevel.checkpoint()  # it may have been gone long since
            await self.background.finish_jobs()  # removals that were under way before
            await self.messages.close()
        self._life.go(Phase.FINISHING)
        await self._writer.finish(deadline)
        await self.background.finish_jobs()
        self.messages.drop_what_is_left()
        # What is left over has failed before; the database may be there again.
        with trio.move_on_at(deadline):
            if await self._edge.delete_all():
                self._departures.forget_all()
        if len(self._departures):
            logger.warning(
                "rows of %d sessions of this worker stay until they expire", len(self._departures)
            )

    def statistics(self) -> RegistryStatistics:
        """See `SessionRegistry.statistics`."""
        limiter = self._edge.worker.limiter.statistics()
        pool = self._edge.connections()
        return RegistryStatistics(
            worker_id=self.worker_id,
            closed=self.is_closed,
            sessions=len(self.table),
            unconfirmed=self.table.count(Row.UNWRITTEN, Row.WRITING),
            leftover_rows=len(self._departures),
            messages_in_memory=self.messages.in_memory(),
            stuck_calls=self._calls.overdue(),
            stuck_tasks=self._calls.refusing_companions(),
            operations_running=limiter.borrowed_tokens,
            operations_waiting=limiter.tasks_waiting
            + self._edge.questions_waiting
            + self._writer.waiting,
            operations_limit=int(limiter.total_tokens),
            connections_in_use=None if pool is None else pool.in_use,
            connections_idle=None if pool is None else pool.idle,
            last_report=self.passes.last_report,
            **self._counters.frozen(),
        )

    def health(self) -> RegistryHealth:
        """See `SessionRegistry.health`."""
        is_settled = self._measures or self.is_closed or self._edge.is_inherited
        if not is_settled and trio.lowlevel.in_trio_run():  # of no foreign thread
            self._measures = True
            self.background.start_lasting(self._lag.measure)
        now = self._clock.current_time()
        contact, report = self._edge.contact, self.passes.last_report
        return RegistryHealth(
            worker_id=self.worker_id,
            closed=self.is_closed,
            draining=self.admission.is_draining,
            database_answers=contact.answers,
            database_away=contact.away(now),
            since_good_pass=self.passes.since_good(now),
            held=0 if report is None else len(report.held),
            unknown_transport=self.passes.unknown_transport.longest(now),
            unknown_row=self.passes.unknown_row.longest(now),
            bell_alive=contact.bell_alive,
            loop_lag=self._lag.seconds(now),
        )
