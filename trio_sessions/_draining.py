"""The drain: sessions leave this worker for another one, and their rows wait for them.

::

    nobody new comes in
    a session ── nothing in hand, nothing in memory ──> told to leave (drained)
              ── busy until the time is over ─────────> cut (drained, too)
              ── its client leaves, it is removed ────> left

Whoever is told to leave may come back at another worker at once. Its row stays this worker's until
it does, with the messages that are stored for it, so they go along; the drain waits for that, too,
as long as it has time. What nobody has come for is deleted afterwards.
See docs/decisions/0012-operate.md.
"""

import logging
from collections.abc import Sequence

import trio

from trio_sessions._admission import Admission
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge, chunked
from trio_sessions._entry import Entry
from trio_sessions._histories import Histories
from trio_sessions._interrupts import uninterrupted
from trio_sessions._messages import Messages
from trio_sessions._sessions import Sessions
from trio_sessions._table import LocalTable
from trio_sessions.errors import SessionsError
from trio_sessions.types import DrainReport

__all__ = ["Draining"]

logger = logging.getLogger("trio_sessions.registry")

_LOOK = 0.1  # seconds between two looks
_SLICE = 1000  # sessions told to leave before the event loop gets its turn


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
    ) -> None:
        self._admission = admission
        self._edge = edge
        self._histories = histories
        self._table = table
        self._messages = messages
        self._sessions = sessions
        self._departures = departures

    async def drain(self, timeout: float) -> DrainReport:
        """See `SessionRegistry.drain`."""
        start = trio.current_time()
        self._admission.drain()
        held = self._table.snapshot()
        drained, cut, parting = list[Entry](), list[Entry](), list[trio.Event]()
        waiting = 0
        try:
            with trio.move_on_at(start + timeout):
                await self._announce()
                while True:
                    quiet = [one for one in held if self._messages.is_quiet(one)]
                    await self._tell(quiet, drained, parting)
                    waiting = await self._waiting()
                    if not len(self._table) and not waiting:
                        break
                    await trio.sleep(_LOOK)
            await self._tell(self._table.snapshot(), cut, parting)
            for event in parting:
                await event.wait()
        finally:
            self._departures.finish([*drained, *cut])
        told = {entry.session_id for entry in (*drained, *cut)}
        if cut or waiting:
            logger.warning(
                "the drain was cut after %g s: %d sessions were busy, messages wait for %d",
                timeout,
                len(cut),
                waiting,
            )
        return DrainReport(
            drained=tuple(one.session_id for one in drained),
            left=tuple(one.session_id for one in held if one.session_id not in told),
            cut=tuple(one.session_id for one in cut),
            waiting=waiting,
            duration=trio.current_time() - start,
        )

    async def _announce(self) -> None:
        try:
            await self._histories.announce(draining=True)
        except SessionsError as exc:
            logger.warning("the other workers cannot be told of the drain: %s", exc)

    async def _tell(
        self, entries: Sequence[Entry], told: list[Entry], parting: list[trio.Event]
    ) -> None:
        """Tell sessions to leave, those that are still here."""
        for part in chunked(entries, _SLICE):
            gone, parted = self._sessions.hand_over(part)
            told += gone
            if parted is not None:
                parting.append(parted)
            await trio.lowlevel.checkpoint()

    async def _waiting(self) -> int:
        """Count the sessions with stored messages whose rows are still this worker's.

        Where the store cannot say, it is one: the drain goes on for as long as it may.
        """
        try:
            return len(await self._edge.waiting())
        except SessionsError:
            return 1
