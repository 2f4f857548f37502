"""The contracts: what a transport and a store must do. The docstrings are the specification.

The contract of a store has parts, each a class of its own: what holds for all of it
(`Store`), `RowStore`, `MessageStore`, `WorkerStore`. A `SessionStore` has those that a registry
needs, and says in `Store.parts` which others. ``trio_sessions.testing`` holds it as tests, part by
part.
"""

from trio_sessions.abc._data import DataStore
from trio_sessions.abc._inspection import InspectionStore
from trio_sessions.abc._limits import LimitStore
from trio_sessions.abc._logs import LogStore
from trio_sessions.abc._mail import MailStore
from trio_sessions.abc._messages import Bell, MessageStore
from trio_sessions.abc._revocation import RevocationStore
from trio_sessions.abc._rows import RowStore
from trio_sessions.abc._stem import Part, Pool, Store, Worker
from trio_sessions.abc._store import SessionStore
from trio_sessions.abc._transport import Transport
from trio_sessions.abc._workers import WorkerStore

__all__ = [
    "Bell",
    "DataStore",
    "InspectionStore",
    "LimitStore",
    "LogStore",
    "MailStore",
    "MessageStore",
    "Part",
    "Pool",
    "RevocationStore",
    "RowStore",
    "SessionStore",
    "Store",
    "Transport",
    "Worker",
    "WorkerStore",
]
