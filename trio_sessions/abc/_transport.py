"""The contract of a transport."""

from typing import Protocol, runtime_checkable

__all__ = ["Transport"]


@runtime_checkable
class Transport(Protocol):
    """A live connection, as the registry sees it. Both methods are Trio async functions.

    The registry calls each method at most once at a time for a session, never holds a
    database connection or a limiter's token meanwhile, and gives each call a deadline.
    """

    async def is_connected(self) -> bool:
        """Say whether the peer is still there.

        Return exactly ``True`` or ``False``. ``False`` ends the session: say it only if
        it is certain. Anything else, an exception, or no answer within ``check_timeout``
        means "unknown", and the session is kept. An answer given without waiting costs
        no task.
        """
        ...

    async def disconnect(self) -> None:
        """Close the connection and free what belongs to it.

        Called when the session leaves the registry, whatever the reason. It must be
        harmless on a connection that is already closed. An exception is logged; after
        ``disconnect_timeout`` the call is cancelled.

        It may take one argument, ``reason: RemovalReason | None = None``, and is told then why:
        a WebSocket can tell its client by the close code. An argument that is not called
        ``reason`` is given it if it has no default, or None.
        """
        ...
