"""The SDK's event store, on the logs of the sessions."""

from collections.abc import Sequence

import anyio.lowlevel

from trio_sessions._logging import get_logger
from trio_sessions.errors import SessionsError
from trio_sessions.mcp._contracts import Registry
from trio_sessions.mcp._conversation import Conversation, current
from trio_sessions.mcp._event_ids import Seen, check_event_id, event_id, place_of
from trio_sessions.mcp._keeping import Keeping
from trio_sessions.mcp._outlet import outlet
from trio_sessions.mcp._sdk import (
    INTERNAL_ERROR,
    ErrorData,
    EventCallback,
    EventMessage,
    EventStore,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCResponse,
    is_of_sdk,
    messages,
)
from trio_sessions.mcp._streams import split
from trio_sessions.types import LogEntry, fingerprint

__all__ = ["LOST", "SessionEventStore"]

logger = get_logger("trio_sessions.mcp")

LOST = "the worker that ran this request has ended; it was not run again"
"""What the client of such a request is told."""

_GET_STREAM = "_GET_stream"  # the SDK's name for what belongs to no request
_PAGE = 1000
_STEP = 100  # entries of a page that are looked at before others have their turn
_ROUNDS = 3  # in which a replay catches up with what is said meanwhile


class SessionEventStore(EventStore):
    """Keep what a server says in the log of the session to which it says it.

    A client that comes back with ``Last-Event-ID``, to whatever worker, is sent what it has
    missed, also after the death of the worker that held its session. It works for sessions
    that came through a `SessionRouter` with the same registry.

    An event is sent while it is being kept: within some 20 ms, and the time that the database
    takes. So what is lost to a client is what it has not got when its worker dies, and
    what was said within that time before. Where the database is away, or the event is larger than
    ``max_message_bytes``, it is sent without having been kept, and a warning is logged: then it
    cannot be sent again. Where 1,000 events, or 8 MiB, wait for the database, the next one waits
    for it, too, for 5 s at most.

    Logger: ``trio_sessions.mcp``.

    Args:
        registry: that of the router.
        write_ahead: keep each event before it is sent, which then waits for the database, for 5 s
            at most: nothing is lost to a client that the server could have sent it.
    """

    def __init__(self, registry: Registry, *, write_ahead: bool = False) -> None:
        self._registry = registry
        self._keeping = Keeping(registry, write_ahead=write_ahead)
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
        is_answer = _is_answer(message)
        if stream_id != _GET_STREAM:
            conversation.begun.add(stream_id)
        try:
            place = await self._keeping.keep(conversation, stream_id, message)
        finally:
            if is_answer:
                conversation.begun.discard(stream_id)
                conversation.replayed.pop(stream_id, None)
        return event_id(conversation, stream_id, place)

    def _begin(self, conversation: Conversation, stream_id: str) -> str:
        """Mark a stream's beginning, or where its replay has come to. It needs no entry.

        What is said in a new stream comes after all that was kept so far.
        """
        replayed = conversation.replayed.pop(stream_id, None)
        if replayed is None and stream_id != _GET_STREAM and not conversation.is_muted:
            conversation.begun.add(stream_id)
        place = None if replayed is None else str(replayed)
        return event_id(conversation, stream_id, place)

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
        seen = check_event_id(session_id, last_event_id)
        if seen is None:
            await anyio.lowlevel.checkpoint()
            return None
        stream_id = seen.stream
        try:
            cursor, is_answered = await self._replay(conversation, seen, send_callback)
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
            lost = event_id(conversation, stream_id, str(cursor))
            await send_callback(EventMessage(_nobody_runs(stream_id), lost))
            return None
        conversation.replayed[stream_id] = cursor
        return stream_id

    async def _replay(
        self, conversation: Conversation, seen: Seen, send_callback: EventCallback
    ) -> tuple[int, bool]:
        """Send the entries of one stream; return how far, and whether its answer was among them."""
        session_id = conversation.session_id
        assert session_id is not None
        cursor, is_answered, unread = seen.cursor, False, 0
        for _ in range(_ROUNDS):
            await self._keeping.settle(conversation)
            said = conversation.said
            until = conversation.cursor if conversation.knows_log else None
            while entries := await self._registry.logs.read(session_id, after=cursor, limit=_PAGE):
                for start in range(0, len(entries), _STEP):
                    step = entries[start : start + _STEP]
                    missed, others = _missed(conversation, seen, step)
                    cursor = step[-1].id
                    unread += others
                    is_answered |= any(_is_answer(one.message) for one in missed)
                    await _send(missed, send_callback)
                # Where entries are large, fewer are read at a time: that is not the end.
                if len(entries) < _PAGE and until is not None and cursor >= until:
                    break
            if is_answered or conversation.said == said:
                break
        if unread:
            logger.warning(
                "%d events of session %s cannot be read, and are left out of a replay",
                unread,
                fingerprint(session_id),
            )
        conversation.cursor = max(conversation.cursor, cursor)
        conversation.knows_log = True
        return cursor, is_answered


async def _send(missed: Sequence[EventMessage], send_callback: EventCallback) -> None:
    """Send events: many in one piece, where nobody but the SDK would have them one by one."""
    way = outlet.get()
    if way is not None and is_of_sdk(send_callback):
        await way.write(missed)
        return
    for one in missed:
        await send_callback(one)


def _missed(
    conversation: Conversation, seen: Seen, entries: Sequence[LogEntry]
) -> tuple[list[EventMessage], int]:
    """Return what a client has missed, of its stream, and how many entries cannot be read."""
    missed: list[EventMessage] = []
    unread = 0
    for entry in entries:
        event = entry.event
        if not isinstance(event, dict) or event.get("stream") != seen.stream or seen.has(event):
            continue
        try:
            message = messages.validate_python(event["message"], by_name=False)
        except (KeyError, ValueError):  # somebody else has written it
            unread += 1
            continue
        missed.append(EventMessage(message, event_id(conversation, seen.stream, place_of(entry))))
    return missed, unread


def _is_answer(message: JSONRPCMessage) -> bool:
    return isinstance(message, JSONRPCResponse | JSONRPCError)


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
