"""The store of one worker of a simulated fleet: each operation goes its way, and back."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from trio_sessions.abc import (
    Bell,
    DataStore,
    InspectionStore,
    LimitStore,
    LogStore,
    MailStore,
    Part,
    RevocationStore,
    SessionStore,
    Worker,
)
from trio_sessions.errors import StoreUnavailable
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.testing._simulation._way import FAR, PATIENCE, LinkFault, Way
from trio_sessions.types import (
    Begun,
    Holder,
    Presence,
    RowAnswers,
    Stamp,
    Stamped,
    StoredEntry,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import Batch, Committed

__all__ = ["OPTIONAL", "Link"]

OPTIONAL = frozenset(
    {Part.INSPECTION, Part.REVOCATION, Part.DATA, Part.LIMITS, Part.LOGS, Part.MAIL}
)
"""Parts of the contract that are kept only where they are played."""


class Link(
    Way,
    SessionStore,
    InspectionStore,
    RevocationStore,
    DataStore,
    LimitStore,
    LogStore,
    MailStore,
):
    """The store of one worker."""

    @property
    def parts(self) -> frozenset[Part]:
        """All that it has methods for; the optional ones only where they are played."""
        return super().parts - (OPTIONAL - self._network.parts)

    @property
    def may_outlast_cancellation(self) -> bool:
        """As a store does that asks in threads, or not."""
        return self.in_threads

    @property
    def gives_up_after(self) -> float | None:
        """Seconds."""
        return PATIENCE

    # ---- the contract ----

    async def open(self, worker: Worker) -> None:
        """See `Store.open`."""
        await self._database.open(worker)

    async def close(self, worker: Worker) -> None:
        """See `Store.close`."""
        await self._database.close(worker)

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        """See `Store.commit`."""
        # The clock was set back, and the worker has not heard of it: it names a much too late
        # last moment. That such a batch is refused is not promised, so it never comes late.
        _, now = self._database.moment()
        is_misjudged = batch.not_after is not None and batch.not_after > now + FAR
        return await self._ask(
            "commit",
            worker,
            lambda: self._database.commit(worker, batch),
            may_land_late=not is_misjudged,
        )

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """See `RowStore.refresh`."""
        await self.while_refreshing()
        return await self._ask(
            "refresh", worker, lambda: self._database.refresh(worker, session_ids)
        )

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        """See `RowStore.delete_all`."""
        return await self._ask(
            "delete_all", worker, lambda: self._database.delete_all(worker, limit=limit)
        )

    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        """See `RowStore.own_rows`."""
        return await self._ask(
            "own_rows", worker, lambda: self._database.own_rows(worker, after=after, limit=limit)
        )

    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        """See `WorkerStore.begin`."""
        return await self._ask(
            "begin", worker, lambda: self._database.begin(worker, history, presence, after=after)
        )

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        """See `WorkerStore.stamp`."""
        return await self._ask(
            "stamp", worker, lambda: self._database.stamp(worker, stamp, passed=passed)
        )

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """See `RowStore.locate`."""
        return await self._ask("locate", worker, lambda: self._database.locate(worker, session_id))

    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """See `RowStore.get_capabilities`."""
        return await self._ask(
            "get_capabilities",
            worker,
            lambda: self._database.get_capabilities(worker, session_id),
        )

    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """See `RowStore.elicitation_capable`."""
        return await self._ask(
            "elicitation_capable", worker, lambda: self._database.elicitation_capable(worker)
        )

    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        """See `RevocationStore.revoke`."""
        return await self._ask(
            "revoke", worker, lambda: self._database.revoke(worker, revocation, limit=limit)
        )

    async def revocations(self, worker: Worker, *, within: float) -> list[Mark]:
        """See `RevocationStore.revocations`."""
        return await self._ask(
            "revocations", worker, lambda: self._database.revocations(worker, within=within)
        )

    async def waiting(self, worker: Worker) -> list[str]:
        """See `MessageStore.waiting`."""
        return await self._ask("waiting", worker, lambda: self._database.waiting(worker))

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """See `MessageStore.fetch`."""
        return await self._ask("fetch", worker, lambda: self._database.fetch(worker, wanted))

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        """See `MessageStore.open_bell`; nothing is rung through a fault that refuses."""
        if self.is_dead or LinkFault.REFUSES in {self.fault, self._network.fault}:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("connection refused")
        async with self._database.open_bell(worker) as bell:
            yield bell

    async def sweep(self, worker: Worker, **settings: Any) -> Swept:
        """See `RowStore.sweep`."""
        return await self._ask("sweep", worker, lambda: self._database.sweep(worker, **settings))

    # ---- optional parts ----

    async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        """See `InspectionStore.announce`."""
        return await self._ask(
            "announce",
            worker,
            lambda: self._database.announce(worker, data=data, draining=draining),
        )

    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        """See `InspectionStore.list_workers`."""
        return await self._ask("list_workers", worker, lambda: self._database.list_workers(worker))

    async def list_sessions(
        self, worker: Worker, selection: Selection, *, after: str, limit: int
    ) -> list[SessionInfo]:
        """See `InspectionStore.list_sessions`."""
        return await self._ask(
            "list_sessions",
            worker,
            lambda: self._database.list_sessions(worker, selection, after=after, limit=limit),
        )

    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        """See `InspectionStore.describe`."""
        return await self._ask(
            "describe", worker, lambda: self._database.describe(worker, session_id)
        )

    async def get_data(self, worker: Worker, session_id: str) -> str | None:
        """See `DataStore.get_data`."""
        return await self._ask(
            "get_data", worker, lambda: self._database.get_data(worker, session_id)
        )

    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        """See `LogStore.read_log`."""
        return await self._ask(
            "read_log",
            worker,
            lambda: self._database.read_log(
                worker, session_id, after=after, limit=limit, size=size
            ),
        )

    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """See `LogStore.expire_logs`."""
        return await self._ask(
            "expire_logs",
            worker,
            lambda: self._database.expire_logs(worker, older_than=older_than, limit=limit),
        )

    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        """See `MailStore.collect`."""
        return await self._ask(
            "collect", worker, lambda: self._database.collect(worker, limit=limit, size=size)
        )

    async def listen(self, worker: Worker, topics: Sequence[str]) -> None:
        """See `MailStore.listen`."""
        await self._ask("listen", worker, lambda: self._database.listen(worker, topics))

    async def unlisten(self, worker: Worker, topics: Sequence[str]) -> None:
        """See `MailStore.unlisten`."""
        await self._ask("unlisten", worker, lambda: self._database.unlisten(worker, topics))

    async def living(self, worker: Worker) -> frozenset[str]:
        """See `MailStore.living`."""
        return await self._ask("living", worker, lambda: self._database.living(worker))

    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """See `MailStore.expire_mail`."""
        return await self._ask(
            "expire_mail",
            worker,
            lambda: self._database.expire_mail(worker, older_than=older_than, limit=limit),
        )
