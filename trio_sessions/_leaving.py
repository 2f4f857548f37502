"""Sessions on their way out: first their transports are disconnected, then their rows deleted.

Each goes at its own pace: the row of one is deleted as soon as its own transport has come to its
end, however slow those are that leave with it (invariant 11).
See docs/decisions/0001-a-limiter-instead-of-gather.md.
"""

import logging
from collections.abc import Iterable

import outcome

from trio_sessions._calls import Answer
from trio_sessions._claims import Claims, wait_all
from trio_sessions._counters import Counters
from trio_sessions._entry import Entry
from trio_sessions._interrupts import uninterrupted
from trio_sessions._logging import get_logger
from trio_sessions._orders import Order
from trio_sessions.types import fingerprint

__all__ = ["Disconnecting", "Leaving"]

logger = get_logger("trio_sessions.registry")


@uninterrupted
class Disconnecting:
    """The transports that are being disconnected, a listener for their answers."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._failures: list[tuple[Entry, BaseException]] = []

    def answered(self, entry: Entry, answer: Answer) -> None:
        """Note that a transport has come to its end, or has had its time."""
        if isinstance(answer, outcome.Error):
            self._counters.count_disconnect_failures(1)
            self._failures.append((entry, answer.error))

    def log_failures(self) -> None:
        """Say which did not disconnect."""
        if self._failures:
            entry, error = self._failures[0]
            logger.warning(
                "%d transports did not disconnect; the first is that of session %s: %r",
                len(self._failures),
                fingerprint(entry.session_id),
                error,
                exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
            )


@uninterrupted
class Leaving(Disconnecting):
    """Sessions that leave together.

    Args:
        claims: deletes their rows.
        counters: count what fails.
    """

    def __init__(self, claims: Claims, counters: Counters) -> None:
        super().__init__(counters)
        self.entries: list[Entry] = []
        self._claims = claims
        self._deletions: list[Order[int]] = []
        self._held_back: dict[Entry, Order[int]] = {}
        """The deletions that wait for the transport."""

    def join(self, entries: Iterable[Entry]) -> list[Order[int]]:
        """Add sessions that leave, too; return the orders that will delete their rows."""
        deletions = []
        for entry in entries:
            deletion = self._held_back[entry] = self._claims.deletion(entry.session_id)
            deletions.append(deletion)
            self.entries.append(entry)
        self._deletions += deletions
        return deletions

    def answered(self, entry: Entry, answer: Answer) -> None:
        """Delete the row of a session whose transport has come to its end."""
        super().answered(entry, answer)
        self._claims.delete(self._held_back.pop(entry))

    async def finish(self) -> BaseException | None:
        """Delete the rows that are left, and wait for all; return the first error, if any."""
        while self._held_back:  # the calls were cut off
            self._claims.delete(self._held_back.popitem()[1])
        return await wait_all(self._deletions)

    async def gone(self) -> None:
        """Wait until all rows are deleted, or are kept for the next pass."""
        await wait_all(self._deletions)
