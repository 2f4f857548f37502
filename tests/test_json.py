"""Any JSON value comes out as it went in, also what orjson refuses."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_sessions import MessageTooLarge
from trio_sessions._json import decode, encode

# Measuring would double the time of long searches; others reach the same code.
pytestmark = pytest.mark.no_cover

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 200), 1 << 200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
)
values = st.recursive(
    scalars,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inside, max_size=4
        )
    ),
    max_leaves=30,
)


def through(value: object, limit: int = 10_000_000) -> object:
    return decode(encode(value, what="it", limit=limit))


def same(one: Any, two: Any) -> bool:
    return repr(one) == repr(two)  # tells 1 from 1.0 and from True


@given(value=values)
def test_any_value_comes_out_as_it_went_in(value: object) -> None:
    """Integers of any length, too."""
    assert same(through(value), value)


@settings(max_examples=40)
@given(value=values, depth=st.sampled_from([300, 1100]), is_dict=st.booleans())
def test_any_value_deep_inside_others(value: object, depth: int, is_dict: bool) -> None:  # noqa: FBT001 -- drawn
    """Deeper than orjson, and the decoder of the standard library, can follow."""
    nested = value
    for _ in range(depth):
        nested = {"a": 1, 'k"{': nested, "z": [[], {}, "],"]} if is_dict else [None, nested, "\\"]
    found: Any = through(nested)
    for _ in range(depth):
        if is_dict:
            assert list(found) == ["a", 'k"{', "z"]
            assert (found["a"], found["z"]) == (1, [[], {}, "],"])
            found = found['k"{']
        else:
            assert (found[0], found[2]) == (None, "\\")
            found = found[1]
    assert same(found, value)


def test_a_hundred_thousand_deep() -> None:
    """No recursion."""
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    found: Any = through(nested)
    for _ in range(100_000):
        [found] = found
    assert found == []


@pytest.mark.parametrize("slowly", [False, True])
def test_what_is_no_json_is_refused_on_both_ways(slowly: bool) -> None:  # noqa: FBT001 -- a parameter
    """By the same errors."""
    bad: list[tuple[Any, type[Exception]]] = [
        (object(), TypeError),
        ({1: 2}, TypeError),
        ({1, 2}, TypeError),
        (b"bytes", TypeError),
        ("\ud800", TypeError),
        ({"\ud800": 1}, TypeError),
        (math.nan, ValueError),
        (-math.inf, ValueError),
        ("x" * 1000, MessageTooLarge),
    ]
    for value, error in bad:
        with pytest.raises(error, match="it"):
            through([value, 1 << 70] if slowly else [value], limit=900)


def test_what_contains_itself_is_refused() -> None:
    """It has no end."""
    endless: list[Any] = [1]
    endless.append({"again": endless})
    with pytest.raises(ValueError, match="contains itself"):
        through(endless)
    twice = [1 << 70]
    assert through([twice, twice]) == [twice, twice]
