"""What one transport does in a round never reaches the others of it."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable

import trio

from trio_sessions import aio, open_registry

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


class Waits:
    """A connection whose every answer waits for the loop."""

    open = True
    sleep: Callable[[float], Awaitable[None]] = staticmethod(asyncio.sleep)

    async def is_connected(self) -> bool:
        await self.sleep(0)
        return True

    async def disconnect(self) -> None:
        await self.sleep(0)
        self.open = False


class CancelsItsTask(Waits):
    async def is_connected(self) -> bool:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return True

    async def disconnect(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()


def test_asyncio_a_transport_that_cancels_its_task_reaches_no_other_check() -> None:
    async def main() -> None:
        async with aio.SessionRegistry() as registry:
            await registry.add_session("a", CancelsItsTask())
            await registry.add_session("b", Waits())
            report = await registry.cleanup()
            assert set(report.check_failures) <= {"a"}, report.check_failures

    asyncio.run(main())


def test_asyncio_a_transport_that_cancels_its_task_reaches_no_other_disconnect() -> None:
    other = Waits()

    async def main() -> None:
        async with aio.SessionRegistry() as registry:
            await registry.add_session("a", CancelsItsTask())
            await registry.add_session("b", other)

    asyncio.run(main())
    assert not other.open


class LeavesAScopeOpen:
    """As one that enters a scope or a nursery by hand, and leaves it in another method."""

    async def is_connected(self) -> bool:
        self.scope = trio.CancelScope()
        self.scope.__enter__()
        return True

    async def disconnect(self) -> None:
        self.scope = trio.CancelScope()
        self.scope.__enter__()
        self.scope.cancel()


class TrioWaits(Waits):
    sleep = staticmethod(trio.sleep)


async def test_trio_a_scope_left_open_reaches_no_other_check() -> None:
    async with open_registry() as registry:
        await registry.add_session("a", LeavesAScopeOpen())
        await registry.add_session("b", TrioWaits())
        await registry.add_session("c", TrioWaits())
        report = await registry.cleanup()
        assert set(report.check_failures) <= {"a"}, report.check_failures


async def test_trio_a_scope_left_open_reaches_no_other_disconnect() -> None:
    others = [TrioWaits(), TrioWaits()]
    async with open_registry() as registry:
        await registry.add_session("a", LeavesAScopeOpen())
        await registry.add_session("b", others[0])
        await registry.add_session("c", others[1])
    assert not any(one.open for one in others)


class Binds:
    seen = ""

    def __init__(self, name: str) -> None:
        self.name = name

    async def is_connected(self) -> bool:
        self.seen = variable.get()
        variable.set(self.name)
        return True

    async def disconnect(self) -> None:
        pass


async def test_trio_a_variable_that_a_transport_sets_is_its_own() -> None:
    a, b = Binds("a"), Binds("b")
    async with open_registry() as registry:
        await registry.add_session("a", a)
        await registry.add_session("b", b)
        await registry.cleanup()
    assert (a.seen, b.seen) == ("none", "none")


def test_asyncio_a_variable_that_a_transport_sets_is_its_own() -> None:
    a, b = Binds("a"), Binds("b")

    async def main() -> None:
        async with aio.SessionRegistry() as registry:
            await registry.add_session("a", a)
            await registry.add_session("b", b)
            await registry.cleanup()

    asyncio.run(main())
    assert (a.seen, b.seen) == ("none", "none")
