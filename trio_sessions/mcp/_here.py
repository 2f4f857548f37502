"""What is answered here: the application, asked for a session that this worker holds."""

import math
from collections.abc import Callable

import anyio
import anyio.lowlevel

from trio_sessions._logging import get_logger
from trio_sessions.mcp._asgi import bounded, error_body, header, is_stream, with_header
from trio_sessions.mcp._contracts import App, Message, Receive, Registry, Scope, Send
from trio_sessions.mcp._conversation import current
from trio_sessions.mcp._held import HeldSession, Phase
from trio_sessions.mcp._replay import Answer, begin_again
from trio_sessions.types import fingerprint

__all__ = ["MOVING", "NOT_FOUND", "Here"]

logger = get_logger("trio_sessions.mcp")

NOT_FOUND = "Session not found"
MOVING = "the session is moving"

_SESSION = b"mcp-session-id"


class Here:
    """Answers for the sessions that are held here.

    Args:
        app: the SDK's application.
        registry: that holds them.
        owner: says whose a request is, once the application has looked at it.
        timeout: seconds for a session that has come from another worker to begin again.
        answer_timeout: seconds until an answer begins; None: as long as it takes.
        most: says how many bytes may be in a request.
    """

    def __init__(
        self,
        app: App,
        registry: Registry,
        *,
        owner: Callable[[Scope], str | None],
        timeout: float,
        answer_timeout: float | None,
        most: Callable[[], int],
    ) -> None:
        self._app = app
        self._registry = registry
        self._owner = owner
        self._timeout = timeout
        self._answer_timeout = math.inf if answer_timeout is None else answer_timeout
        self._most = most

    async def serve(self, held: HeldSession, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer; a session that is dormant is begun again first.

        The session lives on for it if it is the client's, which the application finds out: it asks
        for the body then, or answers with a stream. Whom it refuses renews nothing.
        """
        token = current.set(held.conversation)
        method = scope["method"]
        was_accepted = False

        def accept(used: Scope) -> None:
            nonlocal was_accepted
            if not was_accepted and self._owner(used) == held.owner:
                was_accepted = True
                held.accept()
                self._registry.touch(held.session_id)

        held.enter(method)
        try:
            if held.phase is Phase.DORMANT:
                refusal = await self._wake(held, scope)
                if refusal is not None:
                    await _tell(refusal, send)
                    return
            await self._serve_awake(held, scope, receive, send, accept)
        finally:
            held.leave(method, was_accepted=was_accepted)
            current.reset(token)

    async def _serve_awake(
        self,
        held: HeldSession,
        scope: Scope,
        receive: Receive,
        send: Send,
        accept: Callable[[Scope], None],
    ) -> None:
        is_delete = scope["method"] == "DELETE"
        own = {**scope, "headers": with_header(scope["headers"], _SESSION, held.alias)}
        is_open_stream = False
        deadline = anyio.current_time() + self._answer_timeout
        patience = anyio.CancelScope(deadline=deadline)

        async def listen() -> Message:
            accept(own)
            return await receive()

        async def tell(message: Message) -> None:
            nonlocal is_open_stream
            if message["type"] == "http.response.start":
                patience.deadline = math.inf
                await anyio.lowlevel.checkpoint_if_cancelled()  # too late: its client is told 504
                headers = message.get("headers", ())
                is_open_stream = is_stream(headers)
                if message["status"] < 400:  # noqa: PLR2004 -- HTTP's
                    accept(own)
                if header(headers, _SESSION) is not None:
                    headers = with_header(headers, _SESSION, held.session_id)
                    message = {**message, "headers": headers}
                if (is_delete and message["status"] < 300) or not await held.is_connected():  # noqa: PLR2004 -- HTTP's
                    await self._registry.remove_session(held.session_id, transport=held)
            elif not message.get("more_body", False):
                is_open_stream = False
            await send(message)

        with patience:
            await bounded(self._app, own, listen, tell, most=self._most())
        if patience.cancelled_caught:
            await _tell(_refusal(504, "the server does not answer"), send)
        if is_open_stream:  # the SDK leaves it open when the session, or the server, ends
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _wake(self, held: HeldSession, scope: Scope) -> Answer | None:
        """Begin a session again that has come from another worker; return why not."""
        async with held.waking:
            if held.phase is not Phase.DORMANT:
                return None
            assert held.data is not None
            held.conversation.is_muted = True
            try:
                answer, used = await begin_again(
                    self._app, scope, held.data, timeout=self._timeout, drop=held.drop
                )
            except TimeoutError:
                return _refusal(504, "the session cannot begin again")
            finally:
                held.conversation.is_muted = False
            alias = answer.alias
            if alias is None:
                return answer if answer.status else _refusal(502, "the session cannot begin again")
            if self._owner(used) != held.owner:
                await held.drop(alias)
                return _refusal(404, NOT_FOUND)
            if held.has_moved.is_set():
                await held.drop(alias)
                return _refusal(503, MOVING, retry_after=1)
            held.wake(alias)
            logger.info("session %s goes on here", fingerprint(held.session_id))
            return None


def _refusal(status: int, message: str, *, retry_after: int | None = None) -> Answer:
    """Return an answer of our own."""
    body = error_body(status, message)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    return Answer(status, headers, bytearray(body))


async def _tell(answer: Answer, send: Send) -> None:
    """Send a whole answer."""
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": answer.headers,
        }
    )
    await send({"type": "http.response.body", "body": bytes(answer.body), "more_body": False})
