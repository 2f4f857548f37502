"""Tasks of asyncio that serve one session each, and end with it."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

import trio

from trio_sessions._entry import Entry
from trio_sessions._logging import get_logger

__all__ = ["RespondTasks"]

logger = get_logger("trio_sessions.aio")

_Task = asyncio.Task[object]


class RespondTasks:
    """The tasks tied to sessions: what goes with them, see `trio_sessions._calls.Companions`.

    They are tied to the tenure of a transport, not to one entry: a session that is added again
    with the transport it has keeps its tasks, whatever becomes of the call that added it.
    """

    def __init__(self) -> None:
        self._refusing: set[_Task] = set()
        self._tied: dict[object, set[_Task]] = {}

    @property
    def refusing(self) -> int:
        """How many tasks of removed sessions were cancelled and have not ended."""
        return len(self._refusing)

    def tie(self, entry: Entry, task: _Task) -> None:
        """Tie ``task`` to a session: it is cancelled when the session is removed."""
        if not task.done():
            self._tied.setdefault(entry.tenure, set()).add(task)
            task.add_done_callback(partial(self._untie, entry.tenure))

    def spare_current(self) -> None:
        """Spare the running task: it ends its own session, and would wait for itself."""
        current = asyncio.current_task()
        assert current is not None
        for tenure in [tenure for tenure, tasks in self._tied.items() if current in tasks]:
            self._untie(tenure, current)

    def _untie(self, tenure: object, task: _Task) -> None:
        tasks = self._tied.get(tenure, set[_Task]())
        tasks.discard(task)
        if not tasks:
            self._tied.pop(tenure, None)

    def accompanied(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return those of these sessions that have tasks."""
        return [entry for entry in entries if entry.tenure in self._tied]

    async def end(self, entry: Entry, timeout: float) -> None:
        """Cancel the tasks of a removed session and wait until they end, ``timeout`` at most."""
        await self.cancel(self._tied.pop(entry.tenure, ()), timeout)

    async def cancel(self, tasks: Iterable[_Task], timeout: float) -> None:
        """Cancel ``tasks`` and wait for them; keep those that refuse in mind. Trio's side."""
        waiting, ended = set(tasks), trio.Event()
        if not waiting:
            return

        def notice(task: _Task) -> None:
            waiting.discard(task)
            self._refusing.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                logger.warning("a respond task failed while it ended", exc_info=error)
            if not waiting:
                ended.set()

        for task in waiting:
            task.add_done_callback(notice)
            task.cancel()
        with trio.move_on_after(timeout):
            await ended.wait()
        if waiting:
            self._refusing |= waiting
            logger.error(
                "%d respond tasks of removed sessions ignore their cancellation and go on: %s",
                len(waiting),
                ", ".join(sorted(task.get_name() for task in waiting)),
            )
