"""The behavioural suite on asyncio: the same tests, run in the Trio that the facade runs on.

A test is a Trio function. Here it runs inside the guest run of an asyncio loop, or beside a
loop of trio-asyncio, and the registry it gets is a facade seen through a `View`: each call
goes from Trio to asyncio, through the facade, and back to Trio.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self, cast

import trio
import trio_asyncio
import uvloop

from trio_sessions import (
    CleanupReport,
    RegistryStatistics,
    SessionRegistry,
    SessionStore,
    Transport,
    aio,
)
from trio_sessions.aio._crossing import Crossing
from trio_sessions.aio._service import join_host

__all__ = ["ASYNCIO", "HOSTS", "open_view", "settle"]

Run = Callable[..., Any]


class _Current:
    crossing: Crossing | None = None


_current = _Current()


def _crossing() -> Crossing:
    assert _current.crossing is not None, "this test does not run on a host"
    return _current.crossing


async def _never_ends() -> BaseException:
    raise AssertionError("the host has ended under a test")


async def _hosted(async_fn: Callable[..., Awaitable[object]], *args: Any) -> Any:
    """Run a Trio function in the Trio beside the running asyncio loop."""
    loop = asyncio.get_running_loop()
    host = await join_host(loop)
    _current.crossing = Crossing(loop, _never_ends)
    _current.crossing._nursery = host.nursery
    try:
        return await _current.crossing.call(async_fn, *args)
    finally:
        _current.crossing = None
        host.leave()
        await host.wait_ended()


def _run_on(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    def run(async_fn: Callable[..., Awaitable[object]], *args: Any, **options: Any) -> Any:
        assert options.get("clock") is None, "a mock clock cannot drive asyncio"
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_hosted(async_fn, *args))

    return run


def _run_on_trio_asyncio(
    async_fn: Callable[..., Awaitable[object]], *args: Any, **options: Any
) -> Any:
    async def main() -> Any:
        async with trio_asyncio.open_loop():
            return await trio_asyncio.aio_as_trio(_hosted)(async_fn, *args)

    return trio.run(main, **options)


HOSTS: dict[str, Run] = {
    "asyncio": _run_on(asyncio.SelectorEventLoop),
    "uvloop": _run_on(uvloop.new_event_loop),
    "trio-asyncio": _run_on_trio_asyncio,
}


# ---- from Trio to asyncio ----


async def in_asyncio(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Await an asyncio function in a task of its own; a cancellation is passed on."""
    begun, ended = trio.Event(), trio.Event()

    async def call() -> Any:
        begun.set()
        return await function(*args)

    task = _crossing().loop.create_task(call())
    task.add_done_callback(lambda _: ended.set())
    with trio.CancelScope(shield=True):
        await begun.wait()  # or else a cancellation would prevent the call
    try:
        await ended.wait()
    except trio.Cancelled:
        task.cancel()
        with trio.CancelScope(shield=True):
            await ended.wait()
        if not task.cancelled():
            task.result()
        raise
    return task.result()


async def settle() -> None:
    """Let both loops go on for a while."""
    for _ in range(20):
        await in_asyncio(asyncio.sleep, 0)


