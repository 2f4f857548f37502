"""What a worker says of a session that another one holds, the holder learns before a rewind."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Shared

from trio_sessions import NotSupported, SessionRegistry, StoreUnavailable, open_registry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Capabilities

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def nothing(payload: Any) -> None:
    await trio.lowlevel.checkpoint()


HANDLERS = {"nothing": nothing}
"""Who has some collects letters."""


@dataclass(frozen=True)
class Two:
    """Two workers, of which the first holds the session s, and collects letters."""

    a: SessionRegistry
    b: SessionRegistry
    of_a: FaultyStore
    of_b: FaultyStore
    memory: MemoryStore


@asynccontextmanager
async def two(data: dict[str, Any] | None = None) -> AsyncIterator[Two]:
    """Open them on one memory, each behind a store of its own that may fail."""
    memory = MemoryStore()
    of_a, of_b = FaultyStore(memory), FaultyStore(memory)
    async with open_registry(of_a, handlers=HANDLERS) as a, open_registry(of_b) as b:
        await a.add_session("s", FakeTransport(), data=data)
        yield Two(a, b, of_a, of_b, memory)


def known(registry: SessionRegistry, session_id: str) -> tuple[Any, Any, Any]:
    """Return what a holder knows of its session: owner, capabilities and data."""
    entry = registry._house.table.get(session_id)
    assert entry is not None
    holder, capabilities, data, _ = entry.told
    assert holder is not None
    return holder.owner, capabilities and capabilities.encoded, data


async def until_known(registry: SessionRegistry, session_id: str, expected: Any) -> None:
    """Wait until a holder knows this of its session."""
    with trio.fail_after(30):
        while known(registry, session_id) != expected:
            await trio.sleep(0.05)


async def test_a_rewind_keeps_what_another_worker_has_said(shared: Shared) -> None:
    """Nobody has read it at the holder: that was told, and has asked."""
    async with shared.open(handlers=HANDLERS) as a, shared.open() as b:
        await a.add_session("s", FakeTransport(), owner="alice", data={"n": 1})
        await a.store_client_capabilities("s", {"n": 1})
        copy = shared.backdoor.copy()
        await b.set_session_data("s", {"m": 2}, merge=True)
        await b.set_session_owner("s", "bob")
        await b.store_client_capabilities("s", {"n": 2})
        await until_known(a, "s", ("bob", '{"n":2}', '{"n":1,"m":2}'))
        await a.add_session("t", FakeTransport())
        shared.backdoor.go_back(copy)
        await a.cleanup()
        assert a.statistics().database_rewinds == 1
        await a.cleanup()
        assert await b.get_session_data("s") == {"n": 1, "m": 2}
        assert await b.get_session_owner("s") == "bob"
        assert await b.get_client_capabilities("s") == {"n": 2}


async def test_many_changes_are_one_letter(autojump_clock: trio.testing.MockClock) -> None:
    """Of a second, to one holder; and the holder asks once for each session."""
    async with two({"n": 0}) as workers:
        a, b, of_a, of_b = workers.a, workers.b, workers.of_a, workers.of_b
        await a.add_session("t", FakeTransport(), data={"n": 0})
        of_a.calls.clear()
        for number in range(50):
            await b.set_session_data("s", {"n": number})
            await b.set_session_data("t", {"n": number})
        await until_known(a, "s", (None, None, '{"n":49}'))
        await until_known(a, "t", (None, None, '{"n":49}'))
        await trio.sleep(10)
        assert of_b.calls["Post"] == 1
        assert of_a.calls["get_data"] == 2


async def test_what_is_said_at_the_holder_or_where_nothing_changed_is_told_to_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The holder knows; and a merge that has to be made once more has not been done."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, handlers=HANDLERS) as a:
        await a.add_session("s", FakeTransport(), data={"n": 0})
        await a.set_session_data("s", {"n": 1})
        await a.set_session_owner("s", "alice")
        await trio.sleep(10)
        assert store.calls["Post"] == 0


async def test_a_claim_of_an_owner_is_not_told(autojump_clock: trio.testing.MockClock) -> None:
    """It may be made with each request, and mostly changes nothing."""
    async with two() as workers:
        assert await workers.b.claim_session_owner("s", "bob") == "bob"
        await trio.sleep(10)
        assert workers.of_b.calls["Post"] == 0


async def test_what_cannot_be_asked_now_holds_up_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One question fails: the sessions after it are asked for all the same."""
    async with two() as workers:
        a, b, of_a = workers.a, workers.b, workers.of_a
        await a.add_session("t", FakeTransport())
        of_a.fail(Fault.FAILS, "get_data", times=1)
        for name in ("s", "t"):
            await b.set_session_data(name, {"n": 1})
        await until_known(a, "t", (None, None, '{"n":1}'))
        assert of_a.faults["get_data"] == 1


