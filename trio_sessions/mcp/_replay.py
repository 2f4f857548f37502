"""A session's beginning, said again to this worker's SDK on its client's behalf."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from trio_sessions.mcp._asgi import Headers, header, once, with_header
from trio_sessions.mcp._contracts import App, Message, Scope

__all__ = ["Answer", "begin_again", "what_began"]

_MOST = 1_048_576  # bytes of an answer to initialize
_SESSION = b"mcp-session-id"


@dataclass(slots=True)
class Answer:
    """A whole answer of the application."""

    status: int = 0
    headers: Headers = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    @property
    def alias(self) -> str | None:
        """The id of the SDK's session that it tells of."""
        return header(self.headers, _SESSION) if 200 <= self.status < 300 else None  # noqa: PLR2004 -- HTTP's


def what_began(body: bytes, *, server: str | None) -> Mapping[str, Any] | None:
    """Return what adoption needs, as a session's data: the request that began it, and where.

    Args:
        body: of that request.
        server: the name of the SDK's server: others on the database do not take the session over.

    Returns:
        None: it is no such request.

    Raises:
        ValueError: it is no JSON, though the SDK may take it: it has numbers in it that are none.
    """
    message = json.loads(body)
    json.dumps(message, allow_nan=False)
    if not isinstance(message, dict) or message.get("method") != "initialize":
        return None
    return {"initialize": message, "server": server}


async def begin_again(
    app: App,
    scope: Scope,
    data: Mapping[str, Any],
    *,
    timeout: float,
    drop: Callable[[str], Awaitable[None]],
) -> tuple[Answer, Scope]:
    """Begin a session once more.

    Args:
        app: the SDK's application.
        scope: of a request of the session's client, whose credentials are used.
        data: what `what_began` has said when the session began.
        timeout: seconds.
        drop: ends a session of the SDK, which the caller will not be told of.

    Returns:
        The answer, and the scope as the application has left it, with the user in it.

    Raises:
        TimeoutError: the application does not answer.

    Cancellation: what has begun is dropped.
    """
    body = json.dumps(data["initialize"]).encode()
    with anyio.fail_after(timeout):
        answer, used = await _ask(app, scope, body, session_id=None)
        if answer.alias is not None:
            done = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
            try:
                await _ask(app, scope, done, session_id=answer.alias)
            except BaseException:
                await drop(answer.alias)
                raise
    return answer, used


async def _ask(
    app: App, scope: Scope, body: bytes, *, session_id: str | None
) -> tuple[Answer, Scope]:
    """Make a request of our own, and return its whole answer."""
    headers = with_header(
        scope["headers"],
        _SESSION,
        session_id,
        b"accept",
        b"content-length",
        b"content-type",
        b"last-event-id",
        b"transfer-encoding",
    )
    headers += [
        (b"accept", b"application/json, text/event-stream"),
        (b"content-length", str(len(body)).encode()),
        (b"content-type", b"application/json"),
    ]
    own: Scope = {**scope, "method": "POST", "headers": headers}
    answer = Answer()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = list(message.get("headers", ()))
        elif message["type"] == "http.response.body" and len(answer.body) < _MOST:
            answer.body += message.get("body", b"")

    async def stay() -> Message:
        await anyio.sleep_forever()
        raise AssertionError("for ever is over")

    await app(own, once(body, stay), send)
    return answer, own
