"""The SDK's event store, on the logs of the sessions."""

import base64
import binascii
import hashlib
import hmac
import json
import logging
import time

import anyio
import anyio.lowlevel

from trio_sessions.errors import SessionsError
from trio_sessions.mcp._contracts import Registry
from trio_sessions.mcp._conversation import Conversation, current
from trio_sessions.mcp._sdk import (
    INTERNAL_ERROR,
    ErrorData,
    EventCallback,
    EventMessage,
    EventStore,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCResponse,
    messages,
)
from trio_sessions.mcp._streams import split
from trio_sessions.types import fingerprint

__all__ = ["LOST", "SessionEventStore", "check_event_id"]

logger = logging.getLogger("trio_sessions.mcp")

LOST = "the worker that ran this request has ended; it was not run again"
"""What the client of such a request is told."""

_GET_STREAM = "_GET_stream"  # the SDK's name for what belongs to no request
_PATIENCE = 5.0
"""Seconds for which an event may wait for the database, and with it its whole session."""
_PAUSE = 1.0
"""Seconds for which no other is tried after that."""
_PAGE = 1000
_LAST = 2**63 - 1  # of an entry's id
_UNTAGGED = "new"


def _event_id(conversation: Conversation, stream_id: str, cursor: int) -> str:
    """Return the id of an event: how far its session's log had come, its stream, and a tag.

    The tag says whose it is: only somebody who knows the session's id can make it. It protects
    nothing, for a session's log is read by that session only; it tells a foreign id from an own.
    """
    stream = base64.urlsafe_b64encode(stream_id.encode(errors="surrogatepass")).decode().rstrip("=")
    if conversation.session_id is None:
        return f"{cursor}.{stream}.{_UNTAGGED}"
    return f"{cursor}.{stream}.{_tag(conversation.session_id, cursor, stream)}"


def _tag(session_id: str, cursor: int, stream: str) -> str:
    text = f"{cursor}.{stream}".encode()
    return hmac.new(session_id.encode(), text, hashlib.sha256).hexdigest()[:16]


def check_event_id(session_id: str, event_id: str) -> tuple[int, str] | None:
    """Return how far an event id says that its client has come, and in which stream.

    Args:
        session_id: of the session that asks.
        event_id: what its client has sent as ``Last-Event-ID``.

    Returns:
        None: it is not an id of this session.
    """
    head, _, rest = event_id.partition(".")
    stream, _, tag = rest.partition(".")
    if not (head.isascii() and head.isdigit() and len(head) <= 19 and stream):  # noqa: PLR2004 -- the digits of 2**63
        return None
    cursor = int(head)
    if cursor > _LAST:
        return None
    if tag == _UNTAGGED:
        if cursor:
            return None
    elif not hmac.compare_digest(
        tag.encode(errors="replace"), _tag(session_id, cursor, stream).encode()
    ):
        return None
    try:
        padded = stream + "=" * (-len(stream) % 4)
        name = base64.b64decode(padded.encode(), altchars=b"-_", validate=True)
        return cursor, name.decode(errors="surrogatepass")
    except (binascii.Error, UnicodeError):
        return None


