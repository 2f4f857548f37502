"""A second registry of a worker's name: incarnations tell them apart, and nothing else does."""

from trio_sessions.testing._machine._drains import DrainedFleet
from trio_sessions.testing._machine._model import Unknown, require
from trio_sessions.testing._machine._workers import LiveWorker
from trio_sessions.testing._transports import FakeTransport
from trio_sessions.types import Holder

__all__ = ["NamesakeFleet"]

_SESSION = "of a namesake"  # none of those that the model knows


class NamesakeFleet(DrainedFleet):
    """A fleet whose workers have namesakes, for one step each."""

    async def visit(self, number: int) -> None:
        """Let a namesake of a worker open, take a session of its own from it, and close.

        Whichever holds a session keeps it, whatever the other one does; what becomes of the
        worker's own sessions, the model sees. Only while all is well: what a namesake stamps and
        sweeps in an outage the model would have to know.
        """
        worker = self._live.get(number)
        if worker is None or not self.model.all_is_well:
            return
        namesake = LiveWorker(worker.name, self._make_store(), self.pace.lateness)
        session_ttl = self.model.workers[worker.name].session_ttl
        await namesake.start(self._nursery, {**self._settings, "session_ttl": session_ttl})
        try:
            await self._take_from(worker, namesake)
        finally:
            await namesake.close()
        require(
            not isinstance(await self.stranger.row(_SESSION), Holder),
            f"a namesake of {worker.name} was closed, and has left the row of its session",
        )

    async def _take_from(self, worker: LiveWorker, namesake: LiveWorker) -> None:
        older, newer = FakeTransport(), FakeTransport()
        await worker.registry.add_session(_SESSION, older)
        await namesake.registry.add_session(_SESSION, newer)
        await worker.registry.remove_session(_SESSION)
        for one in (worker, namesake):
            await one.registry.cleanup()
        held = await namesake.registry.get_session(_SESSION)
        row = await self.stranger.row(_SESSION)
        require(
            held is newer and not newer.disconnects and isinstance(row, Holder | Unknown),
            f"a session of a namesake of {worker.name} is lost: its row is {row}",
        )
