"""What a consumer holds: the open inbox of one session."""

import math
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import trio

from trio_sessions._delivery import Delivery
from trio_sessions._inbox import Inbox, Message
from trio_sessions._interrupts import uninterrupted
from trio_sessions._json import decode
from trio_sessions._library import check_trio
from trio_sessions._table import Entry
from trio_sessions.abc import Transport
from trio_sessions.types import fingerprint

__all__ = ["OpenInbox"]

_PATIENCE = 1.0  # seconds for which messages in memory wait for older ones in a silent store


@uninterrupted
class OpenInbox:
    """The messages of one session, for one consumer; made by `SessionRegistry.open_inbox`."""

    def __init__(self, delivery: Delivery, entry: Callable[[], Entry]) -> None:
        self._delivery = delivery
        self._find_entry = entry
        self._inbox: Inbox | None = None
        self._reading: Message | None = None
        self.transport: Transport | None = None
        """Whose messages they are, once it is open."""

    @property
    def _opened(self) -> Inbox:
        if self._inbox is None:
            raise RuntimeError(
                "the inbox is not open: write async with registry.open_inbox(session_id) as inbox"
            )
        return self._inbox

    @property
    def _has_ended(self) -> bool:
        """The session was removed, or added again with another transport."""
        return self._opened.reader is not self

    def open(self) -> None:
        """Open it. Synchronous, for `__aenter__` here and on asyncio's side."""
        entry = self._find_entry()
        inbox = self._delivery.inbox(entry)
        if inbox.reader is not None:
            raise RuntimeError(
                f"the inbox of session {fingerprint(entry.session_id)} is open already: "
                "messages stay in order only if one consumer reads them"
            )
        inbox.open(self)
        self._inbox, self.transport = inbox, entry.transport
        self._delivery.want(inbox)

    def close(self, *, finished: bool) -> None:
        """Close it; ``finished``: the last message counts as handled."""
        if self._reading is not None and not finished:
            self._delivery.put_back(self._opened, self._reading)
            self._reading = None
        self.finish()
        if not self._has_ended:
            self._opened.reader = None

    def finish(self) -> None:
        """Acknowledge the last message."""
        if self._reading is not None:
            self._delivery.finish(self._opened, self._reading)
            self._reading = None

    def next_nowait(self) -> tuple[bool, Any]:
        """Return True and the next message, or False and whether there will be one."""
        self.finish()
        if self._has_ended:
            return False, False
        message = self._delivery.take(self._opened)
        if message is None:
            return False, True
        self._reading = message
        return True, decode(message.payload)

    async def wait(self) -> None:
        """Wait until `next_nowait` may have another answer."""
        inbox = self._opened
        if inbox.can_take() or self._has_ended:
            await trio.lowlevel.checkpoint()
            return
        with trio.move_on_after(math.inf if inbox.looked else _PATIENCE):
            await inbox.arrival().wait()
            return
        inbox.look_failed()

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
