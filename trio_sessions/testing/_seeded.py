"""A Trio run in which chance and the scheduler come from one seed, and every clock if wanted.

What the packages below read beside Trio's clock is replaced for as long as the run lasts: the
host's clock, and random words. One run at a time in a process.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import trio
import trio._core._run as scheduler

from trio_sessions import _estimate, _histories, _open, _rounds

__all__ = ["seeded"]


class _HostClock:
    """The host's clocks, all of them Trio's."""

    @staticmethod
    def monotonic() -> float:
        return trio.current_time()

    @staticmethod
    def perf_counter() -> float:
        return trio.current_time()


class _Words:
    """Random words from a seed."""

    def __init__(self, seed: str) -> None:
        self._chance = random.Random(seed)  # noqa: S311 -- to be replayed

    def token_hex(self, size: int) -> str:
        return self._chance.randbytes(size).hex()


@contextmanager
def seeded(seed: str, *, is_virtual: bool = True) -> Iterator[None]:
    """Replace whatever is not a function of the seed; put it back at the end.

    Args:
        seed: any text.
        is_virtual: the run's clock is a function of the run. If not, threads may be at work, and
            databases that know words of earlier runs: clocks and words stay as they are.
    """
    words = _Words(seed)
    replaced: list[tuple[ModuleType, str, Any]] = [
        (scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
    ]
    if is_virtual:
        replaced += [
            (_estimate, "time", _HostClock),
            (_rounds, "time", _HostClock),
            (_open, "secrets", words),
            (_histories, "secrets", words),
        ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    chances = random.getstate(), scheduler._r.getstate()
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        random.seed(seed)
        scheduler._r.seed(seed)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        random.setstate(chances[0])
        scheduler._r.setstate(chances[1])
