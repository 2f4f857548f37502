"""The part of the registry's public surface that adapters of protocols are built on."""

from collections.abc import Mapping

from trio_sessions._handlers import Handler
from trio_sessions._interrupts import uninterrupted
from trio_sessions._operators import OperatorMethods
from trio_sessions._topics import Topics

__all__ = ["AdapterMethods"]


@uninterrupted
class AdapterMethods(OperatorMethods):
    """What `SessionRegistry` offers to adapters, as for MCP."""

    @property
    def topics(self) -> Topics:
        """What is said to whoever listens, at every worker."""
        return self._house.topics

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What other workers may call, as `open_registry` was given it."""
        return self._house.settings.handlers or {}
