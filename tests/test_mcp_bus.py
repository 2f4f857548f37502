"""Subscribers hear what changes at any worker."""

from typing import Any

import anyio
import pytest

pytest.importorskip("mcp")

from mcp.server.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp_fleet import BACKENDS, open_fleet, run

from trio_sessions.stores.memory import MemoryStore

EVENTS: list[ServerEvent] = [
    ToolsListChanged(),
    PromptsListChanged(),
    ResourcesListChanged(),
    ResourceUpdated(uri="file:///x"),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_listeners_of_all_workers_hear_an_event_once(backend: str) -> None:
    """Those of its own worker, too."""

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store) as fleet:
            heard: list[list[Any]] = [[], []]
            buses = [worker.bus for worker in fleet.workers]
            ends = [bus.subscribe(heard[i].append) for i, bus in enumerate(buses)]
            while not heard[1]:  # until the other one listens, which takes a moment
                await buses[0].publish(ToolsListChanged())
                await anyio.sleep(0.05)
            await anyio.sleep(0.2)
            heard[0].clear()
            heard[1].clear()
            for event in EVENTS:
                await buses[0].publish(event)
                await buses[1].publish(event)
            while not all(len(one) == 2 * len(EVENTS) for one in heard):
                await anyio.sleep(0.01)
            for one in heard:
                assert sorted(map(repr, one)) == sorted(map(repr, EVENTS * 2))
            ends[1]()
            await buses[0].publish(ToolsListChanged())
            while len(heard[0]) < 2 * len(EVENTS) + 1:
                await anyio.sleep(0.01)
            assert len(heard[1]) == 2 * len(EVENTS)

    run(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_listeners_here_hear_though_the_database_is_away(backend: str) -> None:
    """The others miss it."""

    async def scenario() -> None:
        store = MemoryStore()
        async with open_fleet(backend, lambda: store, size=1) as fleet:
            heard: list[Any] = []
            worker = fleet.workers[0]
            worker.bus.subscribe(heard.append)
            worker.store.fail()
            await worker.bus.publish(ToolsListChanged())
            assert heard == [ToolsListChanged()]
            worker.store.heal()

    run(backend, scenario)
