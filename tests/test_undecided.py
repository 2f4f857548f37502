"""Adoptions that are not decided: what is known of them, by id."""

import pytest

from trio_sessions import _undecided
from trio_sessions._undecided import Undecided


def test_a_row_is_expected_while_an_adoption_is_under_way() -> None:
    undecided = Undecided()
    assert not undecided.expects("s")
    undecided.begin("s")
    undecided.begin("s")
    undecided.end("s")
    assert [undecided.expects("s"), undecided.expects("s")] == [True, True], "one is left"
    assert not undecided.expects("another")
    undecided.end("s")
    assert (undecided.expects("s"), len(undecided)) == (False, 0)


def test_the_row_of_a_lost_answer_is_left_alone_once() -> None:
    """Whoever asks again asks with the same generation, also after a pass has found the row."""
    undecided = Undecided()
    undecided.begin("s")
    undecided.lose("s", 7)
    undecided.end("s")
    assert [undecided.expects("s"), undecided.expects("s")] == [True, False]
    assert undecided.unanswered("s") == 7
    undecided.lose("s", 8)
    assert (undecided.unanswered("s"), undecided.expects("s")) == (8, True)


def test_a_lost_answer_is_left_to_an_attempt_that_is_under_way() -> None:
    undecided = Undecided()
    undecided.lose("s", 7)
    undecided.begin("s")
    assert undecided.expects("s")
    undecided.end("s")
    assert [undecided.expects("s"), undecided.expects("s")] == [True, False]


def test_an_answer_decides_and_an_end_does_not() -> None:
    undecided = Undecided()
    undecided.lose("s", 7)
    undecided.begin("s")
    undecided.end("s")
    assert undecided.unanswered("s") == 7, "it was refused, or withdrawn: the first may be done"
    undecided.begin("s")
    undecided.settle("s")
    assert (undecided.unanswered("s"), undecided.expects("s")) == (0, True)
    undecided.end("s")
    assert (undecided.expects("s"), len(undecided)) == (False, 0)
    undecided.settle("never seen")
    assert len(undecided) == 0


def test_the_oldest_lost_answers_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_undecided, "_MOST", 2)
    undecided = Undecided()
    for number, session_id in enumerate(["a", "b", "a", "c"], 1):
        undecided.lose(session_id, number)
    assert [undecided.unanswered(one) for one in "abc"] == [3, 0, 4]
    assert len(undecided) == 2
    undecided.begin("d")
    undecided.lose("d", 5)
    undecided.lose("e", 6)
    undecided.lose("f", 7)
    assert (undecided.unanswered("d"), undecided.expects("d")) == (0, True), "it is under way"
