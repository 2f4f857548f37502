"""Whose a session is, and how a user that was recognised here goes along to another worker.

Programs have users and tokens of their own classes, and rights may hang on their fields. So they
go along whole, or not at all: the token as JSON, which its class reads there, and the user as its
class makes it of the token.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from trio_sessions.mcp._contracts import Scope
from trio_sessions.mcp._sdk import (
    AccessToken,
    AuthCredentials,
    AuthenticatedUser,
    auth_context_var,
    authorization_context,
)

__all__ = ["USER", "UserStaysHere", "give_user", "given_user", "owner_of", "user_of"]

USER = "trio_sessions.mcp.user"
"""Under this name a request that has come from another worker says who was recognised there."""

T = TypeVar("T")

_MOST = 255  # characters of an owner
_UNMADE = (AttributeError, LookupError, TypeError, ValueError)
"""What a class may raise that is made of its token alone, and needs more, or JSON of a token."""


def owner_of(scope: Scope) -> str | None:
    """Return the owner that the SDK's authentication has found, or None.

    It is the issuer, the client and the subject: what the SDK compares itself.

    Args:
        scope: after the application, or what stands before the router, has looked at it.
    """
    user = scope.get("user")
    if not isinstance(user, AuthenticatedUser):
        return None
    found = authorization_context(user)
    parts = [found["issuer"], found["client_id"], found["subject"]]
    owner = json.dumps(parts, separators=(",", ":"))
    if len(owner) <= _MOST:
        return owner
    return "sha256:" + hashlib.sha256(owner.encode()).hexdigest()


class UserStaysHere(ValueError):
    """A user cannot go along to another worker without becoming another one."""


def user_of(scope: Scope) -> dict[str, Any] | None:
    """Return the user that was recognised before the router, as JSON, or None.

    Raises:
        UserStaysHere: the other worker would have another user than this one.
    """
    user = scope.get("user")
    if not isinstance(user, AuthenticatedUser):
        return None
    token = user.access_token
    packed: dict[str, Any] = {"user": _name(type(user)), "kind": _name(type(token))}
    try:
        packed["token"] = token.model_dump(mode="json", round_trip=True)
        is_same = vars(_unpack(packed)) == vars(user)
    except _UNMADE:
        is_same = False
    if not is_same:
        raise UserStaysHere(
            f"a {packed['user']} with a {packed['kind']} cannot go along to another worker: its "
            f"class must make it of its token alone, its token must survive JSON, and both "
            f"classes must stand in a module"
        )
    return packed


def give_user(scope: Scope, packed: Mapping[str, Any]) -> AuthenticatedUser:
    """Put a user into a scope as if it had been recognised here.

    Args:
        scope: of a request that came from another worker.
        packed: what `user_of` said there.

    Raises:
        ValueError: it is no such thing, or of a class that this worker has not loaded; the
            message has nothing of it.
    """
    try:
        user = _unpack(packed)
    except _UNMADE:  # pydantic's quotes what it was given
        raise ValueError(
            "the user that another worker has sent cannot be read: is its class loaded here?"
        ) from None
    scope["user"] = user
    scope["auth"] = AuthCredentials(user.scopes)
    return user


@contextlib.contextmanager
def given_user(scope: Scope) -> Iterator[None]:
    """Serve a request in the block as if its user had been recognised here.

    Raises:
        ValueError: as `give_user`.
    """
    packed = scope.pop(USER, None)
    if packed is None:
        yield
        return
    token = auth_context_var.set(give_user(scope, packed))
    try:
        yield
    finally:
        auth_context_var.reset(token)


def _unpack(packed: Mapping[str, Any]) -> AuthenticatedUser:
    token = _find(AccessToken, packed["kind"]).model_validate_json(
        json.dumps(packed["token"]), by_name=True
    )
    return _find(AuthenticatedUser, packed["user"])(token)


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _find(base: type[T], name: object) -> type[T]:
    """Return the class of this name, of those that this process has loaded and that are of a kind.

    So a letter can choose only what the program itself has made to be chosen: nothing is imported,
    and nothing is unpickled.

    Raises:
        ValueError: there is none, or there are several.
    """
    found = set[type[T]]()
    waiting = [base]
    while waiting:
        kind = waiting.pop()
        if _name(kind) == name:
            found.add(kind)
        waiting.extend(kind.__subclasses__())
    if len(found) != 1:
        raise ValueError("not one class of this name")
    return found.pop()
