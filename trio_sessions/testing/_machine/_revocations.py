"""Sessions that are ended for good: what a `RegistryMachine` asks, and what must follow."""

from collections.abc import Awaitable, Callable

import trio

from trio_sessions.abc import Part
from trio_sessions.errors import SessionRevoked, SessionsError
from trio_sessions.testing._machine._door import Reach
from trio_sessions.testing._machine._lines import Line
from trio_sessions.testing._machine._model import FleetModel, require
from trio_sessions.testing._machine._workers import LiveWorker

__all__ = ["Revocations"]

_SLACK = 1.0  # seconds for which a store's clock may show a mark longer than ours does


class Revocations:
    """Adds that may be refused, and the revocations that are the reason.

    Args:
        model: is told of them.
        ttl: seconds for which an id is refused.
    """

    def __init__(self, model: FleetModel, ttl: float) -> None:
        self._model = model
        self._ttl = ttl
        self._certain_until: dict[str, float] = {}
        """Until then a mark counts for sure."""

    def add(
        self, worker: LiveWorker, session_id: str, line: Line, *, again: bool = False
    ) -> Callable[[], Awaitable[None]]:
        """Return what gives a session to a worker, and notes that it does.

        Args:
            worker: is given it.
            session_id: its id.
            line: its transport.
            again: only if the worker holds it with this transport: a pass of its own may have
                ended both since they were looked at, and what has been ended is not added.
        """
        is_well = worker.door.is_straight

        async def add() -> None:
            if again and worker.registry.get_session_sync(session_id) is not line:
                return
            self._model.added(worker.name, session_id, line, now=trio.current_time())
            try:
                await worker.registry.add_session(session_id, line)
            except SessionRevoked:
                require(
                    self._model.may_be_refused(session_id, trio.current_time()),
                    f"session {session_id!r} was refused as revoked by {worker.name}, and is not",
                )
                self._model.refused(worker.name, session_id, line)
            else:
                counts = trio.current_time() < self._certain_until.get(session_id, 0.0)
                require(
                    not (counts and is_well),
                    f"session {session_id!r} is revoked, and {worker.name} has taken it",
                )

        return add

    async def revoke(self, worker: LiveWorker, session_id: str) -> bool:
        """Let a worker revoke a session, whoever holds it; return whether it may have been done.

        A worker that is held up is not asked: what it asks for may be done at any later time.
        """
        door, registry = worker.door, worker.registry
        if door.reach is Reach.HELD or Part.REVOCATION not in door.parts:
            return False
        commits, began = door.reach.commits, trio.current_time()
        try:
            await registry.revoke(session_id)
        except SessionsError as exc:
            if door.reach is Reach.WELL:
                raise AssertionError(
                    f"all is well, and {worker.name} cannot revoke {session_id!r}"
                ) from exc
        else:
            require(commits, f"{worker.name} has revoked {session_id!r} without the store")
        if not commits:
            return False
        self._model.revoked(session_id, until=trio.current_time() + self._ttl + _SLACK)
        self._certain_until[session_id] = began + self._ttl
        if door.reach is Reach.WELL:
            require(
                registry.get_session_sync(session_id) is None,
                f"{worker.name} has revoked session {session_id!r}, and holds it still",
            )
        return True
