"""The example for mcp-context-forge, on a stand-in that has the gateway's names and signatures.

The gateway itself is looked at by `make gateway-check`, in an environment of its own.
"""

import asyncio
import logging
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trio_sessions import InvalidSessionId
from trio_sessions.testing import FakeTransport
from trio_sessions.types import fingerprint

EXAMPLE = Path(__file__).parent.parent / "examples" / "contextforge.py"


class Theirs:
    """The gateway's registry, as far as ours takes from it."""

    async def handle_initialize_logic(
        self, body: Any, session_id: str | None = None, server_id: str | None = None
    ) -> None: ...

    def _get_oauth_experimental_config(self, server_id: str) -> None: ...

    async def _register_session_mapping(
        self, session_id: str, message: Any, user_email: str | None = None
    ) -> None: ...

    async def generate_response(
        self, message: Any, transport: Any, server_id: str | None, user: Any
    ) -> None: ...


class NotInitialized(RuntimeError):
    """What the gateway raises before it has started."""


class Upstream:
    """What sessions have open at the servers behind the gateway."""

    def __init__(self) -> None:
        self.evicted: list[str] = []
        self.error: Exception | None = None
        self.is_made = True

    def get(self) -> "Upstream":
        if not self.is_made:
            raise NotInitialized
        return self

    async def evict_session(self, downstream_session_id: str) -> int:
        self.evicted.append(downstream_session_id)
        if self.error is not None:
            raise self.error
        return 1


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def make(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return the class that the example puts in the place of the gateway's."""
    modules: dict[str, dict[str, Any]] = {
        "mcpgateway": {},
        "mcpgateway.cache": {},
        "mcpgateway.cache.session_registry": {"SessionRegistry": Theirs},
        "mcpgateway.services": {},
        "mcpgateway.services.upstream_session_registry": {
            "RegistryNotInitializedError": NotInitialized,
            "get_upstream_session_registry": upstream.get,
        },
        "mcpgateway.main": {"app": object()},
    }
    for name, attributes in modules.items():
        module = ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    example = runpy.run_path(str(EXAMPLE), run_name="contextforge")
    placed = sys.modules["mcpgateway.cache.session_registry"].SessionRegistry
    assert placed is example["GatewayRegistry"]
    found: Callable[..., Any] = placed
    return found


@pytest.mark.parametrize("url", [None, ""])
def test_a_database_without_a_url_is_no_silent_memory(
    make: Callable[..., Any], url: str | None
) -> None:
    """Each worker would keep its sessions to itself; memory is had by that name only."""
    with pytest.raises(ValueError, match="CACHE_TYPE=database needs a database_url"):
        make(backend="database", database_url=url)
    with pytest.raises(ValueError, match="CACHE_TYPE=redis is not for trio_sessions"):
        make(backend="redis", redis_url="redis://x", database_url=url)
    make(backend="memory", database_url=url)


@pytest.mark.parametrize("error", [OSError("gone"), ExceptionGroup("both", [OSError("gone")])])
def test_an_error_upstream_is_logged_and_leaves_no_removal(
    make: Callable[..., Any],
    upstream: Upstream,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """The session has ended here, whatever the servers behind the gateway say."""
    upstream.error = error

    async def main() -> None:
        async with make() as registry:
            transport = FakeTransport()
            await registry.add_session("s", transport)
            await registry.remove_session("s")
            assert (transport.disconnects, registry.get_session_sync("s")) == (1, None)
            assert await registry.get_all_session_ids() == []

    asyncio.run(main())
    assert upstream.evicted == ["s"]
    [record] = [one for one in caplog.records if one.name == "contextforge"]
    assert record.levelno == logging.ERROR
    assert fingerprint("s") in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_what_is_open_upstream_is_closed_though_the_removal_fails(
    make: Callable[..., Any], upstream: Upstream
) -> None:
    """The error is that of the removal."""

    async def main() -> None:
        async with make() as registry:
            with pytest.raises(InvalidSessionId):
                await registry.remove_session("s" * 300)

    asyncio.run(main())
    assert upstream.evicted == ["s" * 300]


def test_a_gateway_that_has_not_started_has_nothing_open(
    make: Callable[..., Any], upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    """That is no error, and nothing is logged."""
    upstream.is_made = False

    async def main() -> None:
        async with make() as registry:
            await registry.add_session("s", FakeTransport())
            await registry.remove_session("s")
            assert await registry.get_all_session_ids() == []

    asyncio.run(main())
    assert [one for one in caplog.records if one.name == "contextforge"] == []
