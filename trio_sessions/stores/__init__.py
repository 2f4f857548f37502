"""Stores: `memory` for one process, `database` for workers that share a database."""

from typing import TYPE_CHECKING

from trio_sessions.abc import SessionStore

if TYPE_CHECKING:
    import sqlalchemy

__all__ = ["resolve_store"]


def resolve_store(store: "SessionStore | sqlalchemy.Engine | sqlalchemy.URL | str") -> SessionStore:
    """Make a store of what `open_registry` takes, importing only what that needs.

    Raises:
        TypeError, ValueError: it is none of those; the message names ``store``.
        MissingDependency: the URL needs a driver that is not installed.
    """
    if isinstance(store, SessionStore):
        return store
    if store == "memory:":
        from trio_sessions.stores.memory import MemoryStore

        return MemoryStore()
    from trio_sessions.stores.database import DatabaseStore

    return DatabaseStore(store)
