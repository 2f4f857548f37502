"""The end of the tunnel at the worker that a client has reached."""

import enum
import math
import uuid
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.abc

from trio_sessions._handlers import CallRefused
from trio_sessions._logging import get_logger
from trio_sessions.errors import (
    CallFailed,
    MessageTooLarge,
    SessionsError,
    WorkerGone,
)
from trio_sessions.mcp._asgi import answer_error, is_stream
from trio_sessions.mcp._contracts import Receive, Registry, Scope, Send
from trio_sessions.mcp._identity import UserStaysHere, user_of
from trio_sessions.mcp._tunnel import PART, SERVE, part_bytes
from trio_sessions.mcp._wire import Item, PackedRequest, pack_body

__all__ = ["Exchange", "Forwarding", "Outcome"]

logger = get_logger("trio_sessions.mcp")

_PING = 15.0
"""Seconds after which a client of a silent stream is sent a comment, as by the SDK."""


_FAILURES: tuple[tuple[type[Exception], int, str, int | None], ...] = (
    (TimeoutError, 504, "the worker that holds this session does not answer", None),
    (MessageTooLarge, 413, "the request is too large to be passed on", None),
    (CallRefused, 503, "the worker that holds this session is busy", 1),
    (CallFailed, 502, "the worker that holds this session has failed", None),
    (SessionsError, 503, "the workers cannot reach each other now", 1),
    (UserStaysHere, 500, "the user of this request cannot be passed on", None),
    (ValueError, 502, "the worker that holds this session has answered nonsense", None),
)
"""What is said to a client: the first that fits, its status, and when to come back, seconds."""
_UNSURE = "the workers cannot reach each other now; the request may have been run"
"""What is said instead of asking a client to come back with what must not be run twice."""


@dataclass(slots=True)
class Exchange:
    """A request with a session, and the way back to its client."""

    session_id: str
    scope: Scope
    receive: Receive
    send: Send
    body: bytes
    """All of it."""
    run: str
    """Its name, if the worker is to note that it begins; see `trio_sessions.mcp._runs`."""
    is_once: bool
    """It must not be run twice."""


class Outcome(enum.Enum):
    """What became of a request that was passed on."""

    ANSWERED = "answered"
    """The client has an answer, of whatever kind, or has left."""
    ELSEWHERE = "elsewhere"
    """The session is not there; nothing was done."""
    UNHEARD = "unheard"
    """The worker is dead, and the request was not begun."""
    UNKNOWN = "unknown"
    """The worker is dead, and has not answered: see `trio_sessions.mcp._runs`."""


class _Answering:
    """A client's answer, as it comes."""

    def __init__(self, send: Send, tasks: anyio.abc.TaskGroup) -> None:
        self._send = send
        self._tasks = tasks
        self._turn = anyio.Lock()
        self.has_begun = False
        self.is_over = False
        self.is_stream = False
        self.said_at = 0.0

    async def give(self, item: Item) -> None:
        """Send a piece.

        Raises:
            ValueError: it cannot come now.
        """
        if (item.status is None) is not self.has_begun:
            raise ValueError("an answer has one status, before its body")
        async with self._turn:
            if item.status is not None:
                self.has_begun = True
                self.is_stream = is_stream(item.headers)
                await self._send(
                    {
                        "type": "http.response.start",
                        "status": item.status,
                        "headers": item.headers,
                    }
                )
            await self._say(bytes(item.body), is_last=item.is_last)
        if item.status is not None and self.is_stream and not self.is_over:
            self._tasks.start_soon(self._keep_alive)

    async def _say(self, body: bytes, *, is_last: bool) -> None:
        if self.is_over or not (body or is_last):
            return
        self.is_over = is_last
        self.said_at = anyio.current_time()
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def refuse(self, status: int, message: str, retry_after: int | None) -> None:
        """Send an error instead."""
        self.has_begun = self.is_over = True
        await answer_error(self._send, status, message, retry_after=retry_after)

    async def finish(self) -> None:
        """End it: what would have followed does not come."""
        async with self._turn:
            await self._say(b"", is_last=True)

    async def _keep_alive(self) -> None:
        """Send comments while there is nothing to say."""
        while True:
            await anyio.sleep(max(0.0, self.said_at + _PING - anyio.current_time()) or _PING)
            if anyio.current_time() >= self.said_at + _PING:
                async with self._turn:
                    await self._say(b": ping\r\n\r\n", is_last=False)


