"""In which session the running task is: the SDK does not tell its event store."""

from contextvars import ContextVar

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
        self.cursor = 0
        """The greatest id of an event that was kept here."""
        self.begun: set[str] = set()
        """Streams of requests that this worker runs."""
        self.prefix = ""
        """What fastmcp puts before the names of streams here; see `trio_sessions.mcp._streams`."""
        self.replayed: dict[str, int] = {}
        """How far the streams that are being resumed have been sent."""


current: ContextVar[Conversation | None] = ContextVar("trio_sessions.mcp", default=None)
"""The conversation of the running task."""
