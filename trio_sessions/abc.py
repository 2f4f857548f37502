"""The contracts: what a transport and a store must do. The docstrings are the specification.

``trio_sessions.testing.store_conformance`` holds the second contract as tests.
"""

import abc
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import trio

from trio_sessions.types import (
    Capabilities,
    Holder,
    RowAnswers,
    RowClaim,
    Sent,
    StoredMessage,
    Swept,
    Undelivered,
    Wanted,
)

__all__ = ["Bell", "SessionStore", "Transport", "Worker"]


@runtime_checkable
class Transport(Protocol):
    """A live connection, as the registry sees it. Both methods are Trio async functions.

    The registry calls each method at most once at a time for a session, never holds a
    database connection or a limiter's token meanwhile, and gives each call a deadline.
    """

    async def is_connected(self) -> bool:
        """Say whether the peer is still there.

        Return exactly ``True`` or ``False``. ``False`` ends the session: say it only if
        it is certain. Anything else, an exception, or no answer within ``check_timeout``
        means "unknown", and the session is kept. An answer given without waiting costs
        no task.
        """
        ...

    async def disconnect(self) -> None:
        """Close the connection and free what belongs to it.

        Called when the session leaves the registry, whatever the reason. It must be
        harmless on a connection that is already closed. An exception is logged; after
        ``disconnect_timeout`` the call is cancelled.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Who asks a store: one opening of one registry."""

    worker_id: str
    """Names the worker; users may choose it, and may use one again after a restart."""
    incarnation: str
    """Made fresh at each opening, so that a restart is never taken for what it follows."""
    limiter: trio.CapacityLimiter
    """Every thread that a store starts for this worker is started with this limiter
    (``trio.to_thread.run_sync(..., limiter=worker.limiter)``); nobody else enters it."""


class Bell(Protocol):
    """Tells a worker that messages were stored for its sessions."""

    async def wait(self) -> frozenset[str] | None:
        """Wait until there may be messages that were not told of yet.

        Returns:
            The sessions that they are for, or None if that is not known. It may be told of
            more than there is, but never of less.
        """
        ...


