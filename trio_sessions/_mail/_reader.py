"""What users iterate over: it is opened, read and closed, here and on asyncio's side."""

import abc
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import trio

from trio_sessions._interrupts import uninterrupted
from trio_sessions._library import check_trio

__all__ = ["Reader"]


@uninterrupted
class Reader(abc.ABC):
    """Values for one reader, an asynchronous iterator and context manager.

    Its parts are for both facades: `next_nowait` never waits, and `wait` is called where there is
    nothing.

    Attributes:
        ends_with_registry: to close the registry is its end; else there is more to come, and
            waiting for that is an error then.
    """

    ends_with_registry = False

    @abc.abstractmethod
    async def open(self) -> None:
        """Open it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close it; harmless twice. Synchronous, so that nothing can keep it from being closed."""

    @abc.abstractmethod
    def next_nowait(self) -> tuple[bool, Any]:
        """Return True and the next value, or False and whether there will be one."""

    @abc.abstractmethod
    async def wait(self) -> None:
        """Wait until `next_nowait` may have another answer."""

    def open_nowait(self) -> bool:
        """Open it where that takes no waiting; False: await `open`, for what is left of it."""
        return False

    def listen(self, listener: Callable[[], None]) -> float | None:
        """Call a function, once, when `next_nowait` may have another answer. It must not raise.

        Only where there is nothing now. So whoever is no Trio task can wait without one.

        Returns:
            Seconds after which `wait` is to be awaited all the same; None: at once.
        """
        return None

    def unlisten(self, listener: Callable[[], None]) -> None:
        """Call it no more; harmless if it was called."""
        return

    @property
    @abc.abstractmethod
    def needs_opening(self) -> bool:
        """Whether it was neither opened nor closed."""

    @abc.abstractmethod
    async def prepare(self) -> None:
        """Prepare it to be read without ``async with``, or raise `RuntimeError`."""

    async def __aenter__(self) -> Self:
        check_trio()
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await trio.lowlevel.checkpoint()
        if self.needs_opening:
            await self.prepare()
        while True:
            is_value, value = self.next_nowait()
            if is_value:
                return value
            if not value:
                self.close()
                raise StopAsyncIteration
            await self.wait()
