"""How long to search: for seconds, for a minute, or for half an hour; always the same runs."""

from collections.abc import Mapping, Sequence

from trio_sessions.testing._simulation._mixes import MIXES
from trio_sessions.testing._simulation._simulate import Planned, plan

__all__ = ["DEEP", "PROFILES"]

DEEP = 100_000
"""Steps of the longest one."""
_REGRESSIONS = (
    Planned(seed="1-19", steps=150, workers=5, mix="losses"),  # a rewind begins no series
    Planned(seed="1-464", steps=150, workers=2, mix="losses"),  # a server that was left behind
    Planned(seed="128", steps=20, workers=3, mix="all"),  # no brake
    Planned(seed="25", steps=60, workers=3, mix="overlaps"),  # generations are ignored
    Planned(seed="9", steps=60, workers=3, mix="words again"),  # what has ended is inherited
    Planned(seed="5", steps=60, workers=4, mix="lost mail"),  # letters that come again
    Planned(seed="0", steps=60, workers=4, mix="lost mail"),  # lost items
    Planned(seed="51", steps=80, workers=3, mix="lost adoptions"),  # adopted unheard
    Planned(seed="8", steps=80, workers=3, mix="lost adoptions"),  # asked again as another one
    Planned(seed="14", steps=60, workers=3, mix="lost questions"),  # rows told as they are
)
"""Each shows what happens without one of our cures, which none of the others shows."""


def _of_all_mixes(*, seeds: int, steps: int, workers: int) -> tuple[Planned, ...]:
    """Plan runs with the first seeds that there are, and with one more worker for each of these."""
    return tuple(
        Planned(seed=str(seed), steps=steps, workers=workers + seed, mix=mix)
        for seed in range(seeds)
        for mix in MIXES
    )


PROFILES: Mapping[str, Sequence[Planned]] = {
    "dev": _of_all_mixes(seeds=1, steps=10, workers=2),
    "ci": (*_of_all_mixes(seeds=3, steps=100, workers=3), *_REGRESSIONS),
    "deep": tuple(plan(seed=1, steps=DEEP)),
}
"""By name: some seconds, about a minute, and half an hour at most, where nothing else runs."""
