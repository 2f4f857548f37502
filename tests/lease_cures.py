"""Cures of leases and marks, each turned off; `switches` names what the fleet says then."""

import pytest

from trio_sessions import _verdicts
from trio_sessions._entry import Entry
from trio_sessions.stores.memory import _workers
from trio_sessions.types import RowAnswers

__all__ = ["lease_by_the_stamp_alone", "older_marks_are_believed", "swept_is_not_remembered"]


def older_marks_are_believed(patch: pytest.MonkeyPatch) -> None:
    """Whoever holds the row is a newer holder."""

    def has_mark(entry: Entry, answers: RowAnswers, now: float) -> bool:
        return entry.session_id in answers.taken_over

    patch.setattr(_verdicts, "_has_mark", has_mark)


def swept_is_not_remembered(patch: pytest.MonkeyPatch) -> None:
    """To lose a lease is a rewind."""
    patch.setattr(_workers, "REMEMBERED", 0.0)


def lease_by_the_stamp_alone(patch: pytest.MonkeyPatch) -> None:
    """A worker whose passes have stopped has its lease as long as it stamps."""

    def has_lapsed(self: _workers._Row, now: float) -> bool:
        return now - self.stamped_at > self.presence.session_ttl

    patch.setattr(_workers._Row, "has_lapsed", has_lapsed)
