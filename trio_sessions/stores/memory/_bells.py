"""The bells of the workers in memory. They belong to one Trio run."""

import trio

__all__ = ["Bells", "MemoryBell"]


class MemoryBell:
    """The bell of one worker, rung by whoever stores something for it."""

    def __init__(self) -> None:
        self._rung: set[str] = set()
        self._event = trio.Event()

    def ring(self, session_id: str) -> None:
        """Wake the worker; see `trio_sessions.abc.Bell.wait`."""
        self._rung.add(session_id)
        self._event.set()

    async def wait(self) -> frozenset[str]:
        """Wait until it is rung; see `trio_sessions.abc.Bell.wait`."""
        await self._event.wait()
        rung, self._rung, self._event = frozenset(self._rung), set(), trio.Event()
        return rung


class Bells(dict[str, MemoryBell]):
    """The bells that are open, by incarnation."""

    def ring(self, incarnation: str, session_id: str) -> None:
        """Ring for a worker, if it listens."""
        bell = self.get(incarnation)
        if bell is not None:
            bell.ring(session_id)
