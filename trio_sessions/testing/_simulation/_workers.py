"""The workers of a simulated fleet: real registries, which may be stopped, killed and started."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

from trio_sessions import SessionRegistry, serve_registry
from trio_sessions.errors import SessionsError
from trio_sessions.testing._simulation._link import Link

__all__ = ["CHECK_TIMEOUT", "DISCONNECT_TIMEOUT", "SETTINGS", "SimulatedWorker", "start_worker"]

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {"session_ttl": 60.0, "cleanup_interval": 10.0, "batch_size": 1000},
    {"session_ttl": 90.0, "cleanup_interval": 15.0, "batch_size": 1},
    {"session_ttl": 120.0, "cleanup_interval": 20.0, "batch_size": 7},
    {"session_ttl": 60.0, "cleanup_interval": 5.0, "batch_size": 3},
    {"session_ttl": 100.0, "cleanup_interval": 30.0, "batch_size": 50},
)
"""By the number of the worker. No session_ttl is below 0.4 of the longest one: a shorter outage
than that cannot be told from silence (docs/explanation.md)."""

STORE_TIMEOUT = 4.0
CHECK_TIMEOUT = 2.0
DISCONNECT_TIMEOUT = 2.0


@dataclass(eq=False, slots=True)
class SimulatedWorker:
    """One opening of one registry."""

    number: int
    link: Link
    settings: Mapping[str, Any]
    scope: trio.CancelScope
    ended: trio.Event
    registry: SessionRegistry | None = None
    """None: it has not opened yet, or could not."""
    is_leaving: bool = False
    """It closes, or its process has died: its transports are disconnected for that."""
    drain_began_at: float | None = None
    """When it was told to empty itself; None: it was not."""
    held_at_drain: frozenset[str] = frozenset()
    """What it held then."""
    drain_ended_at: float | None = None
    """When that was over."""

    @property
    def is_open(self) -> bool:
        """Whether sessions may be added."""
        return self.registry is not None and not self.is_leaving and not self.ended.is_set()

    @property
    def is_draining(self) -> bool:
        """It was told to empty itself, and lets nobody new in."""
        return self.drain_began_at is not None

    @property
    def opened(self) -> SessionRegistry:
        """Its registry, which must be open."""
        assert self.registry is not None
        return self.registry

    @property
    def incarnation(self) -> str:
        """As its rows say it; "": it has not opened yet."""
        return "" if self.registry is None else self.registry._house._edge.worker.incarnation

    @property
    def session_ttl(self) -> float:
        """Seconds."""
        return float(self.settings["session_ttl"])

    @property
    def cleanup_interval(self) -> float:
        """Seconds."""
        return float(self.settings["cleanup_interval"])

    @property
    def stamp_interval(self) -> float:
        """Seconds between two stamps of its row, at most; it must have been open."""
        return self.opened._house.settings.stamp_interval

    def end(self) -> None:
        """Close the registry."""
        self.is_leaving = True
        self.link.resume()
        self.scope.cancel()

    def kill(self) -> None:
        """Let the process die: nothing leaves it any more."""
        self.link.is_dead = True
        self.end()


def start_worker(
    nursery: trio.Nursery, number: int, link: Link, settings: Mapping[str, Any]
) -> SimulatedWorker:
    """Open a registry in the background, again and again until the database lets it."""
    worker = SimulatedWorker(number, link, settings, trio.CancelScope(), trio.Event())
    nursery.start_soon(_serve, worker)
    return worker


async def _serve(worker: SimulatedWorker) -> None:
    try:
        with worker.scope:
            while True:
                try:
                    await _open_once(worker)
                except* SessionsError:
                    await trio.sleep(1.0)
    finally:
        worker.is_leaving = True
        worker.ended.set()


async def _open_once(worker: SimulatedWorker) -> None:
    async with trio.open_nursery() as nursery:
        registry = await nursery.start(_serve_registry, worker)
        worker.registry = registry


async def _serve_registry(
    worker: SimulatedWorker, *, task_status: trio.TaskStatus[SessionRegistry]
) -> None:
    await serve_registry(
        worker.link,
        worker_id=f"worker-{worker.number}",
        store_timeout=STORE_TIMEOUT,
        check_timeout=CHECK_TIMEOUT,
        disconnect_timeout=DISCONNECT_TIMEOUT,
        message_ttl=600.0,
        task_status=task_status,
        **worker.settings,
    )
