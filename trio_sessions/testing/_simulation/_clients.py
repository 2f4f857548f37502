"""The clients of a simulated fleet, as they know their sessions: whoever they connected to last."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import trio

from trio_sessions.limits import NO_LIMITS
from trio_sessions.testing._simulation._workers import SimulatedWorker
from trio_sessions.types import RemovalReason

__all__ = ["Client", "Connection", "Ended"]

Answers = Literal["truly", "hangs", "raises"]


class Ended(enum.StrEnum):
    """Why its own side has let a connection go."""

    REMOVED = "removed by the gateway"
    REPLACED = "replaced on its worker"
    """Its client has connected to the same worker again."""
    REVOKED = "revoked"
    NOT_ADDED = "not added"
    """It was refused, or its worker is gone."""


@dataclass(eq=False, slots=True)
class Connection:
    """One connection of a client to one worker; it is the transport, too."""

    client: "Client"
    worker: SimulatedWorker
    number: int
    """Grows with every connection of the fleet: the larger, the newer."""
    added_at: float
    on_disconnect: Callable[["Connection"], None]
    is_alive: bool = True
    """The peer is there."""
    is_added: bool = False
    """`add_session` has returned."""
    answers: Answers = "truly"
    ended: Ended | None = None
    """Why it may go, whatever its transport says; None: it may not."""
    disconnected_at: float | None = None
    may_be_adopted: bool = False
    """Somebody has tried, and gave up before it was known what has become of it."""
    refusal: Exception | None = None
    """Why it could not be added."""
    is_read: bool = False
    """Somebody has its inbox open."""
    touched_at: float = float("-inf")
    """When its gateway said last that it is active."""
    why: str = ""
    """Why it was disconnected."""
    was_drained: bool = False
    """It was told to leave for another worker."""

    def end(self, why: Ended) -> None:
        """Let it go; the first reason is the one that counts."""
        self.ended = self.ended or why

    async def is_connected(self) -> bool:
        """See `trio_sessions.abc.Transport`."""
        await self.worker.link.while_running()
        if self.answers == "hangs":
            await trio.sleep_forever()
        if self.answers == "raises":
            raise OSError("the transport cannot tell")
        return self.is_alive

    async def disconnect(self, reason: RemovalReason | None = None) -> None:
        """See `trio_sessions.abc.Transport`."""
        if self.disconnected_at is None:
            self.disconnected_at = trio.current_time()
            self.was_drained = reason is RemovalReason.DRAINED
            self.on_disconnect(self)
        await trio.lowlevel.checkpoint()

    @property
    def is_over_limits(self) -> bool:
        """Nothing was heard of it for too long, or its client is here for too long."""
        limits = self.worker.settings.get("limits", NO_LIMITS)
        now = trio.current_time()
        began_at = min(one.added_at for one in self.client.connections if one.worker is self.worker)
        is_aged = limits.max_age is not None and now - began_at > limits.max_age
        silent_since = max(self.added_at, self.touched_at)
        is_idle = limits.idle_timeout is not None and now - silent_since > limits.idle_timeout
        return is_aged or is_idle

    @property
    def is_held(self) -> bool:
        """Its worker holds it, and has no reason of its own to end it."""
        return (
            self.is_alive
            and self.disconnected_at is None
            and self.ended is None
            and not self.worker.is_leaving
        )


@dataclass(eq=False, slots=True)
class Client:
    """One session."""

    session_id: str
    connections: list[Connection] = field(default_factory=list)
    blurred_until: float = float("-inf")
    """The database's clock was set while it moved: until then no order is promised."""
    is_restless: bool = False
    """It comes and goes by itself."""
    is_waiting: bool = False
    """It was told to leave, and has not come back anywhere."""
    is_orphan: bool = False
    """Its worker has died, and others are to adopt it."""
    owner: str | None = None
    adopters: frozenset[SimulatedWorker] = frozenset()
    """Workers that try to adopt it just now."""
    life: int = 0
    """Counts the sessions of this id: each ended before the next one began."""
    life_began_at: float = float("-inf")
    left_over: str | None = None
    """The birth of the row that was left over then, which only the worker knows to be that."""
    sent: int = 0
    received: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def newest(self) -> Connection:
        """The connection that ought to win."""
        return self.connections[-1]

    @property
    def is_alive(self) -> bool:
        """Its newest connection is held."""
        return self.newest.is_held

    def leave(self) -> None:
        """Close all connections: an older one may have been given new life by a rewind."""
        for one in self.connections:
            one.is_alive = False
            one.answers = "truly"