class _InTrio:
    """A transport of asyncio, whose methods are those of a Trio transport."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._crossing = _crossing()

    async def is_connected(self) -> bool:
        return await self._crossing.call(self.transport.is_connected)

    async def disconnect(self) -> None:
        await self._crossing.call(self.transport.disconnect)


class View:
    """A facade as a Trio test sees it: with the methods of the Trio registry."""

    def __init__(self, facade: aio.SessionRegistry) -> None:
        self._facade = facade
        self._flavoured: dict[int, tuple[Transport, _InTrio]] = {}

    def __getattr__(self, name: str) -> Any:
        """Let white-box tests look into the core."""
        service = self._facade._service
        assert service is not None
        return getattr(service.core, name)

    async def add_session(self, session_id: str, transport: Transport, **given_too: Any) -> None:
        given: Any = transport
        if callable(getattr(transport, "disconnect", None)):
            # The same transport gets the same wrapper, for what depends on identity.
            _, given = self._flavoured.setdefault(id(transport), (transport, _InTrio(transport)))
        add = partial(self._facade.add_session, **given_too)
        await in_asyncio(add, session_id, given)

    async def adopt_session(
        self, session_id: str, transport: Transport, *, from_worker: str
    ) -> bool:
        given: Any = transport
        if callable(getattr(transport, "disconnect", None)):
            _, given = self._flavoured.setdefault(id(transport), (transport, _InTrio(transport)))
        adopt = partial(self._facade.adopt_session, from_worker=from_worker)
        return cast("bool", await in_asyncio(adopt, session_id, given))

    async def set_session_data(self, *args: Any, merge: bool = False) -> None:
        await in_asyncio(partial(self._facade.set_session_data, merge=merge), *args)

    async def get_session_data(self, *args: Any) -> Any:
        return await in_asyncio(self._facade.get_session_data, *args)

    @staticmethod
    def _unwrapped(transport: Any) -> Transport | None:
        return transport.transport if isinstance(transport, _InTrio) else transport

    async def get_session(self, session_id: str) -> Transport | None:
        return self._unwrapped(await in_asyncio(self._facade.get_session, session_id))

    def get_session_sync(self, session_id: str) -> Transport | None:
        return self._unwrapped(self._facade.get_session_sync(session_id))

    async def remove_session(self, session_id: str, *, transport: Any = None) -> None:
        _, given = self._flavoured.get(id(transport), (None, transport))
        await in_asyncio(partial(self._facade.remove_session, session_id, transport=given))

    async def session_exists(self, session_id: str) -> bool | None:
        return cast("bool | None", await in_asyncio(self._facade.session_exists, session_id))

    async def get_all_session_ids(self) -> list[str]:
        return cast("list[str]", await in_asyncio(self._facade.get_all_session_ids))

    async def locate_session(self, session_id: str) -> str | None:
        return cast("str | None", await in_asyncio(self._facade.locate_session, session_id))

    async def cleanup(self) -> CleanupReport:
        return cast("CleanupReport", await in_asyncio(self._facade.cleanup))

    def statistics(self) -> RegistryStatistics:
        return self._facade.statistics()

    async def set_session_owner(self, *args: Any) -> None:
        await in_asyncio(self._facade.set_session_owner, *args)

    async def claim_session_owner(self, *args: Any) -> Any:
        return await in_asyncio(self._facade.claim_session_owner, *args)

    async def get_session_owner(self, *args: Any) -> Any:
        return await in_asyncio(self._facade.get_session_owner, *args)

    async def store_client_capabilities(self, *args: Any) -> None:
        await in_asyncio(self._facade.store_client_capabilities, *args)

    async def get_client_capabilities(self, *args: Any) -> Any:
        return await in_asyncio(self._facade.get_client_capabilities, *args)

    async def has_elicitation_capability(self, *args: Any) -> Any:
        return await in_asyncio(self._facade.has_elicitation_capability, *args)

    async def get_elicitation_capable_sessions(self) -> Any:
        return await in_asyncio(self._facade.get_elicitation_capable_sessions)

    async def list_sessions(self, **options: Any) -> Any:
        return await in_asyncio(partial(self._facade.list_sessions, **options))

    async def describe_session(self, *args: Any) -> Any:
        return await in_asyncio(self._facade.describe_session, *args)

    @property
    def workers(self) -> "_WorkersView":
        return _WorkersView(self._facade)

    @property
    def topics(self) -> "_TopicsView":
        return _TopicsView(self._facade)

    @property
    def logs(self) -> "_LogsView":
        return _LogsView(self._facade)

    async def broadcast(self, *args: Any, **options: Any) -> None:
        await in_asyncio(partial(self._facade.broadcast, *args, **options))

    async def respond(
        self, session_id: str, handler: Callable[[Any, Any], Awaitable[object]]
    ) -> None:
        async def generate_response(message: Any, transport: Any, *_: object) -> None:
            await _crossing().call(handler, message, self._unwrapped(transport))

        self._facade.generate_response = generate_response  # type: ignore[assignment,method-assign]
        await in_asyncio(self._facade.respond, None, None, session_id)

    def open_inbox(self, session_id: str) -> "_InboxView":
        return _InboxView(self._facade.open_inbox(session_id))


class _WorkersView:
    """The facade's workers."""

    def __init__(self, facade: aio.SessionRegistry) -> None:
        self._facade = facade

    async def list(self) -> Any:
        return await in_asyncio(self._facade.workers.list)

    async def set_data(self, data: Any) -> None:
        await in_asyncio(self._facade.workers.set_data, data)

    async def call(self, *args: Any, **options: Any) -> Any:
        return await in_asyncio(partial(self._facade.workers.call, *args, **options))

    def stream(self, *args: Any, **options: Any) -> "_InboxView":
        return _InboxView(self._facade.workers.stream(*args, **options))


