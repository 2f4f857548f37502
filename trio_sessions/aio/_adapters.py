"""The part of the public surface for asyncio that adapters of protocols are built on."""

from trio_sessions.aio._operators import OperatorMethods
from trio_sessions.aio._topics import Topics

__all__ = ["AdapterMethods"]


class AdapterMethods(OperatorMethods):
    """What `trio_sessions.aio.SessionRegistry` offers to adapters, as for MCP."""

    @property
    def topics(self) -> Topics:
        """What is said to whoever listens; see `trio_sessions.SessionRegistry.topics`."""
        return Topics(self._call, self._read)
