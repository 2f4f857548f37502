"""An engine that was handed in: whose process its connections are, and how many it has.

Nothing of the engine is changed but its pool, and that in a forked child only.
"""

import weakref

import sqlalchemy as sa
import trio

from trio_sessions._process import keep_for_ever, this_process

__all__ = ["note_process", "places", "renew_pool"]

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


def places(given: sa.Engine | None, *, spare: int) -> trio.CapacityLimiter | None:
    """Return places for the connections that a given engine has, if it has a number of them.

    Args:
        given: the engine.
        spare: connections that questions must not take; one is always left to them.
    """
    if given is None or not isinstance(given.pool, sa.QueuePool) or not given.pool.size():
        return None
    return trio.CapacityLimiter(max(1, given.pool.size() - spare))
