"""A request and its answer as JSON, as they go from worker to worker."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trio_sessions.mcp._asgi import Headers
from trio_sessions.mcp._contracts import Scope

__all__ = ["OWNER", "Item", "PackedRequest", "pack_body", "unpack_body"]

OWNER = "trio_sessions.mcp.owner"
"""Under this name a request's scope says whose it is, where ``owner=`` has said so. What that looks
at need not be there any more at the other worker."""


def pack_body(body: bytes) -> str | list[str]:
    """Return bytes as JSON: a string where they are UTF-8, as nearly always."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(body).decode("ascii")]


def unpack_body(packed: object) -> bytes:
    """Return what `pack_body` has packed.

    Raises:
        ValueError: it has not.
    """
    if isinstance(packed, str):
        return packed.encode()
    if isinstance(packed, list) and len(packed) == 1 and isinstance(packed[0], str):
        try:
            return base64.b64decode(packed[0], validate=True)
        except binascii.Error as exc:
            raise ValueError(f"a body that cannot be one: {exc}") from exc
    raise ValueError(f"a body cannot be a {type(packed).__name__}")


def _pack_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[list[str]]:
    return [[key.decode("latin-1"), value.decode("latin-1")] for key, value in headers]


def _unpack_headers(packed: object) -> Headers:
    if not isinstance(packed, list):
        raise ValueError(f"headers cannot be a {type(packed).__name__}")
    headers: Headers = []
    for pair in packed:
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(s, str) for s in pair)
        ):
            raise ValueError("a header is a pair of strings")
        headers.append((pair[0].encode("latin-1"), pair[1].encode("latin-1")))
    return headers


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRequest:
    """A request on its way to the worker that holds its session."""

    session_id: str
    scope: Scope
    body: bytes | None
    """None: it is too large for one letter, and has gone ahead in parts."""
    upload: str = ""
    """The name under which it went."""
    run: str = ""
    """Its name, if it must not be run twice."""
    user: dict[str, Any] | None = None
    """Who was recognised before the router, if anybody."""

    def pack(self) -> dict[str, Any]:
        """Return it as JSON."""
        scope = self.scope
        return {
            "session": self.session_id,
            "method": scope["method"],
            "scheme": scope.get("scheme", "http"),
            "path": scope["path"],
            "root_path": scope.get("root_path", ""),
            "query": scope.get("query_string", b"").decode("latin-1"),
            "headers": _pack_headers(scope["headers"]),
            "client": list(scope.get("client") or ()) or None,
            "server": list(scope.get("server") or ()) or None,
            "body": None if self.body is None else pack_body(self.body),
            "upload": self.upload,
            "run": self.run,
            "user": self.user,
            "owner": [scope[OWNER]] if OWNER in scope else None,
        }

    @classmethod
    def unpack(cls, packed: object) -> "PackedRequest":
        """Return what `pack` has packed.

        Raises:
            ValueError: it has not.
        """
        if not isinstance(packed, Mapping):
            raise ValueError("a request is an object")
        texts = ("session", "method", "scheme", "path", "root_path", "query", "upload", "run")
        for name in texts:
            if not isinstance(packed.get(name), str):
                raise ValueError(f"a request has a string as its {name}")
        path: str = packed["path"]
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": packed["method"],
            "scheme": packed["scheme"],
            "path": path,
            "raw_path": path.encode(),
            "root_path": packed["root_path"],
            "query_string": packed["query"].encode("latin-1"),
            "headers": _unpack_headers(packed.get("headers")),
            "client": _address(packed.get("client")),
            "server": _address(packed.get("server")),
        }
        match packed.get("owner"):
            case [str() | None as owner]:
                scope[OWNER] = owner
        body = packed.get("body")
        user = packed.get("user")
        return cls(
            session_id=packed["session"],
            scope=scope,
            body=None if body is None else unpack_body(body),
            upload=packed["upload"],
            run=packed["run"],
            user=user if isinstance(user, dict) else None,
        )


def _address(packed: object) -> tuple[Any, Any] | None:
    return (packed[0], packed[1]) if isinstance(packed, list) and len(packed) == 2 else None


@dataclass(slots=True, kw_only=True)
class Item:
    """A piece of an answer: as much of it as has gathered in a few milliseconds.

    An empty one says that the request runs, and that its answer comes as a whole, once it is known.
    """

    status: int | None = None
    """With the first piece that is of the answer."""
    headers: Headers = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    is_last: bool = False
    is_elsewhere: bool = False
    """There is no such session at this worker (any more); nothing was done."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing has gathered."""
        return self.status is None and not self.body and not self.is_last and not self.is_elsewhere

    def pack(self) -> dict[str, Any]:
        """Return it as JSON."""
        packed: dict[str, Any] = {}
        if self.is_elsewhere:
            packed["elsewhere"] = True
        if self.status is not None:
            packed |= {"status": self.status, "headers": _pack_headers(self.headers)}
        if self.body:
            packed["body"] = pack_body(bytes(self.body))
        if self.is_last:
            packed["last"] = True
        return packed

    @classmethod
    def unpack(cls, packed: object) -> "Item":
        """Return what `pack` has packed.

        Raises:
            ValueError: it has not.
        """
        if not isinstance(packed, Mapping):
            raise ValueError(f"a piece of an answer cannot be a {type(packed).__name__}")
        item = cls(is_last=packed.get("last") is True, is_elsewhere=packed.get("elsewhere") is True)
        status = packed.get("status")
        if status is not None:
            if not isinstance(status, int) or isinstance(status, bool) or not 100 <= status <= 599:
                raise ValueError("a status is a number from 100 to 599")
            item.status = status
            item.headers = _unpack_headers(packed.get("headers"))
        if "body" in packed:
            item.body += unpack_body(packed["body"])
        return item
