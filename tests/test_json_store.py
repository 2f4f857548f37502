"""The store of the how-to "write a store" keeps the contract; broken ones are each caught."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions.abc import Worker
from trio_sessions.testing import (
    FakeTransport,
    RegistryMachine,
    conformance_tests,
    store_conformance,
    virtual_time,
)
from trio_sessions.types import Presence, RowAnswers, Stamp, Swept
from trio_sessions.writes import Batch, Claim, Claimed, Committed, Outcome, Send

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import json_store
from json_book import Book
from json_store import JsonStore

sys.path.pop(0)

Make = Callable[[], JsonStore]


@pytest.fixture
def make_store(tmp_path: Path) -> Make:
    return lambda: JsonStore(tmp_path / "sessions.json")


test_the_json_store_keeps_the_contract = conformance_tests(store_conformance)


async def test_two_workers_share_the_file(make_store: Make) -> None:
    """A registry opens on it, and finds the sessions of another."""
    async with open_registry(make_store()) as red, open_registry(make_store()) as blue:
        await red.add_session("s", FakeTransport())
        assert await blue.locate_session("s") == red.worker_id
        assert (await red.cleanup()).refreshed == 1
    assert JsonStore(make_store()._path)._read()["rows"] == {}


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def time(self) -> float:
        return self.now

    monotonic = time


def worker(name: str) -> Worker:
    return Worker(worker_id=name, incarnation=name, limiter=trio.CapacityLimiter(1))


async def test_a_claim_that_waits_for_the_file_grows_older(
    make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took the session meanwhile keeps it."""
    clock = Clock()
    monkeypatch.setattr(json_store, "time", clock)
    claim = Batch(writes=[Claim(session_id="s", generation=1, age=0.0)])
    clock.now = 102.0
    [taken] = (await make_store().commit(worker("blue"), claim)).answers
    assert isinstance(taken, Claimed)
    assert taken.outcome is Outcome.INSERTED

    class IsBusy(JsonStore):
        @contextlib.contextmanager
        def _locked(self) -> Iterator[None]:
            clock.now = 105.0
            yield

    clock.now = 100.0
    [lost] = (await IsBusy(make_store()._path).commit(worker("red"), claim)).answers
    assert isinstance(lost, Claimed)
    assert (lost.outcome, lost.holder.worker_id) == (Outcome.LOST, "blue")