class Forwarding:
    """Passes requests on.

    Args:
        registry: by which it does.
        timeout: seconds without a sign of life of the other worker; and until an answer begins, or
            that worker says that the request runs, and its answer will come as a whole.
        answer_timeout: seconds until such an answer begins; None: as long as it takes.
        ends: streams end when this is set, for this worker does.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        timeout: float,
        answer_timeout: float | None,
        ends: anyio.Event,
    ) -> None:
        self._registry = registry
        self._timeout = timeout
        self._answer_timeout = math.inf if answer_timeout is None else answer_timeout
        self._ends = ends
        self._part_bytes = part_bytes(registry)

    async def forward(self, to: str, exchange: Exchange) -> Outcome:
        """Pass a request on, and its answer back.

        Args:
            to: the incarnation that holds the session.
            exchange: the request.
        """
        outcome = Outcome.ANSWERED
        async with anyio.create_task_group() as tasks:
            answering = _Answering(exchange.send, tasks)
            tasks.start_soon(self._until_left, exchange.receive, tasks.cancel_scope)
            if exchange.scope["method"] == "GET":  # the others have an end of their own
                tasks.start_soon(self._until_ended, answering, tasks.cancel_scope)
            outcome = await self._pass_on(to, exchange, answering)
            tasks.cancel_scope.cancel()
        return outcome

    async def _until_left(self, receive: Receive, scope: anyio.CancelScope) -> None:
        """Cancel when the client has left."""
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _until_ended(self, answering: _Answering, scope: anyio.CancelScope) -> None:
        """End a stream when this worker ends: its client comes back to another one."""
        await self._ends.wait()
        if answering.has_begun:
            await answering.finish()
        scope.cancel()

    async def _pass_on(self, to: str, exchange: Exchange, answering: _Answering) -> Outcome:
        was_asked = may_run = False
        try:
            asked_at = anyio.current_time()
            # The other worker's beats say that it lives; this, that it has to answer, too.
            with anyio.CancelScope(deadline=asked_at + self._timeout) as patience:
                request = await self._packed(to, exchange)
                may_run = exchange.is_once  # the letter may have been left, whatever is said
                workers = self._registry.workers
                async with workers.stream(to, SERVE, request, timeout=self._timeout) as items:
                    was_asked = True
                    async for packed in items:
                        item = Item.unpack(packed)
                        if item.is_elsewhere and not answering.has_begun:
                            return Outcome.ELSEWHERE
                        if item.is_empty and not answering.has_begun:
                            patience.deadline = asked_at + self._answer_timeout
                            continue
                        patience.deadline = math.inf
                        await answering.give(item)
                        if item.is_last:  # what ends the stream has come with it, or is nothing
                            break
            if patience.cancelled_caught:
                raise TimeoutError("the worker lives, and does not answer")
            if not answering.is_over:
                raise ValueError("the answer has not come to its end")
        except WorkerGone:
            if not answering.has_begun:
                return Outcome.UNKNOWN if was_asked else Outcome.UNHEARD
            await answering.finish()
        except (SessionsError, TimeoutError, ValueError) as exc:
            logger.warning("a request could not be passed on: %s", exc)
            await self._fail(answering, exc, may_run=may_run)
        return Outcome.ANSWERED

    async def _fail(self, answering: _Answering, error: Exception, *, may_run: bool) -> None:
        """Tell the client; one that has had a part of its answer is told by its end."""
        if answering.has_begun:
            await answering.finish()
            return
        for kind, status, message, retry_after in _FAILURES:
            if isinstance(error, kind):
                if kind is SessionsError and may_run:
                    status, message, retry_after = 502, _UNSURE, None
                await answering.refuse(status, message, retry_after)
                return

    async def _packed(self, to: str, exchange: Exchange) -> dict[str, Any]:
        user = user_of(exchange.scope)  # who cannot go along sends nothing ahead
        upload = await self._send_ahead(to, exchange.body)
        return PackedRequest(
            session_id=exchange.session_id,
            scope=exchange.scope,
            body=None if upload else exchange.body,
            upload=upload,
            user=user,
            run=exchange.run,
        ).pack()

    async def _send_ahead(self, to: str, body: bytes) -> str:
        """Send a body that is too large for one letter; return its name, or an empty one."""
        if len(body) <= self._part_bytes:
            return ""
        name = uuid.uuid4().hex
        for at in range(0, len(body), self._part_bytes):
            part = {
                "upload": name,
                "at": at,
                "body": pack_body(body[at : at + self._part_bytes]),
                "timeout": self._timeout,
            }
            await self._registry.workers.call(to, PART, part, timeout=self._timeout)
        return name
