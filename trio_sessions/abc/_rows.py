"""The part of a store's contract that is about the rows of sessions."""

import abc
from collections.abc import Sequence

from trio_sessions.abc._stem import Part, Store, Worker
from trio_sessions.types import Holder, RowAnswers, Stamp, Swept

__all__ = ["RowStore"]


class RowStore(Store):
    """The rows of sessions.

    A row has a session id, the worker and incarnation that hold it, a generation, an owner,
    the capabilities of its client, the moments of its creation, of its taking (by the present
    holder) and of its last refresh. They are written by `Store.commit`.
    """

    part = Part.ROWS

    @abc.abstractmethod
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Set ``last_accessed`` of these rows of ``worker`` to now.

        And the moment of their taking, if that is in the future (see `Store.commit`).

        Returns:
            In ``held``, the ids whose row is there and is ``worker``'s. In ``taken_over``, those
            whose row another incarnation holds, in ``taken_ago`` since when, if the store knows.
            An id in no field **has no row**. In ``stamp``,
            what the worker's own row says in the same snapshot; a refresh sets no stamp. Where
            that vouches for the answer (`WorkerStore`), the sessions of the latter two will be
            removed.

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
            What was deleted, and whether there may be more. If there is no more, the worker's
            own row is deleted, too.
        """

    @abc.abstractmethod
    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        """Return ids and generations of rows of this incarnation, by id, those after ``after``."""

    @abc.abstractmethod
    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Return who holds the session's row, and its owner, or None if there is no row.

        Raises:
            StoreUnavailable: also if there is none, and the store is in doubt (`WorkerStore`).
        """

    # ---- owners and capabilities ----

    @abc.abstractmethod
    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's capabilities, encoded; None if it has none or does not exist.

        Raises as `locate`.
        """

    @abc.abstractmethod
    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """Return the ids of all sessions whose capabilities have the key ``elicitation``.

        Raises:
            StoreUnavailable: also if the store is in doubt: some may be missing.
        """

    @abc.abstractmethod
    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
        stamp: Stamp | None = None,
    ) -> Swept:
        """Stamp, vouch that workers can reach the store now, then delete what has expired.

        The stamp says that a pass of this worker has just ended. It and the vouching are
        committed whatever becomes of the rest, which is not done where the store does not have
        the stamp.

        The store keeps the moment of the last vouching and the start of the unbroken
        series of vouchings that it belongs to. A vouching more than ``max_gap`` seconds
        after the last one, or more than that before it (the clock was set back), starts a new
        series; a smaller step back does not, but a series that began in the future begins now.
        The gap grows with the longest ``session_ttl`` of the workers that the store knows, as if
        all had that one. A worker that says that the store went back starts a new series, too:
        stamps may be forgotten (`WorkerStore.begin`). In a store that has never held a row the
        series has no beginning: the first vouching, before which there is none, starts no series,
        and what has no beginning is older than every ttl. Who vouches is this and
        `WorkerStore.stamp`: the stamp of a batch says that its worker lives, and does not vouch for
        the fleet.

        Expired are rows of other incarnations whose **lease** has run out, more than a ttl ago
        (equality is not expired), and which were not refreshed for as long, **if the series is
        at least that old**: an outage expires nobody. A lease and its ttl are the holder's: the
        last stamp that it set, or the last pass of it that ended, whichever is earlier, and its
        own ``session_ttl``. A holder without a row has none: then the row's own age counts,
        against the longest ``session_ttl`` of the workers known and of the sweeper. Messages go
        with their session; messages older than ``message_ttl`` go too. Locked rows are skipped
        where the store can.

        The row of a worker whose lease has run out goes when no session of it is left; for a
        week the store remembers of its incarnation which history was swept (`WorkerStore.begin`).

        **One call deletes a bounded piece**, however much one session has left: its messages go
        first, the oldest first, and its row with the last of them. Whoever refreshes the row or
        takes it over in between goes on with what is left.

        A row of another incarnation that was refreshed in the future, because the clock was
        ahead then, counts as refreshed now: a sweep says so in the row, and it can expire. So
        does the row of another worker.

        Args:
            worker: who sweeps; its own rows are not touched.
            session_ttl: seconds; the sweeper's own.
            message_ttl: seconds.
            max_gap: seconds, for that ``session_ttl``.
            limit: at most so many sessions, and so many messages, go at a time; 0 only
                stamps and vouches.
            stamp: the highest that was acknowledged to the worker; None: nothing is stamped.

        Returns:
            What was deleted, and whether there may be more.
        """
