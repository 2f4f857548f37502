"""The part of a store's contract that is about the logs of sessions."""

import abc
from collections.abc import Sequence

from trio_sessions.abc._stem import Part, Store, Worker
from trio_sessions.types import StoredEntry

__all__ = ["LogStore"]


class LogStore(Store):
    """Events that are read without being taken away; appended by `trio_sessions.writes.Append`.

    A log goes with the row of its session, as messages do: with a `Delete`, a `Claim` that
    replaces an ended session, a revocation, a sweep. It stays when the session is taken over.
    """

    part = Part.LOGS

    @abc.abstractmethod
    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        """Return entries of a session by id, those with a greater id than ``after``.

        An entry that is not shown now is never shown later, unless its id is greater than that of
        all that are: whoever goes on after the last one has missed nothing. No session: no entry.

        Args:
            worker: who asks.
            session_id: the session.
            after: an id, or 0.
            limit: entries, at most.
            size: stop when the encoded events have reached so many bytes together; above 0, so
                that there is one at least, if there is any.

        Raises:
            StoreUnavailable: there is no such session, and the store is in doubt.
        """

    @abc.abstractmethod
    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Delete entries that are older than so many seconds, at most ``limit``; return how many.

        A moment in the future is not older.
        """
