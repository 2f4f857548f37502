"""Requests without a session: one of them may make one, which the registry is told of."""

from collections.abc import Callable

import anyio

from trio_sessions._logging import get_logger
from trio_sessions.errors import MessageTooLarge, SessionsError
from trio_sessions.mcp._asgi import TOO_LARGE, answer_error, header
from trio_sessions.mcp._contracts import App, Message, Receive, Registry, Scope, Send
from trio_sessions.mcp._conversation import Conversation, current
from trio_sessions.mcp._held import HeldSession
from trio_sessions.mcp._manager import SdkSessions
from trio_sessions.mcp._replay import what_began

__all__ = ["Beginnings"]

logger = get_logger("trio_sessions.mcp")

_SESSION = b"mcp-session-id"


class Beginnings:
    """Where sessions begin.

    Args:
        app: the SDK's application.
        registry: that is told.
        manager: of the SDK's sessions.
        owner: says whose a request is, once the application has looked at it.
        idle_timeout: seconds, of a session.
        most: says how many bytes may be in a request that makes a session.
        is_ending: says whether this worker leaves, and takes no more.
    """

    def __init__(
        self,
        app: App,
        registry: Registry,
        manager: SdkSessions,
        *,
        owner: Callable[[Scope], str | None],
        idle_timeout: float | None,
        most: Callable[[], int],
        is_ending: Callable[[], bool],
    ) -> None:
        self._app = app
        self._registry = registry
        self._manager = manager
        self._owner = owner
        self._idle_timeout = idle_timeout
        self._most = most
        self._is_ending = is_ending

    async def begin(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, and note the session that it makes, if it makes one."""
        conversation = Conversation()
        heard = bytearray()
        most = self._most()
        is_refused = False

        async def listen() -> Message:
            message = await receive()
            if message["type"] == "http.request" and len(heard) <= most:
                heard.extend(message.get("body", b""))
            return message

        async def tell(message: Message) -> None:
            nonlocal is_refused
            if message["type"] == "http.response.start" and message["status"] < 400:  # noqa: PLR2004 -- HTTP's
                session_id = header(message.get("headers", ()), _SESSION)
                if session_id is not None:
                    is_refused = not await self._admit(
                        session_id, bytes(heard), conversation, scope, send
                    )
            if not is_refused:
                await send(message)

        token = current.set(conversation)
        try:
            await self._app(scope, listen, tell)
        finally:
            current.reset(token)

    async def _admit(
        self, session_id: str, body: bytes, conversation: Conversation, scope: Scope, send: Send
    ) -> bool:
        """Tell the registry of a new session; or tell the client that it cannot be, and end it.

        Whatever goes wrong, the SDK's session ends: the SDK has heard of nothing.
        """
        try:
            refusal = await self._add(session_id, body, conversation, scope)
        except BaseException:  # cancelled, it stays added, and its client knows no id of it
            with anyio.CancelScope(shield=True):  # it waits for nobody
                await self._manager.end(session_id)
            raise
        if refusal is None:
            conversation.session_id = session_id
            return True
        await self._manager.end(session_id)
        status, message = refusal
        retry_after = 1 if status == 503 else None  # noqa: PLR2004 -- HTTP's
        await answer_error(send, status, message, retry_after=retry_after)
        return False

    async def _add(
        self, session_id: str, body: bytes, conversation: Conversation, scope: Scope
    ) -> tuple[int, str] | None:
        """Tell the registry of a session; return why it cannot be: a status, and a message."""
        if len(body) > self._most():
            return 413, TOO_LARGE
        if self._is_ending():
            return 503, "this worker ends"
        try:
            data = what_began(body, server=self._manager.server)
        except (ValueError, RecursionError) as exc:
            return 400, f"Parse error: {exc}"
        held = HeldSession(
            session_id,
            self._manager,
            conversation,
            owner=self._owner(scope),
            data=data,
            idle_timeout=self._idle_timeout,
        )
        held.wake(session_id)
        try:
            await self._registry.add_session(session_id, held, owner=held.owner, data=data)
        except MessageTooLarge:
            return 413, "the request that begins a session is too large"
        except SessionsError as exc:
            logger.warning("a session was refused: %s", exc)
            return 503, "no session can begin here now"
        return None
