"""The phases of a registry."""

from collections.abc import Sequence

import pytest

from trio_sessions import RegistryClosed
from trio_sessions._life import Life, Phase

OPEN, CLOSING, FINISHING, CLOSED = Phase


@pytest.mark.parametrize(
    "phases", [(CLOSING, FINISHING, CLOSED), (CLOSING, CLOSED), (CLOSED,)], ids=str
)
def test_a_life_goes_on_to_its_end(phases: Sequence[Phase]) -> None:
    """Through all; or as a forked child's; or as one whose store does not open."""
    life = Life()
    life.check_open()
    assert (life.phase, life.is_open, life.is_finishing, life.is_closed) == (
        OPEN,
        True,
        False,
        False,
    )
    for phase in phases:
        life.go(phase)
        assert (life.phase, life.is_open) == (phase, False)
        assert life.is_finishing is (phase is not CLOSING)
        assert life.is_closed is (phase is CLOSED)
        with pytest.raises(RegistryClosed, match="inside the `async with open_registry"):
            life.check_open()


@pytest.mark.parametrize(
    ("before", "to"),
    [
        ([], OPEN),
        ([], FINISHING),
        ([CLOSING], CLOSING),
        ([CLOSING, FINISHING], CLOSING),
        ([CLOSING, CLOSED], FINISHING),
        ([CLOSED], OPEN),
        ([CLOSED], CLOSED),
    ],
)
def test_it_never_goes_back_nor_leaps(before: Sequence[Phase], to: Phase) -> None:
    life = Life()
    for phase in before:
        life.go(phase)
    with pytest.raises(RuntimeError, match=f"to {to.name}$"):
        life.go(to)
