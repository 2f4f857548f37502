"""One stream of the SSE transport, and how it is known: by its first event.

The stream of an old client begins with ``event: endpoint``, whose data is where to post:
``/messages/?session_id=...``. In that id, and in nothing else, the session is named.
"""

import re
import uuid
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel

from trio_sessions.mcp._asgi import answer_error, is_stream
from trio_sessions.mcp._contracts import Message, Receive, Scope, Send
from trio_sessions.mcp._sdk import QueryParams

__all__ = ["Opening", "SseStream", "id_in"]

_KIND = "sse:"
"""Before the ids of such sessions in the registry: others cannot be mistaken for them."""
_MOST = 4096  # bytes of the event that names the endpoint
_EVENT = b"event: endpoint"
_BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_DATA = re.compile(rb"^data: ?(.*?)\r?$", re.MULTILINE)


def id_in(query: bytes) -> str | None:
    """Return the registry's id of the session that a query names, or None.

    It is read as the SDK reads it, for whoever is asked about another session than the SDK posts
    to is asked in vain: of several the last one, and in whatever way a UUID may be written.
    """
    named = QueryParams(query.decode("latin-1")).get("session_id")
    if named is None:
        return None
    try:
        return _KIND + uuid.UUID(hex=named).hex
    except ValueError:
        return None


class SseStream:
    """A stream that is held here: the transport that the registry is given."""

    def __init__(self, session_id: str, owner: str | None, ends: anyio.Event) -> None:
        self.session_id = session_id
        self.owner = owner
        self.has_moved = ends
        """It is to end, or has ended: it is never elsewhere."""

    async def is_connected(self) -> bool:
        """Say whether it goes on."""
        await anyio.lowlevel.checkpoint()
        return not self.has_moved.is_set()

    async def disconnect(self) -> None:
        """End it, and with it its session."""
        await anyio.lowlevel.checkpoint()
        self.has_moved.set()

    def is_asked(self, scope: Scope) -> bool:
        """Say whether a request is for this session."""
        return id_in(scope.get("query_string", b"")) == self.session_id


class _Beginning:
    """What has come of a stream so far, until it is known what it is."""

    def __init__(self) -> None:
        self.heard = b""

    def add(self, body: bytes) -> bool:
        """Add what has come; say whether it is known now."""
        self.heard += body
        heard = self.heard
        may_be = heard.startswith(_EVENT[: len(heard)])
        return not may_be or len(heard) > _MOST or _BLANK.search(heard) is not None

    @property
    def session_id(self) -> str | None:
        """The registry's id of the session that begins, or None: it is another kind of stream."""
        if not self.heard.startswith(_EVENT):
            return None
        data = _DATA.search(self.heard)
        return None if data is None else id_in(data[1].partition(b"?")[2])


Admit = Callable[[str, Scope, anyio.Event], Awaitable[SseStream | None]]


class Opening:
    """A request for a stream, while it is answered.

    The head of a stream is held back until its first event has come, so that a session which may
    not begin is refused with a status. Whatever turns out not to be such a stream passes untouched.

    Args:
        admit: tells the registry of a session; returns None where it may not begin.
        scope: of the request.
        receive: of the request.
        send: of the request.
    """

    def __init__(self, admit: Admit, scope: Scope, receive: Receive, send: Send) -> None:
        self.stream: SseStream | None = None
        """The session that has begun, if one has."""
        self._admit = admit
        self._scope = scope
        self._receive = receive
        self._send = send
        self._ends = anyio.Event()
        self._was_told = anyio.Event()
        """The client, whether its session begins: until then nothing cuts the application off."""
        self._beginning = _Beginning()
        self._head: Message | None = None
        self._is_refused = False
        self._goes_on = False

    async def receive(self) -> Message:
        """Return what comes from the client; that it has left, too, when the stream is to end."""
        heard: Message = {"type": "http.disconnect"}
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                nonlocal heard
                heard = await self._receive()
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            await self._ends.wait()
            await self._was_told.wait()
            tasks.cancel_scope.cancel()
        return heard

    async def send(self, message: Message) -> None:
        """Send what the application says."""
        if self._is_refused:
            return
        if message["type"] == "http.response.start":
            if self.stream is not None:  # the SDK answers once more when the stream has ended
                return
            if message["status"] == 200 and is_stream(message.get("headers", ())):  # noqa: PLR2004 -- HTTP's
                self._head = message
                return
        elif message["type"] == "http.response.body":
            self._goes_on = self.stream is not None and bool(message.get("more_body", False))
            if self._head is not None:
                await self._begin(self._head, message)
                return
        await self._send(message)

    async def _begin(self, head: Message, message: Message) -> None:
        """Find out what a stream is by what has come of it, and let it pass, or refuse it."""
        is_last = not message.get("more_body", False)
        is_known = self._beginning.add(message.get("body", b""))
        if not (is_known or is_last):
            return
        self._head = None
        session_id = self._beginning.session_id
        if session_id is not None:
            self.stream = await self._admit(session_id, self._scope, self._ends)
            if self.stream is None:
                self._is_refused = True
                await answer_error(self._send, 503, "no session can begin here now", retry_after=1)
                self._ends.set()
                self._was_told.set()
                return
        self._goes_on = self.stream is not None and not is_last
        await self._send(head)
        await self._send({**message, "body": self._beginning.heard})
        self._was_told.set()

    def end(self) -> None:
        """Say that the stream has ended, to whoever holds its session: a pass removes it."""
        self._ends.set()

    async def finish(self) -> None:
        """End an answer that the application has left open."""
        if self._goes_on:
            self._goes_on = False
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
