"""A store on a database, for workers that share it: SQLite (a file) or PostgreSQL."""

from trio_sessions.stores.database._alembic import include_object
from trio_sessions.stores.database._schema import metadata
from trio_sessions.stores.database._store import DatabaseStore

__all__ = ["DatabaseStore", "include_object", "metadata"]