@pytest.mark.parametrize("slow", ["_locked", "_read"])
async def test_what_waits_is_no_older_than_it_is(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    """Whoever was there before gives way, however long the file was busy, or took to be read."""
    clock = Clock()
    monkeypatch.setattr(json_store, "time", clock)
    claim = Claim(session_id="s", generation=1, age=0.0)
    clock.now = 100.0
    await make_store().commit(worker("red"), Batch(writes=[claim]))

    class IsBusy(JsonStore):
        @contextlib.contextmanager
        def _locked(self) -> Iterator[None]:
            clock.now += 2.0 if slow == "_locked" else 0.0
            with super()._locked():
                yield

        def _read(self) -> dict[str, Any]:
            clock.now += 2.0 if slow == "_read" else 0.0
            return super()._read()

    clock.now = 101.0
    batch = Batch(writes=[claim, Send(session_id="s", payload="1", age=0.5)])
    [taken, _] = (await IsBusy(make_store()._path).commit(worker("blue"), batch)).answers
    assert isinstance(taken, Claimed)
    assert (taken.outcome, taken.holder.worker_id) == (Outcome.TAKEN_OVER, "blue")
    row = make_store()._read()["rows"]["s"]
    assert (row["taken_at"], row["messages"][0]["at"]) == (101.0, 100.5)


async def test_a_file_that_went_back_says_nothing_of_who_is_missing(make_store: Make) -> None:
    """Its beat is lower than the worker was told of: an older copy was put in its place."""
    store, red = make_store(), worker("red")
    presence = Presence(session_ttl=60.0, cleanup_interval=9.0, stamp_interval=5.0, version="0")
    await store.begin(red, "first", presence, after=None)
    known = Stamp(history="first", beat=1)
    ttls = {"session_ttl": 60.0, "message_ttl": 60.0, "max_gap": 24.0}
    for stamps in (
        partial(store.commit, red, Batch(writes=[], stamp=known)),
        partial(store.stamp, red, known, passed=False),
        partial(store.sweep, red, **ttls, limit=0, stamp=known),
    ):
        old = store._path.read_bytes()
        await stamps()
        new = store._path.read_bytes()
        assert await store.locate(red, "s") is None
        store._path.write_bytes(old)
        for ask in (
            partial(store.locate, red, "s"),
            partial(store.get_capabilities, red, "s"),
            partial(store.elicitation_capable, red),
        ):
            with pytest.raises(StoreUnavailable):
                await ask()
        store._path.write_bytes(new)
    assert await store.locate(red, "s") is None


def test_it_says_when_it_gives_up(make_store: Make) -> None:
    """No write is to begin later; what is asked in a thread may outlast its cancellation."""
    store = make_store()
    assert (store.gives_up_after, store.may_outlast_cancellation) == (json_store.PATIENCE, True)


def test_the_how_to_shows_what_is_printed() -> None:
    """With as many cases as there are checks."""
    page = Path(__file__).parent.parent / "docs" / "howto" / "write-a-store.md"
    assert f"collected {len(store_conformance)} items" in page.read_text("utf-8")


class BelievesThatAllAreThere(JsonStore):
    """A session that was revoked lives on."""

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        answers = await super().refresh(worker, session_ids)
        return replace(answers, held=frozenset(session_ids), taken_over=frozenset())


class LetsEveryClaimWin(JsonStore):
    """A worker that comes late, after an outage, takes live sessions away."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [replace(w, age=0.0) if isinstance(w, Claim) else w for w in batch.writes]
        return await super().commit(worker, replace(batch, writes=writes))


class KnowsNoWitness(JsonStore):
    """A file that was restored removes everybody who is not in it."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        return await super().commit(worker, replace(batch, stamp=None))


class SweepsByAgeAlone(JsonStore):
    """A session whose row cannot be refreshed dies although its worker lives."""

    async def sweep(self, worker: Worker, **durations: Any) -> Swept:
        await self._run(worker, forget_leases)
        return await super().sweep(worker, **durations)


def forget_leases(book: Book) -> None:
    for row in book.workers.values():
        row["stamped_at"] = row["passed_at"] = 0.0


class StaysSilent(JsonStore):
    """What is sent waits until the next pass."""

    async def news(self, worker: Worker, seen: int) -> tuple[int, frozenset[str]]:
        await trio.sleep_forever()
        raise AssertionError("it sleeps for ever")


@pytest.mark.parametrize(
    ("broken", "check", "error"),
    [
        (BelievesThatAllAreThere, "what_is_not_there_is_in_no_field", AssertionError),
        (LetsEveryClaimWin, "an_older_claim_does_not_take_over", AssertionError),
        (KnowsNoWitness, "what_the_store_does_not_know_does_nothing", AssertionError),
        (SweepsByAgeAlone, "stamps_keep_rows_that_are_not_refreshed", AssertionError),
        (StaysSilent, "the_bell_rings_for_the_holder", trio.TooSlowError),
    ],
)
def test_a_broken_one_is_caught(
    tmp_path: Path, broken: type[JsonStore], check: str, error: type[BaseException]
) -> None:
    """Each by the check of the rule that it breaks."""
    [found] = [one for one in store_conformance if one.__name__ == check]
    clock = None
    if broken is StaysSilent:  # it is waited for in vain, and so in no time
        clock = trio.testing.MockClock(autojump_threshold=0)
    with pytest.raises(error):
        trio.run(held_still, found, lambda: broken(tmp_path / "s.json"), clock=clock)


async def held_still(check: Callable[[Any], Any], make_store: Make) -> None:
    """Run a check; a clock that jumps waits for threads."""
    if isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock):
        with virtual_time():
            await check(make_store)
    else:
        await check(make_store)


# ---- in company ----


def machine_on(path: Path, store: type[JsonStore]) -> type[RegistryMachine]:
    """Return a machine whose workers share a file."""

    class OnJsonFile(RegistryMachine):
        def reset(self) -> None:
            path.unlink(missing_ok=True)

        def make_store(self) -> JsonStore:
            return store(path)

    return OnJsonFile


@pytest.mark.no_cover  # measuring would double the time of a search
@pytest.mark.timeout(120)
def test_the_machine_finds_nothing(tmp_path: Path) -> None:
    """In few histories, always the same; each of them has left its file behind."""
    path = tmp_path / "sessions.json"
    run_state_machine_as_test(
        machine_on(path, JsonStore),
        settings=settings(
            max_examples=6,
            stateful_step_count=12,
            deadline=None,
            derandomize=True,
            phases=(Phase.explicit, Phase.generate),
        ),
    )
    assert JsonStore(path)._read()["rows"] == {}


def test_the_machine_finds_a_claim_that_counts_from_when_it_arrives(tmp_path: Path) -> None:
    """The history of the how-to "run the property suite" finds it in this store, too."""

    def play(store: type[JsonStore]) -> None:
        state = machine_on(tmp_path / "sessions.json", store)()
        state.begin(batch_size=1, held_by={"b": 0})
        state.outage(answers="none", workers=(0,))
        state.add(session="a", worker=0)
        state.add(session="a", worker=1)
        state.heal()
        state.teardown()

    with pytest.raises(AssertionError, match="has removed session 'a', whose transport lives"):
        play(LetsEveryClaimWin)
    play(JsonStore)
