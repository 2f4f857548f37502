"""What an adoption costs, who is told of it, and what the older holder does."""

from collections import Counter

import pytest
import trio
from conftest import Shared
from trio.testing import MockClock

from trio_sessions import (
    RemovalReason,
    open_registry,
)
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

pytestmark = pytest.mark.usefixtures("nothing_in_between")

# ---- what it costs, and who is told ----


async def test_an_adoption_is_one_batch() -> None:
    """And the letter to the older holder another, for which nobody waits."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store._store) as a, open_registry(store) as b:
        await a.add_session("s", FakeTransport())
        store.calls.clear()
        assert await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        assert not await b.adopt_session("t", FakeTransport(), from_worker=a.worker_id)
        letter = Counter({"commit": 1, "Post": 1})
        assert store.calls - letter == {"commit": 2, "Claim": 2}


async def test_whoever_tells_the_older_holder_is_told(shared: Shared) -> None:
    """Of the session and of whom it was taken from, when it is held here; not of what is lost."""
    async with shared.open() as a, shared.open() as b:
        told: list[object] = []
        b._house.adopting.notify(
            lambda session_id, from_worker: told.append(
                (session_id, from_worker, b.get_session_sync(session_id) is not None)
            )
        )
        await a.add_session("s", FakeTransport())
        await b.adopt_session("nobody", FakeTransport(), from_worker=a.worker_id)
        await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        assert told == [("s", a.worker_id, True)]


# ---- the older holder ----


@pytest.fixture
def only_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look for letters comes by itself: what is heard of in time, a bell has rung for."""
    monkeypatch.setattr("trio_sessions._mail._office._LOOK", 3600.0)


@pytest.mark.usefixtures("only_bells")
async def test_a_holder_that_lives_is_told_at_once(shared: Shared) -> None:
    """By a letter, if it hears the bell: it asks, and need not wait for its next pass."""
    async with shared.open() as a, shared.open() as b, a.topics.subscribe("news"):
        transport, kept = FakeTransport(), FakeTransport()
        await a.add_session("s", transport)
        await a.add_session("kept", kept)
        assert await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        with trio.fail_after(20):
            while a.get_session_sync("s") is not None or not transport.reasons:
                await trio.sleep(0.02)
        assert transport.reasons == [RemovalReason.TAKEN_OVER]
        assert (kept.disconnects, a.get_session_sync("kept")) == (0, kept)


async def test_a_letter_about_a_move_is_no_evidence(shared: Shared) -> None:
    """The row says who holds a session; and what is not held is not looked for."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b, a.topics.subscribe("news"):
        transport = FakeTransport()
        await a.add_session("s", transport)
        asked = store.calls["refresh"]
        for session_id in ("nobody", "s"):
            b._house._mail.tell_moved(session_id, a.worker_id)
        with trio.fail_after(20):
            while store.calls["refresh"] == asked:
                await trio.sleep(0.02)
        await shared.settle()
        assert (transport.disconnects, a.get_session_sync("s")) == (0, transport)
        assert store.calls["refresh"] == asked + 1


async def test_a_look_that_a_letter_has_caused_is_no_pass(shared: Shared) -> None:
    """What the brake holds stays held, no transport is asked, and nothing is swept."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b, a.topics.subscribe("news"):
        transports = {f"s{number:02}": FakeTransport() for number in range(21)}
        for session_id, transport in transports.items():
            await a.add_session(session_id, transport)
        deleted = sorted(transports)[:15]
        shared.backdoor.delete(*deleted)
        assert sorted((await a.cleanup()).held) == deleted
        before, store_before = a.statistics(), store.calls.copy()
        checks = {one.checks for one in transports.values()}
        b._house._mail.tell_moved(deleted[0], a.worker_id)  # its row is gone, which is the pass's
        assert await b.adopt_session("s20", FakeTransport(), from_worker=a.worker_id)
        with trio.fail_after(20):
            while a.get_session_sync("s20") is not None:
                await trio.sleep(0.02)
        await shared.settle()
        assert sorted(await a.get_all_session_ids()) == sorted(transports)[:20]
        assert a.statistics().passes == before.passes
        assert store.calls["sweep"] == store_before["sweep"]
        assert {one.checks for one in transports.values()} == checks
        assert transports["s20"].reasons == [RemovalReason.TAKEN_OVER]
        report = await a.cleanup()
        assert sorted(report.missing) == deleted, "this one is the next pass"


async def test_an_outage_keeps_what_a_letter_names(shared: Shared) -> None:
    """The pass sees to it, once the database answers."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b, a.topics.subscribe("news"):
        transport = FakeTransport()
        await a.add_session("s", transport)
        store.fail(Fault.FAILS, "refresh", times=1)
        assert await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
        with trio.fail_after(20):
            while not store.faults["refresh"]:
                await trio.sleep(0.02)
        await shared.settle()
        assert a.get_session_sync("s") is transport
        assert (await a.cleanup()).taken_over == ("s",)


async def test_an_older_copy_lets_nobody_go_whom_a_letter_names(shared: Shared) -> None:
    """It shows the holder of before: the database went back, and that decides nothing."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as a, shared.open() as b, a.topics.subscribe("news"):
        transport = FakeTransport()
        await b.add_session("s", FakeTransport())
        copy = shared.backdoor.copy()
        await a.add_session("s", transport)
        asked = store.calls["refresh"]
        shared.backdoor.go_back(copy)
        assert shared.backdoor.rows() == {"s": b.worker_id}
        b._house._mail.tell_moved("s", a.worker_id)
        with trio.fail_after(20):
            while store.calls["refresh"] == asked:
                await trio.sleep(0.02)
        await shared.settle()
        assert (transport.disconnects, a.get_session_sync("s")) == (0, transport)
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        assert shared.backdoor.rows() == {"s": a.worker_id}


async def test_letters_about_moves_are_looked_into_once_a_second(
    autojump_clock: MockClock,
) -> None:
    """However many come: all that were named meanwhile are asked for at once."""
    store = FaultyStore(MemoryStore())
    async with (
        open_registry(store) as a,
        open_registry(store._store) as b,
        a.topics.subscribe("news"),
    ):
        for number in range(30):
            await a.add_session(f"s{number}", FakeTransport())
        asked = store.calls["refresh"]
        for number in range(30):
            for _ in range(2):
                b._house._mail.tell_moved(f"s{number}", a.worker_id)
            await trio.sleep(0.1)
        await trio.sleep(2)
        assert 3 <= store.calls["refresh"] - asked <= 5
        assert a.statistics().sessions == 30


@pytest.mark.parametrize("named", ["worker_id", "incarnation"])
async def test_who_adopts_from_its_own_predecessor_tells_nobody(shared: Shared, named: str) -> None:
    """A letter to its own name would come to itself."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as again, again.topics.subscribe("news"):
        shared.backdoor.insert("s", "w")
        row = await again.describe_session("s")
        assert row is not None
        before = store.calls["refresh"], store.calls["Post"]
        assert await again.adopt_session("s", FakeTransport(), from_worker=getattr(row, named))
        await shared.settle()
        posts = 0 if named == "worker_id" else 1  # whose incarnation it was, is not known
        assert (store.calls["refresh"], store.calls["Post"]) == (before[0], before[1] + posts)
