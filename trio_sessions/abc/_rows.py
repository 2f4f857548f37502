"""The part of a store's contract that is about the rows of sessions."""

import abc
from collections.abc import Sequence

from trio_sessions.abc._stem import Store, Worker
from trio_sessions.types import Holder, RowAnswers, Swept

__all__ = ["RowStore"]


class RowStore(Store):
    """The rows of sessions.

    A row has a session id, the worker and incarnation that hold it, a generation, an owner,
    the capabilities of its client, the moments of its creation, of its taking (by the present
    holder) and of its last refresh. They are written by `Store.commit`.
    """

    @abc.abstractmethod
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Set ``last_accessed`` of these rows of ``worker`` to now.

        And the moment of their taking, if that is in the future (see `Store.commit`).

        Returns:
            In ``held``, the ids whose row is there and is ``worker``'s. In ``taken_over``, those
            whose row another incarnation holds; they will be removed. An id in no field
            **is confirmed to have no row**, and its session will be removed, too.

            Whether a row is there must be read, and not be concluded from what was changed: a
            row that is there and ``worker``'s, but could not be refreshed, is ``unknown``.

        Raises:
            OperationTooLong: the operation was ended because it took too long. The registry
                asks for fewer rows then.
        """

    @abc.abstractmethod
    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        """Delete a piece of the rows of this incarnation, whatever their session.

        At most ``limit`` rows, and at most ``limit`` of their messages: a row goes with the last
        of its messages, and not before. The statement that deletes a row says whose it must be,
        so that one that is taken over meanwhile stays.

        Returns:
            What was deleted, and whether there may be more.
        """

    @abc.abstractmethod
    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Return who holds the session's row, and its owner, or None if there is no row."""

    # ---- owners and capabilities ----

    @abc.abstractmethod
    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's capabilities, encoded; None if it has none or does not exist."""

    @abc.abstractmethod
    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """Return the ids of all sessions whose capabilities have the key ``elicitation``."""

    @abc.abstractmethod
    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
    ) -> Swept:
        """Vouch that the fleet can refresh now, then delete what has expired.

        The store keeps the moment of the last vouching and the start of the unbroken
        series of vouchings that it belongs to. A vouching more than ``max_gap`` seconds
        after the last one, or before it (the clock was set back), starts a new series. In a
        store that has never held a row the series has no beginning.

        Expired are rows of other incarnations not refreshed for **more than**
        ``session_ttl`` seconds (equality is not expired), **if the series is at least
        that old**: an outage expires nobody. Messages go with their session; messages
        older than ``message_ttl`` go too. Locked rows are skipped where the store can.

        **One call deletes a bounded piece**, however much one session has left: its messages go
        first, the oldest first, and its row with the last of them. Whoever refreshes the row or
        takes it over in between goes on with what is left.

        A row of another incarnation that was refreshed in the future, because the clock was
        ahead then, counts as refreshed now: a sweep says so in the row, and it can expire.

        Args:
            worker: who sweeps; its own rows are not touched.
            session_ttl: seconds.
            message_ttl: seconds.
            max_gap: seconds.
            limit: at most so many sessions, and so many messages, go at a time; 0 only
                vouches.

        Returns:
            What was deleted, and whether there may be more.
        """