class SessionStore(abc.ABC):
    """The rows that workers share.

    A row has a session id, the worker and incarnation that hold it, an owner, the
    capabilities of its client, the moments of its creation, of its taking (by the present
    holder) and of its last refresh. Messages wait for the session of a row, and go with
    it. **Time is the store's own**, one clock for all workers: no method takes a moment,
    only durations in seconds.

    Rules for every method:

    - It is a checkpoint, also when there is nothing to do.
    - It is one transaction. What it returns is committed.
    - When the store cannot say, it raises `StoreUnavailable` (the cause chained), or
      `RowUnavailable` where fewer rows could succeed. It bounds itself in time; the
      registry cancels it after ``store_timeout``, and treats that and every other
      exception as "unknown".
    - Every write but `send` and `send_on` may be repeated: an earlier attempt may have been
      committed although its answer was lost.
    - It never refreshes or deletes a row of another incarnation, except by `write` (a
      takeover) and `sweep` (an expired lease).
    - When it is cancelled, the operation may or may not have happened.

    One store may be opened by several workers at once.
    """

    @abc.abstractmethod
    async def open(self, worker: Worker) -> None:
        """Make the store ready for ``worker``.

        Raises:
            StoreUnavailable: the store cannot be reached. Nothing stays open.
            StoreSchemaError: its tables are not ours. Nothing was altered.
        """

    @abc.abstractmethod
    async def close(self, worker: Worker) -> None:
        """Give back what was opened for ``worker``; harmless without an `open` before.

        It does not delete rows, and does not raise when the store is away.
        """

    @abc.abstractmethod
    async def write(self, worker: Worker, claims: Sequence[RowClaim]) -> RowAnswers:
        """Write rows for sessions that ``worker`` holds, each id at most once.

        A row that does not exist is inserted. One of this incarnation is refreshed if
        its generation is not newer than the claim's. One of another incarnation is
        taken over if it was taken no later than the claim's age ago; the owner and the
        moment of creation stay, unless the claim brings an owner. Otherwise the row is left
        alone: a newer holder has it.

        Returns:
            In ``held``, the ids whose row is now ``worker``'s.
        """

    @abc.abstractmethod
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Set ``last_accessed`` of these rows of ``worker`` to now.

        Returns:
            In ``held``, the ids whose row is there and is ``worker``'s. An id in neither
            field **is confirmed not to be**, and its session will be removed.
        """

    @abc.abstractmethod
    async def delete(self, worker: Worker, session_ids: Sequence[str], *, up_to: int) -> int:
        """Delete those of these rows that are this incarnation's, of a generation <= ``up_to``.

        Messages of a deleted session go with it. An unknown id is no error.

        Returns:
            How many messages went.
        """

    @abc.abstractmethod
    async def delete_all(self, worker: Worker, *, limit: int) -> int:
        """Delete at most ``limit`` rows of this incarnation, whatever their session.

        Returns:
            How many were deleted; less than ``limit`` means that none are left.
        """

    @abc.abstractmethod
    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Return who holds the session's row, and its owner, or None if there is no row."""

    # ---- owners and capabilities ----

    @abc.abstractmethod
    async def set_owner(self, worker: Worker, session_id: str, owner: str | None) -> bool:
        """Set a session's owner, whoever holds it; say whether there is such a session."""

    @abc.abstractmethod
    async def claim_owner(self, worker: Worker, session_id: str, owner: str) -> str | None:
        """Set a session's owner unless it has one: atomic, so that the first claim wins.

        Returns:
            The owner that it has now, or None if there is no such session.
        """

    @abc.abstractmethod
    async def set_capabilities(
        self, worker: Worker, session_id: str, capabilities: Capabilities
    ) -> bool:
        """Replace a session's capabilities; say whether there is such a session."""

    @abc.abstractmethod
    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's capabilities, encoded; None if it has none or does not exist."""

    @abc.abstractmethod
    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """Return the ids of all sessions whose capabilities have the key ``elicitation``."""

    # ---- messages ----

    @abc.abstractmethod
    async def send(self, worker: Worker, session_id: str, payload: str) -> Sent | None:
        """Store a message for a session, and ring the bell of the worker that holds it.

        Messages that are sent one after the other have ascending ids.

        Returns:
            None if there is no such session.
        """

    @abc.abstractmethod
    async def send_on(self, worker: Worker, messages: Sequence[Undelivered]) -> int:
        """Store those of these messages whose session another incarnation holds.

        In this order, with their ages, and with a ring of the bells of the workers that
        hold the sessions.

        Returns:
            How many were stored.
        """

    @abc.abstractmethod
    async def waiting(self, worker: Worker) -> list[str]:
        """Return the ids of sessions of this incarnation for which messages are stored."""

    @abc.abstractmethod
    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Return stored messages of these sessions, by session, the oldest first.

        Of each session as many as are wanted, and at least one if there is one. They stay
        stored until they are acknowledged.
        """

    @abc.abstractmethod
    async def acknowledge(self, worker: Worker, message_ids: Sequence[int]) -> None:
        """Delete those of these messages whose session this incarnation holds.

        An unknown id is no error. What another worker has taken over is for that worker to
        deliver, whatever was done with it here.
        """

    @abc.abstractmethod
    def open_bell(self, worker: Worker) -> AbstractAsyncContextManager["Bell"]:
        """Return what tells this worker that messages were stored for its sessions.

        From the moment when its block begins, no message goes unnoticed. It raises
        `StoreUnavailable`, from entering the block or from `Bell.wait`, when the store is
        away; the registry then opens another one, and looks for what it has missed.
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
    ) -> Swept:
        """Vouch that the fleet can refresh now, then delete what has expired.

        The store keeps the moment of the last vouching and the start of the unbroken
        series of vouchings that it belongs to. A vouching more than ``max_gap`` seconds
        after the last one starts a new series. In a store that has never held a row the
        series has no beginning.

        Expired are rows of other incarnations not refreshed for **more than**
        ``session_ttl`` seconds (equality is not expired), **if the series is at least
        that old**: an outage expires nobody. Messages go with their session; messages
        older than ``message_ttl`` go too. Locked rows are skipped where the store can.

        Args:
            worker: who sweeps; its own rows are not touched.
            session_ttl: seconds.
            message_ttl: seconds.
            max_gap: seconds.
            limit: at most so many sessions, and so many messages, go at a time; 0 only
                vouches.

        Returns:
            What was deleted; if both are less than ``limit``, nothing is left.
        """
