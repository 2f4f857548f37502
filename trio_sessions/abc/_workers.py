"""The part of a store's contract that is about workers."""

import abc

from trio_sessions.abc._stem import Part, Store, Worker
from trio_sessions.types import Begun, Presence, Stamp, Stamped

__all__ = ["MAX_GAP", "WorkerStore"]

MAX_GAP = 0.4
"""A silence of the fleet is an outage if it is longer than this share of the longest
``session_ttl`` known; docs/explanation.md has the sum."""


class WorkerStore(Store):
    """The rows of workers, one for each incarnation: its witness, and its lease.

    **The witness.** "No row" means something only if the store that says so has forgotten nothing
    since it confirmed the row. So a worker's row has a *history*, a random word of the worker's,
    and a *beat* that the store counts: each stamp that is committed, a batch's too, makes it one
    higher. Who knows that a row was there at a beat may believe that it is gone if the store shows
    the same history and no lower beat **in the snapshot in which it has looked for the row**:
    whatever outlives a crash, a fail-over or a restore is a prefix of what was committed.

    Nothing but `begin` writes a history or makes a beat lower. Everything else that names a stamp
    is carried out only where the store has its history and no lower beat; otherwise **all of it
    does nothing**, and says so. The stamps of one worker are in one order, also if they are asked
    for at the same time, and none has a beat that another has.

    **The lease.** A worker's sessions are swept only when its row has not been stamped for its own
    ``session_ttl``, or no pass of it has ended for so long (`RowStore.sweep`).

    **Doubt.** After a worker has said that the store went back, the store is in doubt for two of
    the longest ``cleanup_interval`` of the workers that it knows: others may have forgotten
    sessions that are still to be written anew. It is in doubt, too, where it can tell that it may
    lag behind, hides rows, or is another server than the one that was last stamped; and once it is
    stamped there, for two of the longest ``stamp_interval``, in which others find out; and for a
    worker that has begun a history, does not leave, and whose row is not there, has another
    history, or a beat lower than the highest that it was told of (its batches name a stamp, and do
    nothing). Meanwhile "there is no such session" is unknown: questions raise
    `StoreUnavailable`, and what is said to a session that has no row (`SetOwner`, `ClaimOwner`,
    `SetCapabilities`, `SetData`, `Send`, `Append`) is answered with `RowDoubtful`, as is a
    `ClaimOwner` of a session of another incarnation that has no owner, and a `Claim` that adopts.
    Not concerned are a refresh and every other `Claim`, a `Delete` and an `Acknowledge`, which are
    about rows of this incarnation, for its worker has its own witness: 0 and False are answers. Nor
    is a `Send` or `Append` for another ``born`` than that of the row that is there: None.
    """

    part = Part.WORKERS

    @abc.abstractmethod
    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        """Write the worker's row, or write it anew, with this history and the beat 1.

        It counts as stamped now, and as if a pass had ended now.

        Args:
            worker: whose row.
            history: a word that was never used before.
            presence: what the worker says of itself.
            after: the history that the store does not have any more, as far as the worker knows:
                it went back, and is in doubt from now on, unless a sweep has taken the row of
                that very history. None: this is the worker's first one.

        Returns:
            Whether it was swept, and how long the doubt is. To be asked for again, the same: the
            note of a sweep stays for its week.
        """

    @abc.abstractmethod
    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        """Stamp the worker's row, and vouch for the fleet as `RowStore.sweep` does.

        The silence that starts a new series is here longer than 0.4 of the longest ``session_ttl``
        of the workers that the store knows, which is what a registry tells `RowStore.sweep`, too.

        Args:
            worker: whose row.
            stamp: the highest that was acknowledged to it.
            passed: a pass of it has just ended.
        """
