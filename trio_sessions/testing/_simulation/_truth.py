"""What has really become of each row, as the database itself saw it; it outlives every rewind."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from trio_sessions.stores.memory._row import Row

__all__ = ["Holding", "Moment", "Truth", "holders"]

Moment = tuple[float, float]
"""On Trio's clock, and on the database's."""

Holding = tuple[str, str]
"""An incarnation, and the id of a session that it holds."""


@dataclass(slots=True)
class _Life:
    """What is true of one session id and one incarnation."""

    written: list[float] = field(default_factory=list)
    """When the incarnation claimed the row, and got it."""
    forgotten: set[float] = field(default_factory=set)
    """Which of these the database has forgotten since, in a rewind."""
    ended: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """When somebody else ended that, by the reason."""


class Truth:
    """The true history of the rows. Moments are Trio's, unless they are a `Moment`."""

    def __init__(self) -> None:
        self._lives: dict[Holding, _Life] = defaultdict(_Life)
        self.stamped: dict[str, Moment] = {}
        """When the row of each incarnation was last stamped."""
        self.passed: dict[str, Moment] = {}
        """When the last pass of each incarnation ended."""
        self.contacts: list[Moment] = []
        """When anybody stamped."""
        self.lapsed: set[str] = set()
        """Incarnations whose own row was swept."""
        self.absences: Counter[Holding] = Counter()
        """How often an incarnation was told that it has no row of a session, since the last time
        that it had one."""

    def wrote(self, incarnation: str, session_id: str, now: float) -> None:
        """Note that an incarnation has claimed a row, and holds it."""
        self._lives[incarnation, session_id].written.append(now)
        self.absences[incarnation, session_id] = 0

    def ended(self, incarnation: str, session_id: str, why: str, now: float) -> None:
        """Note that a row of an incarnation was deleted, or taken over."""
        self._lives[incarnation, session_id].ended[why].append(now)

    def stamp(self, incarnation: str, now: Moment, *, passed: bool) -> None:
        """Note a stamp."""
        self.stamped[incarnation] = now
        self.contacts.append(now)
        if passed:
            self.passed[incarnation] = now

    def told(self, incarnation: str, asked: set[str], there: set[str]) -> None:
        """Note what the answer to a refresh said."""
        for session_id in asked:
            if session_id in there:
                self.absences[incarnation, session_id] = 0
            else:
                self.absences[incarnation, session_id] += 1

    def was_written(self, incarnation: str, session_id: str, since: float) -> bool:
        """Say whether an incarnation has claimed a row since a moment."""
        return any(at >= since for at in self._lives[incarnation, session_id].written)

    def is_remembered(self, incarnation: str, session_id: str, since: float) -> bool:
        """Say whether the database still knows of such a claim."""
        life = self._lives[incarnation, session_id]
        return any(at >= since and at not in life.forgotten for at in life.written)

    def go_back(self, to: float) -> None:
        """Note that the database is as it was at a moment."""
        for life in self._lives.values():
            life.forgotten.update(at for at in life.written if at > to)

    def ends(self, incarnation: str, session_id: str, since: float) -> list[str]:
        """Return for which reasons a row of an incarnation was ended since a moment."""
        ended = self._lives[incarnation, session_id].ended
        return [why for why, moments in ended.items() if any(at >= since for at in moments)]

    def last_end(self, incarnation: str, session_id: str, why: str) -> float | None:
        """Return when a row of an incarnation was last ended for a reason."""
        return max(self._lives[incarnation, session_id].ended[why], default=None)

    def lease_has_run_out(self, incarnation: str, ttl: float, now: Moment) -> bool:
        """Say whether a worker's own row was not stamped, or no pass ended, for its ttl.

        By either clock: what the database's is set forward by, a lease loses.
        """
        never = (float("-inf"), float("-inf"))
        last = self.stamped.get(incarnation, never), self.passed.get(incarnation, never)
        return any(now[clock] - min(one[clock] for one in last) > ttl for clock in (0, 1))

    def longest_silence(self, ttl: float, now: Moment) -> float:
        """Return for how long nobody has stamped, at most, within the last ttl seconds."""
        longest, later = 0.0, now
        for at in reversed(self.contacts):
            longest = max(longest, later[0] - at[0], abs(later[1] - at[1]))
            later = at
            if at[0] < now[0] - ttl:
                break
        return longest


def holders(rows: Mapping[str, Row]) -> dict[str, tuple[str, str, float]]:
    """Return who holds each row, its birth and when it was taken."""
    return {one: (row.incarnation, row.born, row.taken_at) for one, row in rows.items()}
