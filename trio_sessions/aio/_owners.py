"""The part of the public surface for asyncio that is about what is said of sessions."""

from typing import Any

from trio_sessions._registry import SessionRegistry as TrioRegistry
from trio_sessions.aio._asking import Asking

__all__ = ["OwnerMethods"]


class OwnerMethods(Asking):
    """Owners and capabilities, as of `trio_sessions.aio.SessionRegistry`."""

    async def set_session_owner(self, session_id: str, owner: str | None) -> None:
        """Set who owns a session; see `trio_sessions.SessionRegistry.set_session_owner`."""
        await self._call(TrioRegistry.set_session_owner, session_id, owner)

    async def claim_session_owner(self, session_id: str, owner: str) -> str | None:
        """Set who owns a session unless it is owned: the first claim of all workers wins.

        Returns:
            The owner that the session has now; None if that cannot be verified.
        """
        return await self._call(TrioRegistry.claim_session_owner, session_id, owner)

    async def get_session_owner(self, session_id: str) -> str | None:
        """Return who owns a session; None: nobody, or there is no such session."""
        return await self._call(TrioRegistry.get_session_owner, session_id)

    async def store_client_capabilities(
        self, session_id: str, capabilities: dict[str, Any]
    ) -> None:
        """Replace what the client of a session can do, for all workers to see."""
        await self._call(TrioRegistry.store_client_capabilities, session_id, capabilities)

    async def get_client_capabilities(self, session_id: str) -> dict[str, Any] | None:
        """Return what the client of a session can do; None if nothing was stored."""
        return await self._call(TrioRegistry.get_client_capabilities, session_id)

    async def has_elicitation_capability(self, session_id: str) -> bool:
        """Say whether the client's capabilities have ``elicitation``, be it an empty dict."""
        return await self._call(TrioRegistry.has_elicitation_capability, session_id)

    async def get_elicitation_capable_sessions(self) -> list[str]:
        """Return the ids of all sessions, of all workers, whose clients have ``elicitation``."""
        return await self._call(TrioRegistry.get_elicitation_capable_sessions)
