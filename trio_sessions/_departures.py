"""What removed sessions may have left behind: the rows that are still to be deleted.

The one owner of that fact; whoever writes or reads asks here. One number for each id: the
generation of the latest session of that id that has ended here and whose row may still be there. It
travels with every write as ``ended`` (`trio_sessions.writes`), so that nothing of a removed session
is seen by a later one of its id (invariant 14). It is forgotten when a deletion, or the claim of a
later session, has been answered.
See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Iterable

from trio_sessions._entry import Entry

__all__ = ["MOST", "Departures"]

MOST = 100_000  # ids that are kept of sessions that are not held; a pass finds the others as strays


class Departures:
    """The sessions that have ended here and whose rows may still be there, oldest first.

    Those whose ids are held again are never forgotten: their next claim would inherit what is left.
    They are no more than the sessions. Of those that are forgotten one number stays: an id that
    is held again may be one of them.
    """

    def __init__(self) -> None:
        self._gone: dict[str, int] = {}
        self._again: dict[str, int] = {}
        """Those of ids that are held again."""
        self._forgotten = 0
        """The latest generation that was forgotten."""
        self._departing: dict[str, int] = {}
        """How many sessions of an id still depart."""

    def __len__(self) -> int:
        return len(self._gone) + len(self._again)

    def ended(self, session_id: str) -> int:
        """Return the generation up to which rows are left over; 0: none is."""
        return self._again.get(session_id) or self._gone.get(session_id, 0)

    def all(self) -> dict[str, int]:
        """Return `ended` for all ids for which it is not 0."""
        return self._gone | self._again

    def begin(self, entries: Iterable[Entry]) -> None:
        """Note that these sessions have ended; their rows are deleted when they have departed."""
        for entry in entries:
            session_id = entry.session_id
            self._departing[session_id] = self._departing.get(session_id, 0) + 1
            self._forget(session_id)
            self._gone[session_id] = entry.generation  # it is the latest now
        while len(self._gone) > MOST:
            generation = self._gone.pop(next(iter(self._gone)))
            self._forgotten = max(self._forgotten, generation)

    def begin_again(self, session_id: str) -> None:
        """Note that an id is held again: what is left of it stays noted until it is settled."""
        ended = self._gone.pop(session_id, self._forgotten)
        if ended:
            self._again[session_id] = ended

    def finish(self, entries: Iterable[Entry]) -> None:
        """Mark the rows that these sessions may have left as due for deletion."""
        for entry in entries:
            others = self._departing.pop(entry.session_id) - 1
            if others:
                self._departing[entry.session_id] = others

    def find(self, session_id: str, generation: int) -> None:
        """Note a row of this incarnation that no session has: a late statement has written it."""
        left = self._again if session_id in self._again else self._gone
        left[session_id] = max(generation, self.ended(session_id))

    def settle(self, session_id: str, up_to: int) -> None:
        """Note that the id has no row left of generation ``up_to`` or an earlier one."""
        if self.ended(session_id) <= up_to:
            self._forget(session_id)

    def forget_all(self) -> None:
        """Note that no row of this incarnation is there any more."""
        self._gone.clear()
        self._again.clear()
        self._forgotten = 0

    def due(self) -> list[str]:
        """Return the ids whose rows are to be deleted, without those that still depart."""
        return [one for one in (*self._gone, *self._again) if one not in self._departing]

    def _forget(self, session_id: str) -> None:
        self._gone.pop(session_id, None)
        self._again.pop(session_id, None)
