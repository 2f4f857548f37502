"""Workers on a real server that fails under them, and what must be true of them then."""

import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
import trio
from proxy import Proxy, open_proxy
from servers import query

from trio_sessions import SessionRegistry, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

__all__ = [
    "Held",
    "add",
    "in_thread",
    "join",
    "owners",
    "quick_store",
    "rows",
    "until",
    "until_all_is_well",
]

T = TypeVar("T")
Held = Mapping[SessionRegistry, Mapping[str, FakeTransport]]

SOON = 40.0  # seconds; nothing here takes as long, but on a machine that is very busy


def quick_store(url: sa.URL, **settings: Any) -> DatabaseStore:
    """Return a store that gives up soon."""
    settings = {"connect_timeout": 4, "operation_timeout": 4.0, "lock_timeout": 0.5, **settings}
    return DatabaseStore(url, **settings)


def join(url: sa.URL, **settings: Any) -> AbstractAsyncContextManager[SessionRegistry]:
    """Open a registry whose passes come only when they are asked for."""
    settings = {"session_ttl": 3600.0, "cleanup_interval": 1800.0, **settings}
    return open_registry(quick_store(url), **settings)


@asynccontextmanager
async def behind(url: sa.URL, **settings: Any) -> AsyncIterator[tuple[Proxy, SessionRegistry]]:
    """Open a registry with a network of its own."""
    async with open_proxy(url) as proxy, join(proxy.url, **settings) as registry:
        yield proxy, registry


async def add(registry: SessionRegistry, *session_ids: str) -> dict[str, FakeTransport]:
    """Add sessions, all at once."""
    transports = {session_id: FakeTransport() for session_id in session_ids}
    async with trio.open_nursery() as nursery:
        for session_id, transport in transports.items():
            nursery.start_soon(registry.add_session, session_id, transport)
    return transports


async def in_thread(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call what blocks, while everything else goes on."""
    return await trio.to_thread.run_sync(functools.partial(function, *arguments, **named))


def rows(url: sa.URL) -> dict[str, str]:
    """Return the worker_id of every session that has a row."""
    return {row[0]: row[1] for row in query(url, "SELECT session_id, worker_id FROM trio_sessions")}


def owners(url: sa.URL) -> dict[str, str]:
    """Return the owner of every session that has one."""
    found = query(url, "SELECT session_id, owner FROM trio_sessions WHERE owner IS NOT NULL")
    return {row[0]: row[1] for row in found}


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    with trio.fail_after(SOON):
        while not holds():
            await trio.sleep(0.02)  # another process has no event for us


async def until_all_is_well(url: sa.URL, held: Held) -> None:
    """Let passes run until all rows are there again; fail if any of them removes a session."""
    with trio.fail_after(SOON):
        well = 0
        while well < len(held):
            well = 0
            for registry, transports in held.items():
                report = await registry.cleanup()
                assert (report.missing, report.held, report.expired) == ((), (), 0)
                well += report.refreshed == len(transports) and not report.refresh_failures
    expected = dict[str, str]()
    for registry, transports in held.items():
        assert sorted(await registry.get_all_session_ids()) == sorted(transports)
        assert all(one.disconnects == 0 for one in transports.values())
        expected |= dict.fromkeys(transports, registry.worker_id)
    assert await in_thread(rows, url) == expected


def errors(records: list[logging.LogRecord]) -> list[str]:
    """Return the errors that were logged."""
    return [one.getMessage() for one in records if one.levelno == logging.ERROR]
