"""The router: ASGI in front of the SDK's application.

Just over 400 lines, a quarter of which are what users read of `SessionRouter`.
"""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel

from trio_sessions._checks import seconds
from trio_sessions._logging import get_logger
from trio_sessions.errors import InvalidSessionId, SessionsError
from trio_sessions.mcp._asgi import (
    TOO_LARGE,
    BodyTooLarge,
    Disconnected,
    answer_error,
    header,
    once,
    read_body,
)
from trio_sessions.mcp._beginning import Beginnings
from trio_sessions.mcp._contracts import App, Receive, Registry, Scope, Send
from trio_sessions.mcp._event_ids import check_event_id
from trio_sessions.mcp._events import LOST
from trio_sessions.mcp._exit import end_streams, take_charge, was_told
from trio_sessions.mcp._forwarding import Exchange, Forwarding, Outcome
from trio_sessions.mcp._held import HeldSession
from trio_sessions.mcp._here import MOVING, NOT_FOUND, Here
from trio_sessions.mcp._identity import given_user, owner_of
from trio_sessions.mcp._lifespan import live
from trio_sessions.mcp._manager import SdkSessions, find_sessions
from trio_sessions.mcp._moving import move_all
from trio_sessions.mcp._places import Place, Places
from trio_sessions.mcp._runs import Lost, has_begun, name_of, note
from trio_sessions.mcp._sdk import HANDSHAKE_PROTOCOL_VERSIONS, find_endpoints
from trio_sessions.mcp._sse import SseSessions
from trio_sessions.mcp._sse_stream import SseStream
from trio_sessions.mcp._tunnel import part_bytes, tunnel_of
from trio_sessions.mcp._wire import OWNER
from trio_sessions.types import fingerprint

__all__ = ["SessionRouter"]

logger = get_logger("trio_sessions.mcp")

_SESSION = b"mcp-session-id"
_VERSION = b"mcp-protocol-version"
_EVENT = b"last-event-id"
_NOTHING_KEPT = "no events are kept here, so Last-Event-ID cannot be one of them"
_PAUSES = (0.05, 1.0)  # seconds between two looks for a session that is just moving: first, most
_SIGN = 1.0  # seconds without an answer after which another worker is told that it is being made
_LOOK = 0.2  # seconds between two looks whether the server wants to end


