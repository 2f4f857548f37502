"""Leases on SQLite: what a sweep, a doubt and a worker that closes leave behind."""

import pytest
import sqlalchemy as sa
from backdoors import DatabaseBackdoor
from test_sqlite_witness import Make
from witnesses import open_witnessed

from trio_sessions.stores._pieces import ENTRIES
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.writes import Append


@pytest.fixture
def make(sqlite_url: sa.URL) -> Make:
    return lambda: DatabaseStore(sqlite_url)


async def test_a_doubt_without_a_row_of_the_fleet_removes_nobody(
    make: Make, sqlite_url: sa.URL
) -> None:
    """The series of vouchings begins with the doubt: stamps of others may be forgotten."""
    backdoor = DatabaseBackdoor(sqlite_url)
    async with open_witnessed(make, "a") as a, open_witnessed(make, "b") as b:
        await b.claim("of b")
        backdoor.execute(sa.text("DELETE FROM trio_fleet"))
        await a.begin(rewound=True)
        backdoor.age(700.0, "of b")
        backdoor.age_workers(700.0, "b")
        await a.sweep()
        assert backdoor.rows() == {"of b": "b"}


async def test_an_incarnation_that_went_is_told_so(make: Make, sqlite_url: sa.URL) -> None:
    """Its row is not there because of a sweep, and not because the file has gone back."""
    async with open_witnessed(make, "a") as a, open_witnessed(make, "b") as b:
        backdoor = DatabaseBackdoor(sqlite_url)
        await a.sweep()
        backdoor.age_workers(700.0, "b")
        await a.sweep()
        assert set(backdoor.workers()) == {"a"}
        assert await b.begin(rewound=True)


async def test_a_worker_that_has_closed_need_not_have_a_row(make: Make, sqlite_url: sa.URL) -> None:
    """Where it opens the store again, the missing row is no sign of another database."""
    store = make()
    async with open_witnessed(lambda: store, "a") as a:
        await a.claim("s")
    DatabaseBackdoor(sqlite_url).execute(sa.text("DELETE FROM trio_workers"))
    await store.open(a.worker)
    try:
        assert await store.locate(a.worker, "nobody's") is None
    finally:
        await store.close(a.worker)


async def test_a_sweep_that_has_only_removed_entries_goes_on(
    make: Make, sqlite_url: sa.URL
) -> None:
    """A session goes with the last entry of its log, in as many pieces as that takes."""
    backdoor = DatabaseBackdoor(sqlite_url)
    async with open_witnessed(make, "a") as a, open_witnessed(make, "b") as b:
        await a.sweep()
        await b.claim("s")
        entries = (Append(session_id="s", event=str(one)) for one in range(ENTRIES + 1))
        await b.commit(*entries)
        backdoor.age(700.0, "s")
        backdoor.age_workers(700.0, "b")
        swept = await a.sweep(limit=1)
        assert (swept.sessions, swept.messages, swept.more) == (0, 0, True)
        assert (await a.sweep(limit=1)).sessions == 1
