"""Letters that come again are known, in bounded memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sessions._mail import _seen
from trio_sessions._mail._seen import Seen


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 30))))
def test_each_letter_of_each_sender_is_new_once(letters: list[tuple[str, int]]) -> None:
    """In whatever order they come, while they are near each other."""
    seen, known = Seen(), set[tuple[str, int]]()
    for letter in letters:
        assert seen.is_new(*letter) is (letter not in known)
        known.add(letter)


def test_what_is_far_behind_has_come_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not remembered number by number."""
    monkeypatch.setattr(_seen, "_WINDOW", 10)
    seen = Seen()
    assert all(seen.is_new("a", number) for number in range(1, 1000, 2))
    assert not seen.is_new("a", 988)
    assert seen.is_new("a", 990)
    assert not seen.is_new("a", 990)
    assert len(seen._numbers["a"]) <= 2 * 10


def test_of_many_senders_the_last_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was heard of lately stays."""
    monkeypatch.setattr(_seen, "_SENDERS", 2)
    seen = Seen()
    for sender in ("a", "b", "a", "c"):
        seen.is_new(sender, 1)
    assert not seen.is_new("a", 1)
    assert not seen.is_new("c", 1)
    assert len(seen._numbers) == len(seen._largest) == 2
