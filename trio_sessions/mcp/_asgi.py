"""What a router does with ASGI: headers, bodies with a bound, answers of its own."""

import json
from collections.abc import Iterable
from typing import Any

from trio_sessions.mcp._contracts import App, Message, Receive, Scope, Send

__all__ = [
    "TOO_LARGE",
    "BodyTooLarge",
    "Disconnected",
    "Headers",
    "answer_error",
    "bounded",
    "error_body",
    "header",
    "is_stream",
    "once",
    "read_body",
    "with_header",
]

Headers = list[tuple[bytes, bytes]]

_CODES = {
    400: -32600,
    403: -32600,
    404: -32600,
    413: -32600,
}  # as the SDK says that there is no such session
_INTERNAL = -32603

TOO_LARGE = "Request body too large"
"""What a client is told with 413, as by the SDK."""


class BodyTooLarge(Exception):
    """A request's body has more bytes than it may."""


class Disconnected(Exception):
    """The client has left before its request was complete."""


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the first header of this name, which is written in small letters, or None."""
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None


def is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Say whether an answer with these headers is a stream of events."""
    return (header(headers, b"content-type") or "").startswith("text/event-stream")


def with_header(
    headers: Iterable[tuple[bytes, bytes]], name: bytes, value: str | None, *drop: bytes
) -> Headers:
    """Return the headers with one instead of all of this name, or without it.

    Args:
        headers: those to begin with.
        name: in small letters.
        value: None: leave the header out.
        drop: names to leave out, too.
    """
    kept = [(k, v) for k, v in headers if k.lower() != name and k.lower() not in drop]
    if value is not None:
        kept.append((name, value.encode("latin-1")))
    return kept


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """Return a request's whole body.

    Args:
        scope: of the request.
        receive: of the request.
        most: bytes.

    Raises:
        BodyTooLarge: it has more bytes, or says that it will have.
        Disconnected: the client has left.
    """
    _check_declared(scope, most)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > most:
            raise BodyTooLarge
        if not message.get("more_body", False):
            return bytes(body)


def _check_declared(scope: Scope, most: int) -> None:
    declared = header(scope["headers"], b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > most:
        raise BodyTooLarge


async def bounded(app: App, scope: Scope, receive: Receive, send: Send, *, most: int) -> None:
    """Let an application answer a request whose body has a bound, or answer 413 instead.

    Nothing is kept of the body. An answer that has begun before too much was read is left as it is.

    Args:
        app: reading raises `BodyTooLarge` in it. It may catch that, and answer: nobody hears it.
        scope: of the request.
        receive: of the request.
        send: of the request.
        most: bytes.
    """
    left = most
    has_begun = False

    async def listen() -> Message:
        nonlocal left
        if left >= 0:
            message = await receive()
            if message["type"] != "http.request":
                return message
            left -= len(message.get("body", b""))
            if left >= 0:
                return message
        raise BodyTooLarge

    async def tell(message: Message) -> None:
        nonlocal has_begun
        if has_begun or left >= 0:
            has_begun = True
            await send(message)

    try:
        _check_declared(scope, most)
        await app(scope, listen, tell)
    except* BodyTooLarge:
        left = -1
    if left < 0 and not has_begun:
        await answer_error(send, 413, TOO_LARGE)


def once(body: bytes, after: Receive) -> Receive:
    """Return a ``receive`` that hands out a body that was read, and then asks ``after``."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            return await after()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def error_body(status: int, message: str) -> bytes:
    """Return an error of JSON-RPC, as the SDK words them."""
    error: dict[str, Any] = {"code": _CODES.get(status, _INTERNAL), "message": message}
    return json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()


async def answer_error(
    send: Send, status: int, message: str, *, retry_after: int | None = None
) -> None:
    """Answer with an error of JSON-RPC, as the SDK does, and with an HTTP status.

    Args:
        send: of the request.
        status: of HTTP.
        message: what a client reads.
        retry_after: seconds.
    """
    body = error_body(status, message)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
