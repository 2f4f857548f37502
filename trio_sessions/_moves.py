"""Sessions that have moved away: their older holder is told, and looks at once.

An adopter leaves a letter for whoever held the session. That one believes nothing of it: it makes
a pass, which sees by the row who holds the session. So a letter that is wrong, or comes twice,
removes nobody. Who hears no bell, or whose store keeps no mail, learns of it at its next pass.
See docs/decisions/0013-mcp.md.
"""

import trio

from trio_sessions._adopting import Adopting
from trio_sessions._background import Background
from trio_sessions._interrupts import uninterrupted
from trio_sessions._mail import Mail
from trio_sessions._passes import Passes
from trio_sessions._table import LocalTable

__all__ = ["Moves"]

_PAUSE = 1.0  # seconds between the starts of two passes that letters have asked for


@uninterrupted
class Moves:
    """What one worker tells others, and is told, of sessions that have moved.

    Args:
        adopting: says which sessions have come here, and from whom.
        mail: carries the letters.
        table: the sessions held here.
        passes: look at their rows.
        background: where the look runs.
    """

    def __init__(
        self,
        *,
        adopting: Adopting,
        mail: Mail,
        table: LocalTable,
        passes: Passes,
        background: Background,
    ) -> None:
        self._table = table
        self._passes = passes
        self._background = background
        self._next_at = trio.current_time()
        self._is_due = False
        adopting.notify(mail.tell_moved)
        mail.notify_moved(self._moved)

    def _moved(self, session_id: str) -> None:
        if session_id in self._table and not self._is_due:
            self._is_due = True
            self._background.start_lasting(self._look)

    async def _look(self) -> None:
        await trio.sleep_until(self._next_at)
        if (running := self._passes.running) is not None:  # it may have read the row before
            await running.wait()
        self._next_at = trio.current_time() + _PAUSE
        self._is_due = False
        await self._passes.run_beside()
