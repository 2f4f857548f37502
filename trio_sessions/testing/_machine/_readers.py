"""How a `RegistryMachine` reads a session's messages, in either way that there is."""

from collections.abc import Awaitable, Callable

import trio

from trio_sessions import SessionRegistry
from trio_sessions.abc import Transport
from trio_sessions.testing._machine._said import Mailbox

__all__ = ["Reader", "read_by_handler", "read_first", "read_inbox"]

Reader = Callable[[SessionRegistry, Mailbox, float, float], Awaitable[None]]
"""Is given patience, and a moment: seconds to wait for what must come, and for what need not."""


async def read_inbox(
    registry: SessionRegistry, mailbox: Mailbox, patience: float, moment: float
) -> None:
    """Take what comes by ``open_inbox``."""
    async with registry.open_inbox(mailbox.session_id) as inbox:
        while True:
            with trio.move_on_after(patience if mailbox.must_come else moment):
                async for message in inbox:
                    mailbox.take(message)
                    break
                else:
                    return
                continue
            return


async def read_first(
    registry: SessionRegistry, mailbox: Mailbox, patience: float, moment: float
) -> None:
    """Take one message by ``open_inbox``, and leave the others."""
    async with registry.open_inbox(mailbox.session_id) as inbox:
        with trio.move_on_after(patience if mailbox.must_come else moment):
            async for message in inbox:
                mailbox.take(message)
                break


async def read_by_handler(
    registry: SessionRegistry, mailbox: Mailbox, patience: float, moment: float
) -> None:
    """Take what comes by ``respond``."""

    def seconds() -> float:
        return patience if mailbox.must_come else moment

    with trio.move_on_after(seconds()) as scope:

        async def handle(message: object, transport: Transport) -> None:
            await trio.lowlevel.checkpoint()
            mailbox.take(message)
            scope.deadline = trio.current_time() + seconds()

        await registry.respond(mailbox.session_id, handle)
