"""The part of a store's contract by which sessions are ended for good."""

import abc

from trio_sessions.abc._stem import Part, Store, Worker
from trio_sessions.revocation import Mark, Revocation, Revoked

__all__ = ["KEPT", "RevocationStore"]

KEPT = 600.0  # seconds for which a mark is shown though its time is over, at least


class RevocationStore(Store):
    """Marks that outlive the rows of sessions, and refuse their ids for a time.

    A store that keeps this part answers a `Claim` of an id that has a mark with
    `Outcome.REVOKED`, and does nothing, whoever asks and however old or new the claim is. The mark
    and the row exclude each other: who revokes deletes the row in the same transaction, with its
    messages, owner and capabilities. To everything else the session is simply not there.
    """

    part = Part.REVOCATION

    @abc.abstractmethod
    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        """Mark ids, and delete their rows.

        An id that is marked already keeps the mark that lasts longer. Marks whose time is over may
        be deleted along the way.

        Args:
            worker: who asks.
            revocation: which sessions, and for how long.
            limit: rows that a selection takes at a time, at most.

        Raises:
            StoreUnavailable: it may have been done, or not; it may be asked for again.
        """

    @abc.abstractmethod
    async def revocations(self, worker: Worker, *, within: float) -> list[Mark]:
        """Return the marks that were made so many seconds ago, or later.

        Also those whose time is over, for ten minutes at least: their holders may not know yet.
        """
