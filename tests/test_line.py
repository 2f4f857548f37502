"""The line of one session's messages: what it counts is what is in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sessions._messages._line import Line, Message, Waiting

_STEPS = st.lists(
    st.sampled_from(["append", "early", "row", "put back", "stored", "join", "pop", "drop"]),
    max_size=40,
)


@given(steps=_STEPS, texts=st.lists(st.text("aé€😀", max_size=3), min_size=40, max_size=40))
def test_it_counts_what_is_in_it(steps: list[str], texts: list[str]) -> None:
    waiting = Waiting()
    line = Line(waiting)
    for number, (step, text) in enumerate(zip(steps, texts, strict=False)):
        message = Message(text, expires_at=float(number))
        match step:
            case "append":
                line.append(message)
            case "early":
                line.append_early(message)
            case "row":
                line.append_row(number, message, after=number / 2)
            case "put back":
                line.put_back(message)
            case "stored":
                line.note_stored(number)
            case "join":
                line.join_early()
            case "pop" if line.first is not None:
                line.pop()
            case "drop":
                line.drop(lambda one: len(one.payload) == 2)
        assert line.count == waiting.number == len(list(line))
        assert line.size == sum(len(one.payload.encode()) for one in line)


def message(text: str, expires_at: float = 0.0) -> Message:
    return Message(text, expires_at=expires_at)


def test_a_boundary_ends_with_what_is_early() -> None:
    """Whatever way that goes: what is early next has none until a row is stored behind it."""
    joined, dropped, overtaken = Line(Waiting()), Line(Waiting()), Line(Waiting())
    for line in (joined, dropped, overtaken):
        line.note_stored(1)
        line.append_early(message("early"))
        assert line.is_unbounded, "the row was stored before it"
        line.note_stored(9)
        line.note_stored(5)
        line.note_stored(7)
        assert not line.is_unbounded
    joined.join_early()
    dropped.drop(lambda one: one.payload == "early")
    overtaken.append_row(3, message("row"), after=1.0)
    for line in (joined, dropped, overtaken):
        assert (line.has_early, line.is_unbounded) == (False, False)
        line.append_early(message("later"))
        assert line.is_unbounded


@pytest.mark.parametrize(("row", "order"), [(4, ["row", "early"]), (5, ["early", "row"])])
def test_rows_before_the_boundary_go_first(row: int, order: list[str]) -> None:
    """The boundary itself goes after what is early."""
    line = Line(Waiting())
    line.append_early(message("early"))
    line.note_stored(5)
    line.append_row(row, message("row"), after=0.0)
    assert line.has_early is (row < 5)
    assert [one.payload for one in line.due] == order[: 1 if row < 5 else 2]
    line.join_early()
    assert [line.pop().payload, line.pop().payload] == order


def test_what_was_put_back_is_first_and_is_counted() -> None:
    """The last that was put back first; sizes are in bytes."""
    line = Line(Waiting())
    assert (line.first, line.count, line.size) == (None, 0, 0)
    one, two, three = message("a"), message("éé"), message("ccc")
    line.append(three)
    line.put_back(two)
    line.put_back(one)
    assert (line.first, line.count, line.size) == (one, 3, 8)
    assert list(line) == line.due == [one, two, three]
    assert line.drop(lambda it: it is two) == [two]
    assert (line.count, line.size) == (2, 4)
    assert [line.pop(), line.pop()] == [one, three]
    assert (line.count, line.size) == (0, 0)
