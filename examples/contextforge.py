"""IBM's mcp-context-forge with its sessions in `trio_sessions`.

Run it as the gateway itself is run, with this module in the place of ``mcpgateway.main``::

    export CACHE_TYPE=database DATABASE_URL=postgresql+psycopg://user:pw@host/db
    uvicorn contextforge:app --workers 2

The gateway builds its registry while ``mcpgateway.main`` is imported, so the class is put in
its place before that. The gateway goes on to speak MCP itself; only who holds which session,
who owns it, and how a message gets there is done by `trio_sessions`.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mcpgateway.cache.session_registry as gateway
from fastapi import HTTPException
from mcpgateway.services.upstream_session_registry import (
    RegistryNotInitializedError,
    get_upstream_session_registry,
)

from trio_sessions import SessionNotFound, StoreUnavailable, Transport, aio, fingerprint

logger = logging.getLogger("contextforge")

_Theirs = gateway.SessionRegistry


class GatewayRegistry(aio.SessionRegistry):
    """The registry as the gateway builds and calls it."""

    # The gateway's own protocol logic, and what that calls on `self`.
    handle_initialize_logic = _Theirs.handle_initialize_logic
    _get_oauth_experimental_config = _Theirs._get_oauth_experimental_config  # noqa: SLF001
    _register_session_mapping = _Theirs._register_session_mapping  # noqa: SLF001

    def __init__(
        self,
        backend: str = "memory",
        redis_url: str | None = None,
        database_url: str | None = None,
        session_ttl: float = 3600.0,
        message_ttl: float = 600.0,
    ) -> None:
        if backend not in ("memory", "database"):
            raise ValueError(
                f"CACHE_TYPE={backend} is not for trio_sessions: "
                "set CACHE_TYPE=database, or CACHE_TYPE=memory for a single worker"
            )
        store = "memory:" if backend == "memory" else database_url
        if not store:
            raise ValueError(
                "CACHE_TYPE=database needs a database_url (DATABASE_URL): without one each worker "
                "would keep its sessions to itself"
            )
        super().__init__(
            store,
            session_ttl=session_ttl,
            message_ttl=message_ttl,
            cleanup_interval=min(300.0, session_ttl / 2),
        )

    async def generate_response(
        self, message: Any, transport: Any, server_id: str | None, user: Any
    ) -> None:
        """Answer as the gateway does, with a pause after each fourth answer.

        The gateway takes ten events less than 0.1 s apart for a client that has gone, and cuts
        it off; initialising alone is five. Its own registry is too slow to notice.
        """
        answer: Any = _Theirs.generate_response  # it wants no more of `self` than is here
        await answer(self, message=message, transport=transport, server_id=server_id, user=user)
        transport.answers = getattr(transport, "answers", 0) + 1
        if transport.answers % 4 == 0:
            await asyncio.sleep(0.11)

    async def remove_session(self, session_id: str, *, transport: Transport | None = None) -> None:
        """End the session, and what it has open at the servers behind the gateway."""
        try:
            await super().remove_session(session_id, transport=transport)
        finally:
            await _end_upstream(session_id)

    async def set_session_owner(self, session_id: str, owner: str | None) -> None:
        """Say who owns a session that was just added; without an owner it does not stay.

        The gateway answers with an error then and forgets the transport, which goes on to say
        that it is connected: nobody else would ever remove it.
        """
        try:
            with _told_by_http():
                await super().set_session_owner(session_id, owner)
        except BaseException:
            await self.remove_session(session_id)
            raise

    async def get_session_owner(self, session_id: str) -> str | None:
        """Return the owner; where that cannot be known, "later" and not "never"."""
        with _told_by_http():
            return await super().get_session_owner(session_id)

    async def broadcast(self, session_id: str, message: Any, *, durable: bool = False) -> None:
        """Send, and tell the client of the gateway why where that cannot be done."""
        with _told_by_http():
            await super().broadcast(session_id, message, durable=durable)


async def _end_upstream(session_id: str) -> None:
    """Close what a session has open at the servers behind the gateway; log what fails."""
    try:
        await get_upstream_session_registry().evict_session(session_id)
    except RegistryNotInitializedError:
        pass
    except Exception:  # it is the other servers' code that fails, in whatever way
        logger.exception("cannot close what session %s has upstream", fingerprint(session_id))


@contextmanager
def _told_by_http() -> Iterator[None]:
    """Turn what the gateway does not know, and would call 500, into what clients know."""
    try:
        yield
    except SessionNotFound:
        raise HTTPException(404, "Session not found") from None
    except StoreUnavailable as error:
        raise HTTPException(503, "The sessions cannot be reached at the moment") from error


gateway.SessionRegistry = GatewayRegistry

from mcpgateway.main import app  # noqa: E402 -- only now: it builds its registry on import

__all__ = ["GatewayRegistry", "app"]