class _TopicsView:
    """The facade's topics."""

    def __init__(self, facade: aio.SessionRegistry) -> None:
        self._facade = facade

    async def publish(self, topic: str, message: Any) -> None:
        await in_asyncio(self._facade.topics.publish, topic, message)

    def subscribe(self, topic: str) -> "_InboxView":
        return _InboxView(self._facade.topics.subscribe(topic))


def _in_asyncio_too(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Make a handler of asyncio that awaits one of Trio."""
    crossing = _crossing()

    async def call(payload: Any) -> Any:
        return await crossing.call(handler, payload)

    async def stream(payload: Any) -> AsyncIterator[Any]:
        items = handler(payload)
        try:
            while True:
                try:
                    item = await crossing.call(items.__anext__)
                except StopAsyncIteration:
                    return
                yield item
        finally:
            await crossing.call(items.aclose)

    return stream if inspect.isasyncgenfunction(handler) else call


class _LogsView:
    """The facade's logs."""

    def __init__(self, facade: aio.SessionRegistry) -> None:
        self._facade = facade

    async def append(self, *args: Any) -> Any:
        return await in_asyncio(self._facade.logs.append, *args)

    async def read(self, *args: Any, **options: Any) -> Any:
        return await in_asyncio(partial(self._facade.logs.read, *args, **options))


class _InboxView:  # what it returns on entering is itself
    """An inbox of the facade, or what is iterated like one: each step goes to asyncio."""

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox

    async def __aenter__(self) -> Self:
        await in_asyncio(self._inbox.__aenter__)
        return self

    async def __aexit__(self, *error: object) -> None:
        with trio.CancelScope(shield=True):
            await in_asyncio(self._inbox.__aexit__, *error)

    def __aiter__(self) -> "_InboxView":
        return self

    async def __anext__(self) -> Any:
        return await in_asyncio(self._inbox.__anext__)

    async def aclose(self) -> None:
        await in_asyncio(self._inbox.aclose)


@asynccontextmanager
async def open_view(store: SessionStore, **settings: Any) -> AsyncIterator[SessionRegistry]:
    """Open a facade for the length of the block."""
    if "handlers" in settings:
        given = settings["handlers"]
        settings["handlers"] = {name: _in_asyncio_too(one) for name, one in given.items()}
    facade = aio.SessionRegistry(store, **settings)
    await in_asyncio(facade.initialize)
    try:
        yield cast("SessionRegistry", View(facade))
    finally:
        with trio.CancelScope(shield=True):
            await in_asyncio(facade.shutdown)


# ---- asyncio's own tests ----


def _asyncio_run(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    def run(async_fn: Callable[[], Awaitable[object]]) -> Any:
        async def main() -> Any:
            result = await async_fn()
            assert asyncio.all_tasks() == {asyncio.current_task()}, "a task is left"
            return result

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main())

    return run


def _trio_asyncio_run(async_fn: Callable[[], Awaitable[object]]) -> Any:
    async def main() -> Any:
        async with trio_asyncio.open_loop():
            return await trio_asyncio.aio_as_trio(async_fn)()

    return trio.run(main)


ASYNCIO: dict[str, Run] = {
    "asyncio": _asyncio_run(asyncio.SelectorEventLoop),
    "uvloop": _asyncio_run(uvloop.new_event_loop),
    "trio-asyncio": _trio_asyncio_run,
}
"""Runs a function of asyncio on each host."""
