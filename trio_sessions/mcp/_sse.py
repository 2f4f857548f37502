"""The SSE transport of old clients: a stream, and posts that belong to it.

A client of the protocol of 2024-11-05 opens a stream, whose first event names where to post; what
it is answered comes by the stream. The posts are requests of their own, and any worker may get
them, while the stream stays where it was opened::

    GET /sse ----------------------> A: event: endpoint, data: /messages/?session_id=...
    POST /messages/?session_id=... -> B -> A (202 back through B; the answer by the stream)

So such a session is its stream: it is told to the registry as soon as its first event passes by,
and is removed when the stream ends. It cannot move: who comes after its worker begins anew, and it
is not adopted, for nobody has noted how it began. See docs/decisions/0013-mcp.md.
"""

import contextlib
from collections.abc import Callable
from weakref import WeakSet

import anyio

from trio_sessions._logging import get_logger
from trio_sessions.errors import RegistryClosed, SessionsError
from trio_sessions.mcp._asgi import (
    TOO_LARGE,
    BodyTooLarge,
    Disconnected,
    answer_error,
    bounded,
    header,
    read_body,
)
from trio_sessions.mcp._contracts import App, Message, Receive, Registry, Scope, Send
from trio_sessions.mcp._events import LOST
from trio_sessions.mcp._forwarding import Exchange, Forwarding, Outcome
from trio_sessions.mcp._runs import name_of
from trio_sessions.mcp._sse_stream import Opening, SseStream, id_in
from trio_sessions.mcp._wire import OWNER
from trio_sessions.types import fingerprint

__all__ = ["SseSessions"]

logger = get_logger("trio_sessions.mcp")

_SESSION = b"mcp-session-id"
_NOT_FOUND = "Could not find session"  # as the SDK says it
_REMOVAL = 5.0  # seconds


