"""The operations that `Store.commit` replaces, until nobody calls them one by one."""

import abc
from collections.abc import Sequence

from trio_sessions.abc._stem import Store, Worker
from trio_sessions.types import Capabilities, RowAnswers, RowClaim, Sent, Undelivered

__all__ = ["Doomed"]


class Doomed(Store):
    """Each of these is a `Batch` of its own."""

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
    async def delete(self, worker: Worker, session_ids: Sequence[str], *, up_to: int) -> int:
        """Delete those of these rows that are this incarnation's, of a generation <= ``up_to``.

        Messages of a deleted session go with it. An unknown id is no error.

        Returns:
            How many messages went.
        """

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
    async def acknowledge(self, worker: Worker, message_ids: Sequence[int]) -> None:
        """Delete those of these messages whose session this incarnation holds.

        An unknown id is no error. What another worker has taken over is for that worker to
        deliver, whatever was done with it here.
        """
