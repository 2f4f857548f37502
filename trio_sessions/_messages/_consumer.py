"""The reader's side of an inbox: open it, take the next message, acknowledge, close."""

import math
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import trio

from trio_sessions._entry import Entry
from trio_sessions._interrupts import uninterrupted
from trio_sessions._json import decode
from trio_sessions._library import check_trio
from trio_sessions._messages._inbox import Inbox
from trio_sessions._messages._room import Messages
from trio_sessions.abc import Transport

__all__ = ["OpenInbox"]


@uninterrupted
class OpenInbox:
    """The messages of one session, for one reader; made by `SessionRegistry.open_inbox`."""

    def __init__(
        self, messages: Messages, entry: Callable[[], Entry], *, streams: bool = True
    ) -> None:
        self._streams = streams
        """The session is in use as long as it is open, and not only while there is a message."""
        self._messages = messages
        self._find_entry = entry
        self._inbox: Inbox | None = None
        self._transport: Transport | None = None

    @property
    def transport(self) -> Transport | None:
        """The transport of the session, once the inbox is open."""
        return self._transport

    @property
    def _opened(self) -> Inbox:
        if self._inbox is None:
            raise RuntimeError(
                "the inbox is not open: write async with registry.open_inbox(session_id) as inbox"
            )
        return self._inbox

    @property
    def _has_ended(self) -> bool:
        """Whether the session was removed, or added again with another transport."""
        return self._opened.reader is not self

    def open(self) -> None:
        """Open it. Synchronous, for `__aenter__` here and on asyncio's side."""
        entry = self._find_entry()
        self._inbox = self._messages.open(entry, self, streams=self._streams)
        self._transport = entry.transport

    def close(self, *, finished: bool) -> None:
        """Close it.

        Args:
            finished: the last message counts as handled.
        """
        if not finished:
            self._messages.put_back(self._opened, self)
        self.finish()
        self._messages.touch(self._opened)
        self._opened.leave(self)

    def finish(self) -> None:
        """Acknowledge the last message."""
        self._messages.finish(self._opened, self)

    def next_nowait(self) -> tuple[bool, Any]:
        """Return True and the next message, or False and whether there will be one."""
        self.finish()
        if self._has_ended:
            return False, False
        message = self._messages.take(self._opened, self)
        if message is None:
            return False, True
        return True, decode(message.payload)

    async def wait(self) -> None:
        """Wait until `next_nowait` may have another answer."""
        inbox, now = self._opened, trio.current_time()
        if inbox.can_take(now) or self._has_ended:
            await trio.lowlevel.checkpoint()
            return
        until = inbox.may_change_at(now)
        if until == math.inf:
            await inbox.arrival().wait()
            return
        with trio.move_on_at(until):
            await inbox.arrival().wait()

    async def __aenter__(self) -> Self:
        check_trio()
        await trio.lowlevel.checkpoint()
        self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(finished=error is None)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self.finish()
        await trio.lowlevel.checkpoint()
        while True:
            is_message, value = self.next_nowait()
            if is_message:
                return value
            if not value:
                raise StopAsyncIteration
            await self.wait()
