"""Trials of Ctrl-C: one press or two, at any moment, real signals in the main thread.

The second press is raised wherever asyncio's loop is, in its own code too, and may then cost a
callback that somebody waits for: about one in a hundred programs on plain asyncio stalls, and one
more press ends it. So it must be with a registry.
"""

import contextlib
import enum
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import trio

import trio_sessions
from trials.hosts import PLAIN, HalfClosed, run_on
from trials.sides import Side
from trials.world import TIMEOUT, UnevenStore, Wrong, expect
from trio_sessions.stores.memory import MemoryStore

__all__ = ["PressTrial"]

_OURS = str(Path(trio_sessions.__file__).parent)
_GAP = 0.02  # seconds between two presses, at most
_STALLED = 4.0  # seconds after two presses that have not ended a program of asyncio


class _Stage(enum.Enum):
    """What goes on when the first press may come."""

    OPENING = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()


class _Presses:
    """Presses Ctrl-C, at a moment or at a line of our code.

    By the clock a press mostly finds the loop waiting. By the line it finds what is delicate,
    and the same line when the seed is tried again.
    """

    def __init__(self, rng: random.Random, count: int, *, by_line: bool, may_stall: bool) -> None:
        self.made = 0
        self.stalled = False
        """One more press was needed."""
        self._may_stall = may_stall
        self._is_over = False
        self._rng = rng
        self._left = count
        self._by_line = by_line
        self._lines = rng.randrange(rng.choice([30, 300, 1500]))
        self._everywhere = rng.random() < 0.3  # in what ours calls, too
        self._tracer: Any = None

    def arm(self) -> None:
        if not self._by_line:
            self._press_in(self._rng.random() * self._rng.choice([0.001, 0.005, 0.02]))
        else:
            self._tracer = sys.gettrace()
            sys.settrace(self._on_call)

    def disarm(self) -> None:
        self._left, self._is_over = 0, True
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        if self._by_line:
            sys.settrace(self._tracer)

    def _press_in(self, seconds: float) -> None:
        signal.signal(signal.SIGALRM, self._on_time)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    def _on_time(self, number: int, frame: FrameType | None) -> None:
        if self._left > 0:
            self._press()
        elif not self._is_over:
            self.stalled = True
            signal.raise_signal(signal.SIGINT)

    def _on_call(self, frame: FrameType, event: str, argument: object) -> Any:
        if self._everywhere:
            at: FrameType | None = frame
            while at is not None and not at.f_code.co_filename.startswith(_OURS):
                at = at.f_back
            return None if at is None else self._on_line
        return self._on_line if frame.f_code.co_filename.startswith(_OURS) else None

    def _on_line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and self._left > 0:
            self._lines -= 1
            if self._lines < 0:
                self._lines = self._rng.randrange(300)
                self._press()
        return self._on_line

    def _press(self) -> None:
        self._left -= 1  # below zero, if the clock was between the look and this
        self.made += 1
        if self._left > 0:  # an error that a tracer lets out ends the tracing
            self._press_in(self._rng.random() * self._rng.choice([_GAP, _GAP / 10]))
        elif self._may_stall:
            self._press_in(_STALLED)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0.0)  # by the line, the last may come early
        signal.raise_signal(signal.SIGINT)


class _Connection:
    def __init__(self, side: Side, seconds: float) -> None:
        self.disconnects = 0
        self._side = side
        self._seconds = seconds

    async def is_connected(self) -> bool:
        if self._seconds > 0.002:
            await self._side.sleep(self._seconds / 4)
        return True

    async def disconnect(self) -> None:
        self.disconnects += 1
        await self._side.sleep(self._seconds)


