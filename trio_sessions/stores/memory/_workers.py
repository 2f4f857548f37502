"""The workers in memory: their stamps, who holds a lease, and the doubt. Synchronous, no clock."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from trio_sessions.abc import Worker
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.inspection import MISSED, WorkerInfo, WorkerState, state_of
from trio_sessions.stores._lease import DOUBT, REMEMBERED
from trio_sessions.types import Begun, Presence, Stamp

__all__ = ["Workers"]


@dataclass(slots=True, kw_only=True)
class _Row:
    worker_id: str
    presence: Presence
    stamp: Stamp
    started_at: float
    stamped_at: float
    passed_at: float

    def is_late(self, now: float) -> bool:
        return now - self.stamped_at > MISSED * self.presence.stamp_interval

    def has_lapsed(self, now: float) -> bool:
        return now - min(self.stamped_at, self.passed_at) > self.presence.session_ttl

    def set_right(self, now: float) -> None:
        """Take back moments in the future: the clock was set back."""
        self.stamped_at, self.passed_at = min(self.stamped_at, now), min(self.passed_at, now)


class Workers:
    """The rows of workers by incarnation, and what is known of the fleet.

    Moments are on whatever clock the rows of sessions have.
    """

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._gone: dict[str, tuple[str, float]] = {}
        """Which history of an incarnation was swept, and when."""
        self._doubtful_until = float("-inf")
        self._vouched_at: float | None = None
        self._unbroken_since = float("-inf")

    def restart_clock(self, now: float, *, has_rows: bool) -> None:
        """Set all moments to now, on a new clock that has nothing to do with the one before."""
        for row in self._rows.values():
            row.started_at = row.stamped_at = row.passed_at = now
        self._gone = {one: (history, now) for one, (history, _) in self._gone.items()}
        self._vouched_at = None
        if has_rows:
            self._unbroken_since = now

    # ---- the witness ----

    def begin(
        self, worker: Worker, history: str, presence: Presence, now: float, *, after: str | None
    ) -> Begun:
        """Write a worker's row anew; see `WorkerStore.begin`."""
        before = self._rows.get(worker.incarnation)
        self._rows[worker.incarnation] = _Row(
            worker_id=worker.worker_id,
            presence=presence,
            stamp=Stamp(history=history, beat=1),
            started_at=now if before is None else before.started_at,
            stamped_at=now,
            passed_at=now,
        )
        swept, _ = self._gone.get(worker.incarnation, ("", now))
        if after is None or swept == after:
            return Begun(was_swept=after is not None, clock=now)
        self._doubtful_until = now + self._doubt()
        self._set_doubt_right(now)
        self._unbroken_since = now  # stamps of others may be forgotten
        return Begun(was_swept=False, doubt=self._doubtful_until - now, clock=now)

    def seen(self, worker: Worker) -> Stamp | None:
        """Return a worker's stamp as it stands."""
        row = self._rows.get(worker.incarnation)
        return None if row is None else row.stamp

    def stamp(
        self, worker: Worker, stamp: Stamp, now: float, *, passed: bool = False
    ) -> Stamp | None:
        """Set a worker's stamp; None: this is not what it says to have been acknowledged."""
        row = self._rows.get(worker.incarnation)
        if row is None or row.stamp.history != stamp.history or row.stamp.beat < stamp.beat:
            return None
        row.stamp = Stamp(history=stamp.history, beat=row.stamp.beat + 1)
        row.stamped_at = now
        row.passed_at = now if passed else min(row.passed_at, now)
        return row.stamp

    def remove(self, worker: Worker) -> None:
        """Remove the row of a worker that leaves."""
        self._rows.pop(worker.incarnation, None)

    def _doubt(self) -> float:
        """Return for how long the store is in doubt after a rewind."""
        return DOUBT * max(
            (row.presence.cleanup_interval for row in self._rows.values()), default=0.0
        )

    def _set_doubt_right(self, now: float) -> None:
        """End the doubt in time where the clock was set back in it."""
        self._doubtful_until = min(self._doubtful_until, now + self._doubt())

    def is_in_doubt(self, now: float) -> bool:
        """Say whether sessions may have been forgotten."""
        return now < self._doubtful_until

    # ---- for mail ----

    def incarnations(self) -> set[str]:
        """Return those that have a row."""
        return set(self._rows)

    def alive(self, now: float) -> Iterator[str]:
        """Yield the incarnations that are not late."""
        return (incarnation for incarnation, row in self._rows.items() if not row.is_late(now))

    def living(self, now: float) -> frozenset[str]:
        """Return the incarnations and the worker ids of those that are not late."""
        alive = list(self.alive(now))
        return frozenset(alive).union(self._rows[one].worker_id for one in alive)

    def addressee(self, to: str, now: float) -> str | None:
        """Return the incarnation of that name, or the last of that worker id; None: none lives."""
        row = self._rows.get(to)
        if row is not None and not row.is_late(now):
            return to
        named = [
            (self._rows[one].started_at, one)
            for one in self.alive(now)
            if self._rows[one].worker_id == to
        ]
        return max(named)[1] if named else None

    # ---- for operators ----

    def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        """Replace what a worker says of itself; say whether it has a row."""
        row = self._rows.get(worker.incarnation)
        if row is not None:
            row.presence = replace(row.presence, data=data, draining=draining)
        return row is not None

    def state(self, incarnation: str, now: float) -> WorkerState | None:
        """Say whether a worker lives; None: it has no row."""
        row = self._rows.get(incarnation)
        if row is None:
            return None
        ttl = row.presence.session_ttl
        return state_of(
            silence=now - row.stamped_at,
            stamp_interval=row.presence.stamp_interval,
            has_lapsed=row.has_lapsed(now) and self._is_unbroken(now, ttl),
        )

    def has_stamped(self, incarnation: str, now: float) -> bool:
        """Say whether a worker has stamped its row within its ``session_ttl``."""
        row = self._rows.get(incarnation)
        return row is not None and now - row.stamped_at <= row.presence.session_ttl

    def _is_unbroken(self, now: float, ttl: float) -> bool:
        """Say whether the series of vouchings goes on, and is so many seconds old."""
        if self._vouched_at is None or now - self._vouched_at > self.longest_ttl(0.0) * MAX_GAP:
            return False
        return now - self._unbroken_since >= ttl

    def list(
        self, now: float, sessions: Mapping[str, int], moment: Callable[[float], datetime]
    ) -> list[WorkerInfo]:
        """Return the workers, the oldest first.

        Args:
            now: the moment.
            sessions: how many each incarnation holds.
            moment: makes a moment of this clock one of the calendar.
        """
        rows = sorted(self._rows.items(), key=lambda item: (item[1].started_at, item[0]))
        return [
            WorkerInfo(
                worker_id=row.worker_id,
                incarnation=incarnation,
                state=self.state(incarnation, now) or WorkerState.GONE,
                started=moment(row.started_at),
                last_stamp=moment(row.stamped_at),
                last_pass=moment(row.passed_at),
                silence=max(0.0, now - row.stamped_at),
                sessions=sessions.get(incarnation, 0),
                session_ttl=row.presence.session_ttl,
                cleanup_interval=row.presence.cleanup_interval,
                version=row.presence.version,
                data=json.loads(row.presence.data),
                draining=row.presence.draining,
            )
            for incarnation, row in rows
        ]

    # ---- the lease ----

    def longest_ttl(self, session_ttl: float) -> float:
        """Return the longest session_ttl known, or the one given."""
        return max([session_ttl, *(row.presence.session_ttl for row in self._rows.values())])

    def vouch(self, now: float, session_ttl: float, max_gap: float) -> None:
        """Vouch that workers can reach the store now; see `RowStore.sweep`."""
        gap = max_gap * self.longest_ttl(session_ttl) / session_ttl
        if self._vouched_at is not None and abs(now - self._vouched_at) > gap:
            self._unbroken_since = now
        self._vouched_at = now
        self._unbroken_since = min(self._unbroken_since, now)

    def has_expired(
        self, incarnation: str, last_accessed: float, now: float, session_ttl: float
    ) -> bool:
        """Say whether a row that was refreshed then, and its holder's lease, have expired."""
        holder = self._rows.get(incarnation)
        if holder is not None and not holder.has_lapsed(now):
            return False
        ttl = self.longest_ttl(session_ttl) if holder is None else holder.presence.session_ttl
        return now - last_accessed > ttl and now - self._unbroken_since >= ttl

    def set_right(self, now: float) -> None:
        """Take back moments in the future."""
        for row in self._rows.values():
            row.set_right(now)
        self._set_doubt_right(now)

    def lapsed(self, now: float) -> Iterator[str]:
        """Yield the incarnations whose lease has run out."""
        for incarnation, row in self._rows.items():
            ttl = row.presence.session_ttl
            if row.has_lapsed(now) and now - self._unbroken_since >= ttl:
                yield incarnation

    def sweep(self, incarnations: set[str], now: float) -> None:
        """Remove the rows of workers, and remember that they are gone."""
        for incarnation in incarnations:
            self._gone[incarnation] = self._rows.pop(incarnation).stamp.history, now
        self._gone = {
            one: (history, moment)
            for one, (history, moment) in self._gone.items()
            if now - moment < REMEMBERED
        }
