"""What becomes of the sessions of a worker that ends: they move to the others."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import anyio

from trio_sessions._logging import get_logger
from trio_sessions.errors import MessageTooLarge, SessionsError
from trio_sessions.inspection import WorkerState
from trio_sessions.mcp._contracts import Registry, settings_of
from trio_sessions.mcp._held import HeldSession
from trio_sessions.mcp._tunnel import ADOPT

__all__ = ["move_all"]

logger = get_logger("trio_sessions.mcp")

_LETTER = 20  # sessions in one letter
_BESIDE = 1024  # bytes of a letter, beside them, and of a session beside its data
_ANSWER = 4.0  # seconds for one letter: a server that ends is given some 15 for everything
_LOOK = 0.05  # seconds between two looks whether requests have been answered


async def move_all(
    registry: Registry,
    sessions: Iterable[HeldSession],
    *,
    server: str | None,
    patience: float,
    timeout: float,
) -> int:
    """Let other workers adopt sessions; return how many were moved.

    Each goes once its requests have been answered; those that have not been in time go
    nevertheless, and what they run is lost.

    Args:
        registry: that holds them.
        sessions: which.
        server: the name of the SDK's server: workers of another one on this database refuse.
        patience: seconds for which requests may go on.
        timeout: seconds for one letter with some of them, at most; a worker that has not answered
            is asked for no more.
    """
    timeout = min(timeout, _ANSWER)
    silent: set[str] = set()
    waiting = {one.session_id: one for one in sessions}
    moved = 0
    most = settings_of(registry).max_message_bytes - _BESIDE
    deadline = anyio.current_time() + patience
    while waiting:
        is_late = anyio.current_time() >= deadline
        ready = [one for one in waiting.values() if is_late or not one.is_busy]
        for one in ready:
            del waiting[one.session_id]
        others = [one for one in await _others(registry) if one not in silent]
        if ready and not others:
            logger.warning("no other worker is there to take %d sessions over", len(ready))
            return moved
        for i, batch in enumerate(_batches(ready, most)):
            turn = i % len(others)
            order = [one for one in others[turn:] + others[:turn] if one not in silent]
            moved += await _give(registry, batch, order, silent, server, timeout)
        if waiting and not ready:
            await anyio.sleep(_LOOK)
    return moved


def _batches(sessions: list[HeldSession], most: int) -> Iterator[list[HeldSession]]:
    """Iterate over sessions, as many at a time as are in one letter, which has so many bytes."""
    batch: list[HeldSession] = []
    size = 0
    for one in sessions:
        more = len(json.dumps([one.session_id, one.owner, one.data])) + _BESIDE
        if batch and (len(batch) >= _LETTER or size + more > most):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += more
    if batch:
        yield batch


async def _others(registry: Registry) -> list[str]:
    """Return the incarnations of workers that may take sessions."""
    try:
        workers = await registry.workers.list()
    except SessionsError as exc:
        logger.warning("cannot see which other workers there are: %s", exc)
        return []
    return [
        one.incarnation
        for one in reversed(workers)
        if one.state is WorkerState.ALIVE
        and one.worker_id != registry.worker_id
        and not one.draining
    ]


async def _give(  # noqa: PLR0917 -- of this module only
    registry: Registry,
    batch: list[HeldSession],
    others: list[str],
    silent: set[str],
    server: str | None,
    timeout: float,
) -> int:
    """Offer sessions to one worker after another, until they are gone; note who is silent."""
    left = {one.session_id: one for one in batch}
    for to in others:
        payload: dict[str, Any] = {
            "from": registry.worker_id,
            "server": server,
            "sessions": [
                {"id": one.session_id, "owner": one.owner, "data": one.data, "idle": one.idle}
                for one in left.values()
            ],
        }
        try:
            taken = await registry.workers.call(to, ADOPT, payload, timeout=timeout)
        except MessageTooLarge as exc:
            logger.warning("a session is too large to be handed over: %s", exc)
            break
        except (SessionsError, TimeoutError) as exc:
            logger.info("a worker does not take sessions over: %s", exc)
            silent.add(to)
            continue
        for session_id in taken if isinstance(taken, list) else ():
            one = left.pop(session_id, None)
            if one is not None:
                await one.disconnect()  # at once: the registry would at its next look
        if not left:
            break
    return len(batch) - len(left)
