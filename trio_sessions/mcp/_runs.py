"""Whether a request was begun at a worker that has died since: what must not be run twice.

Such a request has a name. The worker that holds the session writes it to the session's log before
it begins. Where that worker dies, whoever passed the request on reads the log once the session has
another holder: a request of which the log knows nothing was not begun, and is made again.
"""

import json
import uuid

from trio_sessions.errors import NotSupported
from trio_sessions.mcp._contracts import Registry

__all__ = ["BEGUN", "has_begun", "name_of", "note"]

BEGUN = "begun"
_PAGE = 1000

# What changes nothing, or the same twice, needs no name. Nor do notifications and answers of
# clients, which may be repeated.
_REPEATABLE = frozenset(
    {
        "completion/complete",
        "initialize",
        "logging/setLevel",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "tools/list",
    }
)


def name_of(method: str, body: bytes) -> str:
    """Return a name for a request that must not be run twice; for others an empty one.

    Args:
        method: of HTTP.
        body: of the request.
    """
    if method != "POST":
        return ""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return ""  # nobody will run it
    if not isinstance(message, dict) or "id" not in message:
        return ""
    called = message.get("method")
    return "" if called is None or called in _REPEATABLE else uuid.uuid4().hex


async def note(registry: Registry, session_id: str, name: str) -> None:
    """Write down that a request begins.

    Raises:
        SessionsError: it could not be written down, so it must not begin.
    """
    await registry.logs.append(session_id, {BEGUN: name})


async def has_begun(registry: Registry, session_id: str, name: str) -> bool:
    """Say whether a request was begun, or may have been: where the store keeps no logs.

    Raises:
        SessionsError: the log cannot be read.
    """
    after = 0
    try:
        while entries := await registry.logs.read(session_id, after=after, limit=_PAGE):
            for entry in entries:
                after = entry.id
                if isinstance(entry.event, dict) and entry.event.get(BEGUN) == name:
                    return True
    except NotSupported:
        return True
    return False
