"""A worker's histories: begun when the registry opens, and anew where the database went back.

To begin one is a single statement, and nothing is asked for before it has succeeded. Whoever needs
the database may ask for it (the writer, the pass, the stamping loop); they share one attempt at a
time. See docs/decisions/0010-evidence.md.
"""

import secrets
from dataclasses import replace

import trio

from trio_sessions._counters import Counters
from trio_sessions._edge import Edge
from trio_sessions._logging import get_logger
from trio_sessions._witness import Standing, Witness
from trio_sessions.types import Presence

__all__ = ["Histories"]

logger = get_logger("trio_sessions.registry")


_SHORT = 30.0  # seconds: a history that ends sooner makes the next one wait
_PAUSES = (0.05, 5.0)  # seconds, the first and the longest


def _next_pause(pause: float) -> float:
    first, longest = _PAUSES
    return min(longest, max(first, pause * 2))


class Histories:
    """The histories of one registry.

    Args:
        edge: the way to the store.
        witness: is told when one has begun.
        presence: what the worker says of itself.
        counters: count how often the database went back.
    """

    def __init__(
        self, *, edge: Edge, witness: Witness, presence: Presence, counters: Counters
    ) -> None:
        self._edge = edge
        self._witness = witness
        self._presence = presence
        self._counters = counters
        self._turn = trio.Lock()
        self._begun_at = float("-inf")
        self._pause = 0.0

    @property
    def must_begin(self) -> bool:
        """Whether the database went back, so that another history has to be begun first."""
        return not self._witness.is_steady

    async def begin(self) -> None:
        """Begin the first one.

        Raises:
            StoreUnavailable: the database cannot be reached.
        """
        await self._begin(after=None)

    async def ensure(self) -> None:
        """Begin another one if the database went back; no checkpoint if it did not.

        One that follows soon after another waits, longer each time (invariant 16).

        Raises:
            StoreUnavailable: it cannot be reached now.
        """
        if not self.must_begin:
            return
        async with self._turn:
            if self._witness.standing is Standing.CONTRADICTED:
                has_lasted = trio.current_time() - self._begun_at
                self._pause = _next_pause(self._pause) if has_lasted < _SHORT else 0.0
                await trio.sleep(self._pause)
                await self._begin(after=self._witness.known.history)

    async def announce(self, *, data: str | None = None, draining: bool | None = None) -> None:
        """Replace what this worker says of itself to the others; the next history begins with it.

        Args:
            data: a JSON object; None: as before.
            draining: it takes no new sessions; None: as before.

        Raises:
            StoreUnavailable: the store may have been told, or not.
        """
        async with self._turn:
            presence = self._presence
            self._presence = presence = replace(
                presence,
                data=presence.data if data is None else data,
                draining=presence.draining if draining is None else draining,
            )
            await self._edge.inspect(
                lambda store, worker: store.announce(
                    worker, data=presence.data, draining=presence.draining
                ),
                bool,
                may_leave=False,  # or it would land behind what is said next
            )

    async def _begin(self, *, after: str | None) -> None:
        history = secrets.token_hex(16)
        begun = await self._edge.begin(history, self._presence, after=after)
        self._begun_at = trio.current_time()
        self._witness.begin(
            history, has_lapsed=begun.was_swept, doubtful_until=self._begun_at + begun.doubt
        )
        if begun.was_swept:
            logger.warning(
                "this worker has lost its lease: it has not reached the database, or no pass of it "
                "has ended, for more than session_ttl (%g s); what others have swept or taken over "
                "meanwhile is removed",
                self._presence.session_ttl,
            )
        elif after is not None:
            self._counters.count_rewind()
            logger.error(
                "the database has gone back: it has forgotten what it had confirmed. Was it "
                "restored, replaced or emptied, has it failed over to an older copy, or does "
                "search_path lead elsewhere? No session is removed for it; all rows of this worker "
                "are written anew"
            )
