"""A store whose answers can be held back: what has happened is not known yet."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from trio_sessions.abc import SessionStore
from trio_sessions.testing import FaultyStore

T = TypeVar("T")


class Gate:
    """One operation held back."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._opened = trio.Event()

    def open(self) -> None:
        self._opened.set()

    async def pass_through(self) -> None:
        self.reached.set()
        await self._opened.wait()


class GatedStore(FaultyStore):
    """Wraps a store. Each gate holds the next operation of its name."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self._before: dict[str, Gate] = {}
        self._after: dict[str, Gate] = {}

    def hold(self, operation: str) -> Gate:
        """Hold the next such operation, or batch with such a write, before it begins."""
        return self._before.setdefault(operation, Gate())

    def hold_answer(self, operation: str) -> Gate:
        """Hold the answer to the next such operation."""
        return self._after.setdefault(operation, Gate())

    async def _through(self, name: str, operation: Callable[[], Awaitable[T]], *kinds: str) -> T:
        for one in (name, *kinds):
            if gate := self._before.pop(one, None):
                await gate.pass_through()
        answer = await super()._through(name, operation, *kinds)
        for one in (name, *kinds):
            if gate := self._after.pop(one, None):
                await gate.pass_through()
        return answer
