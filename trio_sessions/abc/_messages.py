"""The part of a store's contract that is about messages."""

import abc
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from trio_sessions.abc._stem import Part, Store, Worker
from trio_sessions.types import StoredMessage, Wanted

__all__ = ["Bell", "MessageStore"]


class Bell(Protocol):
    """Tells a worker that messages were stored for its sessions."""

    async def wait(self) -> frozenset[str] | None:
        """Wait until there may be messages that were not told of yet.

        Returns:
            The sessions that they are for, or None if that is not known. It may be told of
            more than there is, but never of less.
        """
        ...


class MessageStore(Store):
    """Messages that wait for the session of a row, and go with it; stored by `Store.commit`."""

    part = Part.MESSAGES

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
    def open_bell(self, worker: Worker) -> AbstractAsyncContextManager[Bell]:
        """Return what tells this worker that messages were stored for its sessions.

        From the moment when its block begins, no message goes unnoticed. It raises
        `StoreUnavailable`, from entering the block or from `Bell.wait`, when the store is
        away; the registry then opens another one, and looks for what it has missed.
        """
