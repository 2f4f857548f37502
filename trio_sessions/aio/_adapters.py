"""The part of the public surface for asyncio that adapters of protocols are built on."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from trio_sessions._handlers import Handler
from trio_sessions._logs import Appending as TrioAppending
from trio_sessions._registry import SessionRegistry as TrioRegistry
from trio_sessions._settings import Settings
from trio_sessions.abc import Transport
from trio_sessions.aio._operators import Call, OperatorMethods
from trio_sessions.aio._service import Service
from trio_sessions.aio._topics import Topics
from trio_sessions.types import LogEntry

__all__ = ["AdapterMethods", "Appending", "Logs"]


class Appending:
    """An event that is being appended; made by `Logs.append_soon`."""

    def __init__(self, appending: TrioAppending, call: Call) -> None:
        """Not for users."""
        self._appending = appending
        self._call = call

    @property
    def size(self) -> int:
        """Bytes of the event."""
        return self._appending.size

    @property
    def is_settled(self) -> bool:
        """Whether it is known what has become of it."""
        return self._appending.is_settled

    @property
    def result(self) -> int | BaseException | None:
        """The id of the entry, or what `Logs.append` would raise; None: it is not settled."""
        return self._appending.result

    async def wait(self) -> None:
        """Wait until it is settled; as the same method of Trio's."""
        await self._call(lambda _: self._appending.wait())


class Logs:
    """The logs of sessions, as `trio_sessions.aio.SessionRegistry.logs`."""

    def __init__(self, call: Call, here: Callable[[], Service]) -> None:
        """Not for users."""
        self._call = call
        self._here = here

    async def append(self, session_id: str, event: Any) -> int:
        """Append an event to a session's log; as the same method of Trio's."""
        entry_id: int = await self._call(lambda core: core.logs.append(session_id, event))
        return entry_id

    def append_soon(self, session_id: str, event: Any) -> Appending:
        """Append an event for which nobody waits; as the same method of Trio's."""
        return Appending(self._here().core.logs.append_soon(session_id, event), self._call)

    async def read(self, session_id: str, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        """Return entries of a session's log by their ids; as the same method of Trio's."""
        entries: list[LogEntry] = await self._call(
            lambda core: core.logs.read(session_id, after=after, limit=limit)
        )
        return entries


class AdapterMethods(OperatorMethods):
    """What `trio_sessions.aio.SessionRegistry` offers to adapters, as for MCP."""

    _settings: Settings

    @property
    def topics(self) -> Topics:
        """What is said to whoever listens; see `trio_sessions.SessionRegistry.topics`."""
        return Topics(self._call, self._read)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What other workers may call, coroutine functions of asyncio; also while it is closed."""
        return self._settings.handlers or {}

    async def set_session_data(
        self, session_id: str, data: Mapping[str, Any], *, merge: bool = False
    ) -> None:
        """Replace the data of a session; see `trio_sessions.SessionRegistry.set_session_data`."""
        await self._call(partial(TrioRegistry.set_session_data, merge=merge), session_id, data)

    async def get_session_data(self, session_id: str) -> dict[str, Any] | None:
        """Return the data of a session; None: it has none, or there is no such session."""
        return await self._call(TrioRegistry.get_session_data, session_id)

    async def adopt_session(
        self, session_id: str, transport: Transport, *, from_worker: str, idle: float = 0.0
    ) -> bool:
        """Hold a session in the place of a worker that is dead.

        See `trio_sessions.SessionRegistry.adopt_session`.

        Args:
            session_id: the session.
            transport: its methods are coroutines of asyncio, awaited on the loop of `initialize`.
            from_worker: the incarnation that held it, or the id of the worker.
            idle: seconds for which nothing was heard of its client.
        """
        adopt = partial(TrioRegistry.adopt_session, from_worker=from_worker, idle=idle)
        return await self._call(adopt, session_id, transport)

    @property
    def logs(self) -> Logs:
        """The logs of sessions; see `trio_sessions.SessionRegistry.logs`."""
        return Logs(self._call, self._here)
