"""Calls into transports: each with a deadline, none able to hold up the others.

A transport is foreign code: it may wait for ever, raise anything, or refuse to be
cancelled (a blocking thread, a shielded scope). So the calls run in tasks of their own, which
belong to a `CallHost`. The caller waits for the answers until the deadline and no longer;
a call that ignores its cancellation is left behind there, counted, and not repeated until
it has ended. See docs/decisions/0002-transports-in-a-system-task.md.
"""

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any, Protocol

import trio

from trio_sessions._entry import Entry
from trio_sessions._farewell import disconnecting, telling
from trio_sessions._logging import get_logger
from trio_sessions._one_call import Enter, interruptibly, to_its_end
from trio_sessions._rounds import (
    Answer,
    CallHost,
    Listener,
    Round,
)
from trio_sessions._running import Running, Scope
from trio_sessions.types import OnRemoved, fingerprint

__all__ = [
    "PARTING",
    "Answer",
    "Companions",
    "Listener",
    "OpenHost",
    "TransportCalls",
    "TrioHost",
    "check_transport",
]

logger = get_logger("trio_sessions.transports")

PARTING = 0.5  # seconds that cancelled calls get to unwind when the registry closes


class OpenHost(CallHost, Protocol):
    """A host with a lifetime."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Host calls for the block; then cancel them and wait, at most `PARTING` seconds."""
        ...


class Companions(Protocol):
    """What goes with a session besides its transport, and ends with it."""

    @property
    def refusing(self) -> int:
        """How many were told to end, and have not ended."""
        ...

    def accompanied(self, entries: Sequence[Entry]) -> Collection[Entry]:
        """Return those of these sessions with which something goes."""
        ...

    async def end(self, entry: Entry, timeout: float) -> None:
        """End what goes with a session that is gone, within ``timeout`` seconds."""
        ...


class TrioHost:
    """A nursery in a system task: it outlives the calls, whatever becomes of the registry."""

    ends_loop: tuple[type[BaseException], ...] = ()

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    @property
    def cancelled(self) -> tuple[type[BaseException], ...]:
        asyncio = sys.modules.get("asyncio")  # a transport may wait for a task of it
        foreign = () if asyncio is None else (asyncio.CancelledError,)
        return (trio.Cancelled, GeneratorExit, *foreign)

    def start(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(task)

    def scope(self) -> AbstractContextManager[Scope]:
        return trio.CancelScope()

    def limit(self, scope: Scope, seconds: float) -> None:
        assert isinstance(scope, trio.CancelScope)
        scope.deadline = trio.current_time() + seconds

    def cancellation(self, *, thorough: bool) -> Callable[[], object]:
        return trio.current_effective_deadline if thorough else float

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()

    def check(self, request: object) -> None:
        kind = request if isinstance(request, type) else type(request)
        if kind.__module__.partition(".")[0] != "trio":  # Trio would end the task, without a word
            raise TypeError(
                f"a transport given to trio_sessions must be Trio's; this one awaits "
                f"{kind.__module__}.{kind.__name__}: for one of asyncio use "
                "trio_sessions.aio, or asyncio_transport() under trio-asyncio"
            )

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """See `OpenHost.open`. A call that goes on is left to Trio until the run ends."""
        opened, ended = trio.Event(), trio.Event()

        async def host() -> None:
            try:
                async with trio.open_nursery() as self._nursery:
                    opened.set()
                    await trio.sleep_forever()
            finally:
                ended.set()

        trio.lowlevel.spawn_system_task(host, name="trio_sessions: calls into transports")
        with trio.CancelScope(shield=True):
            await opened.wait()
        assert self._nursery is not None
        try:
            yield
        finally:
            self._nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PARTING):
                await ended.wait()


class TransportCalls:
    """The calls of one registry.

    Args:
        host: where they run.
        companions: what ends with a session besides its transport, if there is such.
    """

    def __init__(self, host: OpenHost, companions: Companions | None = None) -> None:
        self._host = host
        self._companions = companions
        self._running = Running()

    def overdue(self) -> int:
        """Count the calls that were cancelled and have not ended."""
        return self._running.overdue()

    def refusing_companions(self) -> int:
        """Count what was to end with its session, and has not."""
        return 0 if self._companions is None else self._companions.refusing

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take calls for the block; then cancel what runs, and log what goes on all the same."""
        try:
            async with self._host.open():
                try:
                    yield
                finally:
                    self._running.cancel()
        finally:
            left = self._running.calls
            if left:
                logger.error(
                    "%d calls into transports ignore their cancellation and go on: %s",
                    len(left),
                    ", ".join(
                        f"{name}() of {fingerprint(entry.session_id)}" for entry, name in left
                    ),
                )

    async def check(self, entries: Sequence[Entry], timeout: float) -> dict[Entry, Answer]:
        """Ask each transport whether it is connected, all at once.

        Returns:
            An answer for each entry. One that did not come in ``timeout`` seconds is a
            `TimeoutError`.

        Raises:
            BaseException: what a transport raised that is no `Exception`.

        Cancellation: the calls are cancelled too.
        """
        return await self._round("is_connected", entries, timeout, interruptibly).ask()

    async def disconnect(
        self, entries: Sequence[Entry], timeout: float, listener: Listener
    ) -> None:
        """Disconnect the transports of sessions that are gone, and end what goes with them.

        ``listener`` is told of each that has come to its end, so that none waits for another.
        It raises and is cancelled as `check`. Ctrl-C interrupts no transport's code here, as it
        may in a check: a connection that is to be closed is closed.
        """
        accompanied = self._companions and self._companions.accompanied(entries)
        if not accompanied:
            await self._disconnect(entries, timeout, listener)
            return
        async with trio.open_nursery() as nursery:
            for entry in accompanied:
                nursery.start_soon(self._disconnect_accompanied, entry, timeout, listener)
            rest = [entry for entry in entries if entry not in accompanied]
            if rest:
                await self._disconnect(rest, timeout, listener)

    async def _disconnect_accompanied(
        self, entry: Entry, timeout: float, listener: Listener
    ) -> None:
        assert self._companions is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._companions.end, entry, timeout)
            answers = await self._disconnect([entry], timeout)
        listener.answered(entry, answers[entry])

    async def _disconnect(
        self, entries: Sequence[Entry], timeout: float, listener: Listener | None = None
    ) -> dict[Entry, Answer]:
        one = self._round(
            "disconnect", entries, timeout, to_its_end, listener=listener, method=disconnecting
        )
        return await one.ask()

    async def tell(
        self, on_removed: OnRemoved, entries: Sequence[Entry], timeout: float
    ) -> dict[Entry, Answer]:
        """Tell of sessions that have ended; it returns, raises and is cancelled as `check`."""
        method = partial(telling, on_removed)
        return await self._round("on_removed", entries, timeout, to_its_end, method=method).ask()

    def _round(
        self,
        name: str,
        entries: Sequence[Entry],
        timeout: float,
        enter: Enter,
        *,
        listener: Listener | None = None,
        method: Callable[[Entry], Callable[[], object]] | None = None,
    ) -> Round:
        return Round(
            self._host,
            self._running,
            name,
            entries,
            timeout,
            enter=enter,
            listener=listener,
            method=method,
        )


def check_transport(transport: object) -> None:
    """Raise `TypeError` unless ``transport`` has the methods of one."""
    if isinstance(transport, type):
        raise TypeError(f"transport must be an instance, not the class {transport.__name__}")
    for name in ("is_connected", "disconnect"):
        if not callable(getattr(transport, name, None)):
            raise TypeError(
                f"transport must have an async method {name}(); {type(transport).__name__} has none"
            )
