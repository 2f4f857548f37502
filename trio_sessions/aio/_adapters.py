"""The part of the public surface for asyncio that adapters of protocols are built on."""

from collections.abc import Mapping

from trio_sessions._handlers import Handler
from trio_sessions._settings import Settings
from trio_sessions.aio._operators import OperatorMethods
from trio_sessions.aio._topics import Topics

__all__ = ["AdapterMethods"]


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
