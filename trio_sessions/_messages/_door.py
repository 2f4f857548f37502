"""The door between one inbox and the store, for messages of this worker: rule 3 of `_inbox`.

While something is early and there is no boundary, a fetch and the storing of a message exclude each
other: its row might be found before its id is known, and nobody could say which of the two came
first. Neither waits for ever: a fetch ends within its timeout, what is stored gives a boundary,
else the store counts as silent. See docs/decisions/0009-one-writer.md.
"""

from collections.abc import Mapping

import trio

from trio_sessions._messages._arrivals import Arrivals
from trio_sessions._messages._fetching import Fetching
from trio_sessions._messages._line import Line

__all__ = ["Door"]


class Door:
    """The turns of storing and fetching for one inbox; see the head of this file.

    Args:
        session_id: whose inbox it is.
        line: the messages that wait.
        fetching: the fetch that may be under way.
        storing: how many messages of this worker are on their way to the store, by session.
    """

    __slots__ = ("_fetching", "_line", "_queue", "_session_id", "_storing")

    def __init__(
        self, session_id: str, line: Line, fetching: Fetching, storing: Mapping[str, int]
    ) -> None:
        self._session_id = session_id
        self._line = line
        self._fetching = fetching
        self._storing = storing
        self._queue = trio.StrictFIFOLock()

    @property
    def is_storing(self) -> bool:
        """Whether a message of this worker is on its way to the store."""
        return self._session_id in self._storing

    @property
    def may_fetch(self) -> bool:
        """Whether no message is on its way that a fetch must not meet."""
        return not (self.is_storing and self._line.is_unbounded)

    @property
    def _may_store(self) -> bool:
        return not (self._fetching.is_under_way and self._line.is_unbounded)

    async def wait(self, arrivals: Arrivals) -> None:
        """Wait until a message may go to the store, in the order of the calls.

        No checkpoint if it may, and nobody waits for it.

        Args:
            arrivals: wakes when that may have changed.
        """
        if self._may_store and not self._queue.locked():
            return
        async with self._queue:
            while not self._may_store:
                await arrivals.arrival().wait()
