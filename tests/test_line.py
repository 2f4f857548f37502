"""The line of one session's messages: what it counts is what is in it."""

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
