"""What answers mean for sessions: evidence in, verdicts out. Synchronous, no I/O.

**A session is removed only when its transport says that it is disconnected, or the
database has confirmed that its row is gone. Whatever is unknown is kept.**

See docs/decisions/0010-evidence.md; 0001-a-limiter-instead-of-gather.md for errors as values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

import outcome

from trio_sessions._calls import Answer
from trio_sessions._entry import Entry, Row
from trio_sessions._witness import WentBack, Witness
from trio_sessions.errors import StoreUnavailable
from trio_sessions.types import RowAnswers

__all__ = ["Leases", "RowVerdict", "judge_claims", "judge_connection", "judge_rows"]


_NEAR = 1.0  # seconds: of claims that are nearer, the one wins that the store has heard of later


def judge_connection(answer: Answer) -> bool | Exception:
    """Return True or False as the transport said it, or why it is unknown."""
    if isinstance(answer, bool):
        return answer
    if isinstance(answer, outcome.Error):
        assert isinstance(answer.error, Exception)
        return answer.error
    return TypeError(f"is_connected() must return True or False, not {type(answer).__name__}")


@dataclass(frozen=True, slots=True)
class Leases:
    """The sessions that keep their lease, by what to ask the database of them."""

    refresh: list[Entry] = field(default_factory=list)
    """The row was there once, or a newer holder's: refresh it."""
    restore: list[Entry] = field(default_factory=list)
    """No attempt to write the row was ever confirmed: write it, do not judge it."""

    def add(self, entries: Iterable[Entry]) -> None:
        """Sort sessions in. One whose row is being written now is left alone."""
        for entry in entries:
            row = entry.row
            if row is Row.CONFIRMED or row is Row.LOST:
                self.refresh.append(entry)
            elif row is Row.UNWRITTEN:
                self.restore.append(entry)
            else:
                assert row is Row.WRITING


@dataclass(frozen=True, slots=True, kw_only=True)
class RowVerdict:
    """What a committed answer means for the sessions of one chunk."""

    there: list[Entry]
    taken_over: list[Entry]
    """The row is another worker's, or was when that one won the session: a mark."""
    gone: list[Entry]
    """There is no row of this session, and nothing says why."""
    unknown: Mapping[str, Exception]
    suspect: list[Entry] = field(default_factory=list)
    """Those of the unknown whose row may have been forgotten, unseen: to be written anew."""


def judge_rows(
    entries: Iterable[Entry], answers: RowAnswers, witness: Witness, now: float
) -> RowVerdict:
    """Judge the sessions of a chunk: an absent row is gone only if the witness vouches.

    It does if the answer shows the history in which the row was confirmed, and no lower beat, and
    that beat cannot have been counted twice. A session that was lost to a newer holder is taken
    over, though that one may be gone by now.

    A row that another worker took earlier than the session was added here is no mark: this
    worker's own was deleted, and an older connection's was written late. That may be one of many
    that nobody has meant, so it is judged as an absent one.

    Args:
        entries: the sessions.
        answers: what the store says of their rows.
        witness: this worker's.
        now: on Trio's clock, not before the answer.
    """
    there, taken_over, gone, suspect = list[Entry](), list[Entry](), list[Entry](), list[Entry]()
    unknown: dict[str, Exception] = dict(answers.unknown)
    for entry in entries:
        if entry.session_id in answers.held:
            there.append(entry)
        elif entry.session_id in unknown:
            continue
        elif _was_lost(entry, answers, witness):
            taken_over.append(entry)
        elif not witness.vouches(answers.stamp, entry.confirmed_by):
            if witness.is_suspect(entry.confirmed_by):
                suspect.append(entry)
                unknown[entry.session_id] = StoreUnavailable(
                    "its row is absent, but was confirmed while another answer was lost: the "
                    "database may have gone back unseen, and the row is written anew"
                )
            else:
                unknown[entry.session_id] = WentBack()
        elif entry.row is Row.LOST or _has_mark(entry, answers, now):
            taken_over.append(entry)
        else:
            gone.append(entry)
    return RowVerdict(
        there=there, taken_over=taken_over, gone=gone, unknown=unknown, suspect=suspect
    )


def _was_lost(entry: Entry, answers: RowAnswers, witness: Witness) -> bool:
    """Say whether a newer holder has won the session, and still has it.

    That was the answer to a claim, whatever else this database may have forgotten.
    """
    return (
        entry.row is Row.LOST
        and entry.session_id in answers.taken_over
        and witness.goes_on(answers.stamp, entry.confirmed_by)
    )


def _has_mark(entry: Entry, answers: RowAnswers, now: float) -> bool:
    """Say whether another worker took the row, and not surely before the session came here."""
    taken_ago = answers.taken_ago.get(entry.session_id, 0.0)
    age = now - entry.added_at
    return entry.session_id in answers.taken_over and taken_ago <= age + _NEAR


def judge_claims(entries: Iterable[Entry]) -> RowVerdict:
    """Judge by how each claim was answered: lost to a newer holder is taken over."""
    there, taken_over = list[Entry](), list[Entry]()
    unknown: dict[str, Exception] = {}
    for entry in entries:
        match entry.row:
            case Row.CONFIRMED:
                there.append(entry)
            case Row.LOST:
                taken_over.append(entry)
            case Row.UNWRITTEN | Row.WRITING:
                if entry.error is not None:
                    unknown[entry.session_id] = entry.error
            case _:
                assert_never(entry.row)
    return RowVerdict(there=there, taken_over=taken_over, gone=[], unknown=unknown)
