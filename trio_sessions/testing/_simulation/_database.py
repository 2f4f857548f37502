"""The simulated database: it commits in one order, and keeps every earlier state.

Its rows are those of the memory store, and so is what each statement does with them. What is here
makes it a database that can go back, be another server, lag, hide and refuse rows, and fill up.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import trio

from trio_sessions.abc import Worker
from trio_sessions.errors import RowLocked, RowUnavailable, StoreUnavailable
from trio_sessions.inspection import SessionInfo
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing._simulation._tables import Fleet, Letters, Table
from trio_sessions.testing._simulation._truth import Moment, Truth, holders
from trio_sessions.types import RowAnswers, Stamp, Swept
from trio_sessions.writes import Batch, Claimed, Committed, Outcome, Unfinished, Verdict

__all__ = ["Change", "Database"]

T = TypeVar("T")

_WRITES = frozenset(
    {"commit", "refresh", "delete_all", "begin", "stamp", "sweep", "revoke", "announce"}
    | {"expire_logs", "collect", "listen", "unlisten", "expire_mail"}
)
_GOT = {Outcome.INSERTED, Outcome.KEPT, Outcome.TAKEN_OVER}
_KEPT = 3000  # states

State = tuple[Table, Fleet, Letters, float]
"""All that was committed, and when."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one statement has done to one row: it has another holder, or none."""

    kind: str
    by: Worker | None
    session_id: str
    before: str
    """The incarnation that held it; "": there was no row."""
    after: str
    """The incarnation that holds it now; "": there is none."""


@dataclass(slots=True)
class Weather:
    """What is wrong with the database as such."""

    is_full: bool = False
    lag: int = 0
    """So many commits is the server behind that answers, and takes no writes; 0: the primary."""
    hidden: set[str] = field(default_factory=set)
    """Rows that nobody is shown, and the server says that it may hide some."""
    refused: set[str] = field(default_factory=set)
    """Rows that cannot be written, but deleted."""


