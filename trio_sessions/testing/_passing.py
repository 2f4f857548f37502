"""A store that passes every operation on to another one, through one door."""

import abc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar, cast

from trio_sessions.abc import (
    DataStore,
    InspectionStore,
    LimitStore,
    LogStore,
    MailStore,
    Part,
    Pool,
    RevocationStore,
    SessionStore,
    Worker,
)
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo
from trio_sessions.revocation import Mark, Revocation, Revoked
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

__all__ = ["PassingStore"]

T = TypeVar("T")


class PassingStore(
    SessionStore, InspectionStore, RevocationStore, DataStore, LimitStore, MailStore, LogStore
):
    """Wraps a store; what is between the two stands in a subclass, in `_through`.

    Args:
        store: the store that does the work.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store

    @property
    def parts(self) -> frozenset[Part]:
        """Those of the store below."""
        return self._store.parts

    @property
    def may_outlast_cancellation(self) -> bool:
        """As of the store below."""
        return self._store.may_outlast_cancellation

    @property
    def gives_up_after(self) -> float | None:
        """As of the store below."""
        return self._store.gives_up_after

    def connections(self) -> Pool | None:
        """As of the store below."""
        return self._store.connections()

    @abc.abstractmethod
    async def _through(self, name: str, operation: Callable[[], Awaitable[T]], *kinds: str) -> T:
        """Let an operation through, or not.

        Args:
            name: that of the method.
            operation: does it.
            kinds: of the writes in a batch.
        """

    async def open(self, worker: Worker) -> None:
        """Open the store; see `SessionStore.open`."""
        await self._through("open", lambda: self._store.open(worker))

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        """Carry out writes; see `Store.commit`."""
        kinds = {type(write).__name__ for write in batch.writes}
        return await self._through("commit", lambda: self._store.commit(worker, batch), *kinds)

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows; see `SessionStore.refresh`."""
        return await self._through("refresh", lambda: self._store.refresh(worker, session_ids))

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        """Delete all rows; see `SessionStore.delete_all`."""
        return await self._through(
            "delete_all", lambda: self._store.delete_all(worker, limit=limit)
        )

    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        """List rows of this incarnation; see `RowStore.own_rows`."""
        return await self._through(
            "own_rows", lambda: self._store.own_rows(worker, after=after, limit=limit)
        )

    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        """Write the worker's row anew; see `WorkerStore.begin`."""
        return await self._through(
            "begin", lambda: self._store.begin(worker, history, presence, after=after)
        )

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        """Stamp the worker's row; see `WorkerStore.stamp`."""
        return await self._through("stamp", lambda: self._store.stamp(worker, stamp, passed=passed))

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Say who holds a session; see `SessionStore.locate`."""
        return await self._through("locate", lambda: self._store.locate(worker, session_id))

    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return capabilities; see `SessionStore.get_capabilities`."""
        return await self._through(
            "get_capabilities", lambda: self._store.get_capabilities(worker, session_id)
        )

    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """List sessions that can be asked; see `SessionStore.elicitation_capable`."""
        return await self._through(
            "elicitation_capable", lambda: self._store.elicitation_capable(worker)
        )

    @property
    def _inspected(self) -> InspectionStore:
        return cast("InspectionStore", self._store)

    async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        """Replace what the worker says; see `InspectionStore.announce`."""
        return await self._through(
            "announce",
            lambda: self._inspected.announce(worker, data=data, draining=draining),
        )

    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        """List workers; see `InspectionStore.list_workers`."""
        return await self._through("list_workers", lambda: self._inspected.list_workers(worker))

    async def list_sessions(
        self, worker: Worker, selection: Selection, *, after: str, limit: int
    ) -> list[SessionInfo]:
        """List sessions; see `InspectionStore.list_sessions`."""
        return await self._through(
            "list_sessions",
            lambda: self._inspected.list_sessions(worker, selection, after=after, limit=limit),
        )

    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        """Describe a session; see `InspectionStore.describe`."""
        return await self._through("describe", lambda: self._inspected.describe(worker, session_id))

    @property
    def _revoker(self) -> RevocationStore:
        return cast("RevocationStore", self._store)

    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        """Revoke; see `RevocationStore.revoke`."""
        return await self._through(
            "revoke", lambda: self._revoker.revoke(worker, revocation, limit=limit)
        )

    async def revocations(self, worker: Worker, *, within: float) -> list[Mark]:
        """Return what was revoked; see `RevocationStore.revocations`."""
        return await self._through(
            "revocations", lambda: self._revoker.revocations(worker, within=within)
        )

    @property
    def _post_office(self) -> MailStore:
        return cast("MailStore", self._store)

    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        """Take letters away; see `MailStore.collect`."""
        return await self._through(
            "collect", lambda: self._post_office.collect(worker, limit=limit, size=size)
        )

    async def listen(self, worker: Worker, topics: Sequence[str]) -> None:
        """Add topics; see `MailStore.listen`."""
        await self._through("listen", lambda: self._post_office.listen(worker, topics))

    async def unlisten(self, worker: Worker, topics: Sequence[str]) -> None:
        """Remove topics; see `MailStore.unlisten`."""
        await self._through("unlisten", lambda: self._post_office.unlisten(worker, topics))

    async def living(self, worker: Worker) -> frozenset[str]:
        """Say who can get letters; see `MailStore.living`."""
        return await self._through("living", lambda: self._post_office.living(worker))

    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Delete old letters; see `MailStore.expire_mail`."""
        return await self._through(
            "expire_mail",
            lambda: self._post_office.expire_mail(worker, older_than=older_than, limit=limit),
        )

    async def get_data(self, worker: Worker, session_id: str) -> str | None:
        """Return data; see `DataStore.get_data`."""
        described = cast("DataStore", self._store)
        return await self._through("get_data", lambda: described.get_data(worker, session_id))

    @property
    def _logging(self) -> LogStore:
        return cast("LogStore", self._store)

    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        """Read a log; see `LogStore.read_log`."""
        return await self._through(
            "read_log",
            lambda: self._logging.read_log(worker, session_id, after=after, limit=limit, size=size),
        )

    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Expire entries of logs; see `LogStore.expire_logs`."""
        return await self._through(
            "expire_logs",
            lambda: self._logging.expire_logs(worker, older_than=older_than, limit=limit),
        )

    async def waiting(self, worker: Worker) -> list[str]:
        """List sessions with messages; see `SessionStore.waiting`."""
        return await self._through("waiting", lambda: self._store.waiting(worker))

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Fetch messages; see `SessionStore.fetch`."""
        return await self._through("fetch", lambda: self._store.fetch(worker, wanted))

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
        """Vouch and sweep; see `SessionStore.sweep`."""
        return await self._through(
            "sweep",
            lambda: self._store.sweep(
                worker,
                session_ttl=session_ttl,
                message_ttl=message_ttl,
                max_gap=max_gap,
                limit=limit,
                stamp=stamp,
            ),
        )
