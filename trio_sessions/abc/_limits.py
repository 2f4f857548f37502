"""The part of a store's contract by which owners have no more sessions than they may."""

from trio_sessions.abc._stem import Part, Store

__all__ = ["LimitStore"]


class LimitStore(Store):
    """Claims that are refused where an owner has as many sessions as it may.

    A store that keeps this part heeds `trio_sessions.writes.Claim.most_of_owner`. It counts the
    rows of that owner, whoever holds them, but for those of workers that are gone: a worker has
    stamped its row within its own ``session_ttl``, or is the asker. A session that the owner has
    already is no further one, and may be claimed. **To count and to write is one step**: of many
    claims at once, in one batch or in those of many workers, no more come in than there is room
    for. What is said of an owner later (`trio_sessions.writes.SetOwner`) is never refused, and
    counts from then. What a claim of the batch replaces, for it has ended here, counts no more for
    whoever had it.

    Whoever counts an owner's sessions may have to keep others from doing so. Let no batch wait for
    that: the rest of it would wait, too. Answer such claims with `trio_sessions.errors.RowLocked`;
    they are asked again. Count no further than ``most_of_owner``: an owner may have any number.
    """

    part = Part.LIMITS
