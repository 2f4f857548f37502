"""Who may be removed, and why: a model that knows no registry.

It is told what is done to sessions and workers (`opened`, `added`, `row_deleted`, ...). After each
step it is shown what there is (`Seen`), and says what must not be. Two rules are all of it:

1. **Whoever is held stays held**, unless its transport has said that it is disconnected, or its
   row is gone and its worker could hear so.
2. **A row that is confirmed stays**, unless its session has moved, has ended, or there is an
   *excuse*: somebody has deleted the row behind everybody's back, or its worker alone could not
   reach the store for so long that its lease may have run out.

What is not certain is allowed: the model never accuses in doubt.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trio_sessions.testing._machine._door import Reach
from trio_sessions.testing._machine._lines import Line, LineState
from trio_sessions.types import Holder

__all__ = ["Add", "FleetModel", "Seen", "Unknown", "WorkerModel", "require"]

_REVOKED = "it was revoked"
_LEASE_SHARE = 0.4  # of its session_ttl: the fleet takes a shorter silence for none


class Unknown:
    """Stands for a row of which the store could not say anything."""


def require(holds: object, what: str) -> None:
    """Raise an error that says what must not be, unless it holds.

    Raises:
        AssertionError: it does not hold.
    """
    if not holds:
        raise AssertionError(what)


@dataclass(eq=False)
class Add:
    """A session as one worker was given it."""

    session_id: str
    number: int
    """Grows with every add of the fleet: the larger, the newer."""
    line: Line
    excuse: str | None = None
    """Why it may be removed although its transport lives."""
    must_go: bool = False
    """It was revoked, and nothing can bring it back."""


@dataclass(eq=False)
class WorkerModel:
    """A worker that runs."""

    name: str
    session_ttl: float
    """Seconds."""
    holds: dict[str, Add] = field(default_factory=dict)
    reach: Reach = Reach.WELL
    could_hear: bool = True
    """It could, since it was looked at last or shortly before, so that it may act on it still."""
    heard_at: float = -math.inf
    """When it could, or waited for what was asked when it could."""
    silent_since: float | None = None
    """Since when it has not been heard; None: it is well, and has had a pass since."""
    alone: float = 0.0
    """Seconds of that for which somebody else could write."""
    passes: int = 0
    passes_when_heard: int = 0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What there is at one moment."""

    now: float
    rows: Mapping[str, Holder | Unknown | None]
    """By session id, of all sessions that there may be."""
    held: Mapping[str, Mapping[str, object]]
    """By worker, the transports of its sessions."""
    confirmed: frozenset[str]
    """Workers that take all rows of theirs to be written."""
    passes: Mapping[str, int]
    """By worker, how many of its passes have ended."""
    listening: frozenset[str]
    """Workers for whom an answer is on its way."""


