"""The fleet that a fault happens to: a database, workers with a network each, and a crowd."""

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeAlias

import sqlalchemy as sa
import trio
from fleets import in_thread, owners, quick_store, rows
from proxy import Proxy, open_proxy
from servers import Server, query

from faults.crowd import Crowd
from faults.process import Worker
from trio_sessions import CleanupReport, SessionRegistry, open_registry
from trio_sessions.stores.database import DatabaseStore, metadata

__all__ = ["Arrange", "World", "create_tables", "is_complete", "nothing", "open_world"]

Arrange: TypeAlias = "Callable[[World], AbstractContextManager[object]]"

INTERVAL = 1.0  # seconds between two passes
MESSAGE_TTL = 6 * 3600.0  # seconds; a clock that steps by less makes no message too old
BATCHES = (7, 1000)  # batch_size of each worker
WITHIN = 60.0  # seconds; all is well much sooner, but on a machine that is very busy
OPERATION = 4.0  # seconds that an operation may take


class World:
    """What a fault finds.

    Attributes:
        url: the database itself, where the rows are now.
        entrance: where the workers connect, by a proxy of their own if it is a server.
        server: the server, where there is one; another one after a fail-over.
        stack: what ends with the world.
        make_store: makes a worker's store.
        arranged: what the fault has arranged for itself.
    """

    def __init__(self, url: sa.URL, server: Server | None, session_ttl: float) -> None:
        self.url = self.entrance = url
        self.session_ttl = session_ttl
        self.proxies: list[Proxy] = []
        self.registries: list[SessionRegistry] = []
        self.processes: list[Worker] = []
        self.expired: list[str] = []
        """Sessions of workers that died, or lost their lease: as it must be."""
        self.stack = AsyncExitStack()
        self.arranged: Any = None
        self.crowd: Crowd
        self.nursery: trio.Nursery
        self.log: list[str] = []
        self.make_store: Callable[[sa.URL], DatabaseStore] = partial(
            quick_store, operation_timeout=OPERATION
        )
        self._server = server

    # ---- what faults do with it ----

    @property
    def server(self) -> Server:
        """The PostgreSQL that all connect to."""
        assert self._server is not None
        return self._server

    def move_to(self, server: Server) -> None:
        """Let everybody connect to another server from now on, as when an address moves."""
        self._server, self.url = server, server.url
        for proxy in self.proxies:
            proxy.lead_to(server.url)
            proxy.cut()

    async def enlist(self, **environment: str) -> Worker:
        """Start a worker that is a process of its own, with some sessions."""
        worker = await self.stack.enter_async_context(
            Worker.start(self.url, self.session_ttl, INTERVAL, environment)
        )
        self.processes.append(worker)
        await worker.add(10)
        return worker

    @asynccontextmanager
    async def in_a_pass(self) -> AsyncIterator[None]:
        """Be in the middle of a pass of each worker: the answer to its refresh is under way."""
        for proxy in self.proxies:
            proxy.reset()
            proxy.fall_silent("answers")
        for proxy in self.proxies:
            await proxy.wait_until(partial(_refreshes, proxy))
        yield
        for proxy in self.proxies:
            await proxy.heal()

    # ---- how faults are witnessed ----

    @asynccontextmanager
    async def incomplete_passes(self) -> AsyncIterator[None]:
        """Leave the block when each worker has had a pass that had not all answers."""
        before = [one.statistics().incomplete_passes for one in self.registries]
        yield
        with trio.fail_after(WITHIN):
            for registry, so_far in zip(self.registries, before, strict=True):
                while registry.statistics().incomplete_passes <= so_far:
                    await trio.sleep(0.02)

    async def until_passed(self, holds: Callable[[CleanupReport], bool]) -> None:
        """Wait until each worker has had a pass, from now on, of whose report something holds."""
        before = [one.statistics().passes for one in self.registries]
        with trio.fail_after(WITHIN):
            while not self._have_passed(before, holds):
                await trio.sleep(0.02)

    async def until_said(self, *words: str) -> str:
        """Wait until a worker has logged something with these words, since `listen`."""
        with trio.fail_after(WITHIN):
            while True:
                for line in self.log:
                    if all(word in line for word in words):
                        return line
                await trio.sleep(0.02)

    def listen(self) -> None:
        """Forget what was logged until now."""
        self.log.clear()

    async def age(self) -> float:
        """Return the seconds since the last refresh of any row, on the database's clock."""
        [(seconds,)] = await in_thread(
            query,
            self.url,
            "SELECT extract(epoch FROM clock_timestamp() - max(last_accessed)) FROM trio_sessions",
        )
        return float(seconds)

    # ---- whether all is well ----

    def number_alive(self) -> int:
        """Return how many live sessions there are."""
        return len(self.crowd.alive) + sum(len(one.lives) for one in self.processes)

    def lost(self) -> list[str]:
        """Return the live sessions that were disconnected."""
        found = [one.session_id for one in self.crowd.alive.values() if one.is_lost]
        return [*self.crowd.lost, *found, *(s for one in self.processes for s in one.lost)]

    def _lives(self) -> dict[str, str]:
        lives = {
            one.session_id: self.registries[one.worker].worker_id
            for one in self.crowd.alive.values()
        }
        for process in self.processes:
            lives |= dict.fromkeys(process.lives, process.worker_id)
        return lives

    def _workers(self) -> set[str]:
        running = [one.worker_id for one in self.processes if one.is_running]
        return {one.worker_id for one in self.registries} | set(running)

    async def _held(self) -> list[tuple[str, str]]:
        held = [
            (session_id, registry.worker_id)
            for registry in self.registries
            for session_id in await registry.get_all_session_ids()
        ]
        for process in self.processes:
            held += [(session_id, process.worker_id) for session_id in await process.held()]
        return held

    async def left_over(self) -> list[str]:
        """Return what there is of sessions that do not live any more, or live elsewhere."""
        lives = self._lives().items()
        stored = await in_thread(rows, self.url)
        held = await self._held()
        return sorted({one for one, _ in {*held, *stored.items()} - set(lives)})

    async def what_is_wrong(self) -> dict[str, object]:
        """Compare what is held, what is stored and what lives; say where they differ."""
        try:
            stored, owned = await in_thread(rows, self.url), await in_thread(owners, self.url)
            messages = await in_thread(query, self.url, "SELECT session_id FROM trio_messages")
            workers = await in_thread(query, self.url, "SELECT worker_id FROM trio_workers")
        except sa.exc.OperationalError as exc:
            return {"the database": str(exc)}
        lives, held = self._lives(), await self._held()
        found: dict[str, object] = {
            "not held": dict(lives.items() - set(held)),
            "held": dict(set(held) - lives.items()),
            "held twice": len(held) - len(set(held)),
            "not stored": dict(lives.items() - stored.items()),
            "stored": dict(stored.items() - lives.items()),
            "to be deleted": sum(one.statistics().leftover_rows for one in self.registries),
            "unconfirmed": sum(one.statistics().unconfirmed for one in self.registries),
            "messages": messages,
            "workers": {one for (one,) in workers} ^ self._workers(),
            "under way": self.crowd.is_busy,
        }
        for client in self.crowd.staying:
            found[client.session_id] = client.wrong(owned.get(client.session_id))
        return {name: what for name, what in found.items() if what}

    async def until_well(self) -> dict[str, object]:
        """Wait until all is well: nothing is wrong, a pass was complete, a message has come.

        Returns:
            what is still wrong when that takes too long, or nothing can be mended any more.
        """
        before = [one.statistics().passes for one in self.registries]
        self.crowd.greet()
        deadline = trio.current_time() + WITHIN
        while True:
            has_passed = self._have_passed(before, is_complete)
            if has_passed or self.lost() or trio.current_time() > deadline:
                wrong = await self.what_is_wrong()  # asks the database a lot
                if not has_passed:
                    wrong["passes"] = "no worker, or not each, has had a complete one"
                if not wrong or self.lost() or trio.current_time() > deadline:
                    return wrong
            await trio.sleep(0.1)

    def _have_passed(self, before: list[int], holds: Callable[[CleanupReport], bool]) -> bool:
        for registry, so_far in zip(self.registries, before, strict=True):
            numbers = registry.statistics()
            if numbers.passes <= so_far or numbers.last_report is None:
                return False
            if not holds(numbers.last_report):
                return False
        return True


