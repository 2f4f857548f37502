"""The inbox of a session for a consumer on asyncio's side."""

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from trio_sessions._messages import OpenInbox
from trio_sessions.aio._service import Service

__all__ = ["AsyncioInbox"]


class AsyncioInbox:
    """An inbox on asyncio's side: only waiting for a message crosses to Trio."""

    def __init__(self, inbox: OpenInbox, service: Service) -> None:
        self._inbox = inbox
        self._service = service

    async def __aenter__(self) -> Self:
        if self._service.life.has_ended:
            raise self._service.cut_off()
        self._service.check_loop()
        self._inbox.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inbox.close(finished=error is None)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._service.life.has_ended:
            is_message, value = self._inbox.next_nowait()
            if is_message:
                return value
            if not value:
                break
            await self._service.crossing.call(self._inbox.wait)
        self._inbox.finish()
        raise StopAsyncIteration
