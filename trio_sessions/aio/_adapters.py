"""The part of the public surface for asyncio that adapters of protocols are built on."""

from trio_sessions.aio._operators import OperatorMethods

__all__ = ["AdapterMethods"]


class AdapterMethods(OperatorMethods):
    """What `trio_sessions.aio.SessionRegistry` offers to adapters, as for MCP."""
