"""Undelivered messages never stand in the way of what happens to their session."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared

from trio_sessions import SessionStore, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

pytestmark = pytest.mark.usefixtures("nothing_in_between")


class Messages:
    """Messages, written and read behind the registry's back."""

    def __init__(self, backdoor: DatabaseBackdoor, store: SessionStore) -> None:
        self.backdoor = backdoor
        self.store = store

    def insert(self, session_id: str, payload: str, *, age: float = 0.0) -> None:
        messages = self.backdoor.messages_table
        self.backdoor.execute(sa.insert(messages).values(session_id=session_id, payload=payload))
        [(created_at,)] = self.backdoor.execute(
            sa.select(messages.c.created_at).where(messages.c.payload == payload)
        )
        self.backdoor.execute(
            sa.update(messages)
            .where(messages.c.payload == payload)
            .values(created_at=created_at - timedelta(seconds=age))
        )

    def payloads(self) -> list[str]:
        row = self.backdoor.messages_table.c
        return [payload for (payload,) in self.backdoor.execute(sa.select(row.payload))]


@pytest.fixture(params=["sqlite", "postgresql", "sqlite without foreign keys"])
def messages(request: pytest.FixtureRequest) -> Iterator[Messages]:
    if request.param != "sqlite without foreign keys":
        shared: Shared = request.getfixturevalue(request.param)
        assert isinstance(shared.backdoor, DatabaseBackdoor)
        yield Messages(shared.backdoor, shared.make_store())
        return
    url = request.getfixturevalue("sqlite_url")
    backdoor = DatabaseBackdoor(url)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 0
    yield Messages(backdoor, DatabaseStore(engine))
    engine.dispose()
    backdoor.close()


async def test_a_message_of_an_expired_session_goes_with_it(messages: Messages) -> None:
    """It does not stop the sweep, nor the refresh before it."""
    async with open_registry(messages.store) as registry:
        await registry.add_session("alive", FakeTransport())
        messages.backdoor.insert("dead", "dead worker", age=7200)
        messages.insert("dead", "for the dead")
        messages.insert("alive", "for the living")
        report = await registry.cleanup()
        assert (report.refreshed, report.expired) == (1, 1)
        assert messages.backdoor.rows().keys() == {"alive"}
        assert messages.payloads() == ["for the living"]


async def test_a_session_with_messages_is_removed(messages: Messages) -> None:
    """By `remove_session`, by a transport that says so, and by leaving the block."""
    dying = FakeTransport()
    async with open_registry(messages.store) as registry:
        await registry.add_session("removed", FakeTransport())
        await registry.add_session("disconnected", dying)
        await registry.add_session("left", FakeTransport())
        for session_id in ("removed", "disconnected", "left"):
            messages.insert(session_id, session_id)
        await registry.remove_session("removed")
        assert sorted(messages.payloads()) == ["disconnected", "left"]
        dying.state = "closed"
        assert (await registry.cleanup()).disconnected == ("disconnected",)
        assert messages.payloads() == ["left"]
        assert registry.statistics().leftover_rows == 0
    assert messages.payloads() == []
    assert messages.backdoor.rows() == {}


async def test_messages_older_than_their_ttl_go(messages: Messages) -> None:
    """Younger ones stay, and so does their session; a batch is no limit."""
    async with open_registry(messages.store, message_ttl=60, batch_size=2) as registry:
        await registry.add_session("s", FakeTransport())
        for i in range(5):
            messages.insert("s", f"old-{i}", age=61 + i)
        messages.insert("s", "young", age=50)
        assert (await registry.cleanup()).refreshed == 1
        assert messages.payloads() == ["young"]
        assert await registry.session_exists("s")


async def test_messages_survive_a_takeover(messages: Messages) -> None:
    """The session is the same, only its transport is another."""
    async with open_registry(messages.store) as registry:
        messages.backdoor.insert("s", "another worker")
        messages.insert("s", "waiting")
        await registry.add_session("s", FakeTransport())
        await registry.add_session("s", FakeTransport())
        assert messages.backdoor.rows() == {"s": registry.worker_id}
        await registry.cleanup()
        assert messages.payloads() == ["waiting"]


async def test_messages_of_a_session_that_was_deleted_by_hand_are_not_for_the_next(
    messages: Messages,
) -> None:
    """SQLite's own shell, for one, keeps them: it has ``foreign_keys`` off."""
    async with open_registry(messages.store) as registry:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", "old", durable=True)
        messages.backdoor.execute(sa.delete(messages.backdoor.sessions))
        await registry.cleanup()
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", "new", durable=True)
        with trio.fail_after(40):
            async with registry.open_inbox("s") as inbox:
                assert await anext(inbox) == "new"
