"""What the parts of the public surface for asyncio rest on: a call that crosses to Trio."""

import abc
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

from trio_sessions._mail import Reader
from trio_sessions._registry import SessionRegistry as TrioRegistry
from trio_sessions.aio._reading import AsyncioReader
from trio_sessions.aio._service import Service

__all__ = ["Asking"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Asking(abc.ABC):
    """The calls to the Trio registry on which the parts of the public surface rest."""

    @abc.abstractmethod
    async def _call(self, method: Callable[[TrioRegistry, *Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await a method of the Trio registry."""

    @abc.abstractmethod
    def _read(self, make: Callable[[TrioRegistry], Reader]) -> AsyncioReader:
        """Return what the Trio registry lets users iterate over."""

    @abc.abstractmethod
    def _here(self) -> Service:
        """Return the registry that is open, for a call that does not wait."""

    @abc.abstractmethod
    def _core(self) -> TrioRegistry:
        """Return the Trio registry, also after its end; `RegistryClosed`: it has never opened."""
