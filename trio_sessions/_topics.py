"""Topics, as users see them."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from trio_sessions._checks import a_name
from trio_sessions._interrupts import uninterrupted
from trio_sessions._library import check_trio
from trio_sessions._mail import Mail

__all__ = ["Topics"]


@uninterrupted
class Topics:
    """What is said to whoever listens, as `SessionRegistry.topics`: at most once."""

    def __init__(self, mail: Mail) -> None:
        """Not for users."""
        self._mail = mail

    async def publish(self, topic: str, message: Any) -> None:
        """Say something to every subscriber of a topic, of all workers, this one among them.

        Nothing is kept for who subscribes later, or for a worker that does not live.

        Args:
            topic: 1 to 255 characters.
            message: any JSON value, of at most ``max_message_bytes``.

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it.
            MessageTooLarge: the message is too large.
            StoreUnavailable: the database is away; it may have been published, or not.
            NotSupported: the store lacks this part of the contract.
            RegistryClosed: the registry is closed.

        Cancellation: it may or may not have been published.
        """
        check_trio()
        await self._mail.publish(a_name("topic", topic), message)

    def subscribe(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Hear what is published on a topic for the length of a block.

        ::

            async with registry.topics.subscribe("prices") as messages:
                async for message in messages:
                    ...

        What is published once the block has begun is heard, at most once, and in the order of each
        publisher. An outage of the database ends nothing; what was published meanwhile may be
        missed. A subscriber that does not keep up loses the oldest: 1,000 messages wait for it,
        and 16 MiB (``topic_messages_dropped`` in `SessionRegistry.statistics`). The iteration ends
        when the registry is closed. Each message is a fresh value, which may be changed.

        Args:
            topic: 1 to 255 characters.

        Raises:
            TypeError, ValueError: at the call: the topic cannot be one.
            StoreUnavailable: on entering: the database cannot be told that this worker listens.
            NotSupported: on entering: the store lacks this part of the contract.
            RegistryClosed: on entering: the registry is closed.
        """
        return self._mail.subscribe(a_name("topic", topic))
