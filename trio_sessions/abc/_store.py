"""The contract of a store as a whole."""

from trio_sessions.abc._messages import MessageStore
from trio_sessions.abc._rows import RowStore
from trio_sessions.abc._workers import WorkerStore

__all__ = ["SessionStore"]


class SessionStore(RowStore, MessageStore, WorkerStore):
    """What a registry needs of a store. The parts' docstrings are the specification."""
