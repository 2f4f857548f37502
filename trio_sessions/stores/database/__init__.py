"""A store on a database, for workers that share it: SQLite (a file) or PostgreSQL."""

from trio_sessions.stores.database._schema import metadata
from trio_sessions.stores.database._store import DatabaseStore

__all__ = ["DatabaseStore", "metadata"]
