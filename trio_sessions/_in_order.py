"""Sessions by their ids, so that a chunk of them is a piece of the primary key's index.

To sort a hundred thousand at once would hold the event loop for a tenth of a second (invariant 12),
so slices are sorted, and merged while they are taken.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import attrgetter

import trio

from trio_sessions._edge import chunked
from trio_sessions._entry import Entry

__all__ = ["in_order"]

_SLICE = 1000  # sessions sorted before the event loop gets its turn

_session_id = attrgetter("session_id")


async def in_order(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Sort by id; a step of what is returned never sorts more than a slice."""
    runs = list[list[Entry]]()
    for part in chunked(entries, _SLICE):
        runs.append(sorted(part, key=_session_id))
        await trio.lowlevel.checkpoint()
    return iter(runs[0]) if len(runs) == 1 else _merge(runs)


def _merge(runs: list[list[Entry]]) -> Iterator[Entry]:
    """Merge sorted runs piece by piece: for a piece, Timsort is quicker than `heapq.merge`."""
    starts = [0] * len(runs)
    while runs:
        width = max(_SLICE // len(runs), 1)
        # Up to here, no run has more than `width`.
        ends = (run[min(at + width, len(run)) - 1] for run, at in zip(runs, starts, strict=True))
        bound = min(ends, key=_session_id).session_id
        piece = list[Entry]()
        for number, run in enumerate(runs):
            at = starts[number]
            starts[number] = bisect_right(
                run, bound, at, min(at + width, len(run)), key=_session_id
            )
            piece += run[at : starts[number]]
        yield from sorted(piece, key=_session_id)
        if any(at == len(run) for run, at in zip(runs, starts, strict=True)):
            left = [one for one in zip(runs, starts, strict=True) if one[1] < len(one[0])]
            runs, starts = [run for run, _ in left], [at for _, at in left]
