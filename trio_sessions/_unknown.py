"""For how long nobody could say something of a session, from pass to pass."""

from collections.abc import Iterable

from trio_sessions._entry import Entry
from trio_sessions._table import LocalTable

__all__ = ["Unknown"]


class Unknown:
    """The sessions of which something is unknown, and since when it is.

    Args:
        table: the sessions held here.
    """

    def __init__(self, table: LocalTable) -> None:
        self._table = table
        self._since: dict[Entry, float] = {}

    def note(self, session_ids: Iterable[str], began: float) -> None:
        """Replace the sessions that are unknown by those of the latest pass.

        Args:
            session_ids: those sessions.
            began: when the pass has begun, on Trio's clock.
        """
        entries = map(self._table.get, session_ids)
        # A session that was added again meanwhile is another one.
        self._since = {one: self._since.get(one, began) for one in entries if one is not None}

    def longest(self, now: float) -> float:
        """Return for how many seconds the longest of them has been unknown; 0.0: there is none."""
        return max(0.0, now - min(self._since.values(), default=now))
