"""Tasks of asyncio that serve one session each, and end with it."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial

import trio

from trio_sessions._table import Entry

__all__ = ["RespondTasks"]

logger = logging.getLogger("trio_sessions.aio")

_Task = asyncio.Task[object]


class RespondTasks:
    """The tasks tied to sessions.

    Attributes:
        refusing: tasks of removed sessions that were cancelled and have not ended.
    """

    def __init__(self) -> None:
        self.refusing: set[_Task] = set()
        self._tied: dict[Entry, set[_Task]] = {}

    def tie(self, entry: Entry, task: _Task) -> None:
        """Let ``task`` end when ``entry`` does."""
        if not task.done():
            self._tied.setdefault(entry, set()).add(task)
            task.add_done_callback(partial(self._untie, entry))

    def release(self, entry: Entry) -> set[_Task]:
        """Untie all tasks of ``entry``, and return them."""
        return self._tied.pop(entry, set[_Task]())

    def spare_current(self) -> None:
        """Spare the running task: it ends its own session, and would wait for itself."""
        current = asyncio.current_task()
        assert current is not None
        for entry in [entry for entry, tasks in self._tied.items() if current in tasks]:
            self._untie(entry, current)

    def _untie(self, entry: Entry, task: _Task) -> None:
        tasks = self._tied.get(entry, set[_Task]())
        tasks.discard(task)
        if not tasks:
            self._tied.pop(entry, None)

    async def end(self, entries: Sequence[Entry], timeout: float) -> None:
        """Cancel the tasks of removed sessions and wait until they end, ``timeout`` at most."""
        tasks: set[_Task] = set()
        for entry in entries:
            tasks |= self.release(entry)
        await self.cancel(tasks, timeout)

    async def cancel(self, tasks: Iterable[_Task], timeout: float) -> None:
        """Cancel ``tasks`` and wait for them; keep those that refuse in mind. Trio's side."""
        waiting, ended = set(tasks), trio.Event()
        if not waiting:
            return

        def notice(task: _Task) -> None:
            waiting.discard(task)
            self.refusing.discard(task)
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
            self.refusing |= waiting
            logger.error(
                "%d respond tasks of removed sessions ignore their cancellation and go on: %s",
                len(waiting),
                ", ".join(sorted(task.get_name() for task in waiting)),
            )