def is_complete(report: CleanupReport) -> bool:
    """Whether a pass had all answers, and the brake held nobody."""
    return not report.refresh_failures and not report.held


def _refreshes(proxy: Proxy) -> bool:
    return any("UPDATE trio_sessions SET last_accessed" in one for one in proxy.round_trips)


def create_tables(url: sa.URL) -> None:
    """Create all tables of a database that are missing."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    metadata().create_all(engine)
    engine.dispose()


@contextmanager
def nothing(world: World) -> Iterator[None]:
    """Leave a world as it is."""
    yield


class _Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.append(record.getMessage())


@contextmanager
def _heard(log: list[str]) -> Iterator[None]:
    handler, logger = _Heard(log), logging.getLogger("trio_sessions")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@asynccontextmanager
async def open_world(
    url: sa.URL, server: Server | None, session_ttl: float, arrange: Arrange, seed: int
) -> AsyncIterator[World]:
    """Open the workers of a fleet, and let a crowd come to them.

    Args:
        url: of the database.
        server: the test's own server, where it is one.
        session_ttl: of all workers, seconds.
        arrange: what is to be done before they open.
        seed: decides what the crowd does.
    """
    world = World(url, server, session_ttl)
    async with world.stack as stack:
        stack.enter_context(_heard(world.log))
        world.arranged = stack.enter_context(arrange(world))
        await in_thread(create_tables, world.url)  # the workers have little time for it
        for batch_size in BATCHES:
            entrance = world.entrance
            if server is not None:
                world.proxies.append(await stack.enter_async_context(open_proxy(entrance)))
                entrance = world.proxies[-1].url
            registry = open_registry(
                world.make_store(entrance),
                session_ttl=session_ttl,
                cleanup_interval=INTERVAL,
                message_ttl=MESSAGE_TTL,
                batch_size=batch_size,
            )
            world.registries.append(await stack.enter_async_context(registry))
        world.nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(world.nursery.cancel_scope.cancel)
        world.crowd = Crowd(world.registries, world.nursery, random.Random(seed))
        await world.crowd.settle()
        yield world
