"""Whether workers live: what the answers to questions may say of it, and what they must say.

The model goes by the true stamps of a worker. *Alive* may be told only of one that stamped within
three of its stamp intervals, *gone* only of one whose lease has run out. A worker that has just
stamped must be there, and alive, unless the database has forgotten that, or its clock was set.
"""

from dataclasses import dataclass

import trio

from trio_sessions.inspection import WorkerState
from trio_sessions.testing._simulation._database import Database
from trio_sessions.testing._simulation._events import Log
from trio_sessions.testing._simulation._judge import Judge
from trio_sessions.testing._simulation._truth import Moment
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["States"]

_STAMPS = 3  # that a worker may miss
_SLACK = 0.01  # seconds
_NEVER: Moment = (float("-inf"), float("-inf"))


@dataclass(frozen=True, slots=True)
class _Known:
    """What is true of one worker when a question is asked."""

    stamped: Moment
    passed: Moment
    is_open: bool


class States:
    """What is true of all workers at the moment at which somebody asks.

    Args:
        judge: knows the workers.
        database: knows their stamps.
        log: is told of what must not be.
    """

    def __init__(self, judge: Judge, database: Database, log: Log) -> None:
        self.asked_at = trio.current_time()
        self._judge = judge
        self._database = database
        self._log = log
        truth = database.truth
        self._known = {
            one.incarnation: _Known(
                stamped=truth.stamped.get(one.incarnation, _NEVER),
                passed=truth.passed.get(one.incarnation, _NEVER),
                is_open=one.is_open,
            )
            for one in judge.all_workers
            if one.registry is not None
        }

    def must_be_there(self, worker: SimulatedWorker) -> bool:
        """Say whether the database has a row of a worker since before it was asked."""
        known = self._known.get(worker.incarnation)
        return (
            known is not None
            and known.is_open
            and worker.is_open
            and known.stamped[0] > self._database.changed_at
            and worker.incarnation not in self._database.truth.lapsed
            and self._can_tell
        )

    @property
    def _can_tell(self) -> bool:
        """All that was asked since was answered by the database as it is."""
        database = self._database
        return database.lagged_at < self.asked_at and database.changed_at < self.asked_at

    def judge(self, who: str, incarnation: str, state: WorkerState | None) -> None:
        """Object to what an answer says of a worker, if it cannot be.

        Args:
            who: has said so.
            incarnation: of whom.
            state: what was said.
        """
        worker = self._judge.worker_of(incarnation)
        if worker is None or worker.registry is None:
            return
        what = f"{who} says that w{worker.number} is {'not there' if state is None else state}"
        last = self._database.truth.stamped.get(incarnation, _NEVER)
        most = _STAMPS * worker.stamp_interval + _SLACK
        self._log.judged[f"workers: {state or 'not there'}"] += 1
        may_be_ahead = self._database.highest_offset > self._database.offset
        if state is WorkerState.ALIVE:
            silence = self.asked_at - last[0]
            if silence > most and not may_be_ahead:
                self._log.violate(f"{what}, which has not stamped for {silence:.0f} s")
            return
        known = self._known.get(incarnation)
        if known is None or not self.must_be_there(worker):
            return
        now = self._database.moment()
        silence = max(now[clock] - known.stamped[clock] for clock in (0, 1))
        if silence < _STAMPS * worker.stamp_interval - _SLACK:
            self._log.violate(f"{what}, which has stamped {silence:.0f} s ago")
        oldest = min(known.stamped, known.passed)
        passed = max(now[clock] - oldest[clock] for clock in (0, 1))
        if state is WorkerState.GONE and passed < worker.session_ttl - _SLACK:
            self._log.violate(f"{what}, whose lease goes on")
