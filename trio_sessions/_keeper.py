"""What holds a registry open: a task of its own, which opens and closes everything.

::

    the caller's task           the keeper
    start it, and wait    ─▶    open the store, the calls, the background; first pass
    the block runs        ◀─    opened
    the block has ended   ─▶    stop: close the background, the calls, the store
    wait for it, raise    ◀─    ended

Ctrl-C reaches the main task only, there also through shields. So it can end the waiting in the
caller's task, and never what the keeper does (see `trio_sessions._interrupts`). A crash of the
background ends the block first: until that has ended, the registry stays open for it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from trio_sessions._background import Background
from trio_sessions._calls import TransportCalls
from trio_sessions._edge import Edge
from trio_sessions._forked_run import abandon_on_fork
from trio_sessions._house import House
from trio_sessions._interrupts import uninterrupted
from trio_sessions._life import Life
from trio_sessions._logging import logs_of
from trio_sessions._registry import SessionRegistry
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable
from trio_sessions._witness import Witness

__all__ = ["Keeper"]


@uninterrupted
class Keeper:
    """The keeper of one opening: it opens, holds open until told to stop, and closes; used once."""

    def __init__(
        self,
        *,
        table: LocalTable,
        calls: TransportCalls,
        edge: Edge,
        witness: Witness,
        life: Life,
        settings: Settings,
    ) -> None:
        self._table = table
        self._calls = calls
        self._edge = edge
        self._witness = witness
        self._life = life
        self._settings = settings
        self._registry: SessionRegistry | None = None
        self._opened = trio.Event()
        self._stop = trio.Event()

    # ---- the caller's task ----

    async def opened(self) -> SessionRegistry:
        """Wait until the first pass has run."""
        await self._opened.wait()
        assert self._registry is not None
        return self._registry

    @property
    def is_open(self) -> bool:
        return self._opened.is_set()

    def stop(self) -> None:
        """Tell the keeper to close the registry; it does so on its own."""
        self._stop.set()

    # ---- its own ----

    async def keep(self, nursery: trio.Nursery) -> None:
        """Open, wait for `stop`, close.

        Args:
            nursery: the one around the block, for the background too: so a crash of it ends
                the block at once.
        """
        with logs_of(self._edge.worker.worker_id):
            await self._keep(nursery)

    async def _keep(self, nursery: trio.Nursery) -> None:
        async with self._opened_store(), self._calls.open():
            house = self._build(nursery)
            async with house.in_use(), self._outlasting_the_block(nursery):
                self._registry = SessionRegistry(house)
                self._opened.set()
                await self._stop.wait()

    @asynccontextmanager
    async def _outlasting_the_block(self, nursery: trio.Nursery) -> AsyncIterator[None]:
        """End the block at once after a crash of the background; raise that when it has ended."""
        try:
            yield
        except BaseException:  # whatever it is; raised again
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await self._stop.wait()
            raise

    @asynccontextmanager
    async def _opened_store(self) -> AsyncIterator[None]:
        """Open the store for the block; what cannot be opened is closed again."""
        try:
            await self._edge.open()
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._edge.close()

    def _build(self, nursery: trio.Nursery) -> House:
        background = Background(nursery)
        abandon_on_fork(background)
        return House(
            edge=self._edge,
            witness=self._witness,
            table=self._table,
            calls=self._calls,
            background=background,
            life=self._life,
            settings=self._settings,
        )
