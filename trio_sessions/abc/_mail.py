"""The part of a store's contract that is about mail between workers."""

import abc
from collections.abc import Sequence

from trio_sessions.abc._stem import Part, Store, Worker

__all__ = ["MAIL", "MailStore"]

MAIL = ""
"""What a `Bell` says of mail, among the ids of sessions: no session has this id."""


class MailStore(Store):
    """Letters to workers, at most once each, and who listens to which topic.

    Left by `trio_sessions.writes.Post`. The recipient's bell (`MessageStore.open_bell`) rings, and
    says ``""`` among the ids of sessions. Nothing is promised to a worker that is late, has gone,
    or has begun anew. Letters and topics go with the worker's row (`RowStore.delete_all`,
    `RowStore.sweep`), and need none to be there.
    """

    part = Part.MAIL

    @abc.abstractmethod
    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        """Take away the letters to this incarnation, the oldest first, and return their payloads.

        At most ``limit`` of them, and none after those that together reach ``size`` bytes of
        UTF-8: there are no more if neither is reached. A letter that was returned, or whose answer
        was lost, is never returned again. Letters of one sender come in the order in which they
        were left.
        """

    @abc.abstractmethod
    async def listen(self, worker: Worker, topics: Sequence[str]) -> None:
        """Add topics to those that this incarnation listens to; those that are there stay."""

    @abc.abstractmethod
    async def unlisten(self, worker: Worker, topics: Sequence[str]) -> None:
        """Remove topics from those that this incarnation listens to."""

    @abc.abstractmethod
    async def living(self, worker: Worker) -> frozenset[str]:
        """Return to whom a letter can be left now: incarnations, and ids of workers.

        Those that are not late. It is asked once a second while calls go on, so it counts nothing.
        """

    @abc.abstractmethod
    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Delete letters older than so many seconds, at most ``limit``; return how many.

        And of incarnations that have no row as many topics, at most: the others go with the next
        calls. They are not in the answer.
        """
