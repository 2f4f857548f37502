"""Servers that a fail-over leaves behind have done what nobody was told of, and come back."""

import pytest
import trio
from conftest import share_memory
from gates import GatedStore
from trio.testing import MockClock

from trio_sessions import SessionRegistry, StoreUnavailable
from trio_sessions.testing import FakeTransport, Fault

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def stamp(registry: SessionRegistry) -> None:
    """Stamp the worker's row, as happens between passes."""
    await registry._house._edge.stamp(passed=False)


async def test_two_that_are_carried_out_behind_a_third_that_is_acknowledged(
    autojump_clock: MockClock,
) -> None:
    """Their beats are two more than the one that was told; both answers are lost."""
    with share_memory() as shared:
        store = GatedStore(shared.make_store())
        async with shared.open(store=store) as registry:
            await registry.add_session("old", FakeTransport())
            sweep, commit = store.hold("sweep"), store.hold("commit")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registry.cleanup)
                await sweep.reached.wait()

                async def say() -> None:
                    with pytest.raises(StoreUnavailable):
                        await registry.set_session_owner("old", "o")

                nursery.start_soon(say)
                await commit.reached.wait()
                await stamp(registry)
                copy = shared.backdoor.copy()
                store.fail(Fault.COMMITS_THEN_FAILS, "sweep", "commit")
                sweep.open()
                commit.open()
            store.heal()
            left_behind = shared.backdoor.copy()
            shared.backdoor.go_back(copy)  # which has all that was acknowledged
            await stamp(registry)
            await registry.add_session("live", FakeTransport())
            shared.backdoor.go_back(left_behind)
            report = await registry.cleanup()
            assert "written anew" in str(report.refresh_failures["live"])
            assert registry.get_session_sync("live") is not None


async def test_a_claim_that_an_old_server_answers_late(autojump_clock: MockClock) -> None:
    """It is confirmed by that server's beat, and not by those that others have counted since."""
    with share_memory() as shared:
        store = GatedStore(shared.make_store())
        async with shared.open(
            store=store, store_timeout=20000.0, session_ttl=200000.0
        ) as registry:
            copy = shared.backdoor.copy()
            claim = store.hold_answer("Claim")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(registry.add_session, "live", FakeTransport())
                await claim.reached.wait()
                shared.backdoor.go_back(copy)
                store.fail(Fault.COMMITS_THEN_FAILS, "stamp", times=1)
                with pytest.raises(StoreUnavailable):
                    await stamp(registry)
                await stamp(registry)
                await stamp(registry)
                claim.open()
            report = await registry.cleanup()
            assert "written anew" in str(report.refresh_failures["live"])
            assert registry.get_session_sync("live") is not None
