"""A `RegistryMachine` that tests subclass."""

from collections.abc import Callable
from typing import ClassVar, Literal

from trio_sessions.abc import SessionStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import RegistryMachine

__all__ = ["InMemory"]


class InMemory(RegistryMachine):
    """On a memory store, where hours pass at once."""

    clock: ClassVar[Literal["real", "virtual"]] = "virtual"
    make_shared: ClassVar[Callable[[], SessionStore]] = MemoryStore

    def reset(self) -> None:
        self.shared = type(self).make_shared()

    def make_store(self) -> SessionStore:
        return self.shared