class SseSessions:
    """The application, in front of which posts find their streams. Whatever else there is passes.

    Args:
        app: the SDK's application, or one in which it is mounted.
        registry: of the router.
        forwarding: passes posts on.
        endpoints: the paths that are posted to; none: the application has no such transport.
        owner: says whose a request is, once the application has looked at it.
        may: says whether a request may be for a session of that owner, as far as is known yet.
        most: says how many bytes may be in a post.
        timeout: seconds for which the server may let a post wait that has been answered.
        is_ending: says whether this worker leaves, and takes no more.
    """

    def __init__(
        self,
        app: App,
        registry: Registry,
        forwarding: Forwarding,
        *,
        endpoints: frozenset[str],
        owner: Callable[[Scope], str | None],
        may: Callable[[Scope, str | None], bool],
        most: Callable[[], int],
        timeout: float,
        is_ending: Callable[[], bool],
    ) -> None:
        self._app = app
        self._registry = registry
        self._forwarding = forwarding
        self._endpoints = endpoints
        self._owner = owner
        self._may = may
        self._most = most
        self._timeout = timeout
        self._is_ending = is_ending
        self._streams = WeakSet[SseStream]()
        """Of the sessions that are held here, and of those that the registry is being told of."""

    def here(self, session_id: str) -> SseStream | None:
        """Return the stream of a session that is held here, and goes on."""
        held = self._registry.get_session_sync(session_id)
        return held if isinstance(held, SseStream) and not held.has_moved.is_set() else None

    def end(self) -> None:
        """End every stream here, for the worker ends."""
        for stream in self._streams:
            stream.has_moved.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not self._endpoints:
            await self._app(scope, receive, send)
        elif scope["method"] == "GET" and header(scope["headers"], _SESSION) is None:
            await self._listen(scope, receive, send)
        else:
            session_id = self._posted_to(scope)
            if session_id is None:
                await self._app(scope, receive, send)
            else:
                await self._post(session_id, scope, receive, send)

    def _posted_to(self, scope: Scope) -> str | None:
        path = scope["path"] + "/"  # what follows the endpoint is served by the SDK, too
        if scope["method"] != "POST" or not any(one in path for one in self._endpoints):
            return None
        return id_in(scope.get("query_string", b""))

    # ---- the stream ----

    async def _listen(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, and hold the session for as long as its stream goes on."""
        opening = Opening(self._admit, scope, receive, send)
        try:
            await self._app(scope, opening.receive, opening.send)
            await opening.finish()
        finally:
            opening.end()  # its client may have left while the registry was being told
            await self._forget(opening.stream)

    async def _admit(self, session_id: str, scope: Scope, ends: anyio.Event) -> SseStream | None:
        """Tell the registry of a stream that begins; return None: it may not."""
        if self._is_ending():
            return None
        stream = SseStream(session_id, self._owner(scope), ends)
        self._streams.add(stream)
        try:
            await self._registry.add_session(session_id, stream, owner=stream.owner)
        except SessionsError as exc:
            logger.warning("a session was refused: %s", exc)
            return None
        if ends.is_set():  # while its row was being written: its client may still be told so
            await self._forget(stream)
            return None
        return stream

    async def _forget(self, stream: SseStream | None) -> None:
        """Remove the session of a stream that has ended."""
        if stream is None:
            return
        stream.has_moved.set()
        with (
            contextlib.suppress(RegistryClosed),  # so the row is gone
            anyio.move_on_after(_REMOVAL, shield=True),  # the pass does it otherwise
        ):
            await self._registry.remove_session(stream.session_id, transport=stream)

    # ---- posts ----

    async def _post(self, session_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let whoever holds the stream take a post."""
        stream = self.here(session_id)
        if stream is not None and self._may(scope, stream.owner):
            told = self._touching(session_id, send)
            await bounded(self._app, scope, receive, told, most=self._most())
            return
        try:
            outcome = await self._pass_on(session_id, scope, receive, send)
        except BodyTooLarge:
            await answer_error(send, 413, TOO_LARGE)
        except Disconnected:
            pass
        except SessionsError as exc:
            logger.warning("session %s cannot be reached: %s", fingerprint(session_id), exc)
            await answer_error(send, 503, "the session cannot be reached now", retry_after=1)
        else:
            if outcome is Outcome.ELSEWHERE:
                await answer_error(send, 404, _NOT_FOUND)
            elif outcome is not Outcome.ANSWERED:
                await answer_error(send, 503, "the worker of this session is gone", retry_after=1)

    def _touching(self, session_id: str, send: Send) -> Send:
        """Return a ``send`` by which a session lives on if its post is accepted."""

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:  # noqa: PLR2004 -- HTTP's
                self._registry.touch(session_id)
            await send(message)

        return tell

    async def _pass_on(
        self, session_id: str, scope: Scope, receive: Receive, send: Send
    ) -> Outcome:
        """Let another worker take a post; ELSEWHERE: there is no such session for this client."""
        info = await self._registry.describe_session(session_id)
        if info is None or not self._may(scope, info.owner):
            return Outcome.ELSEWHERE
        if info.worker_id == self._registry.worker_id:  # it has just ended here
            return Outcome.ELSEWHERE
        if not info.worker_alive:  # as far as is known: it may only have been stopped for a while
            return Outcome.UNHEARD
        body = await read_body(scope, receive, self._most())
        passed = {**scope, OWNER: self._owner(scope)}
        is_once = bool(name_of("POST", body))  # needs no note: it goes with its worker
        exchange = Exchange(session_id, passed, receive, send, body, run="", is_once=is_once)
        outcome = await self._forwarding.forward(info.incarnation, exchange)
        if outcome is Outcome.UNKNOWN and is_once:  # as far as is known, too: it may go on
            await answer_error(send, 502, LOST)
            return Outcome.ANSWERED
        return outcome

    async def serve(self, stream: SseStream, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a post that has come to another worker."""
        if not stream.is_asked(scope) or not self._may(scope, stream.owner):
            await answer_error(send, 404, _NOT_FOUND)
            return
        told = self._touching(stream.session_id, send)
        # The SDK answers first, and then hands the post over to its server: whoever has the answer
        # leaves, and must not take the post along.
        with anyio.move_on_after(self._timeout, shield=True) as patience:
            await self._app(scope, receive, told)
        if patience.cancelled_caught:
            logger.warning(
                "the server does not take what was posted to session %s",
                fingerprint(stream.session_id),
            )
