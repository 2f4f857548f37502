"""What the checks need that are about workers: histories, stamps, sweeps, and patience.

A lease is as long as `TTL`. A check never says that something has happened by a moment, for a
machine may be slow: it goes on until it has happened, and gives up after `PATIENCE`. What must not
happen is asserted where it could have, whatever the pace.
"""

from collections.abc import Awaitable, Callable
from itertools import count

import trio

from trio_sessions.testing._conformance._tools import Client
from trio_sessions.types import Presence, Stamp, Swept
from trio_sessions.writes import Batch, Claim, Committed, Write

__all__ = ["LONG", "PATIENCE", "TTL", "begin", "claim", "commit", "eventually", "seen", "sweep"]

TTL = 1.0  # seconds; the checks wait for leases that long to expire
LONG = 3600.0
PATIENCE = 30.0  # seconds for what is only a question of time
_words = count(1)


async def begin(
    client: Client,
    *,
    session_ttl: float = LONG,
    cleanup_interval: float = 0.5,
    rewound: bool = False,
) -> Stamp:
    """Begin a history; return what the worker knows to be acknowledged then."""
    history = f"{client.worker.incarnation}-{next(_words)}"
    presence = Presence(
        session_ttl=session_ttl,
        cleanup_interval=cleanup_interval,
        stamp_interval=min(5.0, cleanup_interval),
        version="0",
    )
    after = f"before {history}" if rewound else None
    await client.store.begin(client.worker, history, presence, after=after)
    return Stamp(history=history, beat=1)


async def commit(
    client: Client, stamp: Stamp, *writes: Write[object], not_after: float | None = None
) -> Committed:
    """Commit a batch that names a stamp."""
    batch = Batch(writes=writes, stamp=stamp, not_after=not_after)
    return await client.store.commit(client.worker, batch)


async def seen(client: Client) -> Stamp | None:
    """Return what the store says of the worker's own row."""
    return (await client.store.refresh(client.worker, ["nobody"])).stamp


async def sweep(
    client: Client,
    *,
    session_ttl: float = TTL,
    message_ttl: float = LONG,
    max_gap: float | None = None,
    limit: int = 100,
    stamp: Stamp | None = None,
) -> Swept:
    """Sweep, and vouch for the fleet."""
    return await client.store.sweep(
        client.worker,
        session_ttl=session_ttl,
        message_ttl=message_ttl,
        max_gap=session_ttl if max_gap is None else max_gap,
        limit=limit,
        stamp=stamp,
    )


def claim(session_id: str, generation: int = 1) -> Claim:
    """Return the claim of a session that is added now."""
    return Claim(session_id=session_id, generation=generation, age=0.0)


async def eventually(is_so: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Ask again and again until it is so.

    Args:
        is_so: asks.
        otherwise: what is wrong with the store if it never is.
    """
    deadline = trio.current_time() + PATIENCE
    while not await is_so():
        assert trio.current_time() < deadline, otherwise
        await trio.sleep(TTL * 0.1)
