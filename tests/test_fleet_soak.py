"""Three workers on a real server, random faults for long: what lives is there in the end.

Sessions come, move to another worker, and die, while the server is killed, frozen, restarted, or
replaced by an older copy of its data, and while networks fall silent or are cut. The server
confirms what it has not written yet, so that each kill loses something. When the faults have
stopped, sessions held, rows and live transports are the same; and no live one was disconnected.

In the gate each fault happens once, in the same order; ``make soak`` goes on for ten minutes, or as
many seconds as ``TRIO_SESSIONS_FLEET_SOAK`` says, from a seed of chance or ``TRIO_SESSIONS_SEED``.
"""

import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio
from fleets import in_thread, quick_store, rows
from proxy import Proxy, open_proxy
from servers import Server, frozen, make_server
from soak import SOAK

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.testing import FakeTransport

LENGTH = float(os.environ.get("TRIO_SESSIONS_FLEET_SOAK", "600" if SOAK else "1"))
SEED = int(os.environ.get("TRIO_SESSIONS_SEED", str(time.time_ns() % 1_000_000) if SOAK else "1"))
INTERVAL, TTL = 2.0, 30.0
WITHIN = 2 * INTERVAL + 2 * TTL  # seconds after the last fault
WORKERS = 3
MOST = 150  # sessions at a time
APART = 2.0  # seconds between two connections of one session

# What is confirmed is written only seconds later.
LAZY = {"synchronous_commit": "off", "wal_writer_delay": "10000ms"}


