"""Workers that are emptied before they are started anew: what a drain must do, and must not."""

from collections.abc import Callable

import trio

from trio_sessions.abc import Transport
from trio_sessions.errors import RegistryDraining
from trio_sessions.testing._machine._lines import Line
from trio_sessions.testing._machine._model import Unknown, require
from trio_sessions.testing._machine._reads import ReadFleet
from trio_sessions.testing._machine._workers import LiveWorker
from trio_sessions.testing._transports import FakeTransport
from trio_sessions.types import DrainReport, Holder

__all__ = ["DrainedFleet"]


class DrainedFleet(ReadFleet):
    """A fleet whose workers are drained, too."""

    async def drain(self, number: int, make_transport: Callable[[], Transport]) -> None:
        """Empty a worker, let its clients come back at another one, and start it anew.

        Only while all is well: who cannot ask the store waits until the time is over.
        """
        worker = self._live.get(number)
        if worker is None or not self.model.all_is_well:
            return
        holder, ids = self.model.workers[worker.name], set(self._ids)
        certain = {one for one in ids if self.model.sole_holder(one) is holder}
        held = {one for one in ids if worker.registry.get_session_sync(one) is not None}
        reports = list[DrainReport]()
        scope, is_over = trio.CancelScope(), trio.Event()

        async def drain() -> None:
            with scope:
                reports.append(await worker.registry.drain(self.pace.patience))
            is_over.set()

        self._nursery.start_soon(drain)
        await trio.sleep(self.pace.moment)
        await self._check_closed(worker)
        told = {one for one in held if worker.registry.get_session_sync(one) is None}
        waiting = certain & told
        await self._check_rows(worker, waiting, is_over=is_over.is_set())
        for session_id in sorted(held - told):  # busy: else it would wait for them
            await self.remove(number, session_id)
        for session_id in sorted(told):
            self.model.removed(worker.name, session_id)
        others = [one for one in self._live if one != number]
        for session_id in sorted(told):
            if session_id not in waiting or not others:
                self._doubt(session_id)
            if others:
                await self._add(others[0], session_id, Line(make_transport()))
        if not others or waiting != held:
            scope.cancel()  # it may wait for what nobody comes for
        await is_over.wait()
        for report in reports:
            require(
                set(report.drained) >= waiting and report.waiting == 0,
                f"{worker.name} was drained, and all have come back; its report is {report}",
            )
        await self.start(number)

    async def _check_closed(self, worker: LiveWorker) -> None:
        """Say what is wrong if a worker that is drained lets somebody in."""
        transport = FakeTransport()
        try:
            await worker.registry.add_session("somebody new", transport)
        except RegistryDraining:
            require(
                not transport.disconnects,
                f"{worker.name} is drained, and has disconnected what it has not let in",
            )
        else:
            require(False, f"{worker.name} is drained, and has let a session in")  # noqa: FBT003

    async def _check_rows(self, worker: LiveWorker, waiting: set[str], *, is_over: bool) -> None:
        """Say what is wrong if sessions that were told to leave are not waited for."""
        for session_id in sorted(waiting):
            row = await self.stranger.row(session_id)
            require(
                isinstance(row, Unknown)
                or (isinstance(row, Holder) and row.worker_id == worker.name),
                f"session {session_id!r} was told to leave {worker.name}, and its row has not "
                "waited for its client",
            )
        require(
            not (is_over and waiting),
            f"the drain of {worker.name} is over, and has not waited for {sorted(waiting)}",
        )