class Database(MemoryStore):
    """What all workers share; each reaches it by a `Link` of its own.

    Args:
        listener: is told of each change of a row's holder, in the step in which it is committed.
    """

    def __init__(self, listener: Callable[[Change], None] | None = None) -> None:
        super().__init__()
        self._rows: Table = Table()
        self._workers: Fleet = Fleet()
        self._mail: Letters = Letters()
        self.offset = 0.0
        """Seconds by which its clock is ahead of Trio's."""
        self.highest_offset = 0.0
        """That it has ever been: what was stamped then may lie in the future."""
        self.server = 0
        self.changed_at = float("-inf")
        """When another server took over, on Trio's clock."""
        self.undeleted_at = float("-inf")
        """When rows were last there again that had been deleted."""
        self.lagged_at = float("-inf")
        """When something was last asked of a replica that lags."""
        self.hid_at = float("-inf")
        """When rows were last hidden."""
        self.weather = Weather()
        self.truth = Truth()
        self.commits = 0
        self.claimed = trio.Event()
        """Set when the next row is written for a worker that did not hold it."""
        self._workers.server = self.server
        self._states: deque[State] = deque(maxlen=_KEPT)
        self._listener = listener

    # ---- what the memory store asks ----

    def _now(self) -> float:
        return trio.current_time() + self.offset

    async def _answer(self, answer: T) -> T:  # type: ignore[override]
        """Answer in the same step: the way back takes its time elsewhere."""
        return answer

    def _is_in_doubt(self, worker: Worker, now: float) -> bool:
        return (
            self.weather.lag > 0
            or super()._is_in_doubt(worker, now)
            or self._workers.is_unsettled(self.server, now)
        )

    # ---- statements ----

    async def execute(self, kind: str, worker: Worker, operation: Callable[[], Awaitable[T]]) -> T:
        """Carry out one statement, in one step; it is committed when this returns.

        Raises:
            StoreUnavailable: it was not carried out.
        """
        if kind in _WRITES:
            if self.weather.lag:
                raise StoreUnavailable("the server takes no writes", did_nothing=True)
            if self.weather.is_full:
                raise StoreUnavailable("no space left on device", did_nothing=True)
            return await self._write(kind, worker, operation)
        if self.weather.lag:
            self.lagged_at = trio.current_time()
            return await self._in_the_past(operation)
        return await operation()

    async def _write(self, kind: str, worker: Worker, operation: Callable[[], Awaitable[T]]) -> T:
        before = holders(self._rows)
        leases = set(self._workers._rows)
        beat = self._workers.seen(worker)
        answer = await operation()
        stamp = self._workers.seen(worker)
        if stamp is not None and stamp != beat:
            passed = kind in {"sweep", "begin"} or getattr(answer, "rows", None) is not None
            self.truth.stamp(worker.incarnation, self.moment(), passed=passed)
            if kind != "commit":
                self._workers.note_server(self.server, self._now())
        if kind == "sweep":
            self.truth.lapsed |= leases - set(self._workers._rows)
        self._tell(kind, worker, before)
        self._keep()
        return answer

    def _tell(
        self, kind: str, by: Worker | None, before: dict[str, tuple[str, str, float]]
    ) -> None:
        """Tell whose row has another holder now."""
        after = holders(self._rows)
        now = trio.current_time()
        nobody = ("", "", 0.0)
        for session_id in sorted(before.keys() | after.keys()):
            old, new = before.get(session_id, nobody)[0], after.get(session_id, nobody)[0]
            if old == new:
                continue
            if old:
                self.truth.ended(old, session_id, "taken over" if new else kind, now)
            if kind == "commit" and new:
                self.claimed.set()
                self.claimed = trio.Event()
            if self._listener is not None:
                self._listener(Change(kind, by, session_id, old, new))

    def _keep(self) -> None:
        self.commits += 1
        now = trio.current_time()
        self._states.append((self._rows.copy(), self._workers.copy(), self._mail.copy(), now))

    async def _in_the_past(self, operation: Callable[[], Awaitable[T]]) -> T:
        present = self._rows, self._workers, self._mail
        lag = min(self.weather.lag, len(self._states))
        if lag:
            self._rows, self._workers, self._mail, _ = self._states[-lag]
        try:
            return await operation()
        finally:
            self._rows, self._workers, self._mail = present

    # ---- single rows ----

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        """Carry out writes, but for rows that are refused or hidden."""
        bad = self.weather.hidden | self.weather.refused
        places = [n for n, one in enumerate(batch.writes) if one.session_id not in bad]
        writes = [batch.writes[n] for n in places]
        committed = await super().commit(worker, replace(batch, writes=writes))
        for write, answer in zip(writes, committed.answers, strict=False):  # none, if it was late
            if isinstance(answer, Claimed) and answer.outcome in _GOT:
                self.truth.wrote(worker.incarnation, write.session_id, trio.current_time())
        if len(places) == len(batch.writes) or committed.verdict is not Verdict.DONE:
            return committed
        answers: list[Any] = [RowLocked("the row is refused")] * len(batch.writes)
        for place, answer in zip(places, committed.answers, strict=True):
            assert not isinstance(answer, Unfinished) or answer.dropped
            answers[place] = answer
        return replace(committed, answers=answers)

    async def refresh(self, worker: Worker, session_ids: Any) -> RowAnswers:
        """Refresh rows, but for those that are refused or hidden."""
        bad = self.weather.hidden | (self.weather.refused & self._rows.keys())
        answers = await super().refresh(worker, [one for one in session_ids if one not in bad])
        asked = set(session_ids)
        self.truth.told(worker.incarnation, asked - bad, set(answers.held))
        unknown = {one: RowUnavailable("the row is refused") for one in sorted(asked & bad)}
        return replace(answers, unknown=unknown)

    async def locate(self, worker: Worker, session_id: str) -> Any:
        """Say who holds a session, unless rows may be hidden."""
        if session_id in self.weather.hidden:
            raise StoreUnavailable("row level security may hide it")
        return await super().locate(worker, session_id)

    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        """Say what is known of a session, unless rows may be hidden."""
        if session_id in self.weather.hidden:
            raise StoreUnavailable("row level security may hide it")
        return await super().describe(worker, session_id)

    async def sweep(self, worker: Worker, **settings: Any) -> Swept:
        """Sweep, but for rows that are hidden."""
        hidden = {
            one: self._rows.pop(one) for one in sorted(self.weather.hidden & self._rows.keys())
        }
        try:
            return await super().sweep(worker, **settings)
        finally:
            self._rows.update(hidden)

    # ---- what becomes of it ----

    @property
    def states(self) -> int:
        """How many earlier states there are."""
        return len(self._states)

    def go_back(self, commits: int) -> None:
        """Be as it was before the last so many commits: another server, with what it has."""
        commits = min(commits, len(self._states) - 1)
        self._become(*self._states[-1 - commits])

    def be_emptied(self) -> None:
        """Be another database, which is empty."""
        self._become(self._rows.emptied(), Fleet(), Letters(), float("-inf"))

    def restart(self) -> None:
        """Be started again; nothing is lost."""
        self._become(self._rows, self._workers, self._mail, trio.current_time())

    def _become(self, rows: Table, fleet: Fleet, mail: Letters, kept_at: float) -> None:
        self.truth.go_back(kept_at)
        self._rows, self._workers, self._mail = rows.copy(), fleet.copy(), mail.copy()
        self.server += 1
        self.changed_at = self.undeleted_at = trio.current_time()
        self._keep()

    def delete(self, *session_ids: str) -> None:
        """Delete rows as an operator does."""
        before = holders(self._rows)
        for session_id in session_ids:
            self._rows.take(session_id)
        self._tell("deleted by hand", None, before)
        self._keep()

    def put_back(self, commits: int) -> None:
        """Undo what an operator has just done to rows."""
        now = self._rows
        self.undeleted_at = trio.current_time()
        for session_id, row in self._states[-1 - commits][0].copy().items():
            if session_id not in now:
                now[session_id] = row
        self._keep()

    def set_clock(self, step: float) -> None:
        """Set its clock forward, or back."""
        self.offset += step
        self.highest_offset = max(self.highest_offset, self.offset)

    def moment(self) -> Moment:
        """Return the time by both clocks."""
        return trio.current_time(), self._now()

    def holders(self) -> dict[str, str]:
        """Return which incarnation holds each row."""
        return {session_id: row.incarnation for session_id, row in self._rows.items()}

    def born(self, session_id: str) -> str | None:
        """Return the birth of a session; None: it has no row."""
        row = self._rows.get(session_id)
        return None if row is None else row.born

    def held_since(self, incarnation: str, moment: float) -> list[str]:
        """Return the rows of an incarnation that were not refreshed since a moment, by Trio."""
        return sorted(
            session_id
            for session_id, row in self._rows.items()
            if row.incarnation == incarnation and row.last_accessed < moment + self.offset
        )

    def owner(self, session_id: str) -> str | None:
        """Return the owner in the row of a session, if there is one."""
        row = self._rows.get(session_id)
        return None if row is None else row.owner

    def owners(self) -> list[str]:
        """Return the owner of each row that has one."""
        return [row.owner for row in self._rows.values() if row.owner is not None]

    def data(self, session_id: str) -> str | None:
        """Return the data in the row of a session, if there is any."""
        row = self._rows.get(session_id)
        return None if row is None else row.data

    def has(self, incarnation: str, stamp: Stamp) -> bool:
        """Say whether it has what was committed with a stamp."""
        row = self._workers._rows.get(incarnation)
        return (
            row is not None and row.stamp.history == stamp.history and row.stamp.beat >= stamp.beat
        )