class Client:
    """One session, as its client knows it: whoever it has connected to last holds it."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.worker = -1
        self.transport = FakeTransport("closed")
        self.before: list[FakeTransport] = []
        """Of connections that it has left, and that nobody has noticed to be closed."""
        self.connected_at = 0.0
        self.is_busy = False

    def leave(self) -> None:
        """Close what is left of it elsewhere: a database that went back may give it life."""
        for transport in self.before:
            transport.state = "closed"

    @property
    def is_lost(self) -> bool:
        """It was disconnected, and has not asked for it."""
        return self.transport.disconnects > 0


class Clients:
    """Come, move and die."""

    def __init__(self, registries: list[SessionRegistry], chance: random.Random) -> None:
        self.counts = Counter[str]()
        self.alive: dict[str, Client] = {}
        self.lost: list[str] = []
        """Were disconnected when nobody had ended them, and have moved or ended since."""
        self._registries = registries
        self._chance = chance
        self._number = 0

    async def run(self) -> None:
        """Go on until cancelled; what has begun goes on to its end."""
        async with trio.open_nursery() as nursery:
            while True:
                self._act(nursery)
                await trio.sleep(self._chance.uniform(0.0, 0.1))

    def _act(self, nursery: trio.Nursery) -> None:
        free = [one for one in self.alive.values() if self._is_free(one)]
        action = self._chance.choice(["come", "come", "come", "move", "die", "remove"])
        if action == "come" and len(self.alive) < MOST:
            self._number += 1
            client = self.alive[f"s{self._number}"] = Client(f"s{self._number}")
            nursery.start_soon(self._connect, client)
        elif action == "come" or not free:
            return
        else:
            client = self._chance.choice(free)
            if client.is_lost:
                self.lost.append(client.session_id)
            if action == "move":
                if self._chance.random() < 0.5:
                    client.transport.state = "closed"
                nursery.start_soon(self._connect, client)
            else:
                del self.alive[client.session_id]
                client.leave()
                if action == "die":
                    client.transport.state = "closed"
                else:
                    nursery.start_soon(self._remove, client)
        self.counts[action] += 1

    def _is_free(self, client: Client) -> bool:
        return not client.is_busy and trio.current_time() - client.connected_at > APART

    async def _connect(self, client: Client) -> None:
        client.is_busy = True
        workers = [one for one in range(WORKERS) if one != client.worker]
        client.worker = self._chance.choice(workers)
        client.before.append(client.transport)
        client.transport = FakeTransport()
        with trio.CancelScope(shield=True):
            await self._registries[client.worker].add_session(client.session_id, client.transport)
        client.connected_at = trio.current_time()
        client.is_busy = False

    async def _remove(self, client: Client) -> None:
        with trio.CancelScope(shield=True):
            await self._registries[client.worker].remove_session(client.session_id)


class Faults:
    """Happen to the server, and to the networks of the workers."""

    def __init__(self, server: Server, proxies: list[Proxy], chance: random.Random) -> None:
        self.counts = Counter[str]()
        self._server = server
        self._proxies = proxies
        self._chance = chance
        self._turn = 0
        self._copy: Path | None = None
        self._all: list[Callable[[], Awaitable[None]]] = [
            self.kill,
            self.freeze,
            self.silence_one,
            self.silence_all,
            self.cut,
            self.restart,
            self.go_back,
        ]

    async def run(self, length: float) -> None:
        """Go on for so many seconds, and until each has happened as often as the others."""
        ends = trio.current_time() + length
        while trio.current_time() < ends:
            self._chance.shuffle(self._all)
            for fault in self._all:
                if self._copy is None:
                    self._copy = await in_thread(self._server.copy)
                await trio.sleep(self._chance.uniform(0.2, 1.0))
                await fault()
                self.counts[fault.__name__] += 1
                if self._chance.random() < 0.6:  # else the next one comes before all is well
                    await trio.sleep(self._chance.uniform(0.0, 2.0))

    async def kill(self) -> None:
        await in_thread(self._server.kill)
        await self._pause()
        await in_thread(self._server.start, **LAZY)

    async def restart(self) -> None:
        await in_thread(self._server.stop)
        await self._pause()
        await in_thread(self._server.start, **LAZY)

    async def go_back(self) -> None:
        assert self._copy is not None
        await in_thread(self._server.kill)
        await in_thread(self._server.go_back, self._copy)
        self._copy = None
        await self._pause()
        await in_thread(self._server.start, **LAZY)

    async def freeze(self) -> None:
        with frozen(*self._server.processes()):
            await self._pause()

    async def silence_one(self) -> None:
        self._turn = (self._turn + 1) % WORKERS  # one after the other: none alone for long
        await self._silence(self._proxies[self._turn])

    async def silence_all(self) -> None:
        await self._silence(*self._proxies)

    async def _silence(self, *proxies: Proxy) -> None:
        directions = self._chance.choice([(), ("to server",), ("to client",), ("answers",)])
        for proxy in proxies:
            proxy.fall_silent(*directions)
        await self._pause()
        for proxy in proxies:
            await proxy.heal()

    async def cut(self) -> None:
        for proxy in self._chance.sample(self._proxies, self._chance.randint(1, WORKERS)):
            proxy.cut()

    async def _pause(self) -> None:
        await trio.sleep(self._chance.uniform(0.0, 3.0))


def what_is_wrong(
    server: Server, registries: list[SessionRegistry], clients: Clients
) -> dict[str, object]:
    """Compare what is held, what is stored and what lives; say where they differ."""
    held = {
        session_id: registry.worker_id
        for registry in registries
        for session_id in registry._house.table.ids()
    }
    lives = {one.session_id: registries[one.worker].worker_id for one in clients.alive.values()}
    stored = rows(server.url)
    statistics = [registry.statistics() for registry in registries]
    return {
        name: found
        for name, found in {
            "not held": dict(lives.items() - held.items()),
            "not stored": dict(lives.items() - stored.items()),
            "held": dict(held.items() - lives.items()),
            "stored": dict(stored.items() - lives.items()),
            "held twice": sum(one.sessions for one in statistics) - len(held),
            "to be deleted": sum(one.leftover_rows for one in statistics),
        }.items()
        if found
    }


@pytest.mark.timeout(LENGTH + WITHIN + 120)
async def test_three_workers_under_random_faults(
    empty_data: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    async with AsyncExitStack() as stack:
        server = stack.enter_context(make_server(empty_data, **LAZY))
        proxies = [await stack.enter_async_context(open_proxy(server.url)) for _ in range(WORKERS)]
        registries = [
            await stack.enter_async_context(
                open_registry(
                    quick_store(proxy.url),
                    session_ttl=TTL,
                    cleanup_interval=INTERVAL,
                    batch_size=(1, 7, 1000)[number],
                )
            )
            for number, proxy in enumerate(proxies)
        ]
        clients = Clients(registries, random.Random(SEED))
        faults = Faults(server, proxies, chance)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.run)
            await faults.run(LENGTH)
            nursery.cancel_scope.cancel()
        stopped = trio.current_time()
        while wrong := await in_thread(what_is_wrong, server, registries, clients):
            if trio.current_time() - stopped > WITHIN:
                break
            await trio.sleep(0.2)
        taken = trio.current_time() - stopped
        rewinds = [one.statistics().database_rewinds for one in registries]
        told = (
            f"seed {SEED}, {LENGTH:g} s: {dict(faults.counts)}; {dict(clients.counts)}; "
            f"{len(clients.alive)} sessions; rewinds {rewinds}; all well after {taken:.1f} s"
        )
        with capsys.disabled() if SOAK else contextlib.nullcontext():
            sys.stdout.write(f"{told}\n")
        lost = [one.session_id for one in clients.alive.values() if one.is_lost]
        assert (lost, clients.lost) == ([], []), told
        assert wrong == {}, told
        assert set(faults.counts) == {fault.__name__ for fault in faults._all}, told
        assert sum(rewinds) > 0, told
