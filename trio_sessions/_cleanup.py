"""The pass: check connections, refresh the rows of those that live, drop what is gone, sweep.

**A session is removed only when its transport says that it is disconnected, or the
database has confirmed that its row is gone. Whatever is unknown is kept.**

What an answer means is decided in `trio_sessions._verdicts` and `trio_sessions._brake`: evidence
in, verdicts out. What is here acts on them: asynchronous, no decisions of its own.
See docs/decisions/0001-a-limiter-instead-of-gather.md.
"""

from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from operator import attrgetter

import trio

from trio_sessions._brake import Brake, Decision
from trio_sessions._calls import TransportCalls
from trio_sessions._claims import Claims
from trio_sessions._counters import Counters
from trio_sessions._edge import Edge, chunked
from trio_sessions._entry import Entry, Row
from trio_sessions._interrupts import uninterrupted
from trio_sessions._limiting import over_limits
from trio_sessions._logging import get_logger
from trio_sessions._portions import Portions
from trio_sessions._restoring import Restorer
from trio_sessions._revoking import Revoking
from trio_sessions._sessions import Sessions
from trio_sessions._settings import Settings
from trio_sessions._strays import Strays
from trio_sessions._sweeping import Sweeper
from trio_sessions._table import LocalTable
from trio_sessions._tally import Tally
from trio_sessions._tracing import Phase
from trio_sessions._verdicts import (
    Leases,
    RowVerdict,
    judge_claims,
    judge_connection,
    judge_rows,
)
from trio_sessions._witness import WentBack, Witness
from trio_sessions.errors import NotSupported, OperationTooLong, RowUnavailable, SessionsError
from trio_sessions.types import CleanupReport, RemovalReason, RowAnswers

__all__ = ["Pass"]

logger = get_logger("trio_sessions.cleanup")

_SLICE = 1000  # sessions judged before the event loop gets its turn
_SPLITTING = 0.5  # of cleanup_interval: a flood of bad rows must not keep the pass from its end


