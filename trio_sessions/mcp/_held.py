"""A session of MCP, as the worker holds it: the transport that the registry is given."""

import enum
import time
from collections.abc import Mapping
from typing import Any

import anyio

from trio_sessions.mcp._conversation import Conversation

__all__ = ["HeldSession", "Phase"]


class Phase(enum.Enum):
    """What there is of a session in this worker."""

    DORMANT = "dormant"
    """The row: it came from another worker, and its client has yet to ask for something."""
    AWAKE = "awake"
    """The SDK has a session for it."""
    ENDED = "ended"


_NEXT = {
    Phase.DORMANT: {Phase.AWAKE, Phase.ENDED},
    Phase.AWAKE: {Phase.ENDED},
    Phase.ENDED: set[Phase](),
}


class HeldSession:
    """One session: its client's id, the SDK's id, and whether it still goes on.

    The two ids are the same until the session moves: the next worker's SDK makes another one,
    of which the client is never told.
    """

    def __init__(
        self,
        session_id: str,
        manager: Any,
        conversation: Conversation,
        *,
        owner: str | None,
        data: Mapping[str, Any] | None,
        idle_timeout: float | None,
        idle: float = 0.0,
    ) -> None:
        """Begin to hold it.

        Args:
            session_id: the client's.
            manager: of the SDK's sessions.
            conversation: in which its requests are.
            owner: whose it is.
            data: what it began with.
            idle_timeout: seconds after which it has been idle for too long; None: never.
            idle: seconds for which it was idle at the worker that it comes from.
        """
        self.session_id = session_id
        self.conversation = conversation
        self.owner = owner
        self.data = data
        self.waking = anyio.Lock()
        """Held by the request that wakes it."""
        self.has_moved = anyio.Event()
        """It is not here any more, whatever the reason."""
        self.alias = ""
        """The SDK's id."""
        self._manager = manager
        self._idle_timeout = idle_timeout
        self._requests = 0
        """Of the client's own, that are being answered."""
        self._answering = 0
        """Requests of whomever, but streams that only listen."""
        self._heard = time.monotonic() - idle
        self._phase = Phase.DORMANT

    @property
    def phase(self) -> Phase:
        """What there is of it."""
        return self._phase

    @property
    def is_busy(self) -> bool:
        """Whether requests are being answered, or run, or what was said is not in the log yet.

        Streams that only listen do not count.
        """
        talk = self.conversation
        return bool(self._answering or talk.begun) or not talk.is_kept

    def _go(self, phase: Phase) -> None:
        if phase not in _NEXT[self._phase]:
            raise AssertionError(f"a session cannot go from {self._phase} to {phase}")
        self._phase = phase

    def wake(self, alias: str) -> None:
        """Note the SDK's session.

        Args:
            alias: its id.
        """
        self._go(Phase.AWAKE)
        self.alias = alias

    def enter(self, method: str) -> None:
        """Note that a request begins: it may be a stranger's, which keeps nobody alive."""
        self._answering += method != "GET"

    def accept(self) -> None:
        """Note that a request that has begun is the client's."""
        self._requests += 1
        self._heard = time.monotonic()

    def leave(self, method: str, *, was_accepted: bool) -> None:
        """Note that a request has been answered."""
        self._answering -= method != "GET"
        if was_accepted:
            self._requests -= 1
            self._heard = time.monotonic()

    @property
    def _sdk_session(self) -> Any | None:
        return self._manager.get(self.alias)

    @property
    def idle(self) -> float:
        """Seconds since it was last asked for something, at whatever worker."""
        return 0.0 if self._requests else time.monotonic() - self._heard

    async def is_connected(self) -> bool:
        """Say whether the session goes on: False once the SDK has ended it, or it was idle."""
        if self._phase is Phase.ENDED:
            return False
        if self._idle_timeout is not None and self.idle > self._idle_timeout:
            return False
        if self._phase is Phase.DORMANT:
            return True
        session = self._sdk_session
        return session is not None and not session.is_terminated

    async def disconnect(self) -> None:
        """End the SDK's session, and with it every stream of it."""
        if self._phase is Phase.ENDED:
            return
        self._go(Phase.ENDED)
        self.has_moved.set()
        await self.drop(self.alias)

    async def drop(self, alias: str) -> None:
        """End a session of the SDK.

        Args:
            alias: its id; unknown: nothing is done.
        """
        await self._manager.end(alias)
