"""The end of the tunnel at the worker that holds a session: what other workers may call."""

import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from trio_sessions._handlers import Last
from trio_sessions._logging import get_logger
from trio_sessions.mcp._asgi import is_stream, once
from trio_sessions.mcp._contracts import Message, Receive, Registry, Scope, Send, settings_of
from trio_sessions.mcp._held import HeldSession
from trio_sessions.mcp._identity import USER
from trio_sessions.mcp._sse_stream import SseStream
from trio_sessions.mcp._wire import Item, PackedRequest, unpack_body

__all__ = [
    "ADOPT",
    "PART",
    "PART_BYTES",
    "SERVE",
    "Host",
    "Tunnel",
    "handlers",
    "part_bytes",
    "tunnel_of",
]

logger = get_logger("trio_sessions.mcp")

SERVE = "trio_sessions.mcp"
PART = "trio_sessions.mcp.part"
ADOPT = "trio_sessions.mcp.adopt"

PART_BYTES = 131_072
"""Of a body in one letter, at most."""
_LEAST = 65_536
"""Of ``max_message_bytes``."""
_COMMENT = re.compile(rb": ping[^\r\n]*(\r\n\r\n|\n\n|\r\r)")
"""A piece of a stream that says nothing."""
_GATHER = 0.003
"""Seconds for which a piece of an answer waits for the next one: a short answer is one letter."""
_GATHER_BEGINNING = 0.025
"""Seconds, of a stream of events in which nothing was said yet, but how it begins."""
_UPLOADS = 67_108_864
"""Bytes of bodies that have come in parts and wait for their requests, of all together."""
_QUEUE = 16
_PARTING = 30.0
"""Seconds for which an application may go on when it has answered."""


