"""What users iterate over, on asyncio's side: streams and subscriptions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from trio_sessions._mail import Reader
from trio_sessions.aio._service import Service

__all__ = ["AsyncioReader"]


class AsyncioReader:
    """A reader on asyncio's side, which crosses to Trio only where the reader itself has to wait.

    Args:
        reader: Trio's.
        service: the registry that it belongs to.
    """

    def __init__(self, reader: Reader, service: Service) -> None:
        self._reader = reader
        self._service = service

    async def _check(self) -> None:
        if self._service.life.has_ended:
            raise await self._service.why_ended()
        self._service.check_loop()

    async def _cross(self, function: Callable[[], Awaitable[None]]) -> None:
        await self._check()
        await self._service.crossing.call(function)

    async def _wait(self) -> None:
        await self._check()
        if not await self._service.crossing.listen(self._reader):
            await self._service.crossing.call(self._reader.wait)

    async def __aenter__(self) -> Self:
        try:
            await self._check()
            if not self._reader.open_nowait():
                await self._service.crossing.call(self._reader.open)
        except BaseException:  # cancelled, it may have been opened all the same
            self._reader.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.close()

    async def aclose(self) -> None:
        """Close it, for who has not entered it as a context manager."""
        self._reader.close()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)  # to read a backlog, and decode it, must not hold the loop
        if self._reader.needs_opening:
            await self._cross(self._reader.prepare)
        while True:
            is_value, value = self._reader.next_nowait()
            if is_value:
                return value
            # The core, which will end it, may not have come so far.
            is_ending = self._reader.ends_with_registry and self._service.life.was_shut_down
            if is_ending or not value:
                self._reader.close()
                raise StopAsyncIteration
            await self._wait()
