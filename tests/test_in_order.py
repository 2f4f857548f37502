"""Sessions in the order of their ids: sorted by slices, merged piece by piece."""

import random
from collections.abc import Callable

import pytest

from trio_sessions import _in_order
from trio_sessions._entry import Entry
from trio_sessions.testing import FakeTransport


def make_entry(session_id: str) -> Entry:
    return Entry(session_id, FakeTransport(), 1, 0.0)


def shuffled(count: int) -> list[str]:
    ids = [f"s{number:05d}" for number in range(count)]
    random.Random(count).shuffle(ids)
    return ids


def in_waves(count: int) -> list[str]:
    """Each run has ids that lie close together, and none of another's."""
    return [f"s{(7919 * (number // 1000)) % 97:02d}-{number:05d}" for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 7321])
@pytest.mark.parametrize("make", [shuffled, in_waves])
async def test_all_come_once_and_in_order(make: Callable[[int], list[str]], count: int) -> None:
    ids = make(count)
    entries = [make_entry(one) for one in ids]
    assert [one.session_id for one in await _in_order.in_order(entries)] == sorted(ids)


async def test_no_step_sorts_more_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 12: the event loop has its turn between two slices."""
    sizes = list[int]()

    def counting(entries: list[Entry], **options: object) -> list[Entry]:
        sizes.append(len(entries))
        return sorted(entries, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(_in_order, "sorted", counting, raising=False)
    entries = [make_entry(one) for one in shuffled(20_500)]
    assert len(list(await _in_order.in_order(entries))) == 20_500
    slices, pieces = sizes[:21], sizes[21:]
    assert max(slices) == _in_order._SLICE
    assert sum(pieces) == 20_500
    assert max(pieces) <= _in_order._SLICE
