"""Whether a request was begun at a worker that has died since: what must not be run twice.

Such a request has a name. The worker that holds the session writes it to the session's log before
it begins. Where that worker dies, whoever passed the request on reads the log once the session has
another holder: a request of which the log knows nothing was not begun, and is made again; unless
the log may have lost it by then. Where nobody can say, the request is given up, never made again.
"""

import contextlib
import json
import uuid

import anyio

from trio_sessions._logs import KEEP
from trio_sessions.errors import NotSupported
from trio_sessions.mcp._contracts import Registry, settings_of

__all__ = ["BEGUN", "Lost", "has_begun", "name_of", "note"]

BEGUN = "begun"
_PAGE = 1000
_CLOCKS = 60.0  # seconds by which the database's clock and ours may drift apart meanwhile
_SURE = 0.5  # of ``log_ttl``: so long a note is there, whatever the clocks say

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


class Lost(Exception):
    """A request was begun by a worker that is dead, or may have been."""


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
    """Write down that a request begins; where the store keeps no logs, nothing can be.

    Raises:
        SessionsError: it could not be written down, so it must not begin.
    """
    with contextlib.suppress(NotSupported):  # after a death `has_begun` says yes there
        await registry.logs.append(session_id, {BEGUN: name})


async def has_begun(registry: Registry, session_id: str, name: str, *, asked_at: float) -> bool:
    """Say whether a request was begun, or may have been.

    That there is no note says nothing where one would be gone by now: a log loses what is older
    than ``log_ttl``, and all but its newest entries. No note is older than the request; so it was
    not crowded out unless there are as many entries as are kept which are not older either.

    Args:
        registry: of this worker.
        session_id: the session, which another worker holds by now.
        name: of the request.
        asked_at: when it was passed on, by the clock of this worker's event loop.

    Raises:
        SessionsError: the log cannot be read.
    """
    after = later = 0
    try:
        while entries := await registry.logs.read(session_id, after=after, limit=_PAGE):
            since = anyio.current_time() - asked_at + _CLOCKS
            for entry in entries:
                after = entry.id
                later += entry.age <= since
                if isinstance(entry.event, dict) and entry.event.get(BEGUN) == name:
                    return True
    except NotSupported:
        return True
    passed = anyio.current_time() - asked_at
    return later >= KEEP or passed >= settings_of(registry).limits.log_ttl * _SURE
