"""The probes of the example gateways, with a database that a test takes away."""

import asyncio
import runpy
from typing import Any

import httpx
import pytest

from trio_sessions import open_registry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault, FaultyStore

Codes = list[tuple[int, int]]

EXPECTED = [(200, 200), (200, 503), (200, 200), (503, 503)]
"""Of /livez and /readyz: while the database answers, while it does not, again, and at the end."""


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore(MemoryStore())


async def codes(http: httpx.AsyncClient) -> tuple[int, int]:
    live, ready = await http.get("/livez"), await http.get("/readyz")
    assert live.json()["worker_id"] == ready.json()["worker_id"]
    return live.status_code, ready.status_code


async def play(registry: Any, http: httpx.AsyncClient, store: FaultyStore) -> Codes:
    """Take the database away, and bring it back."""
    found = [await codes(http)]
    store.fail(Fault.FAILS)
    await registry.cleanup()
    assert store.faults
    found.append(await codes(http))
    store.heal()
    await registry.cleanup()
    return [*found, await codes(http)]


def test_an_outage_makes_unready_and_restarts_nobody_on_asyncio(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the gateway on FastAPI."""
    monkeypatch.setenv("DATABASE_URL", "memory:")
    gateway = runpy.run_path("examples/fastapi_gateway.py")
    registry = gateway["registry"]
    registry._store = store

    async def main() -> Codes:
        transport = httpx.ASGITransport(gateway["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            async with registry:
                found = await play(registry, http, store)
            return [*found, await codes(http)]

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(main()) == EXPECTED


async def test_an_outage_makes_unready_and_restarts_nobody_on_trio(store: FaultyStore) -> None:
    """Of the gateway on Starlette."""
    app = runpy.run_path("examples/trio_gateway.py")["app"]

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"state": {"registry": registry}}, receive, send)

    transport = httpx.ASGITransport(serve)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        async with open_registry(store) as registry:
            found = await play(registry, http, store)
        assert [*found, await codes(http)] == EXPECTED
