"""The registry of the other library: one line, which names what to import instead."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import pytest
import trio
import trio_asyncio

from trio_sessions import SessionRegistry, aio, open_registry, serve_registry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "add_session": ("s", FakeTransport()),
    "set_session_owner": ("s", "me"),
    "claim_session_owner": ("s", "me"),
    "store_client_capabilities": ("s", {}),
    "broadcast": ("s", "message"),
    "respond": ("s", print),
    "cleanup": (),
    "get_all_session_ids": (),
    "get_elicitation_capable_sessions": (),
}
METHODS = sorted(
    name
    for name, method in vars(SessionRegistry).items()
    if inspect.iscoroutinefunction(method) and not name.startswith("_")
)


def call(registry: SessionRegistry, name: str) -> Coroutine[Any, Any, object]:
    called: Coroutine[Any, Any, object] = getattr(registry, name)(*ARGUMENTS.get(name, ("s",)))
    return called


async def enter(manager: Any) -> None:
    async with manager:
        raise AssertionError("not reached")


@pytest.fixture
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Any:
    with caplog.at_level(logging.INFO):
        yield
    assert [record for record in caplog.records if record.name.startswith("trio_sessions")] == []


@pytest.mark.usefixtures("nothing_logged")
@pytest.mark.parametrize("opening", [lambda s: enter(open_registry(s)), serve_registry])
def test_opening_it_in_an_asyncio_program(
    opening: Callable[[MemoryStore], Coroutine[Any, Any, object]],
) -> None:
    """The store is not asked, and no coroutine is left over."""
    store = FaultyStore(MemoryStore())
    with pytest.raises(RuntimeError, match=r"^[^\n]*trio_sessions\.aio\.SessionRegistry$"):
        asyncio.run(opening(store))  # type: ignore[arg-type]
    assert store.calls == {}


@pytest.mark.usefixtures("nothing_logged")
def test_opening_it_where_no_loop_runs() -> None:
    with pytest.raises(RuntimeError, match=r"no Trio runs here: await it inside trio\.run\(\)"):
        enter(open_registry()).send(None)


@pytest.mark.usefixtures("nothing_logged")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_an_asyncio_program(name: str) -> None:
    """In another thread than the registry's, say; nothing has changed."""

    async def main() -> None:
        async with open_registry() as registry:
            await registry.add_session("s", FakeTransport())

            def in_a_thread() -> None:
                with pytest.raises(RuntimeError, match=r"trio_sessions\.aio\.SessionRegistry$"):
                    asyncio.run(call(registry, name))
                with pytest.raises(RuntimeError, match="no Trio runs here"):
                    call(registry, name).send(None)

            before = registry.statistics()
            await trio.to_thread.run_sync(in_a_thread)
            assert registry.statistics() == before
            assert registry.get_session_sync("s") is not None

    trio.run(main)


def test_in_asyncios_part_of_a_program_on_trio_asyncio() -> None:
    """Where Trio runs too, but this task is asyncio's."""

    async def main() -> None:
        async with trio_asyncio.open_loop(), open_registry() as registry:
            with pytest.raises(RuntimeError, match=r"asyncio runs here: use trio_sessions\.aio"):
                await trio_asyncio.aio_as_trio(registry.add_session)("s", FakeTransport())
            await registry.add_session("s", FakeTransport())

    trio.run(main)


@pytest.mark.parametrize("name", ["initialize", "shutdown", "__aenter__"])
def test_asyncios_registry_in_a_trio_program(name: str) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"^[^\n]*use trio_sessions\.open_registry$"):
            await getattr(aio.SessionRegistry(), name)()

    trio.run(main)


@pytest.mark.parametrize("name", ["initialize", "shutdown", "__aenter__"])
def test_asyncios_registry_where_no_loop_runs(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"no event loop runs here: await it inside asyncio"):
        getattr(aio.SessionRegistry(), name)().send(None)


def test_asyncios_open_registry_called_from_trio() -> None:
    """A method of one that is open, from a Trio program in another thread."""

    async def main() -> None:
        async with aio.SessionRegistry() as registry:
            calls: list[Callable[[], Awaitable[object]]] = [
                partial(registry.add_session, "s", FakeTransport()),
                registry.cleanup,
                partial(registry.broadcast, "s", 1),
                registry.shutdown,
            ]

            def in_a_thread(method: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(RuntimeError, match=r"use trio_sessions\.open_registry$"):
                    trio.run(method)

            for method in calls:
                await asyncio.to_thread(in_a_thread, method)

    asyncio.run(main())