class FleetModel:
    """What should be true of all workers.

    Args:
        hearing: seconds for which a worker may act on an answer that it has had.
    """

    def __init__(self, *, hearing: float) -> None:
        self.workers: dict[str, WorkerModel] = {}
        self.newest: dict[str, int] = {}
        self._hearing = hearing
        self._parted: list[tuple[str, Add]] = []
        self._adds = 0
        self._refused_until: dict[str, float] = {}
        self._seen: Seen | None = None

    # ---- what is done ----

    def opened(self, name: str, session_ttl: float) -> WorkerModel:
        """Note a worker that has begun, with its ``session_ttl`` in seconds."""
        worker = self.workers[name] = WorkerModel(name, session_ttl)
        return worker

    def ended(self, name: str) -> None:
        """Note a worker that has ended, in whichever way."""
        worker = self.workers.pop(name)
        self._parted += [(name, add) for add in worker.holds.values()]

    def added(self, name: str, session_id: str, line: Line, *, now: float) -> None:
        """Note that a worker was given a session: it is the newest."""
        self._adds += 1
        worker = self.workers[name]
        before = worker.holds.get(session_id)
        if before is not None and before.line is not line:
            self._parted.append((name, before))
        add = worker.holds[session_id] = Add(session_id, self._adds, line)
        self.newest[session_id] = self._adds
        if self.may_be_refused(session_id, now):
            add.excuse = "its id is revoked"

    def removed(self, name: str, session_id: str) -> None:
        """Note that a worker was told to remove a session."""
        add = self.workers[name].holds.pop(session_id, None)
        if add is not None:
            self._parted.append((name, add))

    def refused(self, name: str, session_id: str, line: Line) -> None:
        """Note that a worker was not let have the session that it was given."""
        worker = self.workers.get(name)
        add = None if worker is None else worker.holds.get(session_id)
        if add is not None and add.line is line:
            self.removed(name, session_id)

    def revoked(self, session_id: str, *, until: float) -> None:
        """Note that a session was ended for good; its id may be refused until then."""
        self._refused_until[session_id] = until
        for worker in self.workers.values():
            add = worker.holds.get(session_id)
            if add is not None:
                add.excuse = _REVOKED
                add.must_go = self._seen is not None and worker.name in self._seen.confirmed

    def may_be_refused(self, session_id: str, now: float) -> bool:
        """Say whether a mark may count still."""
        return now < self._refused_until.get(session_id, 0.0)

    def row_deleted(self, session_id: str) -> None:
        """Note that a row was deleted behind everybody's back."""
        for worker in self.workers.values():
            if session_id in worker.holds:
                worker.holds[session_id].excuse = "its row was deleted"

    def reaches(self, name: str, reach: Reach) -> None:
        """Note how a worker reaches what is shared from now on."""
        worker = self.workers[name]
        if reach.is_heard and not worker.reach.is_heard:
            worker.passes_when_heard = worker.passes
        if not reach.is_heard and worker.silent_since is None and self._seen is not None:
            worker.silent_since = self._seen.now
        worker.reach = reach
        worker.could_hear |= reach.is_heard

    # ---- what is known ----

    @property
    def all_is_well(self) -> bool:
        """Whether every worker reaches what is shared, and has done so for a whole pass."""
        return all(
            one.reach is Reach.WELL and one.silent_since is None for one in self.workers.values()
        )

    def row(self, session_id: str) -> Holder | Unknown | None:
        """Return a row as it was seen last."""
        return Unknown() if self._seen is None else self._seen.rows[session_id]

    def holders(self, session_id: str) -> Iterator[tuple[WorkerModel, Add]]:
        """Yield the workers that hold a session, the newest first."""
        found = [
            (one, one.holds[session_id]) for one in self.workers.values() if session_id in one.holds
        ]
        yield from sorted(found, key=lambda pair: -pair[1].number)

    def sole_holder(self, session_id: str) -> WorkerModel | None:
        """Return the one worker that certainly holds a living session with its row, or None."""
        found = list(self.holders(session_id))
        if len(found) != 1 or self._seen is None:
            return None
        [(worker, add)] = found
        is_certain = (
            add.line.state is not LineState.DIED
            and worker.name in self._seen.confirmed
            and self._is_newest(add)
            and add.excuse is None
            and _is_of(self._seen.rows[session_id], worker.name)
        )
        return worker if is_certain else None

    def _is_newest(self, add: Add) -> bool:
        return self.newest[add.session_id] == add.number

    # ---- what must be ----

    def judge(self, seen: Seen) -> None:
        """Look at what there is, and say what must not be.

        Raises:
            AssertionError: what it is, and of which session.
        """
        self._count_silence(seen)
        for name, add in self._parted:
            require(
                add.line.disconnects > 0,
                f"{name} does not hold session {add.session_id!r} any more, and has not "
                "disconnected its transport",
            )
        self._parted.clear()
        for worker in self.workers.values():
            self._judge_held(worker, seen.held[worker.name])
            self._judge_rows(worker, seen)
            self._note_pass(worker, seen)
            if worker.reach.is_heard or worker.name in seen.listening:
                worker.heard_at = seen.now
            worker.could_hear = seen.now - worker.heard_at <= self._hearing
        self._seen = seen

    def _judge_held(self, worker: WorkerModel, held: Mapping[str, object]) -> None:
        for session_id, add in list(worker.holds.items()):
            found = held.get(session_id)
            if found is None:
                del worker.holds[session_id]
                self._judge_removal(worker, add)
                continue
            require(
                found is add.line,
                f"{worker.name} holds session {session_id!r} with a transport that is not the "
                "one that was added last",
            )
            require(
                add.line.disconnects == 0,
                f"{worker.name} has disconnected session {session_id!r}, and holds it still",
            )
        invented = sorted(held.keys() - worker.holds.keys())
        require(not invented, f"{worker.name} holds {invented}, which it has not or not any more")

    def _judge_removal(self, worker: WorkerModel, add: Add) -> None:
        removed = f"{worker.name} has removed session {add.session_id!r}, whose transport lives"
        if not add.line.said_disconnected:
            require(worker.could_hear, f"{removed}; it could not reach the store at all")
            require(
                add.excuse or not self._is_newest(add),
                f"{removed}; nobody has ended it, deleted its row, or added it elsewhere",
            )
        self._parted.append((worker.name, add))  # it may be about to be disconnected

    def _judge_rows(self, worker: WorkerModel, seen: Seen) -> None:
        if worker.name not in seen.confirmed:
            return
        for session_id, add in worker.holds.items():
            row = seen.rows[session_id]
            if add.excuse or not self._is_newest(add) or isinstance(row, Unknown):
                continue
            require(
                _is_of(row, worker.name),
                f"session {session_id!r} lives at {worker.name}, which has had its row confirmed, "
                f"but the row {'is gone' if row is None else 'is of ' + row.worker_id}",
            )

    # ---- leases, and what a pass sets right ----

    def _count_silence(self, seen: Seen) -> None:
        passed = 0.0 if self._seen is None else seen.now - self._seen.now
        for worker in self.workers.values():
            if worker.silent_since is None:
                continue
            others = (one for one in self.workers.values() if one is not worker)
            if not worker.reach.is_heard and any(one.reach.commits for one in others):
                worker.alone += passed
            silence = seen.now - worker.silent_since
            if worker.alone > 0 and silence > _LEASE_SHARE * worker.session_ttl:
                for add in worker.holds.values():
                    add.excuse = add.excuse or "its worker's lease may have run out"

    def _note_pass(self, worker: WorkerModel, seen: Seen) -> None:
        before, worker.passes = worker.passes, seen.passes[worker.name]
        if not worker.reach.is_heard or worker.passes <= max(before, worker.passes_when_heard):
            return
        worker.silent_since, worker.alone = None, 0.0
        if worker.name in seen.confirmed:
            for session_id, add in worker.holds.items():
                # Who was revoked goes, though its row may be written anew before it hears of it.
                if _is_of(seen.rows[session_id], worker.name) and add.excuse != _REVOKED:
                    add.excuse = None


def _is_of(row: Holder | Unknown | None, name: str) -> bool:
    return isinstance(row, Holder) and row.worker_id == name
