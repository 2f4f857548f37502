"""What a call to a worker of the same host costs: tasks of Trio and letters. Counted, not timed."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing
from callees import TOO_LONG
from instruments import installed

from trio_sessions import aio, open_registry
from trio_sessions._handlers import Last
from trio_sessions._mail._letters import seal
from trio_sessions._mail._outflow import Outflow
from trio_sessions._orders import Order
from trio_sessions._posting import PostOrder
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore

CALLS = 20


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield name


async def one(payload: Any) -> AsyncIterator[Any]:
    """Answer as the tunnel of an MCP server does where an answer is short."""
    yield Last(payload)


class Tasks(trio.abc.Instrument):
    """Counts the tasks that Trio starts."""

    def __init__(self) -> None:
        self.started = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.started += 1


@contextmanager
def letters(*cores: Any) -> Iterator[list[str]]:
    """Note the letters that come to registries in the block, but beats: those come by the clock."""
    come: list[str] = []

    def noting(receive: Any) -> Any:
        def note(text: str) -> None:
            if not text.startswith(('[["beat"', '[["alive"')):
                come.append(text)
            receive(text)

        return note

    offices = [core._house._mail._office for core in cores]
    for office in offices:
        office.receive = noting(office.receive)
    try:
        yield come
    finally:
        for office in offices:
            del office.receive


async def test_a_short_answer_takes_two_letters_and_one_task(folder: str) -> None:
    """The task that runs the handler; nothing is left in the database."""
    store = FaultyStore(MemoryStore())
    settings: dict[str, Any] = {"mail_sockets": folder, "cleanup_interval": 1e5, "session_ttl": 1e6}
    async with (
        open_registry(store, handlers={"one": one}, worker_id="callee", **settings) as callee,
        open_registry(store, **settings) as caller,
    ):
        [to] = [w.incarnation for w in await caller.workers.list() if w.worker_id == "callee"]

        async def call() -> None:
            with trio.fail_after(TOO_LONG):
                async with caller.workers.stream(to, "one", 1, timeout=TOO_LONG) as items:
                    assert [item async for item in items] == [1]

        await call()  # which connects
        with installed(Tasks()) as tasks, letters(caller, callee) as come:
            for _ in range(CALLS):
                await call()
        assert tasks.started == CALLS
        assert len(come) == 2 * CALLS
        assert store.calls["Post"] == 0


def test_a_caller_on_asyncio_takes_no_task_of_trios(folder: str) -> None:
    """To ask and to wait for the answer; the one task is that of the handler."""

    async def main() -> None:
        store = MemoryStore()
        settings: dict[str, Any] = {
            "mail_sockets": folder,
            "cleanup_interval": 1e5,
            "session_ttl": 1e6,
        }
        async with (
            aio.SessionRegistry(
                store, handlers={"one": one}, worker_id="callee", **settings
            ) as callee,
            aio.SessionRegistry(store, **settings) as caller,
        ):
            [to] = [w.incarnation for w in await caller.workers.list() if w.worker_id == "callee"]

            async def call() -> None:
                async with caller.workers.stream(to, "one", 1, timeout=TOO_LONG) as items:
                    assert [item async for item in items] == [1]

            await call()
            cores = [registry._opened().core for registry in (caller, callee)]
            with installed(Tasks()) as tasks, letters(*cores) as come:
                for _ in range(CALLS):
                    await call()
            assert tasks.started == CALLS
            assert len(come) == 2 * CALLS

    asyncio.run(asyncio.wait_for(main(), TOO_LONG))


def test_a_silent_worker_is_noticed_on_asyncio() -> None:
    """Though no task of Trio's waits for it."""

    async def main() -> None:
        store = MemoryStore()
        async with (
            aio.SessionRegistry(store, worker_id="collects no letters"),
            aio.SessionRegistry(store) as caller,
            caller.workers.stream("collects no letters", "one", 1, timeout=0.2) as items,
        ):
            with pytest.raises(TimeoutError, match="gave no sign of life"):
                await anext(items)

    asyncio.run(asyncio.wait_for(main(), TOO_LONG))


class Near:
    """A sender to a worker that is near, and whose socket takes so many letters at once."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.left: list[str] = []
        self.waited_for: list[Order[int] | None] = []

    def is_near(self, to: str) -> bool:
        return True

    def post_nowait(self, to: str, text: str) -> Order[int] | None:
        self.takes -= 1
        if self.takes < 0:
            return PostOrder(text, to=to)
        self.left.append(text)
        return None

    async def deliver(self, to: str, text: str, order: Order[int] | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self.waited_for.append(order)
        self.left.append(text)


@pytest.mark.parametrize("takes", range(4))
async def test_items_leave_in_order_where_some_have_to_wait(takes: int) -> None:
    """Each once; a task is started where one waits, for the letter that is on its way first."""
    sender: Any = Near(takes)
    outflow = Outflow(sender, "caller", 7, 10)
    started = 0
    async with trio.open_nursery() as nursery:

        def start() -> None:
            nonlocal started
            started += 1
            nursery.start_soon(outflow.send)

        outflow.send_by(start)
        for item in ("1", "2"):
            outflow.put(item)
        outflow.put("3", is_last=True)
    first = seal("items", 7, 0, contents="[1]")
    if takes == 0:  # what came while the first one waited goes together
        expected = [first, seal("last", 7, 1, 3, contents="[2,3]")]
    else:
        second, last = seal("items", 7, 1, contents="[2]"), seal("last", 7, 2, 3, contents="[3]")
        expected = [first, second, last]
    assert sender.left == expected
    assert started == (takes < 3)
    waited = [one is not None for one in sender.waited_for]
    assert waited == {0: [True, False], 1: [True, False], 2: [True], 3: []}[takes]
    assert outflow.left == 3
