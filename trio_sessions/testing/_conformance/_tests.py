"""Conformance checks as a test of pytest, in one line."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

__all__ = ["conformance_tests"]


def conformance_tests(
    checks: Sequence[Callable[[Any], Awaitable[None]]], *, fixture: str | None = None
) -> Callable[..., None]:
    """Make a test for pytest of conformance checks: one case for each, which bears its name.

    A fixture of yours says what is checked, and its name is that of the checks' parameter::

        @pytest.fixture
        def make_store(tmp_path):
            return lambda: JsonStore(tmp_path / "sessions.json")


        test_my_store = conformance_tests(store_conformance)

    For `transport_conformance` the fixture is ``connect``. The test is a plain function that
    runs each check in a Trio run of its own, so it needs no plugin, and gets on with pytest-trio in
    either of its modes; the fixture must be a plain one, too. A case that fails says which rule is
    broken: the check's docstring, as a note.

    Args:
        checks: `store_conformance`, `transport_conformance`, or a part of one.
        fixture: the name of the fixture, if it is another one.

    Raises:
        ValueError: there are no checks, or they want different things, as stores and transports.
        TypeError: ``checks`` is one check, and no sequence of them.
        ImportError: pytest is missing; the extra ``testing`` brings it.
    """
    import pytest

    if callable(checks):
        raise TypeError(
            "conformance_tests expects a sequence of checks, not one of them: "
            f"[{getattr(checks, '__name__', checks)}]"
        )
    wanted = {next(iter(inspect.signature(check).parameters)) for check in checks}
    if len(wanted) != 1:
        raise ValueError(
            "checks must be of one kind, and one at least: of stores, or of transports; "
            f"these want {sorted(wanted)}"
        )
    name = fixture or wanted.pop()

    @pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__)
    def test(check: Callable[[Any], Awaitable[None]], request: pytest.FixtureRequest) -> None:
        """Keep the rule of the contract that the case is named after."""
        trio.run(check, request.getfixturevalue(name))

    made: Callable[..., None] = pytest.mark.usefixtures(name)(test)
    return made
