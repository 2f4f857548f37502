"""The drain: sessions leave this worker for another one, and their rows wait for them.

::

    nobody new comes in
    a session ── nothing in hand, nothing in memory ──> told to leave (drained)
              ── busy until the time is over ─────────> cut (drained, too)
              ── its client leaves, it is removed ────> left

Whoever is told to leave may come back at another worker at once. Its row stays this worker's until
it does, with its owner and the messages that are stored for it; the drain waits for that, too, as
long as it has time. What nobody has come for is deleted afterwards.
See docs/decisions/0012-operate.md.
"""

import trio

from trio_sessions._admission import Admission
from trio_sessions._background import Background
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge, chunked
from trio_sessions._entry import Entry
from trio_sessions._histories import Histories
from trio_sessions._interrupts import uninterrupted
from trio_sessions._life import Life
from trio_sessions._logging import get_logger
from trio_sessions._messages import Messages
from trio_sessions._sessions import Sessions
from trio_sessions._table import LocalTable
from trio_sessions.errors import SessionsError
from trio_sessions.types import DrainReport

__all__ = ["Draining"]

logger = get_logger("trio_sessions.registry")

_LOOK, _LONGEST = 0.1, 1.0  # seconds between two looks, the first and the longest
_SLICE = 1000  # sessions told to leave before the event loop gets its turn


class _Told:
    """Sessions that were told to leave: kept as they are told, for no step may go through all."""

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}
        """Their ids, each once, in the order in which they were told."""
        self.stay: list[Entry] = []
        """Those whose rows are not due for deletion yet."""

    def add(self, entries: list[Entry]) -> None:
        self.ids.update((entry.session_id, None) for entry in entries)
        self.stay += entries


@uninterrupted
class Draining:
    """The drains of one registry."""

    def __init__(
        self,
        *,
        admission: Admission,
        edge: Edge,
        histories: Histories,
        table: LocalTable,
        messages: Messages,
        sessions: Sessions,
        departures: Departures,
        background: Background,
        life: Life,
    ) -> None:
        self._admission = admission
        self._edge = edge
        self._histories = histories
        self._table = table
        self._messages = messages
        self._sessions = sessions
        self._departures = departures
        self._background = background
        self._life = life
        self._turn = trio.Lock()

    async def drain(self, timeout: float) -> DrainReport:
        """See `SessionRegistry.drain`."""
        start = trio.current_time()
        self._admission.drain()
        async with self._turn:
            return await self._drain(start, timeout)

    async def _drain(self, start: float, timeout: float) -> DrainReport:
        held = self._table.snapshot()
        drained, cut, parting = _Told(), _Told(), list[trio.Event]()
        waiting, counted = 0, 0  # rows, of so many of the drained
        self._background.start_job(self._announce)
        try:
            with trio.move_on_at(start + timeout):
                pause = _LOOK
                while self._life.is_open:
                    await self._tell(drained, parting, only_quiet=True)
                    waiting, counted = await self._count_rows(drained), len(drained.ids)
                    if not len(self._table) and not waiting:
                        break
                    await trio.sleep(pause)
                    pause = min(pause * 1.5, _LONGEST)
            await self._tell(cut, parting, only_quiet=False)
            for event in parting:
                await event.wait()
            await self._finish(drained)
            await self._finish(cut)
        finally:
            self._departures.finish([*drained.stay, *cut.stay])
        left = list[str]()
        for part in chunked(held, _SLICE):
            ids = [one.session_id for one in part]
            left += [one for one in ids if one not in drained.ids and one not in cut.ids]
            await trio.lowlevel.checkpoint()
        waiting += len(drained.ids) - counted  # of the others the store has not said
        if cut.ids or waiting:
            logger.warning(
                "the drain was cut after %g s: %d sessions were busy, and the clients of %d had "
                "not come back anywhere",
                timeout,
                len(cut.ids),
                waiting,
            )
        return DrainReport(
            drained=tuple(drained.ids),
            left=tuple(left),
            cut=tuple(cut.ids),
            waiting=waiting,
            duration=trio.current_time() - start,
        )

    async def _announce(self) -> None:
        try:
            await self._histories.announce(draining=True)
        except SessionsError as exc:
            logger.warning("the other workers cannot be told of the drain: %s", exc)

    async def _tell(self, told: _Told, parting: list[trio.Event], *, only_quiet: bool) -> None:
        """Tell sessions to leave, those that are still here; busy ones only if that is said."""
        for part in chunked(self._table.snapshot(), _SLICE):
            leave = [one for one in part if not only_quiet or self._messages.is_quiet(one)]
            gone, parted = self._sessions.hand_over(leave)
            told.add(gone)
            if parted is not None:
                parting.append(parted)
            await trio.lowlevel.checkpoint()

    async def _finish(self, told: _Told) -> None:
        """Mark the rows of sessions that were told as due for deletion."""
        while told.stay:
            due = told.stay[-_SLICE:]
            del told.stay[-_SLICE:]
            self._departures.finish(due)
            await trio.lowlevel.checkpoint()

    async def _count_rows(self, told: _Told) -> int:
        """Count the rows that still wait for their client to come back at another worker.

        Where the store cannot say, it is all of them: the drain goes on for as long as it may.
        """
        if not told.ids:
            return 0
        found, last = 0, ""
        try:
            while page := await self._edge.rows_left(last):
                found += sum(session_id in told.ids for session_id, _ in page)
                last = page[-1][0]
        except SessionsError:
            return len(told.ids)
        return found
