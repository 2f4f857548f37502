"""Whose a session is, and how a user that was recognised here goes along to another worker."""

import hashlib
import json
from typing import Any

from trio_sessions.mcp._contracts import Scope
from trio_sessions.mcp._sdk import (
    AccessToken,
    AuthCredentials,
    AuthenticatedUser,
    authorization_context,
)

__all__ = ["give_user", "owner_of", "user_of"]

_MOST = 255  # characters of an owner


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


def user_of(scope: Scope) -> dict[str, Any] | None:
    """Return the user that was recognised before the router, as JSON, or None."""
    user = scope.get("user")
    if not isinstance(user, AuthenticatedUser):
        return None
    token: dict[str, Any] = user.access_token.model_dump(mode="json")
    return token


def give_user(scope: Scope, token: dict[str, Any]) -> AuthenticatedUser:
    """Put a user into a scope as if the SDK had recognised it here.

    Args:
        scope: of a request that came from another worker.
        token: what `user_of` said there.

    Raises:
        ValueError: it is no such thing; the message has nothing of it.
    """
    try:
        read = AccessToken.model_validate(token)
    except ValueError:  # pydantic's, which quotes what it was given
        raise ValueError("the user that another worker has sent cannot be read") from None
    user = AuthenticatedUser(read)
    scope["user"] = user
    scope["auth"] = AuthCredentials(user.scopes)
    return user