class Host(Protocol):
    """The router, as its tunnel needs it."""

    @property
    def sign_after(self) -> float | None:
        """Seconds after which it is said that a request runs whose answer has not begun.

        None: answers begin at once, for they are streams.
        """
        ...

    @property
    def part_bytes(self) -> int:
        """Bytes of a body in one letter; see `part_bytes`."""
        ...

    async def holds(self, session_id: str) -> HeldSession | SseStream | None:
        """Return a session that is here to stay."""
        ...

    async def serve_here(
        self, held: HeldSession | SseStream, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request of a session that is held here."""
        ...

    async def note(self, session_id: str, run: str) -> None:
        """Write down that a request begins."""
        ...

    async def take_over(self, payload: Any) -> list[str]:
        """Adopt sessions of a worker that leaves."""
        ...

    def start(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run a task."""
        ...


class Tunnel:
    """What a router's worker lets others call; made by `handlers`, found by the router."""

    def __init__(self) -> None:
        self.services: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """What is to run for as long as the router does."""
        self._host: Host | None = None
        self._uploads: dict[str, _Upload] = {}

    def bind(self, host: Host | None) -> None:
        """Serve a router; None: it has ended."""
        self._host = host

    async def serve(self, payload: Any) -> AsyncIterator[Any]:
        """Answer a request that came to another worker, piece by piece.

        Raises:
            ValueError: it is no request.
        """
        request = PackedRequest.unpack(payload)
        host = self._host
        if host is None:
            yield Last(Item(is_elsewhere=True).pack())
            return
        body = request.body
        if body is None:
            body = self._whole(request.upload)
        held = await host.holds(request.session_id)
        if held is None:
            yield Last(Item(is_elsewhere=True).pack())
            return
        if request.run:
            await host.note(request.session_id, request.run)
            if held.has_moved.is_set():
                yield Last(Item(is_elsewhere=True).pack())
                return
        answer = _Answer(host.part_bytes)
        host.start(answer.produce, host, held, request, body)
        sign_after = host.sign_after if request.scope["method"] == "POST" else None
        try:
            if sign_after is not None and await answer.is_late(sign_after):
                yield Item().pack()
            while True:
                item = await answer.next()
                if item.is_last:
                    yield Last(item.pack())
                    return
                yield item.pack()
        finally:
            answer.abandon()

    async def part(self, payload: Any) -> int:
        """Keep a part of a body that is too large for one letter; return how much there is.

        Raises:
            ValueError: it is none, or not the next one, or there are too many.
        """
        await anyio.lowlevel.checkpoint()
        name, part = str(payload["upload"]), unpack_body(payload["body"])
        if sum(len(one.body) for one in self._uploads.values()) + len(part) > _UPLOADS:
            raise ValueError("too many large bodies are on their way to this worker")
        if self._host is None:  # nor will it be there for the request
            return 0
        upload = self._uploads.get(name)
        if len(upload.body if upload else b"") != payload["at"]:
            raise ValueError("a part of a body is missing")
        if upload is None:
            upload = self._uploads[name] = _Upload()
            self._host.start(self._expire, name)
        upload.body += part
        upload.until = anyio.current_time() + float(payload["timeout"])
        return len(upload.body)

    async def _expire(self, name: str) -> None:
        """Forget a body whose request does not come: its client has left, or its worker died."""
        while (left := self._time_left(name)) > 0:  # noqa: ASYNC110 -- each part prolongs it
            await anyio.sleep(left)
        self._uploads.pop(name, None)

    def _time_left(self, name: str) -> float:
        upload = self._uploads.get(name)
        return 0.0 if upload is None else upload.until - anyio.current_time()

    def _whole(self, name: str) -> bytes:
        upload = self._uploads.pop(name, None)
        if upload is None:
            raise ValueError("the body of this request has not come")
        return bytes(upload.body)

    async def adopt(self, payload: Any) -> list[str]:
        """Take sessions over from a worker that leaves; return the ids of those that were."""
        if self._host is None:
            await anyio.lowlevel.checkpoint()
            return []
        return await self._host.take_over(payload)


class _Upload:
    """A body that comes in parts."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.until = 0.0


class _Answer:
    """An answer of the application, on its way from the task that makes it to the stream.

    Args:
        part_bytes: in one letter.
    """

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes
        self._is_taken = False
        """The application has asked for the request's body."""
        self._has_begun = anyio.Event()
        """The answer; or it never will."""
        self._is_gone = anyio.Event()
        """Who asked: nobody reads any more."""
        self._scope = anyio.CancelScope()
        self._is_stream = False
        self._is_at_line = True
        """What was said has come to the end of a line."""
        self._pieces = 0
        self._item = Item()
        """What has gathered."""
        self._rest: deque[bytes] = deque()
        """What goes with later ones."""
        self._ends = False
        self._has_produced = False
        self._ready = anyio.Event()
        """Nothing more is to be gathered."""
        self._gathering: anyio.CancelScope | None = None
        """In it the next piece is waited for: to its deadline, once something has gathered."""
        self._has_room = anyio.Event()
        self.is_over = False

    async def produce(
        self, host: Host, held: HeldSession | SseStream, request: PackedRequest, body: bytes
    ) -> None:
        """Let the application answer."""
        scope = request.scope
        if request.user is not None:
            scope[USER] = request.user
        give = once(body, self._until_gone)

        async def receive() -> Message:
            self._is_taken = True
            return await give()

        with self._scope:
            try:
                await host.serve_here(held, scope, receive, self._send)
            except anyio.BrokenResourceError:
                pass  # nobody reads it any more
            except Exception:
                logger.exception("the application failed to answer a request of another worker's")
            finally:
                self._has_begun.set()
                self._has_produced = True
                self._gather()

    async def _send(self, message: Message) -> None:
        """Take what the application says; it waits while too much is on its way."""
        self._has_begun.set()
        while len(self._rest) >= _QUEUE and not self._is_gone.is_set():
            if self._has_room.is_set():  # else another task waits for it
                self._has_room = anyio.Event()
            await self._has_room.wait()
        if self._is_gone.is_set():
            raise anyio.BrokenResourceError
        self._take(message)
        self._gather()

    async def _until_gone(self) -> Message:
        await self._is_gone.wait()
        return {"type": "http.disconnect"}

    def abandon(self) -> None:
        """End it: the other worker has all of it, or its client has left.

        In the first case the application may go on: the SDK takes an answer of its client's, or a
        notification, to its server only when it has said that it was accepted.
        """
        self._is_gone.set()
        if self.is_over:
            self._scope.deadline = anyio.current_time() + _PARTING
        else:
            self._scope.cancel()
        self._has_room.set()

    async def is_late(self, after: float) -> bool:
        """Wait until the answer has begun, or is late: then the application runs the request.

        Args:
            after: seconds.
        """
        while True:
            with anyio.move_on_after(after):
                await self._has_begun.wait()
                return False
            if self._is_taken:
                return True

    async def next(self) -> Item:
        """Return the next piece, once it has gathered.

        Raises:
            RuntimeError: the application has not answered to the end.
        """
        self._ready = anyio.Event()
        with anyio.CancelScope() as self._gathering:
            self._gather()
            await self._ready.wait()
        self._gathering = None
        if self._has_produced and not self._ends:
            raise RuntimeError("the application has not answered to the end")
        item, self._item = self._item, Item()
        self.is_over = item.is_last
        self._has_room.set()
        return item

    def _gather(self) -> None:
        """Put into the piece what has room in it, and say until when the next one is waited for."""
        item, rest = self._item, self._rest
        if self._has_produced and self._is_stream:
            self._ends = True  # cut off, as by the end of its session: its client may resume it
        while rest and (not item.body or len(item.body) + len(rest[0]) <= self._part_bytes):
            item.body += rest.popleft()
        item.is_last = self._ends and not rest
        if item.is_last or rest or self._has_produced:
            self._ready.set()
        elif self._gathering is not None and not item.is_empty:
            begins = self._is_stream and item.status is not None and self._pieces <= 1
            patience = _GATHER_BEGINNING if begins else _GATHER
            self._gathering.deadline = anyio.current_time() + patience

    def _take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._item.status = message["status"]
            self._item.headers = list(message.get("headers", ()))
            self._is_stream = is_stream(self._item.headers)
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self._pieces += bool(body)
            # The worker at the other end sends comments of its own, to keep its client.
            if not (self._is_stream and self._is_at_line and _COMMENT.fullmatch(body)):
                size = self._part_bytes
                self._rest += [body[i : i + size] for i in range(0, len(body), size)]
                if body:
                    self._is_at_line = body.endswith((b"\n", b"\r"))
            self._ends = not message.get("more_body", False)


def handlers() -> Mapping[str, Callable[..., Any]]:
    """Return what other workers must be able to call for a `SessionRouter`.

    To be given to the registry, ``handlers=handlers()``, with others of your own if you have any:
    ``handlers={**handlers(), "mine": mine}``. One registry has one router.
    """
    tunnel = Tunnel()
    return {SERVE: tunnel.serve, PART: tunnel.part, ADOPT: tunnel.adopt}


def part_bytes(registry: Registry) -> int:
    """Return how many bytes of a body go in one letter.

    JSON makes at most six of each, and the other two of eight are for the headers. A worker's own
    setting counts, for the receiver of a letter takes one of any size.

    Raises:
        ValueError: there is too little room.
    """
    most = settings_of(registry).max_message_bytes
    if most < _LEAST:
        raise ValueError(
            f"max_message_bytes of the registry must be {_LEAST} or more for requests to be passed "
            f"on to other workers, not {most}"
        )
    return min(PART_BYTES, most // 8)


def tunnel_of(registry: Registry) -> Tunnel:
    """Return the tunnel that a registry was opened with.

    Raises:
        ValueError: none.
    """
    tunnel = getattr(registry.handlers.get(SERVE), "__self__", None)
    if not isinstance(tunnel, Tunnel):
        raise ValueError(  # noqa: TRY004 -- it is a registry, but of other settings
            "registry must have been made with handlers=trio_sessions.mcp.handlers(), for other "
            "workers pass requests on by them"
        )
    return tunnel
