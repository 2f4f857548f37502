"""In which session the running task is: the SDK does not tell its event store."""

import secrets
from collections import deque
from contextvars import ContextVar

from trio_sessions.mcp._contracts import Appending

__all__ = ["Conversation", "current"]


class Conversation:
    """A session, as its events are kept.

    The router puts it into the context of each request of the session. The SDK starts the
    session's own task from the first of them, and that task inherits the context.
    """

    def __init__(self, session_id: str | None = None) -> None:
        """Begin.

        Args:
            session_id: None: the SDK is only about to make it.
        """
        self.session_id = session_id
        self.is_muted = False
        """Nothing is kept: what is said now, the client has been told in an earlier life."""
        self.life = secrets.token_hex(4)
        """Tells what was said here from what the session has said at other workers."""
        self.said = 0
        """Events that were said here."""
        self.cursor = 0
        """The greatest id of an event that is in the log, surely."""
        self.knows_log = session_id is None
        """Whether nothing was said behind the cursor at another worker."""
        self.leaving: deque[Appending] = deque()
        """Events on their way to the log, in their order."""
        self.begun: set[str] = set()
        """Streams of requests that this worker runs."""
        self.prefix = ""
        """What fastmcp puts before the names of streams here; see `trio_sessions.mcp._streams`."""
        self.replayed: dict[str, int] = {}
        """How far the streams that are being resumed have been sent."""

    @property
    def is_kept(self) -> bool:
        """Whether nothing is on its way to the log any more."""
        return all(one.is_settled for one in self.leaving)


current: ContextVar[Conversation | None] = ContextVar("trio_sessions.mcp", default=None)
"""The conversation of the running task."""