class SessionEventStore(EventStore):
    """Keep what a server says in the log of the session to which it says it.

    A client that comes back with ``Last-Event-ID``, to whatever worker, is sent what it has
    missed, also after the death of the worker that held its session. It works for sessions
    that came through a `SessionRouter` with the same registry.

    An event waits for the database before it is sent. Where the database does not answer within
    5 s, or the event is larger than ``max_message_bytes``, it is sent without having been kept,
    and a warning is logged: then it cannot be sent again.

    Logger: ``trio_sessions.mcp``.

    Args:
        registry: that of the router.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._again_at = 0.0
        self._has_prefixes = False

    def expect_prefixes(self) -> None:
        """Take the names of streams as fastmcp's adapter says them. Not for users."""
        self._has_prefixes = True

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep an event, and return its id. For the SDK.

        Args:
            stream_id: the request that it belongs to, or the SDK's name for none.
            message: None: nothing was said yet, the id marks where the stream begins.
        """
        conversation = current.get()
        if conversation is None:
            logger.error(
                "an event came from outside a SessionRouter, and is not kept: "
                "put the application behind one"
            )
            await anyio.lowlevel.checkpoint()
            return ""
        if self._has_prefixes:
            conversation.prefix, stream_id = split(stream_id)
        if message is None:
            await anyio.lowlevel.checkpoint()
            return self._begin(conversation, stream_id)
        is_answer = isinstance(message, JSONRPCResponse | JSONRPCError)
        if stream_id != _GET_STREAM:
            conversation.begun.add(stream_id)
        try:
            kept = await self._keep(conversation, stream_id, message)
        finally:
            if is_answer:
                conversation.begun.discard(stream_id)
                conversation.replayed.pop(stream_id, None)
        conversation.cursor = max(conversation.cursor, kept)
        return _event_id(conversation, stream_id, kept or conversation.cursor)

    def _begin(self, conversation: Conversation, stream_id: str) -> str:
        """Mark a stream's beginning, or where its replay has come to. It needs no entry.

        What is said in a new stream comes after all that was kept so far.
        """
        replayed = conversation.replayed.pop(stream_id, None)
        if replayed is None and stream_id != _GET_STREAM and not conversation.is_muted:
            conversation.begun.add(stream_id)
        cursor = conversation.cursor if replayed is None else replayed
        return _event_id(conversation, stream_id, cursor)

    async def _keep(
        self, conversation: Conversation, stream_id: str, message: JSONRPCMessage
    ) -> int:
        """Append an event to the session's log; return 0 if it could not be kept."""
        # Without an id yet it is the answer to initialize, which comes before the session: whoever
        # misses that begins anew. To wait for the id would be to wait for ourselves.
        session_id = conversation.session_id
        if session_id is None or conversation.is_muted or time.monotonic() < self._again_at:
            await anyio.lowlevel.checkpoint()
            return 0
        why: object = f"the database has not answered within {_PATIENCE:g} s"
        with anyio.move_on_after(_PATIENCE) as patience:
            try:
                sent = message.model_dump_json(by_alias=True, exclude_unset=True)
                event = {"stream": stream_id, "message": json.loads(sent)}
                return await self._registry.logs.append(session_id, event)
            except (SessionsError, TypeError, ValueError) as exc:  # it must not end its session
                why = exc
        if patience.cancelled_caught:
            self._again_at = time.monotonic() + _PAUSE
        logger.warning(
            "an event of session %s was not kept, and is sent all the same: %s",
            fingerprint(session_id),
            why,
        )
        return 0

    async def replay_events_after(
        self, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        """Send what a client has missed of one stream. For the SDK.

        Args:
            last_event_id: the last that it has seen; one of another session is answered with
                nothing (the router has refused it by then, with 400).
            send_callback: awaited with each event, in their order.

        Returns:
            The stream, if more may come of it. For fastmcp's adapter, which sends nothing where it
            is told of none, a nameless one stands for none.
        """
        conversation = current.get()
        if conversation is None:
            await anyio.lowlevel.checkpoint()
            return None
        goes_on = await self._resume(conversation, last_event_id, send_callback)
        return conversation.prefix + (goes_on or "") or None

    async def _resume(
        self, conversation: Conversation, last_event_id: str, send_callback: EventCallback
    ) -> str | None:
        """Send what a client has missed of one stream; return it, if more may come of it."""
        session_id = conversation.session_id
        if session_id is None:
            await anyio.lowlevel.checkpoint()
            return None
        found = check_event_id(session_id, last_event_id)
        if found is None:
            await anyio.lowlevel.checkpoint()
            return None
        cursor, stream_id = found
        try:
            cursor, is_answered = await self._replay(conversation, cursor, stream_id, send_callback)
        except SessionsError as exc:
            logger.warning(
                "what session %s has missed could not be read, its client may ask again: %s",
                fingerprint(session_id),
                exc,
            )
            return None
        if is_answered:
            return None
        if stream_id != _GET_STREAM and stream_id not in conversation.begun:
            # Nobody runs it (any more). Its client would wait for ever.
            await send_callback(
                EventMessage(_nobody_runs(stream_id), _event_id(conversation, stream_id, cursor))
            )
            return None
        conversation.replayed[stream_id] = cursor
        return stream_id

    async def _replay(
        self,
        conversation: Conversation,
        cursor: int,
        stream_id: str,
        send_callback: EventCallback,
    ) -> tuple[int, bool]:
        """Send the entries of one stream; return how far, and whether its answer was among them."""
        session_id = conversation.session_id
        assert session_id is not None
        is_answered, unread = False, 0
        while True:
            entries = await self._registry.logs.read(session_id, after=cursor, limit=_PAGE)
            for entry in entries:
                cursor = entry.id
                if not isinstance(entry.event, dict) or entry.event.get("stream") != stream_id:
                    continue
                try:
                    message = messages.validate_python(entry.event["message"], by_name=False)
                except (KeyError, ValueError):  # somebody else has written it
                    unread += 1
                    continue
                is_answered |= isinstance(message, JSONRPCResponse | JSONRPCError)
                await send_callback(
                    EventMessage(message, _event_id(conversation, stream_id, cursor))
                )
            if len(entries) < _PAGE:
                if unread:
                    logger.warning(
                        "%d events of session %s cannot be read, and are left out of a replay",
                        unread,
                        fingerprint(session_id),
                    )
                conversation.cursor = max(conversation.cursor, cursor)
                return cursor, is_answered


def _nobody_runs(stream_id: str) -> JSONRPCError:
    """Return the answer to a request that was running when its worker ended."""
    # The SDK's name of a stream is the request's id as text; clients number their requests.
    is_number = stream_id.isascii() and stream_id.isdigit() and str(int(stream_id)) == stream_id
    return JSONRPCError(
        jsonrpc="2.0",
        id=int(stream_id) if is_number else stream_id,
        error=ErrorData(
            code=INTERNAL_ERROR,
            message=LOST,
        ),
    )
