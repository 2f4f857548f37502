"""What a new history means for the sessions that are held here.

Where the database went back, any of their rows may be forgotten, or be as it once was: all are
written anew, at once and before whatever waits to be written of them, with owner and capabilities
as this worker knows them; so are the topics that it listens to. Where the worker has only lost its
lease, the others were right to sweep its rows: the next pass asks once more, and removes whose row
is gone. See docs/decisions/0010-evidence.md.
"""

from collections.abc import Sequence

import trio

from trio_sessions._claims import Claims
from trio_sessions._edge import chunked
from trio_sessions._entry import Entry
from trio_sessions._histories import Histories
from trio_sessions._mail import Mail
from trio_sessions._table import LocalTable
from trio_sessions._witness import Witness

__all__ = ["Restorer"]

_SLICE = 1000  # sessions before the event loop gets its turn


class Restorer:
    """The restorer of one registry's rows."""

    def __init__(
        self,
        *,
        histories: Histories,
        witness: Witness,
        claims: Claims,
        table: LocalTable,
        mail: Mail,
    ) -> None:
        self._histories = histories
        self._witness = witness
        self._claims = claims
        self._table = table
        self._mail = mail
        self._done = ""
        """The history for which all has been done."""
        self._restoring: list[Entry] = []
        self._turn = trio.Lock()

    async def ensure(self) -> None:
        """Begin a new history if the database went back, and claim all rows if one was begun.

        Raises:
            StoreUnavailable: the database cannot be reached.

        Cancellation: the next call goes on.
        """
        await self._histories.ensure()
        history = self._witness.known.history
        if history == self._done:
            return
        async with self._turn:
            if self._done:  # else it is the first one
                self._mail.restore()
                for part in chunked(self._table.snapshot(), _SLICE):
                    self._take(part, history)
                    await trio.lowlevel.checkpoint()
            if self._witness.known.history == history:
                self._done = history

    def _take(self, entries: Sequence[Entry], history: str) -> None:
        """Write the rows anew that were confirmed in another history, or mark them as swept."""
        for entry in entries:
            if entry.confirmed_by.history == history:
                continue
            if self._witness.has_lapsed:
                self._claims.lapse(entry)
            elif self._claims.write_anew(entry):
                self._restoring.append(entry)

    def take_restoring(self) -> list[Entry]:
        """Return the sessions whose rows are claimed anew, each once; some may have ended since."""
        restoring, self._restoring = self._restoring, []
        return restoring
