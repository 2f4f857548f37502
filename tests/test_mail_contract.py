"""The stores keep the part of the contract by which workers write to each other."""

from collections.abc import Awaitable, Callable

import pytest
from conftest import Shared
from trio.testing import MockClock

from trio_sessions.abc import Part, SessionStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore, mail_conformance

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", mail_conformance, ids=name)
async def test_our_stores_keep_it(database: Shared, check: Check) -> None:
    assert Part.MAIL in database.make_store().parts
    await check(database.make_store)


@pytest.mark.parametrize("check", mail_conformance, ids=name)
async def test_the_memory_store_keeps_it(autojump_clock: MockClock, check: Check) -> None:
    """And so does the fake that wraps it."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))
