"""What is said of a session just when its worker notices that the database has gone back."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from conftest import Shared
from gates import GatedStore

from trio_sessions import SessionRegistry
from trio_sessions.testing import FakeTransport

pytestmark = pytest.mark.usefixtures("nothing_in_between")


@asynccontextmanager
async def gone_back(shared: Shared) -> AsyncIterator[tuple[SessionRegistry, GatedStore]]:
    """Open a worker with a session whose owner and capabilities are older in the database."""
    store = GatedStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.set_session_owner("s", "oldest")
        copy = shared.backdoor.copy()
        await registry.set_session_owner("s", "known")
        await registry.store_client_capabilities("s", {"known": {}})
        shared.backdoor.go_back(copy)
        yield registry, store


async def say_meanwhile(
    shared: Shared,
    registry: SessionRegistry,
    store: GatedStore,
    kind: str,
    say: Callable[[], Awaitable[object]],
) -> object:
    """Say something in the first batch of the new history; all rows are noted meanwhile."""
    answers: list[object] = []

    async def saying() -> None:
        answers.append(await say())

    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            begun = store.hold_answer("begin")
            nursery.start_soon(saying)
            await begun.reached.wait()
            said = store.hold_answer(kind)
            begun.open()
            await said.reached.wait()
            nursery.start_soon(registry.cleanup)  # it notes that all is to be written anew
            await shared.settle()
            said.open()
    return answers[0]


async def test_an_owner_that_is_set_stays_set(shared: Shared) -> None:
    """The row is written anew behind it, and not with the owner of before."""
    async with gone_back(shared) as (a, store):
        say = partial(a.set_session_owner, "s", "new")
        await say_meanwhile(shared, a, store, "SetOwner", say)
        assert a.statistics().database_rewinds == 1
        assert await a.get_session_owner("s") == "new"
        assert await a.get_client_capabilities("s") == {"known": {}}
        await a.cleanup()
        assert shared.backdoor.owners() == {"s": "new"}


async def test_an_owner_that_is_taken_away_stays_away(shared: Shared) -> None:
    async with gone_back(shared) as (a, store):
        say = partial(a.set_session_owner, "s", None)
        await say_meanwhile(shared, a, store, "SetOwner", say)
        await a.cleanup()
        assert shared.backdoor.owners() == {"s": None}


async def test_capabilities_that_are_stored_stay_stored(shared: Shared) -> None:
    async with gone_back(shared) as (a, store):
        say = partial(a.store_client_capabilities, "s", {"new": {}})
        await say_meanwhile(shared, a, store, "SetCapabilities", say)
        assert await a.get_client_capabilities("s") == {"new": {}}
        await a.cleanup()
        assert await a.get_client_capabilities("s") == {"new": {}}
        assert await a.get_session_owner("s") == "known"


async def test_nobody_wins_a_session_whose_owner_is_known(shared: Shared) -> None:
    """The copy says "oldest", and so does the store: that is not the session's owner."""
    async with gone_back(shared) as (a, store):
        say = partial(a.claim_session_owner, "s", "thief")
        assert await say_meanwhile(shared, a, store, "ClaimOwner", say) is None
        await a.cleanup()
        assert await a.claim_session_owner("s", "thief") == "known"
        assert shared.backdoor.owners() == {"s": "known"}
