"""What runs beside the caller: jobs that must end once they are begun, and loops that may be cut.

A removal whose caller is cancelled half-way would leave a transport open or a row
behind, so it runs here, shielded, and its caller only waits for it. Everything in a job is
bounded: transports by ``disconnect_timeout``, the store by ``store_timeout``.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import outcome
import trio

from trio_sessions._calls import TransportCalls
from trio_sessions._delivery import Delivery
from trio_sessions._rows import Rows
from trio_sessions._settings import Settings
from trio_sessions._table import Entry, LocalTable, Row
from trio_sessions.errors import SessionsError
from trio_sessions.types import Undelivered, fingerprint

__all__ = ["Jobs"]

logger = logging.getLogger("trio_sessions.registry")


class _Loop:
    """A task that may be cut."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()


class Jobs:
    """The background of one registry."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        table: LocalTable,
        calls: TransportCalls,
        rows: Rows,
        delivery: Delivery,
        settings: Settings,
    ) -> None:
        self.disconnect_failures = 0
        self._delivery = delivery
        self._nursery = nursery
        self._table = table
        self._calls = calls
        self._rows = rows
        self._settings = settings
        self._jobs_under_way: dict[trio.Event, trio.CancelScope] = {}
        self._loops: set[_Loop] = set()

    # ---- jobs ----

    def write_row(self, entry: Entry, earlier: Sequence[Entry] = ()) -> trio.Event:
        """Write the row of a session that was just added, after what ``earlier`` ones write."""
        return self._start(self._write_row, entry, earlier)

    def write_rows(self, entries: Sequence[Entry]) -> trio.Event:
        """Write rows that an earlier attempt could not write; each entry says how that went."""
        for entry in entries:
            entry.row = Row.WRITING
        return self._start(self._write_rows, entries)

    def disconnect(self, entries: Sequence[Entry]) -> trio.Event:
        """Disconnect the transports of sessions that are not held any more."""
        return self._start(self._disconnect, entries)

    def retire(self, entries: Sequence[Entry]) -> trio.Event:
        """Disconnect the transports of removed sessions, then delete their rows.

        What is unread goes to the workers that have taken sessions over.
        """
        self._rows.begin_to_leave(entries)
        return self._start(self._retire, entries, self._delivery.begin_to_end(entries))

    def _start(self, job: Callable[..., Awaitable[None]], *args: Any) -> trio.Event:
        ended = trio.Event()
        scope = self._jobs_under_way[ended] = trio.CancelScope(shield=True)

        async def to_its_end() -> None:
            try:
                with scope:
                    if not self._rows.is_inherited:
                        await job(*args)
            finally:
                del self._jobs_under_way[ended]
                ended.set()

        self._nursery.start_soon(to_its_end, name=job)
        return ended

    async def _write_row(self, entry: Entry, earlier: Sequence[Entry]) -> None:
        await _written(earlier)
        if not self._table.holds(entry):
            entry.note_row(Row.UNWRITTEN)
            return
        await self._write_rows([entry])
        if entry.error is not None:
            logger.warning(
                "session %s is added but unconfirmed, the next pass writes its row: %s",
                fingerprint(entry.session_id),
                entry.error,
            )

    async def _write_rows(self, entries: Sequence[Entry]) -> None:
        with contextlib.suppress(SessionsError):  # each entry says so
            await self._rows.write(entries)

    async def _disconnect(self, entries: Sequence[Entry]) -> None:
        answers = await self._calls.disconnect(entries, self._settings.disconnect_timeout)
        failures = [
            (entry, answer.error)
            for entry, answer in answers.items()
            if isinstance(answer, outcome.Error)
        ]
        self.disconnect_failures += len(failures)
        if failures:
            entry, error = failures[0]
            logger.warning(
                "%d transports did not disconnect; the first is that of session %s: %r",
                len(failures),
                fingerprint(entry.session_id),
                error,
                exc_info=error if logger.isEnabledFor(logging.DEBUG) else None,
            )

    async def _retire(self, entries: Sequence[Entry], unread: list[Undelivered]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._delivery.send_on, unread)
                await self._disconnect(entries)
        finally:
            await self._delivery.acknowledge_for(entries)
            await self._rows.delete(entry.session_id for entry in entries)
            self._rows.have_left([entry for entry in entries if entry.row is not Row.WRITING])
            late = [entry for entry in entries if entry.row is Row.WRITING]
            if late:  # a row comes after its deletion
                self._start(self._await_late_rows, late)

    async def _await_late_rows(self, entries: Sequence[Entry]) -> None:
        await _written(entries)  # whoever writes it deletes it
        self._rows.have_left(entries)

    # ---- loops ----

    def start_interruptible(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that `interrupt` may cut at any checkpoint, or before it has begun."""
        loop = _Loop()
        self._loops.add(loop)
        self._nursery.start_soon(self._until_interrupted, loop, partial(task, *args), name=task)

    async def start_loop(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start a task that `interrupt` may cut, and wait until it reports `started`."""

        async def starting(*, task_status: trio.TaskStatus[None]) -> None:
            loop = _Loop()
            self._loops.add(loop)
            await self._until_interrupted(loop, partial(task, *args, task_status=task_status))

        await self._nursery.start(starting, name=task)

    async def _until_interrupted(self, loop: _Loop, task: Callable[[], Awaitable[None]]) -> None:
        try:
            with loop.scope:
                await task()
        finally:
            self._loops.discard(loop)
            loop.ended.set()

    def interrupt(self) -> None:
        """Cancel the loops and the pass that runs, but no job."""
        for loop in self._loops:
            loop.scope.cancel()

    def abandon(self) -> None:
        """Cancel the jobs as well: in a forked child they are its parent's to do."""
        self.interrupt()
        for scope in self._jobs_under_way.values():
            scope.cancel()

    async def finish_jobs(self) -> None:
        """Wait until no job is under way."""
        while self._jobs_under_way:
            await next(iter(self._jobs_under_way)).wait()

    async def finish(self) -> None:
        """Wait until everything has ended, the interrupted loops too."""
        while self._loops:
            await next(iter(self._loops)).ended.wait()
        await self.finish_jobs()


async def _written(entries: Sequence[Entry]) -> None:
    """Wait until no row of these is being written."""
    for entry in entries:
        while entry.row is Row.WRITING:
            await entry.written()
