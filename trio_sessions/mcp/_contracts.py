"""The registry as the adapter needs it: that of Trio and that of asyncio are both one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol

from trio_sessions._settings import Settings
from trio_sessions.abc import Transport
from trio_sessions.inspection import SessionInfo, WorkerInfo
from trio_sessions.types import LogEntry

__all__ = [
    "App",
    "Appending",
    "Logs",
    "Message",
    "Receive",
    "Registry",
    "Scope",
    "Send",
    "Stream",
    "Topics",
    "Workers",
    "settings_of",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Stream(Protocol):
    """The answers of one call: opened, read, closed."""

    async def __aenter__(self) -> AsyncIterator[Any]:
        """Open it."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None:
        """Close it."""
        ...


class Workers(Protocol):
    """What goes from worker to worker."""

    async def list(self) -> Sequence[WorkerInfo]:
        """Return the workers."""
        ...

    async def call(self, worker_id: str, name: str, payload: Any, *, timeout: float) -> Any:
        """Call what another worker handles."""
        ...

    def stream(self, worker_id: str, name: str, payload: Any, *, timeout: float) -> "Stream":
        """Call what another worker handles, for many answers."""
        ...


class Topics(Protocol):
    """What all workers hear."""

    async def publish(self, topic: str, message: Any) -> object:
        """Tell everybody who listens."""
        ...

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Listen."""
        ...


class Appending(Protocol):
    """An event on its way to the log."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether it is known what has become of it."""
        ...

    @property
    def result(self) -> int | BaseException | None:
        """Its id, or why it has none; None: that is not known yet."""
        ...

    async def wait(self) -> None:
        """Wait until it is settled."""
        ...


class Logs(Protocol):
    """What was said in a session."""

    def append_soon(self, session_id: str, event: Any) -> Appending:
        """Append an event for which nobody waits."""
        ...

    async def append(self, session_id: str, event: Any) -> int:
        """Append an event."""
        ...

    async def read(
        self, session_id: str, *, after: int = 0, limit: int = 1000
    ) -> Sequence[LogEntry]:
        """Read on after an event."""
        ...


class Registry(Protocol):
    """What an opened registry does, under whichever of the two."""

    @property
    def worker_id(self) -> str:
        """This worker."""
        ...

    @property
    def handlers(self) -> Mapping[str, Callable[..., Any]]:
        """What this worker was opened with."""
        ...

    @property
    def _settings(self) -> Settings:
        """The same, in numbers."""
        ...

    @property
    def workers(self) -> Workers:
        """The workers of the database."""
        ...

    @property
    def topics(self) -> Topics:
        """The topics of the database."""
        ...

    @property
    def logs(self) -> Logs:
        """The logs of the sessions."""
        ...

    async def add_session(
        self,
        session_id: str,
        transport: Transport,
        *,
        owner: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold a session."""
        ...

    async def adopt_session(
        self, session_id: str, transport: Transport, *, from_worker: str, idle: float = 0.0
    ) -> bool:
        """Hold a session, if that worker has it still."""
        ...

    async def remove_session(self, session_id: str, *, transport: Transport | None = None) -> None:
        """End a session."""
        ...

    def get_session_sync(self, session_id: str) -> Any:
        """Return the transport of a session held here."""
        ...

    async def get_all_session_ids(self) -> list[str]:
        """Return the sessions held here."""
        ...

    async def describe_session(self, session_id: str) -> SessionInfo | None:
        """Return what the database knows of a session."""
        ...

    def touch(self, session_id: str) -> None:
        """Note that a session was heard of."""
        ...


def settings_of(registry: Registry) -> Settings:
    """Return what a registry was opened with."""
    return registry._settings  # noqa: SLF001 -- of this package, and nothing that users need
