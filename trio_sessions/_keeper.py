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

import trio

from trio_sessions._calls import TransportCalls
from trio_sessions._delivery import Delivery
from trio_sessions._forked_run import abandon_on_fork
from trio_sessions._interrupts import uninterrupted
from trio_sessions._jobs import Jobs
from trio_sessions._registry import SessionRegistry
from trio_sessions._rows import Rows
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable

__all__ = ["Keeper"]


@uninterrupted
class Keeper:
    """Opens a registry, holds it open until told to stop, and closes it; used once."""

    def __init__(
        self, *, table: LocalTable, calls: TransportCalls, rows: Rows, settings: Settings
    ) -> None:
        self._table = table
        self._calls = calls
        self._rows = rows
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
        """Let it close the registry."""
        self._stop.set()

    # ---- its own ----

    async def keep(self, nursery: trio.Nursery) -> None:
        """Open, wait for `stop`, close.

        Args:
            nursery: the one around the block, for the background too: so a crash of it ends
                the block at once.
        """
        try:
            await self._rows.open()
            async with self._calls.open():
                registry = self._make_registry(nursery)
                try:
                    await registry._start()  # noqa: SLF001 -- its lifetime is this module's
                    self._registry = registry
                    self._opened.set()
                    await self._stop.wait()
                except BaseException:
                    nursery.cancel_scope.cancel()
                    with trio.CancelScope(shield=True):
                        await self._stop.wait()
                    raise
                finally:
                    await registry._close()  # noqa: SLF001 -- ends the background, too
        finally:
            with trio.CancelScope(shield=True):
                await self._rows.close()

    def _make_registry(self, nursery: trio.Nursery) -> SessionRegistry:
        delivery = Delivery(table=self._table, rows=self._rows, settings=self._settings)
        jobs = Jobs(
            nursery=nursery,
            table=self._table,
            calls=self._calls,
            rows=self._rows,
            delivery=delivery,
            settings=self._settings,
        )
        abandon_on_fork(jobs)
        return SessionRegistry(
            rows=self._rows,
            table=self._table,
            calls=self._calls,
            delivery=delivery,
            jobs=jobs,
            settings=self._settings,
        )
