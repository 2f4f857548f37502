"""What the parts of the public surface for asyncio rest on: a call that crosses to Trio."""

import abc
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from trio_sessions._registry import SessionRegistry as TrioRegistry

__all__ = ["Asking"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Asking(abc.ABC):
    """Asks the Trio registry."""

    @abc.abstractmethod
    async def _call(self, method: Callable[[TrioRegistry, *Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await a method of the Trio registry."""

    @abc.abstractmethod
    def _core(self) -> TrioRegistry:
        """Return the Trio registry, also after its end; `RegistryClosed`: it has never opened."""