@uninterrupted
class Pass:
    """One pass. Cancelled at any point it leaves all in order, and the next one converges."""

    def __init__(
        self,
        *,
        table: LocalTable,
        calls: TransportCalls,
        edge: Edge,
        claims: Claims,
        sessions: Sessions,
        brake: Brake,
        portions: Portions,
        counters: Counters,
        restorer: Restorer,
        strays: Strays,
        witness: Witness,
        sweeper: Sweeper,
        is_busy: Callable[[Entry], bool],
        revoking: Revoking,
        settings: Settings,
    ) -> None:
        self.database_answered = True
        """Whatever is unknown is so for a reason of its own row."""
        self.swept = False
        self._table = table
        self._calls = calls
        self._edge = edge
        self._claims = claims
        self._sessions = sessions
        self._brake = brake
        self._portions = portions
        self._counters = counters
        self._restorer = restorer
        self._strays = strays
        self._witness = witness
        self._sweeper = sweeper
        self._is_busy = is_busy
        self._revoking = revoking
        self._settings = settings
        self._tally = Tally()
        self._taken_over: list[Entry] = []
        self._went_back = False
        self._history = ""
        """The one in which what the brake and `_taken_over` know was answered."""
        self._turn = trio.Lock()  # one chunk is judged at a time, and others run in between
        self._split_until = 0.0

    async def run(self) -> CleanupReport:
        """Check, refresh, sweep: in this order."""
        start = trio.current_time()
        self._split_until = start + self._settings.cleanup_interval * _SPLITTING
        tracing, tally = self._settings.tracing, self._tally
        with tracing.span("pass") as span:
            await self._notice_rewinds()
            async with trio.open_nursery() as removals:
                with Phase(tracing, "check") as phase:
                    await self._end_over_limits(removals)
                    leases = await self._check_connections(removals)
                tally.checking = phase.seconds
                with Phase(tracing, "refresh") as phase:
                    await self._judge(leases, removals)
                tally.refreshing = phase.seconds
            with Phase(tracing, "sweep") as phase:
                await self._claims.delete_what_is_due()
                await self._stamp_and_sweep()
            tally.sweeping = phase.seconds
            tally.ended[RemovalReason.REVOKED] += self._revoking.take_ended()
            report = tally.report(trio.current_time() - start)
            span.note(checked=report.checked, refreshed=report.refreshed, expired=report.expired)
        return report

    async def _judge(self, leases: Leases, removals: trio.Nursery) -> None:
        """Ask for the rows, and act on what the store has said of all of them."""
        self._brake.begin()
        self._history = self._witness.known.history
        await self._refresh(leases)
        self._portions.end_pass(complete=self.database_answered)
        await self._restore_the_forgotten()
        await self._remove_missing(removals)

    async def _notice_rewinds(self) -> None:
        """Begin a new history, and have all rows written anew, if the database went back."""
        try:
            await self._restorer.ensure()
        except SessionsError as exc:
            logger.warning("the database went back, and cannot be reached now: %s", exc)
            self.database_answered = False

    async def _restore_the_forgotten(self) -> None:
        """Wait for the claims of forgotten rows, also those that began before this pass."""
        await self._notice_rewinds()
        for chunk in chunked(self._restorer.take_restoring(), self._settings.batch_size):
            for entry in chunk:
                await entry.answered()
            self._count_restored([entry for entry in chunk if self._table.holds(entry)])
            await trio.lowlevel.checkpoint()

    async def _stamp_and_sweep(self) -> None:
        """Say that this pass has ended; sweep if the database has answered for all."""
        if self.database_answered:
            self._tally.expired = await self._sweeper.sweep()
            self.swept = self._sweeper.finished
            await self._strays.delete(self._sweeper.rows)
            return
        try:
            await self._edge.stamp(passed=True)
        except SessionsError as exc:
            logger.warning("the end of a pass could not be stamped: %s", exc)

    async def _end_over_limits(self, removals: trio.Nursery) -> None:
        """End the sessions that have been here for too long, or silent."""
        limits = self._settings.limits
        if limits.max_age is None and limits.idle_timeout is None:
            return
        for part in chunked(self._table.snapshot(), _SLICE):
            over = over_limits(part, limits, trio.current_time(), self._is_busy)
            self._end(over.aged, RemovalReason.AGED, removals)
            self._end(over.idle, RemovalReason.IDLE, removals)
            await trio.lowlevel.checkpoint()

    async def _check_connections(self, removals: trio.Nursery) -> Leases:
        """Ask every transport; remove the disconnected, lease the others."""
        answers = await self._calls.check(self._table.snapshot(), self._settings.check_timeout)
        self._tally.checked = len(answers)
        leases = Leases()
        remaining = iter(answers.items())
        while part := list(islice(remaining, _SLICE)):
            disconnected, kept = list[Entry](), list[Entry]()
            for entry, answer in part:
                verdict = answer if answer is True else judge_connection(answer)
                if verdict is False:
                    disconnected.append(entry)
                    continue
                if verdict is not True:  # unknown: keep it, and keep its lease
                    self._tally.check_failures[entry.session_id] = verdict
                kept.append(entry)
            leases.add(kept)
            self._end(disconnected, RemovalReason.DISCONNECTED, removals)
            await trio.lowlevel.checkpoint()
        return leases

    async def _refresh(self, leases: Leases) -> None:
        """Refresh or write all rows; ask once more for what this worker has lost with its lease."""
        await self._refresh_all(leases)
        if self._went_back:
            await self._notice_rewinds()
            self._drop_old_evidence()
            lost = list[Entry]()
            for part in chunked(leases.refresh, _SLICE):
                lost += [e for e in part if e.row is Row.LOST and self._table.holds(e)]
                await trio.lowlevel.checkpoint()
            await self._refresh_all(Leases(refresh=lost))

    def _drop_old_evidence(self) -> None:
        """Discard answers of earlier histories than the present one."""
        if not self._witness.is_steady or self._witness.known.history != self._history:
            self._history = self._witness.known.history
            self._taken_over.clear()
            self._brake.begin()

    async def _refresh_all(self, leases: Leases) -> None:
        """Send chunks at once, as many as the limiter lets through."""
        async with trio.open_nursery() as nursery:
            in_order = await _sort(leases.refresh)
            while chunk := list(islice(in_order, self._portions.size)):
                nursery.start_soon(self._refresh_chunk, chunk)
                await trio.lowlevel.checkpoint()
            for part in chunked(leases.restore, self._settings.batch_size):
                nursery.start_soon(self._restore_chunk, part)
                await trio.lowlevel.checkpoint()

    async def _refresh_chunk(self, chunk: Sequence[Entry]) -> None:
        answers = await self._ask(chunk)
        async with self._turn:
            verdict = judge_rows(chunk, answers, self._witness, trio.current_time())
            self._tally.refreshed += len(verdict.there)
            self._brake.note(
                there=verdict.there,
                taken_over=verdict.taken_over,
                gone=verdict.gone,
                suspect=verdict.suspect,
            )
            self._take_note(verdict)
            for entry in verdict.suspect:
                self._claims.write_anew(entry)

    async def _restore_chunk(self, chunk: Sequence[Entry]) -> None:
        # One that was removed, or added again, since the snapshot is left alone.
        chunk = [e for e in chunk if e.row is Row.UNWRITTEN and self._table.holds(e)]
        await self._claims.attempt(chunk)
        async with self._turn:
            self._count_restored(chunk)

    def _count_restored(self, entries: Sequence[Entry]) -> None:
        """Count the rows that were restored, by the answers to their claims."""
        verdict = judge_claims(entries)
        if any(not isinstance(one, RowUnavailable) for one in verdict.unknown.values()):
            self.database_answered = False
        self._tally.restored += [entry.session_id for entry in verdict.there]
        self._take_note(verdict)

    def _take_note(self, verdict: RowVerdict) -> None:
        if self._went_back:  # it may have been unknown before
            for entry in (*verdict.taken_over, *verdict.there):
                self._tally.refresh_failures.pop(entry.session_id, None)
        self._tally.refresh_failures.update(verdict.unknown)
        self._taken_over += verdict.taken_over

    async def _remove_missing(self, removals: trio.Nursery) -> None:
        """Remove sessions whose row is gone, or another worker's, when all chunks were answered."""
        if self._brake.has_missing:
            await self._look_for_revoked()
        self._drop_old_evidence()
        decision = self._brake.decide()
        if decision.brakes:
            self._counters.count_brake()
            _log_brake(decision, self._settings.mass_missing_brake)
        for part in chunked(decision.remove, _SLICE):
            self._end(part, RemovalReason.MISSING, removals)
            await trio.lowlevel.checkpoint()
        for part in chunked(self._taken_over, _SLICE):
            self._end(part, RemovalReason.TAKEN_OVER, removals)
            await trio.lowlevel.checkpoint()
        for part in chunked(decision.hold, _SLICE):
            self._tally.held += [one.session_id for one in part if self._table.holds(one)]
            await trio.lowlevel.checkpoint()

    async def _look_for_revoked(self) -> None:
        """End revoked sessions first: those among the missing are no reason to brake."""
        try:
            await self._revoking.look()
        except NotSupported:
            return
        except SessionsError as exc:
            logger.warning("cannot tell which of the missing sessions were revoked: %s", exc)

    async def _ask(self, entries: Sequence[Entry]) -> RowAnswers:
        """Ask for one chunk, in one transaction.

        Where the error is a row's own, or the chunk was too much for the time that it had, it is
        split; any other makes it unknown.
        """
        try:
            return await self._edge.refresh([entry.session_id for entry in entries])
        except RowUnavailable as exc:
            error: SessionsError = exc
            if self._may_split(entries):
                return await self._ask_in_halves(entries)
            self.database_answered &= len(entries) == 1  # else for rows that may be good
        except OperationTooLong as exc:
            error = exc
            if self._may_split(entries):
                answers = await self._ask_in_halves(entries)
                if not any(isinstance(e, OperationTooLong) for e in answers.unknown.values()):
                    self._portions.too_much(len(entries))
                return answers
            if len(entries) > 1:
                self._portions.too_much(len(entries))
            self.database_answered = False
        except SessionsError as exc:
            error = exc
            self.database_answered = False
            self._went_back |= isinstance(exc, WentBack)
        return RowAnswers(
            held=frozenset(), unknown=dict.fromkeys((e.session_id for e in entries), error)
        )

    def _may_split(self, entries: Sequence[Entry]) -> bool:
        return len(entries) > 1 and trio.current_time() < self._split_until

    async def _ask_in_halves(self, entries: Sequence[Entry]) -> RowAnswers:
        middle = len(entries) // 2
        left = await self._ask(entries[:middle])
        right = await self._ask(entries[middle:])
        return RowAnswers(
            held=left.held | right.held,
            taken_over=left.taken_over | right.taken_over,
            taken_ago={**left.taken_ago, **right.taken_ago},
            unknown={**left.unknown, **right.unknown},
            stamp=min(
                (one.stamp for one in (left, right) if one.stamp is not None),
                key=lambda stamp: stamp.beat,
                default=None,
            ),
        )

    def _end(self, entries: Sequence[Entry], reason: RemovalReason, removals: trio.Nursery) -> None:
        """End those of these sessions that are still held; ``removals`` waits for that."""
        leaving = self._sessions.end(entries, reason)
        if leaving is not None:
            self._counters.count_found(reason, len(leaving.entries))
            self._tally.ended[reason] += [entry.session_id for entry in leaving.entries]
            removals.start_soon(leaving.gone)


def _log_brake(decision: Decision, share: float) -> None:
    logger.error(
        "%d of %d rows are missing at once, which is more than mass_missing_brake (%g) allows: "
        "their sessions are kept, and removed only if the rows are missing in the next pass, too. "
        "Look at what has become of the table: was it truncated, restored or replaced?",
        len(decision.hold),
        decision.answers,
        share,
    )


async def _sort(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Sort by id, so that a chunk is a piece of the primary key's index.

    In slices, which are merged as they are taken: to sort a hundred thousand at once would hold
    the event loop for a tenth of a second (invariant 12).
    """
    slices = list[list[Entry]]()
    for part in chunked(entries, _SLICE):
        slices.append(sorted(part, key=_session_id))
        await trio.lowlevel.checkpoint()
    return iter(slices[0]) if len(slices) == 1 else merge(*slices, key=_session_id)


_session_id = attrgetter("session_id")
