"""What one dead session has left goes piece by piece, however much it is."""

from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from piles import pile_up
from soak import longer

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport, FaultyStore
from trio_sessions.types import Swept

pytestmark = pytest.mark.usefixtures("nothing_in_between")

MANY = 200_000
"""As many as no operation can delete in its time."""
SOME = 20_000
"""Enough where the pieces are looked at one by one."""
not_on_sqlite = pytest.mark.parametrize(
    "shared", ["memory", pytest.param("sqlite", marks=longer), "postgresql"], indirect=True
)
"""Its file takes longest. That pieces go there, too, is seen where a session is swept, or goes."""
SETTINGS: dict[str, Any] = {"session_ttl": 3600.0, "cleanup_interval": 1800.0}


class Noting(FaultyStore):
    """Notes what each sweep has deleted."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.swept: list[Swept] = []

    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        self.swept.append(await super().sweep(worker, **durations))
        return self.swept[-1]


def impatient(shared: Shared) -> SessionStore:
    """Return a store that gives each operation a second."""
    if shared.name == "memory":
        return shared.make_store()
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    return DatabaseStore(shared.backdoor.engine.url, lock_timeout=0.4, operation_timeout=1.0)


@pytest.mark.timeout(120)
async def test_a_dead_session_with_many_messages_is_swept(shared: Shared) -> None:
    """In pieces, however long it takes; who is dead too and has none does not wait for it."""
    store = Noting(impatient(shared))
    async with open_registry(store, **SETTINGS) as registry:
        await registry.add_session("alive", FakeTransport())
        await registry.cleanup()
        for session_id in ("dead", "dead too"):
            shared.backdoor.insert(session_id, "another worker", age=7200.0)
        if isinstance(shared.backdoor, DatabaseBackdoor):
            shared.backdoor.execute(sa.text("UPDATE trio_fleet SET unbroken_since = NULL"))
        pile_up(shared, "dead", SOME)
        store.swept.clear()
        report = await registry.cleanup()
        assert report.expired == 2
        first = store.swept[0]
        assert (first.sessions, first.messages, first.more) == (1, 1000, True)
        assert max(one.messages for one in store.swept) == 1000
        assert sum(one.messages for one in store.swept) == SOME
        assert registry.statistics().messages_dropped == SOME
        assert set(shared.backdoor.rows()) == {"alive"}
        assert shared.backdoor.messages() == []


async def test_a_backlog_does_not_keep_a_pass(shared: Shared) -> None:
    """A pass sweeps for a quarter of its interval at most; the next one goes on."""
    async with open_registry(
        impatient(shared), session_ttl=3600.0, cleanup_interval=0.04, batch_size=1
    ) as registry:
        await registry.add_session("alive", FakeTransport())
        shared.backdoor.insert("dead", "another worker", age=7200.0)
        if isinstance(shared.backdoor, DatabaseBackdoor):
            shared.backdoor.execute(sa.text("UPDATE trio_fleet SET unbroken_since = NULL"))
        pile_up(shared, "dead", 5000)
        before = registry.statistics().passes
        with trio.fail_after(40):
            while registry.statistics().passes < before + 3:
                await trio.sleep(0.01)
        assert 0 < len(shared.backdoor.messages()) < 5000
        assert "dead" in shared.backdoor.rows()


async def test_a_piece_that_is_too_much_is_followed_by_smaller_ones(shared: Shared) -> None:
    """Until they are done; then by larger ones."""
    limits: list[int] = []

    class Slow(FaultyStore):
        async def sweep(self, worker: Worker, **durations: Any) -> Swept:
            limits.append(durations["limit"])
            if durations["limit"] > 10:
                raise StoreUnavailable("it took too long")
            return await super().sweep(worker, **durations)

    async with open_registry(Slow(impatient(shared)), **SETTINGS) as registry:
        for _ in range(4):
            await registry.cleanup()
    assert limits == [1000, 125, 15, 1, 2]


@pytest.mark.timeout(120)
@not_on_sqlite
async def test_a_session_with_many_messages_is_removed_and_added_again(shared: Shared) -> None:
    """Its row goes with the last of them, and a later session of its id sees none."""
    async with open_registry(impatient(shared), **SETTINGS) as registry:
        await registry.add_session("s", FakeTransport())
        pile_up(shared, "s", MANY)
        await registry.remove_session("s")
        assert shared.backdoor.rows() == {}
        assert shared.backdoor.messages() == []
        assert registry.statistics().messages_dropped == MANY
        await registry.add_session("s", FakeTransport())
        assert registry.statistics().unconfirmed == 0


@pytest.mark.timeout(120)
@not_on_sqlite
async def test_a_worker_leaves_with_many_messages(shared: Shared) -> None:
    """Its rows go, also those of which it knows nothing."""
    async with open_registry(impatient(shared), **SETTINGS) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.add_session("t", FakeTransport())
        pile_up(shared, "s", MANY)
    assert shared.backdoor.rows() == {}
    assert shared.backdoor.messages() == []


@pytest.mark.timeout(120)
async def test_nobody_waits_for_a_session_that_goes_piece_by_piece(shared: Shared) -> None:
    """Others are added and removed meanwhile; who adds its id again waits for the end."""
    async with open_registry(impatient(shared), **SETTINGS) as registry:
        await registry.add_session("s", FakeTransport())
        pile_up(shared, "s", 100_000)
        ended: list[str] = []

        async def remove() -> None:
            await registry.remove_session("s")
            ended.append("removed")

        async def add_others() -> None:
            for number in range(2):
                await registry.add_session(f"t{number}", FakeTransport())
                await registry.remove_session(f"t{number}")
            ended.append("others")

        async def add_again() -> None:
            await registry.add_session("s", FakeTransport())
            ended.append("added again")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            while registry.get_session_sync("s") is not None:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(add_others)
            nursery.start_soon(add_again)
        assert ended[0] == "others"
        assert len(ended) == 3
        assert registry.statistics().messages_dropped == 100_000
        assert registry.statistics().unconfirmed == 0
        assert shared.backdoor.messages() == []
        assert set(shared.backdoor.rows()) == {"s"}
