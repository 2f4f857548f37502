"""The part of the public surface for asyncio that adapters of protocols are built on."""

from typing import Any

from trio_sessions.aio._operators import Call, OperatorMethods
from trio_sessions.types import LogEntry

__all__ = ["AdapterMethods", "Logs"]


class Logs:
    """The logs of sessions, as `trio_sessions.aio.SessionRegistry.logs`."""

    def __init__(self, call: Call) -> None:
        """Not for users."""
        self._call = call

    async def append(self, session_id: str, event: Any) -> int:
        """Append an event to a session's log; as the same method of Trio's."""
        entry_id: int = await self._call(lambda core: core.logs.append(session_id, event))
        return entry_id

    async def read(self, session_id: str, *, after: int = 0, limit: int = 1000) -> list[LogEntry]:
        """Return entries of a session's log by their ids; as the same method of Trio's."""
        entries: list[LogEntry] = await self._call(
            lambda core: core.logs.read(session_id, after=after, limit=limit)
        )
        return entries


class AdapterMethods(OperatorMethods):
    """What `trio_sessions.aio.SessionRegistry` offers to adapters, as for MCP."""

    @property
    def logs(self) -> Logs:
        """The logs of sessions; see `trio_sessions.SessionRegistry.logs`."""
        return Logs(self._call)
