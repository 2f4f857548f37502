"""What removed sessions may have left behind: one number for each id."""

import pytest

from trio_sessions import _departures
from trio_sessions._departures import Departures
from trio_sessions._entry import Entry
from trio_sessions.testing import FakeTransport


def entry(session_id: str, generation: int) -> Entry:
    return Entry(session_id, FakeTransport(), generation, 0.0)


def test_the_latest_that_has_ended_counts() -> None:
    """Until a deletion or a claim that covers it has been answered."""
    departures = Departures()
    assert departures.ended("s") == 0
    for generation in (3, 7):
        departures.begin([entry("s", generation)])
    assert departures.ended("s") == 7
    departures.settle("s", 3)
    assert departures.ended("s") == 7
    departures.settle("s", 7)
    assert (departures.ended("s"), len(departures)) == (0, 0)
    departures.settle("s", 9)


def test_due_is_what_nobody_is_busy_with() -> None:
    """A transport may still be disconnecting, of one of several that have ended."""
    departures = Departures()
    one, two = entry("s", 1), entry("s", 2)
    departures.begin([one, entry("t", 3)])
    departures.begin([two])
    assert departures.due() == []
    departures.finish([one, entry("t", 3)])
    assert departures.due() == ["t"]
    departures.finish([two])
    assert sorted(departures.due()) == ["s", "t"]


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The TTL sees to the oldest."""
    monkeypatch.setattr(_departures, "MOST", 10)
    departures = Departures()
    for generation in range(1, 31):
        departures.begin([entry(f"s{generation % 15}", generation)])
    assert len(departures) == 10
    assert departures.ended("s0") == 30
    assert departures.ended("s5") == 0


def test_the_latest_that_was_forgotten_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions do not end in the order in which they were added."""
    monkeypatch.setattr(_departures, "MOST", 1)
    departures = Departures()
    departures.begin([entry("s", 5), entry("t", 3), entry("u", 4)])
    assert departures.all() == {"u": 4}
    departures.begin_again("s")
    assert departures.ended("s") == 5


def test_who_is_held_again_is_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor whoever comes back after it was: then all that may be left counts."""
    monkeypatch.setattr(_departures, "MOST", 2)
    departures = Departures()
    departures.begin([entry("s", 1), entry("t", 2)])
    departures.begin_again("s")
    departures.begin([entry("u", 4), entry("v", 5), entry("w", 6)])
    assert departures.all() == {"s": 1, "v": 5, "w": 6}
    departures.begin_again("t")
    assert departures.ended("t") == 4, "the latest that was forgotten; its own was 2"
    departures.settle("t", 4)
    departures.settle("s", 1)
    assert departures.all() == {"v": 5, "w": 6}
    departures.begin_again("v")
    departures.begin([entry("v", 9)])
    assert departures.all() == {"w": 6, "v": 9}
    departures.forget_all()
    departures.begin_again("x")
    assert departures.all() == {}


def test_an_id_that_ends_again_is_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are too many, those go that ended longest ago, each by its last end."""
    monkeypatch.setattr(_departures, "MOST", 2)
    departures = Departures()
    for generation, session_id in enumerate("stsu", start=1):
        departures.begin([entry(session_id, generation)])
    assert departures.all() == {"s": 3, "u": 4}


def test_a_stray_does_not_make_less_of_what_is_known() -> None:
    """A row of an earlier generation is found where a later one has ended."""
    departures = Departures()
    departures.begin([entry("s", 7)])
    departures.find("s", 3)
    assert departures.ended("s") == 7
    departures.find("t", 3)
    assert departures.all() == {"s": 7, "t": 3}
    assert departures.due() == ["t"]


def test_where_no_row_is_left_nothing_is_left_over() -> None:
    """As where the worker has lost its lease, and others have swept."""
    departures = Departures()
    departures.begin([entry("s", 7)])
    departures.forget_all()
    assert (departures.all(), departures.ended("s")) == ({}, 0)
