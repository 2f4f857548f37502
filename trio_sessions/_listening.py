"""The one place that hears the store's bell, and tells whoever it may concern."""

from collections.abc import Callable, Collection
from typing import Protocol

import trio

from trio_sessions._background import Background
from trio_sessions._edge import Edge
from trio_sessions._logging import get_logger
from trio_sessions._persisting import persist

__all__ = ["BellListener", "Listening"]

logger = get_logger("trio_sessions.messages")

_LIVED = 5.0  # seconds after which a bell has worked, though it had nothing to tell


class BellListener(Protocol):
    """A listener for rings of the store's bell."""

    async def rung(self, session_ids: Collection[str] | None) -> None:
        """Note that there may be something new.

        Args:
            session_ids: for these sessions, and `trio_sessions.abc._mail.MAIL` for letters; None:
                that is not known, as after a time in which nobody has listened.
        """
        ...


class Listening:
    """The loop that listens to the bell of one worker, once anybody needs it.

    Args:
        edge: the way to the store.
        background: where the loop runs.
    """

    def __init__(self, edge: Edge, background: Background) -> None:
        self._edge = edge
        self._background = background
        self._listeners: list[BellListener] = []
        self._runs = False

    def tell(self, listener: BellListener) -> None:
        """Add a listener for rings."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Start the loop, unless it runs. Most programs never need it."""
        if not self._runs:
            self._runs = True
            self._background.start_lasting(self._persist)

    async def _persist(self) -> None:
        await persist("listening for messages", self._listen, logger)

    async def _listen(self, worked: Callable[[], None]) -> None:
        """Tell the listeners of each ring, until the bell breaks.

        Raises:
            SessionsError: the bell is broken.
        """
        async with self._edge.open_bell() as bell:
            await self._tell(None)  # of what came before
            opened = trio.current_time()
            try:
                while True:
                    rung = await bell.wait()
                    worked()
                    await self._tell(rung)
            finally:
                if trio.current_time() >= opened + _LIVED:
                    worked()

    async def _tell(self, rung: Collection[str] | None) -> None:
        for listener in self._listeners:
            await listener.rung(rung)
