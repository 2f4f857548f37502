"""Settings are checked at the door, before anything is opened."""

import logging
from typing import Any

import pytest

from trio_sessions import open_registry
from trio_sessions.abc import SessionStore

SECONDS = (
    "session_ttl",
    "message_ttl",
    "cleanup_interval",
    "check_timeout",
    "disconnect_timeout",
    "store_timeout",
)
COUNTS = ("max_concurrent", "batch_size", "max_message_bytes")


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    "value", [0, -1, 0.0, float("nan"), float("inf"), float("-inf"), 10**400, -(10**400)]
)
def test_a_duration_out_of_range_is_a_value_error_that_names_it(name: str, value: float) -> None:
    """At the call itself, not when the block is entered."""
    with pytest.raises(ValueError, match=name):
        open_registry(**{name: value})  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", ["5", None, True, [5]])
def test_a_duration_of_the_wrong_type_is_a_type_error_that_names_it(name: str, value: Any) -> None:
    """A bool is no number of seconds."""
    with pytest.raises(TypeError, match=name):
        open_registry(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError), (True, TypeError)],
)
def test_a_bad_count_is_refused_by_name(name: str, value: Any, error: type[Exception]) -> None:
    """A count is an int of at least 1."""
    with pytest.raises(error, match=name):
        open_registry(**{name: value})


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (-0.1, ValueError),
        (1.1, ValueError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (10**400, ValueError),
        ("0.5", TypeError),
        (None, TypeError),
        (True, TypeError),
    ],
)
def test_a_bad_share_is_refused_by_name(value: Any, error: type[Exception]) -> None:
    """A share is a number from 0.0 to 1.0, both included, and neither is a bool."""
    with pytest.raises(error, match="mass_missing_brake"):
        open_registry(mass_missing_brake=value)
    for allowed in (0, 0.0, 0.25, 1, 1.0):
        open_registry(mass_missing_brake=allowed)


def test_an_interval_longer_than_half_the_ttl_is_refused() -> None:
    """The message says what to do; exactly half is allowed."""
    with pytest.raises(ValueError, match=r"cleanup_interval \(31 s\).*session_ttl \(60 s\).*lower"):
        open_registry(session_ttl=60, cleanup_interval=31)
    open_registry(session_ttl=60, cleanup_interval=30)


@pytest.mark.parametrize(
    ("value", "error"),
    [("", ValueError), ("x" * 256, ValueError), ("a\0", ValueError), (7, TypeError)],
)
def test_a_bad_worker_id_is_refused_by_name(value: Any, error: type[Exception]) -> None:
    """It goes into the same kind of column as a session id."""
    with pytest.raises(error, match="worker_id"):
        open_registry(worker_id=value)


@pytest.mark.parametrize("store", [None, 7, b"sqlite:///x", object(), SessionStore])
def test_what_is_no_store_is_refused_by_name(store: Any) -> None:
    """The message says what may be given."""
    with pytest.raises(TypeError, match="store must be"):
        open_registry(store)


def test_loggers_are_ours() -> None:
    """All under ``trio_sessions``, with no handler of their own."""
    ours = [name for name in logging.root.manager.loggerDict if name.startswith("trio_sessions")]
    assert ours
    assert not any(logging.getLogger(name).handlers for name in ours)
