"""Who is newer is decided by when a session was added, however slow the file is meanwhile."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa
import trio

from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing._conformance._tools import Client, opened
from trio_sessions.writes import Claim, Outcome

SLOW = 0.1  # seconds
LATER = 0.02  # seconds by which one claim is made after another


class Slow:
    """An engine that is slow between the look at the rows and the decision."""

    def __init__(self, url: sa.URL) -> None:
        self.engine = sa.create_engine(url)
        self.begun = trio.Event()
        """The next claim has read its row."""
        self.is_on = True
        sa.event.listen(self.engine, "before_cursor_execute", self._wait)

    def _wait(self, _: Any, __: Any, sql: str, *___: Any) -> None:
        if self.is_on and sql.startswith("SELECT trio_revoked"):
            trio.from_thread.run_sync(self.begun.set)
            time.sleep(SLOW)

    @asynccontextmanager
    async def claim_meanwhile(self, client: Client, generation: int) -> AsyncIterator[None]:
        """Claim, and go on with the block once the row was read, and a little later."""
        self.begun = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.write, claim_of(generation))
            await self.begun.wait()
            await trio.sleep(LATER)
            yield


@pytest.fixture
def slow(sqlite_url: sa.URL) -> Iterator[Slow]:
    slow = Slow(sqlite_url)
    yield slow
    slow.engine.dispose()


def claim_of(generation: int) -> Claim:
    return Claim(session_id="s", generation=generation, age=0.0)


async def test_a_slow_decision_makes_no_claim_older(slow: Slow) -> None:
    async with opened(lambda: DatabaseStore(slow.engine), "a", "b") as (a, b):
        slow.is_on = False
        await a.write(claim_of(1))
        slow.is_on = True
        await trio.sleep(LATER)
        taken = await b.write(claim_of(1))
        assert slow.begun.is_set()
        assert taken.outcome is Outcome.TAKEN_OVER


async def test_a_slow_insert_makes_no_claim_newer(slow: Slow) -> None:
    async with opened(lambda: DatabaseStore(slow.engine), "a", "b") as (a, b):
        async with slow.claim_meanwhile(a, 1):
            taken = await b.write(claim_of(1))
        assert taken.outcome is Outcome.TAKEN_OVER


async def test_a_slow_update_makes_no_claim_newer(slow: Slow) -> None:
    async with opened(lambda: DatabaseStore(slow.engine), "a", "b") as (a, b):
        await b.write(claim_of(1))
        await trio.sleep(LATER)
        async with slow.claim_meanwhile(a, 1):
            taken = await b.write(claim_of(2))
        assert taken.outcome is Outcome.TAKEN_OVER