class SessionRouter:
    """An ASGI application in front of the SDK's: any worker answers for every session.

    A request without ``Mcp-Session-Id`` goes to the application; where that makes a session, the
    registry is told of it. One with the header goes to the worker that holds the session: here, or
    through the registry to another. A session whose worker is dead is taken over by the worker
    that its client reaches: the client's ``initialize`` is said again to the SDK here, with the
    credentials of the request. What an old client posts (the SSE transport) goes to the worker that
    holds its stream. Everything else passes through untouched: other protocol versions (2026-07-28
    and later have no sessions), other paths, WebSockets.

    It runs under asyncio with `trio_sessions.aio.SessionRegistry`, and under Trio with the
    registry of `trio_sessions.open_registry`. The registry must have been made with
    ``handlers=trio_sessions.mcp.handlers()``. A registry of asyncio that is not open when the
    server starts is opened then, and closed at the end.

    What a client is told: 404 if the database has confirmed that there is no such session, or it
    belongs to somebody else; 503 with ``Retry-After`` if nobody can say; 504 and 502 if the other
    worker does not answer, or not with an answer; 413 for a body that is too large.

    Logger: ``trio_sessions.mcp``.

    Args:
        app: the SDK's application, ``server.streamable_http_app()``, or one in which it is mounted;
            or fastmcp's, ``server.http_app()``.
        registry: the registry of this worker.
        call_timeout: seconds without a sign of life of another worker that answers a request; and
            seconds within which it has to begin its answer, or to run the request if the SDK
            answers as a whole (``json_response=True``).
        answer_timeout: seconds within which such an answer has to come, at whichever worker the
            request runs; at least ``call_timeout``. None: as long as it takes.
        max_body_bytes: of a request of a session, the one that begins it too; None: what the SDK's
            application takes.
        owner: called with a request's scope, says whose it is, for where no authentication of the
            SDK's is used: ``lambda scope: ...``. None: whom the SDK has authenticated.
        idle_timeout: seconds without a request of its client after which a session ends; None:
            never. A request that is refused does not count. The SDK's own timer is off.
        drain_timeout: seconds for which requests may go on when the server ends; then the sessions
            move to other workers.
        manager: the SDK's `StreamableHTTPSessionManager`, where it cannot be found in ``app``. One
            that is made when the server starts is looked for there, as fastmcp's.

    Raises:
        ImportError: this version of the SDK, or of fastmcp, lacks something that the router needs;
            where its manager is made later, the start of the server fails with it.
        ValueError: a setting is none, or ``registry`` was made without the handlers, or with a
            ``max_message_bytes`` of less than 65,536, or there are no sessions of the SDK's in
            ``app``.
    """

    def __init__(
        self,
        app: App,
        registry: Registry,
        *,
        call_timeout: float = 30.0,
        answer_timeout: float | None = 300.0,
        max_body_bytes: int | None = None,
        owner: Callable[[Scope], str | None] | None = None,
        idle_timeout: float | None = 1800.0,
        drain_timeout: float = 10.0,
        manager: Any = None,
    ) -> None:
        self._call_timeout = seconds("call_timeout", call_timeout)
        if answer_timeout is not None:
            answer_timeout = max(seconds("answer_timeout", answer_timeout), self._call_timeout)
        self._drain_timeout = seconds("drain_timeout", drain_timeout)
        if idle_timeout is not None:
            idle_timeout = seconds("idle_timeout", idle_timeout)
        endpoints = find_endpoints(app)
        found = find_sessions(app, manager, is_needed=not endpoints)
        most = _bound(max_body_bytes, found)
        self._registry = registry
        self._most = most
        self._owner = owner
        self._manager = found
        self._ends = anyio.Event()
        self._forwarding = Forwarding(
            registry,
            timeout=self._call_timeout,
            answer_timeout=answer_timeout,
            ends=self._ends,
        )
        self._sse = SseSessions(
            app,
            registry,
            self._forwarding,
            endpoints=endpoints,
            owner=self._owner_of,
            may=self._may,
            most=most,
            timeout=self._call_timeout,
            is_ending=lambda: self._is_ending,
        )
        self._app: App = self._sse
        self._beginnings = Beginnings(
            self._app,
            registry,
            found,
            owner=self._owner_of,
            idle_timeout=idle_timeout,
            most=most,
            is_ending=lambda: self._is_ending,
        )
        self._here = Here(
            self._app,
            registry,
            owner=self._owner_of,
            timeout=self._call_timeout,
            answer_timeout=answer_timeout,
            most=most,
        )
        self._places = Places(registry, found, idle_timeout=idle_timeout)
        self._tunnel = tunnel_of(registry)
        self._tasks: anyio.abc.TaskGroup | None = None
        self._left = anyio.Event()

    # ---- its life ----

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve other workers in the block; a server that speaks ASGI's lifespan does it itself.

        The registry is open, and the SDK's application runs.
        """
        take_charge()
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._watch_server)
            for service in self._tunnel.services:
                tasks.start_soon(service)
            self._tunnel.bind(self)
            try:
                yield
            finally:
                self._tunnel.bind(None)
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def _watch_server(self) -> None:
        """Move the sessions as soon as uvicorn is told to end: it waits for open streams first."""
        while not was_told():  # noqa: ASYNC110 -- a handler of signals tells it, which has no event
            await anyio.sleep(_LOOK)
        await self.leave()

    async def leave(self) -> None:
        """Hand the sessions over to other workers, and end their streams here.

        It is done by itself when uvicorn is told to end, or at ASGI's shutdown; Hypercorn waits for
        open streams before that, so let it be awaited by the trigger of the shutdown. Once begun,
        a session that is left here is not served any more. Done twice, it waits for the first.

        Cancellation: what has not moved stays, and ends with the worker.
        """
        if self._ends.is_set():
            await self._left.wait()
            return
        self._ends.set()
        try:
            tried: set[HeldSession] = set()
            while True:  # at the second look there are those that were just beginning
                ids = await self._registry.get_all_session_ids()
                held = {one for one in map(self._places.here, ids) if one is not None} - tried
                if not held:
                    break
                tried |= held
                moved = await move_all(
                    self._registry,
                    held,
                    server=self._places.server,
                    patience=self._drain_timeout,
                    timeout=self._call_timeout,
                )
                logger.info("%d of %d sessions have moved to other workers", moved, len(held))
        except SessionsError as exc:
            logger.warning("sessions cannot move to other workers: %s", exc)
        finally:
            self._sse.end()
            end_streams()
            self._left.set()

    # ---- for the tunnel ----

    def start(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run a task for another worker. Not for users."""
        if self._tasks is None:
            raise RuntimeError("the router does not run")
        self._tasks.start_soon(work, *args)

    @property
    def sign_after(self) -> float | None:
        """Seconds after which it is said that a request runs. Not for users."""
        return min(_SIGN, self._call_timeout / 3) if self._manager.json_response else None

    @property
    def part_bytes(self) -> int:
        """Bytes of a body in one letter. Not for users."""
        return part_bytes(self._registry)

    async def holds(self, session_id: str) -> HeldSession | SseStream | None:
        """Return a session that is here to stay. Not for users."""
        stream = self._sse.here(session_id)
        if stream is not None:
            return stream
        try:
            held = await self._places.settled(session_id)
        except SessionsError as exc:  # nothing was done: whoever passes the request on asks again
            logger.warning("session %s cannot be had: %s", fingerprint(session_id), exc)
            return None
        if held is not None and self._is_ending:
            await self._stays(held)
            return None
        return held

    async def note(self, session_id: str, run: str) -> None:
        """Write down that a request of another worker begins. Not for users."""
        await note(self._registry, session_id, run)

    async def take_over(self, payload: Any) -> list[str]:
        """Adopt sessions of a worker that leaves. Not for users."""
        if self._is_ending:
            await anyio.lowlevel.checkpoint()
            return []
        return await self._places.take_over(payload)

    @property
    def _is_ending(self) -> bool:
        """Whether the server wants to end."""
        return self._ends.is_set() or was_told()

    async def _stays(self, held: HeldSession) -> None:
        """Wait until a session has moved, for this worker leaves."""
        with anyio.move_on_after(self._call_timeout / 2):
            await held.has_moved.wait()

    # ---- requests ----

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or live from startup to shutdown."""
        if scope["type"] == "lifespan":
            told = self._manager.checking(send)
            await live(self._app, self._registry, self.run, self.leave, scope, receive, told)
        elif scope["type"] != "http" or self._manager.stateless or _is_modern(scope):
            await self._app(scope, receive, send)
        else:
            session_id = header(scope["headers"], _SESSION)
            if session_id is None:
                await self._beginnings.begin(scope, receive, send)
            else:
                await self._continue(session_id, scope, receive, send)

    def _owner_of(self, scope: Scope) -> str | None:
        if self._owner is None:
            return owner_of(scope)
        if OWNER in scope:  # the worker that the client has reached has asked
            owner: str | None = scope[OWNER]
            return owner
        return self._owner(scope)

    def _may(self, scope: Scope, owner: str | None) -> bool:
        """Say whether a request may be for a session of that owner, as far as is known yet.

        Where the SDK authenticates, it does so at the worker that holds the session, and compares.
        """
        return self._owner is None or self._owner_of(scope) == owner

    # ---- with a session ----

    async def _continue(self, session_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let whoever holds the session answer."""
        try:
            event_id = header(scope["headers"], _EVENT)
            is_kept = event_id and self._manager.keeps_events
            if event_id and is_kept and check_event_id(session_id, event_id) is None:
                await answer_error(send, 400, "Last-Event-ID is not of this session")
                return
            await self._route(session_id, scope, receive, send)
        except InvalidSessionId:
            await answer_error(send, 404, NOT_FOUND)
        except BodyTooLarge:
            await answer_error(send, 413, TOO_LARGE)
        except Lost:
            await answer_error(send, 502, LOST)
        except Disconnected:
            pass
        except SessionsError as exc:
            logger.warning("session %s cannot be reached: %s", fingerprint(session_id), exc)
            await answer_error(send, 503, "the session cannot be reached now", retry_after=1)

    async def _route(self, session_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange | None = None
        place: HeldSession | Place | None
        is_unsure, asked_at = False, 0.0  # whether a dead worker has begun it
        wants_replay = scope["method"] == "GET" and header(scope["headers"], _EVENT)
        pause, longest = _PAUSES
        until = anyio.current_time() + self._call_timeout
        while is_unsure or anyio.current_time() < until:
            if is_unsure and exchange is not None:
                place = await self._find_again(exchange, asked_at)
                is_unsure = False
            else:
                place = await self._places.find(session_id)
            if place is None or not self._may(scope, place.owner):
                await answer_error(send, 404, NOT_FOUND)
                return
            if wants_replay and not self._manager.replays:  # the SDK does not answer at all
                await answer_error(send, 400, _NOTHING_KEPT)
                return
            if isinstance(place, HeldSession):
                if not self._is_ending:
                    again = receive if exchange is None else once(exchange.body, receive)
                    await self._here.serve(place, scope, again, send)
                    return
                await self._stays(place)
                continue
            if exchange is None:
                body = await read_body(scope, receive, self._most())
                run = name_of(scope["method"], body)
                passed = scope if self._owner is None else {**scope, OWNER: self._owner_of(scope)}
                exchange = Exchange(session_id, passed, receive, send, body, run, bool(run))
            asked_at = anyio.current_time()
            outcome = await self._forwarding.forward(place.incarnation, exchange)
            if outcome is Outcome.ANSWERED:
                return
            if outcome is not Outcome.ELSEWHERE:  # the time that its death took does not count
                until += anyio.current_time() - asked_at
            is_unsure = outcome is Outcome.UNKNOWN and exchange.is_once
            self._places.forget(session_id)
            await anyio.sleep(pause)
            pause = min(longest, 2 * pause)
        await answer_error(send, 503, MOVING, retry_after=1)

    async def _find_again(self, exchange: Exchange, asked_at: float) -> HeldSession | Place:
        """Return where a session is now whose worker has died with a request.

        Raises:
            Lost: the request must not be made again, for it was begun, or nobody can say.
        """
        try:
            place = await self._places.find(exchange.session_id)
            if place is not None and not await has_begun(
                self._registry, exchange.session_id, exchange.run, asked_at=asked_at
            ):
                return place
        except SessionsError as exc:
            logger.warning("it is not known whether a request was begun: %s", exc)
        raise Lost

    async def serve_here(
        self, held: HeldSession | SseStream, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Let the application here answer for a session that is held here. Not for users."""
        with given_user(scope):
            if isinstance(held, SseStream):
                await self._sse.serve(held, scope, receive, send)
            else:
                await self._here.serve(held, scope, receive, send)


def _bound(max_body_bytes: int | None, sessions: SdkSessions) -> Callable[[], int]:
    """Return what says how large a body may be; the manager's own bound may not be known yet."""
    if max_body_bytes is None:
        return lambda: sessions.max_request_body_size
    if isinstance(max_body_bytes, bool) or not isinstance(max_body_bytes, int):
        raise TypeError("max_body_bytes must be a number of bytes")
    if max_body_bytes < 1:
        raise ValueError(f"max_body_bytes must be 1 or more, not {max_body_bytes}")
    return lambda: max_body_bytes


def _is_modern(scope: Scope) -> bool:
    """Say whether a request is of a protocol without sessions, as the SDK decides it."""
    version = header(scope["headers"], _VERSION)
    return version is not None and version not in HANDSHAKE_PROTOCOL_VERSIONS
