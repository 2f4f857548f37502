"""Adoptions that are not decided: their sessions may have a row here before they are held.

The one owner of that fact, one record for each id. An adoption (`trio_sessions._adopting`) writes
the row first, and holds the session when the answer is heard; where the answer was lost, the row
may be there although nobody holds the session. Whoever looks for rows that no session has
(`trio_sessions._strays`) asks here.
See docs/decisions/0013-mcp.md.
"""

__all__ = ["Undecided"]

_MOST = 10_000  # adoptions whose answer was lost that are remembered; a pass sees to the others


class _Adoptions:
    """The adoptions of one id that are not decided."""

    __slots__ = ("is_awaited", "unanswered", "under_way")

    def __init__(self) -> None:
        self.under_way = 0
        """Adoptions that are not decided."""
        self.unanswered = 0
        """The generation of the latest whose answer was lost; 0: none was.

        Until an answer has decided: an attempt that is refused or withdrawn says nothing of the one
        before."""
        self.is_awaited = False
        """No pass has found the row since."""


class Undecided:
    """The adoptions of one registry that are under way, or were not answered."""

    def __init__(self) -> None:
        self._records: dict[str, _Adoptions] = {}
        self._unanswered: dict[str, None] = {}
        """The ids of those whose answer was lost, the oldest first."""

    def __len__(self) -> int:
        return len(self._records)

    def begin(self, session_id: str) -> None:
        """Note that a session may get a row of this incarnation before it is held here."""
        self._records.setdefault(session_id, _Adoptions()).under_way += 1

    def end(self, session_id: str) -> None:
        """Note that an adoption is over, however it went."""
        record = self._records[session_id]
        record.under_way -= 1
        self._drop_if_empty(session_id, record)

    def lose(self, session_id: str, generation: int) -> None:
        """Record an adoption whose answer was lost: this worker may have a row of the session.

        The next pass that finds the row leaves it to whoever tries again, and the one after deletes
        it, unless there was another attempt.
        """
        record = self._records.setdefault(session_id, _Adoptions())
        record.unanswered, record.is_awaited = generation, True
        self._unanswered.pop(session_id, None)  # it is the latest now
        self._unanswered[session_id] = None
        while len(self._unanswered) > _MOST:
            self.settle(next(iter(self._unanswered)))

    def settle(self, session_id: str) -> None:
        """Note that an adoption was answered, or is remembered no longer."""
        record = self._records.get(session_id)
        if record is not None:
            record.unanswered = 0
            self._unanswered.pop(session_id, None)
            self._drop_if_empty(session_id, record)

    def unanswered(self, session_id: str) -> int:
        """Return the generation with which the same is to be asked for again; 0: none."""
        record = self._records.get(session_id)
        return 0 if record is None else record.unanswered

    def expects(self, session_id: str) -> bool:
        """Say whether a row that a pass has found is to be left alone: after a lost answer once."""
        record = self._records.get(session_id)
        if record is None:
            return False
        if record.under_way:
            return True
        was_awaited, record.is_awaited = record.is_awaited, False
        return was_awaited

    def _drop_if_empty(self, session_id: str, record: _Adoptions) -> None:
        if not record.under_way and not record.unanswered:
            del self._records[session_id]
