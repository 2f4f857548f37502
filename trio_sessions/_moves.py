"""Sessions that have moved away: their older holder is told, and looks at once.

An adopter leaves a letter for whoever held the session. That one believes nothing of it: it asks
for the rows that letters have named, and lets go of those that another worker has, by the same
judgement as a pass. So a letter that is wrong, or comes twice, removes nobody.

A look is no pass: it asks no transport, sweeps nothing, and does not confirm what the brake holds.
A row that is gone is left to the pass, as is all that the database cannot say now. Who hears no
bell, or whose store keeps no mail, learns of a move at its next pass.
See docs/decisions/0013-mcp.md.
"""

from collections.abc import Sequence

import trio

from trio_sessions._adopting import Adopting
from trio_sessions._background import Background
from trio_sessions._edge import Edge, chunked
from trio_sessions._entry import Entry, Row
from trio_sessions._interrupts import uninterrupted
from trio_sessions._logging import get_logger
from trio_sessions._mail import Mail
from trio_sessions._sessions import Sessions
from trio_sessions._table import LocalTable
from trio_sessions._verdicts import judge_rows
from trio_sessions._witness import Witness
from trio_sessions.errors import SessionsError
from trio_sessions.types import RemovalReason

__all__ = ["Moves"]

logger = get_logger("trio_sessions.registry")

_PAUSE = 1.0  # seconds between the starts of two looks
_MOST = 10_000  # sessions of one look; the pass sees to the others
_ASKED = frozenset({Row.CONFIRMED, Row.LOST})
"""Of the others no answer decides anything: their rows are to be written, or being written."""


@uninterrupted
class Moves:
    """The letters on sessions that have moved: to their older holders, and about this worker's own.

    Args:
        adopting: says which sessions have come here, and from whom.
        mail: carries the letters.
        table: the sessions held here.
        edge: asked for their rows.
        witness: judges what it answers.
        sessions: let go of what has moved.
        background: where the look runs.
        batch_size: rows that are asked for at once.
    """

    def __init__(
        self,
        *,
        adopting: Adopting,
        mail: Mail,
        table: LocalTable,
        edge: Edge,
        witness: Witness,
        sessions: Sessions,
        background: Background,
        batch_size: int,
    ) -> None:
        self._table = table
        self._edge = edge
        self._witness = witness
        self._sessions = sessions
        self._background = background
        self._batch_size = batch_size
        self._next_at = trio.current_time()
        self._named: dict[str, None] = {}
        """Sessions to look for, in the order of their letters."""
        self._looks = False
        adopting.notify(mail.tell_moved)
        mail.notify_moved(self._moved)

    def _moved(self, session_id: str) -> None:
        if session_id not in self._table or len(self._named) >= _MOST:
            return
        self._named[session_id] = None
        if not self._looks:
            self._background.start_lasting(self._look)
            self._looks = True

    async def _look(self) -> None:
        try:
            while self._named:
                await trio.sleep_until(self._next_at)
                self._next_at = trio.current_time() + _PAUSE
                named, self._named = list(self._named), {}
                for part in chunked(named, self._batch_size):
                    await self._judge(part)
        finally:
            self._looks = False

    async def _judge(self, session_ids: Sequence[str]) -> None:
        """Ask for these rows, and let go of those that another worker has."""
        held = [self._table.get(session_id) for session_id in session_ids]
        entries = [entry for entry in held if entry is not None and entry.row in _ASKED]
        if not entries:
            await trio.lowlevel.checkpoint()
            return
        try:
            answers = await self._edge.refresh([entry.session_id for entry in entries])
        except SessionsError as exc:
            logger.debug("what letters say of moved sessions cannot be looked into now: %s", exc)
            return
        # In one step with the answer: nobody has noticed since that the database went back.
        asked = [one for one in entries if one.row in _ASKED]
        verdict = judge_rows(asked, answers, self._witness, trio.current_time())
        self._let_go([one for one in verdict.taken_over if one.session_id in answers.taken_over])

    def _let_go(self, entries: Sequence[Entry]) -> None:
        leaving = self._sessions.end(entries, RemovalReason.TAKEN_OVER)
        if leaving is not None:
            logger.info("%d sessions were taken over by other workers", len(leaving.entries))
