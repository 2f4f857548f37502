"""An engine that was handed in: whose process its connections are, and how many it has.

Nothing of the engine is changed but its pool, and that in a forked child only.
"""

import contextlib
import enum
import weakref
from collections.abc import AsyncIterator

import sqlalchemy as sa
import trio

from trio_sessions._process import keep_for_ever, this_process

__all__ = ["Places", "Rank", "note_process", "places", "renew_pool"]

_process_of: "weakref.WeakKeyDictionary[sa.Engine, object]" = weakref.WeakKeyDictionary()
"""The process whose connections are in the pool of an engine that was handed in."""


def note_process(given: sa.Engine) -> None:
    """Note that an engine was handed in: what its pool holds now is this process's."""
    _process_of.setdefault(given, this_process())


def renew_pool(given: sa.Engine) -> None:
    """Give the engine a pool of its own in a forked child.

    https://docs.sqlalchemy.org/en/21/core/pooling.html#pooling-multiprocessing
    """
    if _process_of[given] is not this_process():
        keep_for_ever(given.pool)
        given.dispose(close=False)
        _process_of[given] = this_process()


class Rank(enum.IntEnum):
    """Who needs a connection; each leaves one to each of those before it."""

    LEASE = 0
    PASS = 1
    WRITER = 2
    OTHERS = 3


class Places:
    """Places for the connections of an engine that was handed in.

    Where it has fewer than there are ranks, the last ones share: one place is left to each.

    Args:
        size: how many connections its pool keeps.
    """

    def __init__(self, size: int) -> None:
        self._limiters = [trio.CapacityLimiter(max(1, size - rank)) for rank in Rank]

    @contextlib.asynccontextmanager
    async def place(self, rank: Rank) -> AsyncIterator[None]:
        """Have a place in the block; wait for one first."""
        async with contextlib.AsyncExitStack() as stack:
            for limiter in self._limiters[rank::-1]:
                await stack.enter_async_context(limiter)
            yield


_places_of = trio.lowlevel.RunVar["weakref.WeakKeyDictionary[sa.Pool, Places] | None"](
    "trio_sessions_places", None
)
"""The places of the run by pool: a limiter is of one run, and stores that share a pool share it."""


def places(given: sa.Engine | None) -> Places | None:
    """Return the places for the connections of a given engine, if it has a number of them.

    They are the pool's: of one engine, whichever store has it, and of its copies with options.
    """
    pool = None if given is None else given.pool
    if not isinstance(pool, sa.QueuePool) or not pool.size():
        return None
    by_pool = _places_of.get()
    if by_pool is None:
        by_pool = weakref.WeakKeyDictionary()
        _places_of.set(by_pool)
    found = by_pool.get(pool)
    if found is None:
        found = by_pool[pool] = Places(pool.size())
    return found
