"""The part of the registry's public surface that adapters of protocols are built on."""

from trio_sessions._interrupts import uninterrupted
from trio_sessions._logs import Logs
from trio_sessions._operators import OperatorMethods

__all__ = ["AdapterMethods"]


@uninterrupted
class AdapterMethods(OperatorMethods):
    """What `SessionRegistry` offers to adapters, as for MCP."""

    @property
    def logs(self) -> Logs:
        """The logs of sessions, for events that any worker appends, and reads again and again."""
        return self._house.logs
