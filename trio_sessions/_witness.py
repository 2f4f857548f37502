"""The worker's witness: whether the database that answers has forgotten nothing.

"No row" is evidence only if the database that says so is the one that confirmed the row, and has
forgotten nothing since. The worker's own row tells (`trio_sessions.abc.WorkerStore`): it has a
*history*, a random word of ours, and a *beat* that the database makes one higher with each of
our batches and stamps::

                       begun
    (opening) ──────────────────────> STEADY <──────────┐
                                        │               │ begun: another history
              an answer contradicts it  └──> CONTRADICTED
                                             nothing is asked for until then

Whatever we ask for is a *flight*: it departs with the highest beat that was acknowledged by then,
and lands with what the database shows. A flight contradicts the witness if the database has no row,
another history, or a lower beat; or counts a beat that it has counted before, for another flight:
it went back, and forward again. What departed in an earlier history decides nothing.

A flight that is not answered may have been counted just so: then the beats that were acknowledged
to others meanwhile are *suspect*. What was confirmed with one of them is never found missing.

Why a beat is enough: the stamps of one worker are in one order, that of the row's lock, and what
survives a crash, a fail-over or a restore is a prefix of what was committed. So a database that
shows a beat has all that was committed with that beat or before.

Synchronous, the one owner of whether the absence of a row of ours is evidence, and of whether this
worker has lost its lease (`Witness.has_lapsed`). Of others' rows the store says so itself, with
`trio_sessions.errors.RowDoubtful`. See docs/decisions/0010-evidence.md.
"""

import enum
from collections import deque
from dataclasses import dataclass
from typing import Self

import trio

from trio_sessions.errors import StoreUnavailable
from trio_sessions.types import Stamp

__all__ = ["Account", "Fate", "Flight", "Standing", "WentBack", "Witness"]


_REMEMBERED = 64  # flights that were lost


_WENT_BACK = (
    "the database has gone back: it was restored, replaced or emptied, or another server answers; "
    "what it says decides nothing, and all rows are written anew"
)


class WentBack(StoreUnavailable):
    """The database has forgotten what it had confirmed; nothing that it says is believed."""

    def __init__(self, message: str = _WENT_BACK) -> None:  # an exception is copied by its args
        super().__init__(message)


class Standing(enum.Enum):
    """The standings of a database, as the witness judges it."""

    UNBEGUN = enum.auto()
    STEADY = enum.auto()
    CONTRADICTED = enum.auto()


_NEXT = {
    Standing.UNBEGUN: {Standing.STEADY},
    Standing.STEADY: {Standing.CONTRADICTED},
    Standing.CONTRADICTED: {Standing.STEADY},
}


class Flight:
    """A request to the database that is not answered yet.

    At the end of its block it is lost, unless it has landed.

    Args:
        witness: notes what becomes of it.
        known: the highest stamp that was acknowledged when it departed.
        counts: whether the database is to count a beat for it.
        number: of those for which a beat is counted, in the order of their departures.
    """

    __slots__ = ("_witness", "acknowledged", "counts", "known", "number")

    def __init__(self, witness: "Witness", known: Stamp, *, counts: bool, number: int) -> None:
        self._witness = witness
        self.known = known
        self.counts = counts
        self.number = number
        self.acknowledged: set[int] = set()
        """Beats that were acknowledged to others since."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            if isinstance(error, StoreUnavailable) and error.did_nothing:
                self._witness.withdraw(self)
        finally:
            self._witness.lose(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account of the beats at the moment when something was to depart."""

    history: str
    untold: int
    """Beats that the database had counted, and nobody was told of; at least so many."""


class Fate(enum.Enum):
    """The fates of something whose answer was lost."""

    UNKNOWN = "unknown"
    """Nothing that departed later was acknowledged yet."""
    NOT_THERE = "not there"
    """It had not been committed when something later was: no beat is left that it could be."""
    PERHAPS_THERE = "perhaps there"


