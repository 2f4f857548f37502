"""What is said on its way to the logs of sessions, beside its way to the clients.

An event does not wait for the database: it is sent while it goes there, with the next batch of this
worker or within some 20 ms. So what a client has not got, and is not in the log, is what was said
in the last moments before its worker died. See docs/decisions/0013-mcp.md.
"""

import json
import time
from collections import deque

import anyio
import anyio.lowlevel

from trio_sessions._logging import get_logger
from trio_sessions.errors import SessionNotFound, SessionsError
from trio_sessions.mcp._contracts import Appending, Registry
from trio_sessions.mcp._conversation import Conversation
from trio_sessions.mcp._sdk import JSONRPCMessage
from trio_sessions.types import fingerprint

__all__ = ["Keeping"]

logger = get_logger("trio_sessions.mcp")

_PATIENCE = 5.0
"""Seconds for which an event may wait for the database, and with it its whole session."""
_PAUSE = 1.0
"""Seconds for which no other is tried after that."""
_MOST = 1000  # events on their way, of all sessions
_SIZE = 8 * 1024 * 1024  # bytes of these


class Keeping:
    """Keeps what sessions are told.

    Args:
        registry: whose logs are written.
        write_ahead: wait for each.
    """

    def __init__(self, registry: Registry, *, write_ahead: bool) -> None:
        self._registry = registry
        self._write_ahead = write_ahead
        self._leaving: deque[tuple[Conversation, Appending]] = deque()
        self._size = 0
        self._again_at = 0.0

    async def keep(
        self, conversation: Conversation, stream_id: str, message: JSONRPCMessage
    ) -> str | None:
        """Let an event go to its session's log, and return its place; None: it is not kept.

        What cannot be kept is logged. An event is waited for where too many are on their way, or
        where it is not known yet what the log has from another worker: then it has no place before.
        """
        self._take_note()
        # Without an id yet it is the answer to initialize, which comes before the session: whoever
        # misses that begins anew. To wait for the id would be to wait for ourselves.
        session_id = conversation.session_id
        if session_id is None or conversation.is_muted:
            await anyio.lowlevel.checkpoint()
            return None
        conversation.said += 1
        if time.monotonic() < self._again_at:
            await anyio.lowlevel.checkpoint()
            return None
        life, said, cursor = conversation.life, conversation.said, conversation.cursor
        has_place = conversation.knows_log
        at = [life, said, cursor] if has_place else [life, said]
        try:
            sent = message.model_dump_json(by_alias=True, exclude_unset=True)
            event = {"stream": stream_id, "message": json.loads(sent), "at": at}
            one = self._registry.logs.append_soon(session_id, event)
        except (SessionsError, TypeError, ValueError) as exc:  # it must not end its session
            _warn(conversation, exc)
            await anyio.lowlevel.checkpoint()
            return None
        conversation.leaving.append(one)
        self._leaving.append((conversation, one))
        self._size += one.size
        if self._write_ahead or not has_place:
            await self.settle(conversation)
        elif len(self._leaving) > _MOST or self._size > _SIZE:
            await self._make_room()
        else:
            await anyio.lowlevel.checkpoint()
        if has_place:
            return f"{cursor}-{life}-{said}"
        return str(one.result) if isinstance(one.result, int) else None

    async def settle(self, conversation: Conversation) -> None:
        """Wait until all that was said in a session is in its log, or cannot be."""
        with anyio.move_on_after(_PATIENCE) as patience:
            while not conversation.is_kept:
                await conversation.leaving[-1].wait()
        self._take_note()
        self._give_up_if(patience, conversation)

    async def _make_room(self) -> None:
        conversation = self._leaving[0][0]
        with anyio.move_on_after(_PATIENCE) as patience:
            while len(self._leaving) > _MOST or self._size > _SIZE:
                await self._leaving[0][1].wait()
                self._take_note()
        self._give_up_if(patience, conversation)

    def _give_up_if(self, patience: anyio.CancelScope, conversation: Conversation) -> None:
        if patience.cancelled_caught:
            self._again_at = time.monotonic() + _PAUSE
            _warn(conversation, f"the database has not answered within {_PATIENCE:g} s")

    def _take_note(self) -> None:
        """Take note of what has become of the events that were let go."""
        while self._leaving and self._leaving[0][1].is_settled:
            conversation, one = self._leaving.popleft()
            conversation.leaving.popleft()
            self._size -= one.size
            result = one.result
            if isinstance(result, int):
                conversation.cursor = max(conversation.cursor, result)
                conversation.knows_log = True
            elif not isinstance(result, SessionNotFound):  # else there is no log to miss it in
                _warn(conversation, result)


def _warn(conversation: Conversation, why: object) -> None:
    logger.warning(
        "an event of session %s was not kept, and is sent all the same: %s",
        fingerprint(conversation.session_id or ""),
        why,
    )
