"""What a trial needs of a loop: the same for Trio and for asyncio.

A trial awaits only what its side gives it, so that one text serves both.
"""

import asyncio
import enum
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import anyio
import trio

from trio_sessions import aio, open_registry

__all__ = ["AsyncioSide", "Ended", "Side", "TrioSide", "Way"]

T = TypeVar("T")
Function = Callable[[], Awaitable[object]]


class Way(enum.Enum):
    """How a call is cut."""

    NOT = "not at all"
    TASK = "its task or nursery is cancelled"
    TASK_TWICE = "its task is cancelled, and once more at the next turn"
    SCOPE = "a scope round it is cancelled"
    TIMEOUT = "its loop's own timeout"
    WAIT_FOR = "asyncio.wait_for, trio.fail_after"
    MOVE_ON = "anyio's scope with a deadline"


class Ended(enum.Enum):
    """How a call that may have been cut came out, if it raised nothing else."""

    RETURNED = "returned"
    CUT = "cut"
    NEVER_BEGAN = "never began"


class Door(Protocol):
    """Opens and closes one registry, as often as a trial wants."""

    registry: Any

    async def open(self) -> None: ...

    async def close(self) -> None: ...


class Side(Protocol):
    """One of the two kinds of loop."""

    cancelled: type[BaseException]

    async def turn(self) -> None:
        """Let every other task have a turn."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def refuse(self, seconds: float) -> None:
        """Go on for a while whether cancelled or not."""
        ...

    async def all_of(self, functions: Sequence[Function]) -> None: ...

    async def cut(self, way: Way, after: int, function: Function) -> Ended:
        """Await a function, cut after so many turns of the loop or tenths of a millisecond."""
        ...

    def start(self, function: Function) -> Any:
        """Start a task that outlives its starter; of asyncio only."""
        ...

    def tasks(self) -> list[str]:
        """Name the tasks of this run that have not ended."""
        ...

    def door(self, store: Any, **settings: Any) -> Door: ...


def _began(function: Function) -> tuple[Function, Callable[[], bool]]:
    begun = False

    async def call() -> None:
        nonlocal begun
        begun = True
        await function()

    return call, lambda: begun


# ---- asyncio ----


class _AsyncioDoor:
    def __init__(self, store: Any, settings: dict[str, Any]) -> None:
        self.registry = aio.SessionRegistry(store, **settings)

    async def open(self) -> None:
        await self.registry.initialize()

    async def close(self) -> None:
        await self.registry.shutdown()


class AsyncioSide:
    cancelled: type[BaseException] = asyncio.CancelledError

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def refuse(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(end - loop.time())

    async def all_of(self, functions: Sequence[Function]) -> None:
        await asyncio.gather(*(function() for function in functions))

    def start(self, function: Function) -> "asyncio.Task[None]":
        async def call() -> None:
            await function()

        return asyncio.get_running_loop().create_task(call())

    def tasks(self) -> list[str]:
        return [repr(task) for task in asyncio.all_tasks()]

    def door(self, store: Any, **settings: Any) -> Door:
        return _AsyncioDoor(store, settings)

    async def cut(self, way: Way, after: int, function: Function) -> Ended:
        call, begun = _began(function)
        delay = after / 10_000
        scope = anyio.CancelScope()

        async def bounded() -> None:
            match way:
                case Way.SCOPE:
                    with scope:
                        await call()
                case Way.TIMEOUT:
                    async with asyncio.timeout(delay):
                        await call()
                case Way.WAIT_FOR:
                    await asyncio.wait_for(call(), delay)
                case Way.MOVE_ON:
                    with anyio.move_on_after(delay) as limit:
                        await call()
                    if limit.cancelled_caught:
                        raise TimeoutError
                case _:
                    await call()

        inner = self.start(bounded)
        if way in {Way.TASK, Way.TASK_TWICE, Way.SCOPE}:
            for _ in range(after):
                if inner.done():
                    break
                await asyncio.sleep(0)
            if way is Way.SCOPE:
                scope.cancel()
            else:
                inner.cancel()
            if way is Way.TASK_TWICE:
                await asyncio.sleep(0)
                inner.cancel()
        await asyncio.wait([inner])
        if inner.cancelled():
            return Ended.CUT if begun() else Ended.NEVER_BEGAN
        if isinstance(inner.exception(), TimeoutError):
            return Ended.CUT if begun() else Ended.NEVER_BEGAN
        inner.result()
        assert not inner.cancelling() or way is Way.SCOPE, "it swallowed its cancellation"
        if way is Way.SCOPE and scope.cancelled_caught:
            return Ended.CUT
        return Ended.RETURNED if begun() else Ended.NEVER_BEGAN


# ---- Trio ----


class _TrioDoor:
    """Holds a registry open in a task of the trial's nursery."""

    def __init__(self, nursery: trio.Nursery, store: Any, settings: dict[str, Any]) -> None:
        self.registry: Any = None
        self._nursery = nursery
        self._store = store
        self._settings = settings
        self._stop = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._ended.set()

    async def _hold(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._stop, self._scope, self._ended = trio.Event(), trio.CancelScope(), trio.Event()
        try:
            with self._scope:
                async with open_registry(self._store, **self._settings) as self.registry:
                    task_status.started()
                    await self._stop.wait()
        finally:
            self._ended.set()

    async def open(self) -> None:
        if self._ended.is_set():
            await self._nursery.start(self._hold)
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        self._stop.set()
        try:
            await self._ended.wait()
        except trio.Cancelled:
            self._scope.cancel()
            with trio.CancelScope(shield=True):
                await self._ended.wait()
            raise


class TrioSide:
    cancelled: type[BaseException] = trio.Cancelled

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def turn(self) -> None:
        await trio.lowlevel.checkpoint()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def refuse(self, seconds: float) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)

    async def all_of(self, functions: Sequence[Function]) -> None:
        async with trio.open_nursery() as nursery:
            self._start_all(nursery, functions)

    @staticmethod
    @trio.lowlevel.enable_ki_protection
    def _start_all(nursery: trio.Nursery, functions: Sequence[Function]) -> None:
        """Start them where no press comes: in `start_soon` Trio itself may lose a task by one."""
        for function in functions:
            nursery.start_soon(function)

    def start(self, function: Function) -> Any:
        raise AssertionError("Trio has no tasks without a nursery")

    def tasks(self) -> list[str]:
        waiting, found = [trio.lowlevel.current_root_task()], []
        while waiting:
            task = waiting.pop()
            if task is not None:
                found.append(task.name)
                waiting += [one for nursery in task.child_nurseries for one in nursery.child_tasks]
        return found

    def door(self, store: Any, **settings: Any) -> Door:
        return _TrioDoor(self._nursery, store, settings)

    async def cut(self, way: Way, after: int, function: Function) -> Ended:
        call, begun = _began(function)
        delay = after / 10_000
        returned = False

        async def bounded() -> None:
            nonlocal returned
            match way:
                case Way.TIMEOUT:
                    with trio.move_on_after(delay):
                        await call()
                        returned = True
                case Way.WAIT_FOR:
                    with suppress(trio.TooSlowError), trio.fail_after(delay):
                        await call()
                        returned = True
                case Way.MOVE_ON:
                    with anyio.move_on_after(delay):
                        await call()
                        returned = True
                case _:
                    await call()
                    returned = True

        if way not in {Way.TASK, Way.TASK_TWICE, Way.SCOPE}:
            await bounded()
        else:
            error: Exception | None = None

            async def kept() -> None:  # a nursery would wrap it
                nonlocal error
                try:
                    await bounded()
                except Exception as exc:  # noqa: BLE001 -- raised below
                    error = exc

            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(kept)
                    for _ in range(after):
                        if not nursery.child_tasks:
                            break
                        await trio.lowlevel.checkpoint()
                    (scope if way is Way.SCOPE else nursery.cancel_scope).cancel()
            if error is not None:
                raise error
        if returned:
            return Ended.RETURNED
        return Ended.CUT if begun() else Ended.NEVER_BEGAN


def choose(rng: random.Random, ways: Sequence[Way], *, uncut: float) -> tuple[Way, int]:
    """Choose how to cut a call, and after how many turns or tenths of a millisecond."""
    if rng.random() < uncut:
        return Way.NOT, 0
    return rng.choice(ways), rng.choice([0, 1, 2, 3, rng.randrange(12), rng.randrange(100)])
