"""What every operation of the memory store rests on: its rows, its clock, the run that uses it."""

from datetime import UTC, datetime, timedelta
from typing import NoReturn, TypeVar

import trio

from trio_sessions.abc import Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores._doubt import IN_DOUBT, Acknowledged
from trio_sessions.stores._one_run import OneRun
from trio_sessions.stores.memory._bells import Bells
from trio_sessions.stores.memory._mail import Mail
from trio_sessions.stores.memory._rows import Rows
from trio_sessions.stores.memory._workers import Workers

__all__ = ["MemoryCore"]

T = TypeVar("T")


def _bells(ended: Bells | None) -> Bells:
    """Return the bells of a new Trio run."""
    return Bells()


class MemoryCore:
    """A memory store without its operations."""

    def __init__(self) -> None:
        self._rows = Rows()
        self._opened = OneRun(_bells, "the memory store")
        self._workers = Workers()
        self._mail = Mail()
        self._acknowledged = Acknowledged()
        self._clock: object = None
        self._beginning = datetime.now(UTC)
        """Of the clock, on the calendar."""

    @property
    def may_outlast_cancellation(self) -> bool:
        """False: no operation goes on without its caller."""
        return False

    async def open(self, worker: Worker) -> None:
        """Make the store ready; see `SessionStore.open`.

        Raises:
            StoreInUse: another Trio run has it open.
        """
        await trio.lowlevel.checkpoint()
        self._opened.join(worker)
        clock = trio.lowlevel.current_clock()
        if clock is not self._clock:
            self._clock = clock
            self._restart_clock()

    async def close(self, worker: Worker) -> None:
        """Leave the rows to the other workers; see `SessionStore.close`."""
        await trio.lowlevel.checkpoint()
        self._acknowledged.forget(worker)
        self._opened.leave(worker)

    async def _begin(self) -> Bells:
        """Begin an operation: operations are carried out in the order of the calls.

        Cancellation: nothing has been done.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._opened.state

    @staticmethod
    async def _answer(answer: T) -> T:
        """Return an answer once the other tasks have run."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        return answer

    def _now(self) -> float:
        """Return the moment on the clock of the rows."""
        return trio.current_time()

    def _is_in_doubt(self, worker: Worker, now: float) -> bool:
        """Say whether sessions may have been forgotten that this worker asks for."""
        known, seen = self._acknowledged.of(worker), self._workers.seen(worker)
        has_gone_back = known is not None and (
            seen is None or seen.history != known.history or seen.beat < known.beat
        )
        return has_gone_back or self._workers.is_in_doubt(now)

    def _restart_clock(self) -> None:
        """Set all moments to now, on a new clock that has nothing to do with the one before."""
        now = self._now()
        self._beginning = datetime.now(UTC) - timedelta(seconds=now)
        for row in self._rows.values():
            row.created_at = row.taken_at = row.last_accessed = now
            for message in row.messages.values():
                message.stored_at = now
            for line in row.log.values():
                line.stored_at = now
        self._rows.marks.restart_clock(now)
        self._mail.restart_clock(now)
        self._workers.restart_clock(now, has_rows=bool(self._rows))

    async def _refuse_in_doubt(self) -> NoReturn:
        """Raise `StoreUnavailable`: what is not there may have been forgotten."""
        await self._answer(None)
        raise StoreUnavailable(IN_DOUBT)

    def _moment(self, moment: float) -> datetime:
        """Return a moment of Trio's clock on the calendar: that clock begins anywhere."""
        return self._beginning + timedelta(seconds=moment)
