"""A store in the memory of one process, for a single worker and for tests."""

from trio_sessions.stores.memory._store import MemoryStore

__all__ = ["MemoryStore"]
