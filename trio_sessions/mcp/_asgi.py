"""What a router does with ASGI: headers, bodies with a bound, answers of its own."""

import json
from collections.abc import Iterable
from typing import Any

from trio_sessions.mcp._contracts import Message, Receive, Scope, Send

__all__ = [
    "BodyTooLarge",
    "Disconnected",
    "Headers",
    "answer_error",
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
    declared = header(scope["headers"], b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > most:
        raise BodyTooLarge
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