async def test_what_cannot_be_asked_now_is_asked_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nobody else tells the holder, and the database may go back as soon as it is there again."""
    async with two() as workers:
        a, b, of_a = workers.a, workers.b, workers.of_a
        of_a.fail(Fault.FAILS, "get_data", times=3)
        await b.set_session_data("s", {"n": 1})
        await until_known(a, "s", (None, None, '{"n":1}'))
        assert of_a.faults["get_data"] == 3


async def test_what_can_never_be_asked_is_asked_ever_more_seldom(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The store answers everything else; and no more once the session has gone."""
    async with two() as workers:
        a, b, of_a = workers.a, workers.b, workers.of_a
        of_a.fail(Fault.FAILS, "get_data")
        await b.set_session_data("s", {"n": 1})
        await trio.sleep(1000)
        assert 8 <= of_a.faults["get_data"] <= 10
        await trio.sleep(6000)
        assert 17 <= of_a.faults["get_data"] <= 20, "but at least every ten minutes"
        await a.remove_session("s")
        of_a.faults.clear()
        await trio.sleep(2000)
        assert of_a.faults["get_data"] == 0


async def test_what_can_never_be_asked_holds_up_nothing_that_is_said_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However long it is put off."""
    async with two() as workers:
        a, b, of_a = workers.a, workers.b, workers.of_a
        of_a.fail(Fault.FAILS, "get_data")
        await b.set_session_data("s", {"n": 1})
        await trio.sleep(1000)
        said_at = trio.current_time()
        await b.set_session_owner("s", "bob")
        await until_known(a, "s", ("bob", None, None))
        assert trio.current_time() - said_at < 3


async def test_after_an_outage_it_is_asked_soon(autojump_clock: trio.testing.MockClock) -> None:
    """However long it has lasted: that nothing is answered is nothing's own fault."""
    async with two() as workers:
        a, b, of_a = workers.a, workers.b, workers.of_a
        of_a.fail(Fault.FAILS, "get_data")
        await b.set_session_data("s", {"n": 1})
        await trio.sleep(5)
        of_a.fail()
        await trio.sleep(3000)
        assert 3000 / 30 <= of_a.faults["get_data"] < 3000 / 30 + 10
        of_a.heal()
        healed_at = trio.current_time()
        await until_known(a, "s", (None, None, '{"n":1}'))
        assert trio.current_time() - healed_at <= 30


async def test_what_the_store_does_not_keep_is_not_asked_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A letter may be another version's; what comes after it is asked at once."""
    async with two() as workers:
        a, b, of_a = workers.a, workers.b, workers.of_a
        of_a.error = NotSupported("no data")
        of_a.fail(Fault.FAILS, "get_data")
        await b.set_session_data("s", {"n": 1})
        await b.set_session_owner("s", "bob")
        await until_known(a, "s", ("bob", None, None))
        await trio.sleep(100)
        assert of_a.faults["get_data"] == 1


async def test_what_was_said_again_while_it_was_asked_is_asked_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The answer that is under way may be older than what was said."""
    async with two() as workers:
        a, b, of_a = workers.a, workers.b, workers.of_a
        of_a.fail(Fault.ANSWERS_LATE, "get_data", times=1, seconds=5)
        await b.set_session_data("s", {"n": 1})
        await trio.sleep(2)
        assert of_a.faults["get_data"] == 1
        await b.set_session_data("s", {"n": 2})
        await until_known(a, "s", (None, None, '{"n":2}'))


@pytest.mark.parametrize("written", ["[1]", "no JSON", "", "null"])
async def test_what_no_holder_could_have_written_ends_nobody(
    written: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Somebody else has written it: that costs this question, and not the registry."""
    async with two() as workers:
        a, b = workers.a, workers.b
        await a.add_session("t", FakeTransport())
        for name in ("s", "t"):
            await b.store_client_capabilities(name, {"n": 1})
        workers.memory._rows["s"].capabilities = Capabilities(encoded=written, elicitation=False)
        await until_known(a, "t", (None, '{"n":1}', None))
        with pytest.raises(StoreUnavailable, match="JSON object"):
            await b.get_client_capabilities("s")
        assert known(a, "s") == (None, None, None)


async def test_whoever_closes_waits_for_nothing_that_is_still_to_be_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_registry(MemoryStore(), handlers=HANDLERS) as a:
        await a.add_session("s", FakeTransport())
        async with open_registry(a._house._edge._store) as b:
            await b.set_session_data("s", {"n": 1})
            began = trio.current_time()
        assert trio.current_time() - began < 0.5