class Witness:
    """One registry's witness."""

    def __init__(self) -> None:
        self._told = 0
        """How many beats of the present history were acknowledged."""
        self._departed = self._landed = 0
        """The number of the last that departed, and of the last of those that landed."""
        self._standing = Standing.UNBEGUN
        self.known = Stamp(history="", beat=0)
        """The highest that was acknowledged; `begin` and `land` set it, and nobody else."""
        self.landed = self.known
        """The stamp of the flight that has landed last: of its answers, in that same step.

        It may be lower than `known`: then it may be of a server that is not there any more, and
        was acknowledged late.
        """
        self._flights: set[Flight] = set()
        self._reach = 0
        """Up to this beat a database may have come with what was lost, if it was carried out."""
        self._suspect: deque[range] = deque()
        """Beats that the database may have counted for what was lost, unseen."""
        self._contradicted = trio.Event()
        self._doubtful_until = float("-inf")
        self.has_lapsed = False
        """The present history was begun because the worker had lost its lease; `begin` sets it."""

    @property
    def standing(self) -> Standing:
        """Whether the database is believed now."""
        return self._standing

    @property
    def is_steady(self) -> bool:
        """Whether no answer has contradicted the present history."""
        return self._standing is Standing.STEADY

    @property
    def is_in_doubt(self) -> bool:
        """Whether the database went back a while ago, and others may still write rows anew."""
        return trio.current_time() < self._doubtful_until

    def begin(
        self, history: str, *, has_lapsed: bool = False, doubtful_until: float = float("-inf")
    ) -> None:
        """Note that the database has begun this history for us.

        Args:
            history: the history.
            has_lapsed: it is because the worker had lost its lease.
            doubtful_until: on Trio's clock; see `is_in_doubt`.
        """
        self._go(Standing.STEADY)
        self.has_lapsed = has_lapsed
        self._doubtful_until = doubtful_until
        self.known = self.landed = Stamp(history=history, beat=1)
        self._told = 1
        self._reach = 0
        self._suspect.clear()

    def depart(self, *, counts: bool = True) -> Flight:
        """Note that something is asked for; `land` or `show` must follow, or it is lost.

        Args:
            counts: whether the database is to count a beat for it.

        Raises:
            WentBack: a new history must be begun first.
        """
        if self._standing is not Standing.STEADY:
            raise WentBack
        self._departed += counts
        flight = Flight(self, self.known, counts=counts, number=self._departed)
        self._flights.add(flight)
        return flight

    def withdraw(self, flight: Flight) -> None:
        """Note that a flight has surely done nothing, and will not: no beat is counted for it."""
        self._flights.discard(flight)

    def lose(self, flight: Flight) -> None:
        """Note that the answer to a flight was lost; nothing happens if it has landed."""
        if flight not in self._flights:
            return
        highest = self._highest()
        self._flights.discard(flight)
        if not flight.counts or flight.known.history != self.known.history:
            return
        self._reach = highest
        start, stop = flight.known.beat + 1, self._reach + 1
        while self._suspect and start <= self._suspect[-1].stop:
            start = min(start, self._suspect.pop().start)
        self._suspect.append(range(start, stop))
        if len(self._suspect) > _REMEMBERED:  # what lies between them is suspect, too
            first, second = self._suspect.popleft(), self._suspect.popleft()
            self._suspect.appendleft(range(first.start, second.stop))

    def _highest(self) -> int:
        """Return up to which beat a database can come with all that is on its way.

        Whatever was acknowledged meanwhile may have been counted first.
        """
        history = self.known.history
        out = sum(one.counts and one.known.history == history for one in self._flights)
        return max(self.known.beat, self._reach) + out

    def land(self, flight: Flight, stamp: Stamp | None) -> None:
        """Judge the answer to a flight that was to set a stamp.

        Args:
            flight: what was asked for.
            stamp: the one that was set; None: the database does not know the one that we named.

        Raises:
            WentBack: the answer decides nothing.
        """
        self._flights.discard(flight)
        self._check_history(flight)
        if (
            stamp is None
            or stamp.history != flight.known.history
            or stamp.beat <= flight.known.beat
            or stamp.beat in flight.acknowledged
        ):
            self._contradict()
        assert stamp is not None
        for other in self._flights:
            other.acknowledged.add(stamp.beat)
        self.landed = stamp
        if stamp.beat > self.known.beat:
            self.known = stamp
        self._told += 1
        self._landed = max(self._landed, flight.number)

    def show(self, flight: Flight, stamp: Stamp | None) -> None:
        """Judge the stamp that a question was shown; raises as `land`."""
        self._flights.discard(flight)
        self._check_history(flight)
        if not _goes_on(stamp, flight.known):
            self._contradict()

    # ---- what became of what was lost ----

    @property
    def departed(self) -> int:
        """How many have departed for which a beat is counted."""
        return self._departed

    def account(self) -> Account:
        """Return how the beats stand now; whatever is under way may have taken one already."""
        under_way = sum(flight.counts for flight in self._flights)
        return Account(history=self.known.history, untold=self.known.beat - self._told - under_way)

    def fate(self, before: Account, departed: int) -> Fate:
        """Say whether something was committed whose answer was lost.

        Each beat that was counted is that of something acknowledged, or of something lost that was
        committed all the same. What lands later still is another matter: see `ClockEstimate`.

        Args:
            before: how the beats stood when it was to depart.
            departed: how many had departed when its answer was given up.
        """
        if before.history != self.known.history:
            return Fate.PERHAPS_THERE
        if self._landed <= departed:
            return Fate.UNKNOWN
        untold = self.known.beat - self._told
        return Fate.NOT_THERE if untold <= before.untold else Fate.PERHAPS_THERE

    def goes_on(self, shown: Stamp | None, confirmed: Stamp) -> bool:
        """Say whether a database shows the history of what was confirmed, and no lower beat."""
        return _goes_on(shown, confirmed)

    def vouches(self, shown: Stamp | None, confirmed: Stamp) -> bool:
        """Say whether a database that shows one stamp has all that was confirmed with another."""
        return _goes_on(shown, confirmed) and not self.is_suspect(confirmed)

    def is_suspect(self, confirmed: Stamp) -> bool:
        """Say whether the database may have counted this beat twice, the second time unseen."""
        beat = confirmed.beat
        return confirmed.history == self.known.history and (
            any(beat in one for one in self._suspect)
            or any(beat in one.acknowledged for one in self._flights if one.counts)
        )

    def _check_history(self, flight: Flight) -> None:
        if not self.is_steady or flight.known.history != self.known.history:
            raise WentBack

    def _contradict(self) -> None:
        self._go(Standing.CONTRADICTED)
        self._contradicted.set()
        raise WentBack

    async def contradicted(self) -> None:
        """Wait until an answer contradicts the present history."""
        if self._standing is not Standing.CONTRADICTED:
            self._contradicted = trio.Event()
            await self._contradicted.wait()

    def _go(self, standing: Standing) -> None:
        if standing not in _NEXT[self._standing]:
            raise RuntimeError(f"a witness cannot go from {self._standing.name} to {standing.name}")
        self._standing = standing


def _goes_on(shown: Stamp | None, confirmed: Stamp) -> bool:
    return shown is not None and shown.history == confirmed.history and shown.beat >= confirmed.beat
