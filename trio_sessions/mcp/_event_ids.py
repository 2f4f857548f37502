"""The ids of events: how far a client has come, in which stream of which session.

An id is a place in the session's log. An event gets its id while it is on its way there, so it says
more: behind what it stands in the log surely, and as which one it was said in this life of the
session. Whoever comes back with it is sent what stands behind that place, but for what was said
in the same life up to that one. See docs/decisions/0013-mcp.md.
"""

import base64
import binascii
import hmac
from dataclasses import dataclass
from functools import lru_cache

from trio_sessions.mcp._conversation import Conversation
from trio_sessions.types import LogEntry

__all__ = ["Seen", "check_event_id", "event_id", "place_of"]

_UNTAGGED = "new"
_LAST = 2**63 - 1  # of an entry's id
_DIGITS = len(str(_LAST))


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a client says that it has come."""

    cursor: int
    """Behind this entry of the log."""
    stream: str
    life: str = ""
    """With all that was said in this life of the session, up to and with ``said``."""
    said: int = 0

    def has(self, event: object) -> bool:
        """Say whether it has seen an event that stands behind the cursor."""
        match event:
            case {"at": [str(life), int(said), *_]}:
                return life == self.life and said <= self.said
        return False


def place_of(entry: LogEntry) -> str:
    """Return the place that an entry of the log was given when it was said."""
    match entry.event:
        case {"at": [str(life), int(said), int(cursor)]}:
            return f"{cursor}-{life}-{said}"
    return str(entry.id)


def event_id(conversation: Conversation, stream_id: str, place: str | None = None) -> str:
    """Return the id of an event: a place in its session's log, its stream, and a tag.

    The tag says whose it is: only somebody who knows the session's id can make it. It protects
    nothing, for a session's log is read by that session only; it tells a foreign id from an own.

    Args:
        conversation: the session.
        stream_id: the stream.
        place: where it is; None: it is the last one that was said.
    """
    stream = _encoded(stream_id)
    if conversation.session_id is None:
        return f"0.{stream}.{_UNTAGGED}"
    head = place or f"{conversation.cursor}-{conversation.life}-{conversation.said}"
    return f"{head}.{stream}.{_tag(conversation.session_id, head, stream)}"


@lru_cache(maxsize=256)
def _encoded(stream_id: str) -> str:
    name = stream_id.encode(errors="surrogatepass")
    return base64.urlsafe_b64encode(name).decode().rstrip("=")


def _tag(session_id: str, head: str, stream: str) -> str:
    text = f"{head}.{stream}".encode()
    return hmac.digest(session_id.encode(), text, "sha256").hex()[:16]


def check_event_id(session_id: str, event_id: str) -> Seen | None:
    """Return how far an event id says that its client has come.

    Args:
        session_id: of the session that asks.
        event_id: what its client has sent as ``Last-Event-ID``.

    Returns:
        None: it is not an id of this session.
    """
    head, _, rest = event_id.partition(".")
    stream, _, tag = rest.partition(".")
    cursor, _, mark = head.partition("-")
    life, _, said = mark.partition("-")
    if not (_is_number(cursor) and stream and (not mark or _is_number(said))):
        return None
    if tag == _UNTAGGED:
        if head != "0":
            return None
    elif not hmac.compare_digest(
        tag.encode(errors="replace"),
        _tag(session_id, head, stream).encode(),
    ):
        return None
    try:
        padded = stream + "=" * (-len(stream) % 4)
        name = base64.b64decode(padded.encode(), altchars=b"-_", validate=True)
        decoded = name.decode(errors="surrogatepass")
    except (binascii.Error, UnicodeError):
        return None
    return Seen(int(cursor), decoded, life, int(said or 0))


def _is_number(text: str) -> bool:
    may_be = text.isascii() and text.isdigit() and len(text) <= _DIGITS
    return may_be and int(text) <= _LAST
