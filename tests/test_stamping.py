"""Between the passes: what a worker's stamps say, how soon a rewind is seen to, and the pauses."""

import logging
from itertools import pairwise
from typing import cast

import pytest
import trio
from backdoors import MemoryBackdoor
from trio.testing import MockClock

from trio_sessions import open_registry
from trio_sessions._counters import Counters
from trio_sessions._edge import Edge
from trio_sessions._histories import Histories
from trio_sessions._settings import Settings
from trio_sessions._witness import WentBack, Witness
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Begun, Presence, Stamp, Stamped

INTERVAL = 5.0  # seconds between two stamps


class Watched(FaultyStore):
    """Notes when it is asked for stamps."""

    def __init__(self, store: SessionStore) -> None:
        super().__init__(store)
        self.stamped: list[float] = []

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        self.stamped.append(trio.current_time())
        return await super().stamp(worker, stamp, passed=passed)


@pytest.mark.usefixtures("nothing_in_between")
async def test_a_rewind_that_a_write_has_noticed_is_seen_to_at_once(
    autojump_clock: MockClock,
) -> None:
    """No pass comes, and no stamp is due: all rows are written anew all the same."""
    store = MemoryStore()
    backdoor = MemoryBackdoor(store)
    async with open_registry(store) as registry:
        for number in range(3):
            await registry.add_session(f"s{number}", FakeTransport())
        backdoor.go_back(None)
        start = trio.current_time()
        await registry.add_session("new", FakeTransport())
        while len(backdoor.rows()) < 4:
            await trio.sleep(0.01)
            assert trio.current_time() < start + 1
        assert registry.statistics().passes == 1


class Beginning:
    """An edge on which a history always begins."""

    async def begin(self, history: str, presence: Presence, *, after: str | None) -> Begun:
        await trio.lowlevel.checkpoint()
        return Begun(was_swept=False, clock=trio.current_time())


async def begin_again(histories: Histories, witness: Witness) -> float:
    """Let the database go back; return how long it takes until another history has begun."""
    flight = witness.depart()
    with pytest.raises(WentBack):
        witness.land(flight, None)
    start = trio.current_time()
    await histories.ensure()
    assert witness.is_steady
    return trio.current_time() - start


async def test_who_goes_back_again_and_again_is_not_asked_without_end(
    autojump_clock: MockClock,
) -> None:
    """A history that ends soon makes the next one wait, for longer each time (16)."""
    witness, counters = Witness(), Counters()
    histories = Histories(
        edge=cast("Edge", Beginning()),
        witness=witness,
        presence=Settings().presence(),
        counters=counters,
    )
    await histories.begin()
    waited = [await begin_again(histories, witness) for _ in range(10)]
    assert waited == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])
    await trio.sleep(31)
    assert await begin_again(histories, witness) == 0, "it has lasted"
    assert await begin_again(histories, witness) == pytest.approx(0.05)
    assert counters.database_rewinds == 12


async def test_a_database_that_is_away_is_asked_after_pauses_that_grow(
    autojump_clock: MockClock,
) -> None:
    """Soon at first, for most outages are short; then once an interval (16)."""
    store = Watched(MemoryStore())
    async with open_registry(store):
        store.fail()
        store.stamped.clear()
        await trio.sleep(100)
        pauses = [later - earlier for earlier, later in pairwise(store.stamped)]
        assert pauses[:3] == pytest.approx([0.05, 0.1, 0.2])
        assert pauses[-1] == pytest.approx(INTERVAL)
        assert len(pauses) < 40


async def test_a_stamp_says_nothing_of_the_passes(autojump_clock: MockClock) -> None:
    """A worker whose passes have stopped loses its lease, however well it stamps."""
    store = MemoryStore()
    async with open_registry(store):
        [row] = store._workers._rows.values()
        passed_at = row.passed_at
        await trio.sleep(100)
        assert trio.current_time() - row.stamped_at <= INTERVAL
        assert row.passed_at == passed_at


async def test_an_outage_is_told_once_however_long_it_lasts(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """That sessions are in danger is said when it begins, and of the next one again (16)."""
    caplog.set_level(logging.WARNING, "trio_sessions.registry")
    store = FaultyStore(MemoryStore())
    async with open_registry(store):
        for outages in (1, 2):
            store.fail()
            await trio.sleep(100)
            assert store.faults["stamp"] > 5 * outages
            told = [one for one in caplog.messages if "could not be stamped, and others" in one]
            assert len(told) == outages
            store.heal()
            await trio.sleep(100)


@pytest.mark.parametrize("again", ["a", "b", "c"])
async def test_who_was_added_again_after_a_rewind_keeps_nobody_from_being_restored(
    autojump_clock: MockClock, again: str
) -> None:
    """Its row is there already when the others are looked after; theirs come without a pass."""
    memory = MemoryStore()
    store, backdoor = FaultyStore(memory), MemoryBackdoor(memory)
    async with open_registry(store) as registry:
        for session_id in "abc":
            await registry.add_session(session_id, FakeTransport())
        store.fail(Fault.ANSWERS_LATE, "stamp", times=1, seconds=1.0)
        await trio.sleep(INTERVAL + 0.5)
        assert store.faults["stamp"] == 1
        backdoor.go_back(None)
        await registry.add_session(again, FakeTransport())
        assert backdoor.rows().keys() == {again}
        await trio.sleep(1.0)
        assert backdoor.rows().keys() == {"a", "b", "c"}
        assert registry.statistics().passes == 1
