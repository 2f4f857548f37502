"""The part of the public surface for asyncio that is about all workers, for operators."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from trio_sessions._mail import Reader
from trio_sessions._registry import SessionRegistry as TrioRegistry
from trio_sessions._settings import Settings
from trio_sessions._tracing import Tracer
from trio_sessions.aio._asking import Asking
from trio_sessions.aio._reading import AsyncioReader
from trio_sessions.inspection import SessionInfo, WorkerInfo
from trio_sessions.types import DrainReport, RegistryHealth, RegistryStatistics

__all__ = ["OperatorMethods", "Workers"]

Call = Callable[[Callable[[TrioRegistry], Awaitable[Any]]], Awaitable[Any]]
Read = Callable[[Callable[[TrioRegistry], Reader]], AsyncioReader]


class Workers:
    """The workers of one database, as `trio_sessions.aio.SessionRegistry.workers`."""

    def __init__(self, call: Call, read: Read) -> None:
        """Not for users."""
        self._call = call
        self._read = read

    async def list(self) -> list[WorkerInfo]:
        """Return the workers, the oldest first; as the same method of Trio's."""
        found: list[WorkerInfo] = await self._call(lambda core: core.workers.list())
        return found

    async def set_data(self, data: Mapping[str, Any]) -> None:
        """Replace what this worker tells the others of itself; as the same method of Trio's."""
        await self._call(lambda core: core.workers.set_data(data))

    async def call(self, worker_id: str, name: str, payload: Any, *, timeout: float) -> Any:
        """Call a handler of a worker, and return its answer; as the same method of Trio's."""
        return await self._call(
            lambda core: core.workers.call(worker_id, name, payload, timeout=timeout)
        )

    def stream(self, worker_id: str, name: str, payload: Any, *, timeout: float) -> AsyncioReader:
        """Call a handler, and iterate over what it yields; as the same method of Trio's.

        To be used by ``async with`` and ``async for`` of asyncio.
        """
        return self._read(
            lambda core: core.workers.stream(worker_id, name, payload, timeout=timeout)
        )


class OperatorMethods(Asking):
    """What `trio_sessions.aio.SessionRegistry` can be asked about all workers."""

    _settings: Settings

    @property
    def workers(self) -> Workers:
        """The workers of this database; see `trio_sessions.SessionRegistry.workers`."""
        return Workers(self._call, self._read)

    def statistics(self) -> RegistryStatistics:
        """Return counters and gauges; after `shutdown`, as they were at the end."""
        return self._core().statistics()

    def health(self) -> RegistryHealth:
        """Return facts for probes; see `trio_sessions.SessionRegistry.health`.

        After `shutdown` it is ``closed``; before the first `initialize`, `RegistryClosed`.
        """
        return self._core().health()

    def trace(self, tracer: Tracer) -> None:
        """Let what this registry does be traced; `trio_sessions.otel.instrument` calls it."""
        self._settings.tracing.use(tracer)

    async def list_sessions(
        self,
        *,
        owner: str | None = None,
        worker_id: str | None = None,
        older_than: float | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[SessionInfo]:
        """Return sessions of all workers; see `trio_sessions.SessionRegistry.list_sessions`."""
        ask = partial(
            TrioRegistry.list_sessions,
            owner=owner,
            worker_id=worker_id,
            older_than=older_than,
            after=after,
            limit=limit,
        )
        return await self._call(ask)

    async def drain(self, timeout: float) -> DrainReport:
        """Let this worker's sessions leave; see `trio_sessions.SessionRegistry.drain`."""
        return await self._call(lambda core: core.drain(timeout))

    async def revoke(
        self,
        *session_ids: str,
        owner: str | None = None,
        worker_id: str | None = None,
        older_than: float | None = None,
        reason: str = "",
    ) -> int:
        """End sessions for good; see `trio_sessions.SessionRegistry.revoke`."""
        revoke = partial(
            TrioRegistry.revoke,
            owner=owner,
            worker_id=worker_id,
            older_than=older_than,
            reason=reason,
        )
        return await self._call(lambda core: revoke(core, *session_ids))

    async def describe_session(self, session_id: str) -> SessionInfo | None:
        """Return what is known of a session; None: there is none.

        See `trio_sessions.SessionRegistry.describe_session`.
        """
        return await self._call(TrioRegistry.describe_session, session_id)