class _NoRegistry:
    """What a program on plain asyncio would have in its place."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._connections: dict[str, _Connection] = {}

    async def add_session(self, session_id: str, connection: _Connection) -> None:
        self._connections[session_id] = connection

    async def remove_session(self, session_id: str) -> None:
        await self._connections.pop(session_id).disconnect()

    async def cleanup(self) -> None:
        await self._side.all_of([one.is_connected for one in self._connections.values()])

    async def close(self) -> None:
        await self._side.all_of([one.disconnect for one in self._connections.values()])


# Between the end of a block and its ``__aexit__`` a press skips the latter, as Python is made
# (bpo-29988): no context manager can help it, so these two are not where it is tried.
@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def _open(host: str, side: Side, store: Any) -> AsyncIterator[Any]:
    if host == PLAIN:
        plain = _NoRegistry(side)
        try:
            yield plain
        finally:
            await plain.close()
        return
    settings: dict[str, Any] = {
        "check_timeout": TIMEOUT,
        "disconnect_timeout": 1.0,
        "cleanup_interval": 1000.0,
    }
    if host == "Trio":
        async with trio_sessions.open_registry(store, **settings) as registry:
            yield registry
    else:
        from trio_sessions.aio import SessionRegistry

        async with SessionRegistry(store, **settings) as registry:
            yield registry


class PressTrial:
    """One trial, in this thread.

    Attributes:
        made: how many presses came in time.
        stalled: whether it took one more.
        is_thread_spoilt: a loop was left half closed: nothing more can be tried here.
    """

    def __init__(self, host: str, seed: int, count: int) -> None:
        self._host = host
        self._rng = random.Random(seed)
        by_line = host != PLAIN and self._rng.random() < 0.5
        may_stall = host != "Trio" and count == 2
        self._presses = _Presses(self._rng, count, by_line=by_line, may_stall=may_stall)
        self._is_one = count == 1
        self._stage = self._rng.choice(list(_Stage))
        self._store = MemoryStore()
        self._finished = False
        self.is_thread_spoilt = False

    @property
    def made(self) -> int:
        return self._presses.made

    @property
    def stalled(self) -> bool:
        return self._presses.stalled

    def run(self) -> None:
        """Make the trial.

        Raises:
            Wrong: something was not as it must be.
        """
        ended: BaseException | None = None
        try:
            try:
                run_on(self._host, self._main)
            finally:
                self._presses.disarm()
        except HalfClosed:
            if self._is_one:
                raise Wrong("one press has hit the loop in its close()") from None
            self.is_thread_spoilt = True
            return
        except BaseException as exc:  # noqa: BLE001 -- it is looked at
            ended = exc
            self._presses.disarm()  # a press may have come in the middle of it
        in_order = ended is None and (self._finished or not self.made)
        if not (in_order or _is_interrupt(ended) or (not self._is_one and _is_asyncios(ended))):
            raise Wrong(f"after {self.made} presses it ended by {ended!r}") from ended
        if self._is_one:  # a second one says not to wait for an orderly end
            expect("rows left", sorted(self._store._rows), [])
        if self._host != PLAIN:
            _try_again(self._host)

    def _reach(self, stage: _Stage) -> None:
        if stage is self._stage:
            self._presses.arm()

    @trio.lowlevel.enable_ki_protection
    async def _main(self, side: Side) -> None:
        try:
            await self._use_a_registry(side)
        finally:
            if self._is_one or self._host == "Trio":
                self._presses.disarm()  # a later one would meet a loop that is being taken apart
        self._finished = True

    @trio.lowlevel.enable_ki_protection
    async def _use_a_registry(self, side: Side) -> None:
        rng, seconds = self._rng, self._rng.choice([0.0, 0.001, 0.01])
        connections = [_Connection(side, seconds) for _ in range(rng.randint(5, 40))]
        self._reach(_Stage.OPENING)
        async with _open(self._host, side, UnevenStore(self._store, rng)) as registry:

            async def use(number: int) -> None:
                await registry.add_session(f"s{number}", connections[number])
                if number % 5 == 0:
                    await registry.cleanup()
                if number % 7 == 0:
                    await registry.remove_session(f"s{number}")

            self._reach(_Stage.OPEN)
            await side.all_of([partial(use, number) for number in range(len(connections))])
            self._reach(_Stage.CLOSING)


def _is_interrupt(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_interrupt(one) for one in error.exceptions)
    return isinstance(error, KeyboardInterrupt)


def _is_asyncios(error: BaseException | None) -> bool:
    """Say whether a second press has made it of asyncio's own loop, as it is taken apart."""
    return isinstance(error, RuntimeError) and "stopped before Future completed" in str(error)


def _try_again(host: str) -> None:
    """Open a registry in the same thread: nothing of the last one is in its way."""
    checked = []

    async def main(side: Side) -> None:
        async with _open(host, side, MemoryStore()) as registry:
            await registry.add_session("s", _Connection(side, 0.0))
            checked.append((await registry.cleanup()).checked)

    with contextlib.suppress(KeyboardInterrupt):
        run_on(host, main)
    expect("checked in the same thread afterwards", checked, [1])
