"""The brake: what is missing in masses is asked for once more before anybody is removed for it.

A truncated table, a condition that was left out of a DELETE and a database that hides rows all say
"no row" of many sessions at once, and nobody may have meant it. One pass of doubt costs some
memory; to believe it costs every user's connection. So where too much is *newly* missing, it is
held, and only what is missing again goes::

                        ┌── too much at once ──> held ──── missing again ───> removed
    (here) ── missing ──┤                         │  └──── unknown: still held
                        └── else ──> removed      └─────── there again: no suspicion is left

Too much is more than ``mass_missing_brake`` of the rows that a pass has an answer for, and at
least `AT_LEAST`. What was held before and is missing again goes whatever the share, and counts on
neither side of it, so that two such deeds in a row do not hide behind each other. A row with
another holder is a mark that somebody has left on purpose: it counts as an answer, and is never
held. The row of a session that is held is written anew only if the database has gone back, which
drops all evidence: else its entry stays confirmed, and only rows of entries that are not are
written (`trio_sessions._entry`).

Synchronous: evidence in, a decision out. See docs/decisions/0010-evidence.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trio_sessions._entry import Entry

__all__ = ["AT_LEAST", "Brake", "Decision", "is_too_much"]

AT_LEAST = 10
"""Sessions that are missing at once; fewer are never held."""


def is_too_much(*, newly_missing: int, answers: int, share: float) -> bool:
    """Say whether so many rows may not be believed to be gone at first sight.

    Args:
        newly_missing: rows without a mark that were not held before.
        answers: rows that the database has answered for, these among them.
        share: ``mass_missing_brake``; 1.0 turns the brake off.
    """
    return newly_missing >= AT_LEAST and newly_missing / answers > share


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a pass has to do with the sessions whose rows are gone."""

    remove: Sequence[Entry]
    hold: Sequence[Entry]
    answers: int
    """Rows that the database has answered for, but for those that were held before."""

    @property
    def brakes(self) -> bool:
        """Whether anybody is held."""
        return bool(self.hold)


class Brake:
    """One registry's brake, which remembers from pass to pass whom it holds.

    Args:
        share: ``mass_missing_brake``.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._suspected = set[Entry]()
        """Were held by a pass, and have not been seen since."""
        self._answers = 0
        self._suspect = 0
        """Rows that are absent, too, and whose absence decides nothing."""
        self._newly_missing = list[Entry]()
        self._missing_again = list[Entry]()

    def begin(self) -> None:
        """Begin to collect the evidence of a pass, and forget what an earlier one had collected."""
        self._suspected = {entry for entry in self._suspected if entry.removal is None}
        self._answers = self._suspect = 0
        self._newly_missing, self._missing_again = [], []

    def note(
        self,
        *,
        there: Sequence[Entry],
        taken_over: Sequence[Entry],
        gone: Iterable[Entry],
        suspect: Sequence[Entry] = (),
    ) -> None:
        """Note a part of the evidence; whatever else is unknown is in none of these.

        Args:
            there: their rows are there, as ever.
            taken_over: their rows have another holder.
            gone: they have no row, and nothing says why.
            suspect: likewise, but no row need have been deleted. They are not removed; that they
                are absent speaks against the others.
        """
        self._suspect += len(suspect)
        if self._suspected:
            self._suspected.difference_update(there)
        self._answers += len(there) + len(taken_over)
        for entry in gone:
            if entry in self._suspected:
                self._missing_again.append(entry)
            else:
                self._answers += 1
                self._newly_missing.append(entry)

    @property
    def has_missing(self) -> bool:
        """Whether the evidence of this pass has rows that are gone."""
        return bool(self._newly_missing or self._missing_again)

    def decide(self) -> Decision:
        """Decide on the evidence of a whole pass."""
        newly = [entry for entry in self._newly_missing if entry.removal is None]
        absent = len(newly) + self._suspect
        answers = self._answers - len(self._newly_missing) + absent
        if is_too_much(newly_missing=absent, answers=answers, share=self._share):
            self._suspected.update(newly)
            return Decision(remove=self._missing_again, hold=newly, answers=answers)
        return Decision(remove=[*self._missing_again, *newly], hold=(), answers=answers)
