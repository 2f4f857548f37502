"""The pass: what it removes, what it keeps, what it writes; on every store.

The known faults of the systems that this one follows each have their test here, marked
"older fault".
"""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from conftest import Shared
from gates import GatedStore
from readers import finish_writing
from trio.testing import MockClock

from trio_sessions import StoreUnavailable, fingerprint, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import Holder, RowAnswers
from trio_sessions.writes import Batch, Committed

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def test_a_steady_pass_refreshes_everyone(everywhere: Shared) -> None:
    """Nothing is removed, and the rows carry the database's clock."""
    async with everywhere.open(batch_size=3) as registry:
        transports = [FakeTransport() for _ in range(10)]
        for number, transport in enumerate(transports):
            await registry.add_session(f"s{number}", transport)
        report = await registry.cleanup()
        assert (report.checked, report.refreshed) == (10, 10)
        assert report.disconnected == report.missing == report.restored == ()
        assert not report.check_failures
        assert not report.refresh_failures
        assert all(transport.checks == 1 for transport in transports)
        assert report.duration > 0


async def test_disconnected_sessions_are_removed_with_their_rows(everywhere: Shared) -> None:
    """Those that said so, and no others."""
    alive, dead = FakeTransport(), FakeTransport()
    async with everywhere.open(worker_id="w") as registry:
        await registry.add_session("alive", alive)
        await registry.add_session("dead", dead)
        dead.state = "closed"
        report = await registry.cleanup()
        assert report.disconnected == ("dead",)
        assert report.refreshed == 1
        assert dead.disconnects == 1
        assert await registry.get_all_session_ids() == ["alive"]
        assert everywhere.backdoor.rows() == {"alive": "w"}


async def test_a_session_whose_row_is_gone_is_removed_and_disconnected(everywhere: Shared) -> None:
    """The database has confirmed it: `missing`."""
    kept, lost = FakeTransport(), FakeTransport()
    async with everywhere.open() as registry:
        await registry.add_session("kept", kept)
        await registry.add_session("lost", lost)
        everywhere.backdoor.delete("lost")
        report = await registry.cleanup()
        assert report.missing == ("lost",)
        assert (lost.disconnects, kept.disconnects) == (1, 0)
        assert await registry.get_session("lost") is None
        assert await registry.session_exists("lost") is False


@pytest.mark.parametrize("state", ["raises", "hangs"])
async def test_a_transport_that_does_not_answer_is_kept_and_refreshed(
    everywhere: Shared, state: str
) -> None:
    """Unknown is not gone: its failure is reported, its lease renewed. An older fault:
    a transport that hangs stopped the cleanup for ever."""
    odd = FakeTransport(state)  # type: ignore[arg-type]  # one of its states
    async with everywhere.open(check_timeout=0.05) as registry:
        await registry.add_session("odd", odd)
        await registry.add_session("fine", FakeTransport())
        report = await registry.cleanup()
        assert (report.checked, report.refreshed) == (2, 2)
        assert report.disconnected == report.missing == ()
        failure = report.check_failures["odd"]
        if state == "raises":
            assert failure is odd.error
        else:
            assert isinstance(failure, TimeoutError)
        assert await registry.get_session("odd") is odd
        assert odd.disconnects == 0


@pytest.mark.parametrize("answer", [None, 0, 1, "no"])
async def test_only_true_and_false_are_answers(answer: object) -> None:
    """A transport that forgets to answer is not thereby disconnected."""

    class Vague(FakeTransport):
        async def is_connected(self) -> bool:
            return answer  # type: ignore[return-value]  # the mistake under test

    async with open_registry() as registry:
        await registry.add_session("s", Vague())
        report = await registry.cleanup()
        assert isinstance(report.check_failures["s"], TypeError)
        assert report.refreshed == 1


async def test_a_method_that_is_not_async_is_a_failure_of_that_session() -> None:
    """Nobody is removed for a transport of the wrong kind."""

    class Sync(FakeTransport):
        def is_connected(self) -> bool:  # type: ignore[override]  # the mistake under test
            return False

    async with open_registry() as registry:
        await registry.add_session("s", Sync())  # type: ignore[arg-type]  # the mistake under test
        report = await registry.cleanup()
        assert "must be an async function" in str(report.check_failures["s"])
        assert report.disconnected == ()


async def test_an_outage_removes_nobody_but_the_disconnected(everywhere: Shared) -> None:
    """Everybody else is unknown and kept; the row of the disconnected goes later."""
    store = FaultyStore(everywhere.make_store())
    dead = FakeTransport()
    async with everywhere.open(store=store, batch_size=2) as registry:
        for number in range(5):
            await registry.add_session(f"s{number}", FakeTransport())
        await registry.add_session("dead", dead)
        store.fail()
        dead.state = "closed"
        report = await registry.cleanup()
        assert store.faults["refresh"] == 3
        assert report.disconnected == ("dead",)
        assert dead.disconnects == 1
        assert set(report.refresh_failures) == {f"s{number}" for number in range(5)}
        assert all(isinstance(e, StoreUnavailable) for e in report.refresh_failures.values())
        assert report.missing == ()
        assert "dead" in everywhere.backdoor.rows()
        assert registry.statistics().leftover_rows == 1
        store.heal()
        report = await registry.cleanup()
        assert report.refreshed == 5
        assert "dead" not in everywhere.backdoor.rows()
        assert registry.statistics().leftover_rows == 0


@pytest.mark.parametrize("fault", [Fault.FAILS, Fault.COMMITS_THEN_FAILS])
async def test_a_row_that_was_never_confirmed_is_written_not_judged(
    everywhere: Shared, fault: Fault
) -> None:
    """An older fault: a failed insert made a live session "missing" at the next pass."""
    store = FaultyStore(everywhere.make_store())
    transport = FakeTransport()
    async with everywhere.open(store=store, worker_id="w") as registry:
        store.fail(fault, "Claim")
        await registry.add_session("s", transport)
        assert registry.statistics().unconfirmed == 1
        report = await registry.cleanup()
        assert store.faults["Claim"] == 2
        assert set(report.refresh_failures) == {"s"}
        assert report.missing == ()
        store.heal()
        report = await registry.cleanup()
        assert report.restored == ("s",)
        assert report.refreshed == 0
        assert report.missing == ()
        assert everywhere.backdoor.rows() == {"s": "w"}
        assert (await registry.cleanup()).refreshed == 1
        assert transport.disconnects == 0


async def test_a_pass_during_an_insert_leaves_the_new_session_alone() -> None:
    """An older fault: a refresh between the local add and the insert killed the session."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, store_timeout=1.0) as registry:
        store.fail(Fault.HANGS, "Claim")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.add_session, "s", FakeTransport())
            while not store.faults["Claim"]:
                await trio.lowlevel.checkpoint()
            report = await registry.cleanup()
            assert report.checked == 1
            assert report.missing == report.restored == ()
            assert store.faults["Claim"] == 1
        assert registry.statistics().sessions == 1
        store.heal()


async def test_a_lost_answer_of_a_refresh_is_unknown(everywhere: Shared) -> None:
    """Committed or not, nobody is removed for it."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        everywhere.backdoor.delete("s")
        store.fail(Fault.COMMITS_THEN_FAILS, "refresh")
        report = await registry.cleanup()
        assert store.faults["refresh"] == 1
        assert set(report.refresh_failures) == {"s"}
        assert report.missing == ()
        store.heal()
        assert (await registry.cleanup()).missing == ("s",)


async def test_a_store_that_hangs_is_given_up_after_its_time() -> None:
    """For stores that do not bound themselves; nobody is removed."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, store_timeout=0.1) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail(Fault.HANGS, "refresh")
        report = await registry.cleanup()
        assert "store_timeout" in str(report.refresh_failures["s"])
        assert report.missing == ()
        store.heal()


async def test_a_store_that_breaks_its_contract_is_unknown_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An unexpected error is kept as the cause, and logged with its traceback."""
    store = FaultyStore(MemoryStore())
    store.error = ZeroDivisionError("a bug of the store")
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail(Fault.FAILS, "refresh")
        report = await registry.cleanup()
        failure = report.refresh_failures["s"]
        assert isinstance(failure, StoreUnavailable)
        assert failure.__cause__ is store.error
        store.heal()
    assert "ZeroDivisionError" in caplog.text


async def test_a_session_added_again_during_the_pass_stays(everywhere: Shared) -> None:
    """An older fault: removal by id killed the session that was added again meanwhile."""
    asked, go_on = trio.Event(), trio.Event()
    new = FakeTransport()

    class Slow(FakeTransport):
        async def is_connected(self) -> bool:
            asked.set()
            await go_on.wait()
            return False

    old = Slow()
    async with everywhere.open(worker_id="w") as registry:
        await registry.add_session("s", old)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.cleanup)
            await asked.wait()
            await registry.add_session("s", new)
            go_on.set()
        assert await registry.get_session("s") is new
        assert (old.disconnects, new.disconnects) == (1, 0)
        assert everywhere.backdoor.rows() == {"s": "w"}
        assert (await registry.cleanup()).refreshed == 1


async def test_a_session_removed_and_added_again_keeps_its_row(everywhere: Shared) -> None:
    """The deletion of the old row, however late, spares the new one."""
    slow = FakeTransport(on_disconnect="hangs")
    new = FakeTransport()
    async with everywhere.open(worker_id="w", disconnect_timeout=0.1) as registry:
        await registry.add_session("s", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.remove_session, "s")
            while not slow.disconnects:
                await trio.lowlevel.checkpoint()
            await registry.add_session("s", new)
        assert everywhere.backdoor.rows() == {"s": "w"}
        report = await registry.cleanup()
        assert (report.refreshed, report.missing) == (1, ())
        assert await registry.get_session("s") is new


async def test_a_session_removed_while_its_row_is_written_leaves_no_row(everywhere: Shared) -> None:
    """Connect and disconnect at once: the write that comes late is undone."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store, max_concurrent=1) as registry:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(registry.add_session, f"s{number}", FakeTransport())
            while registry.statistics().sessions < 10:
                await trio.lowlevel.checkpoint()
            for number in range(10):
                nursery.start_soon(registry.remove_session, f"s{number}")
        await finish_writing(registry)
        assert registry.statistics().sessions == 0
        assert everywhere.backdoor.rows() == {}


async def test_a_row_that_lands_after_its_session_was_removed_is_deleted(
    everywhere: Shared,
) -> None:
    """The insert was on its way when the session was removed: the deletion comes behind it."""
    store = GatedStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        gate = store.hold("Claim")
        transport = FakeTransport()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.add_session, "s", transport)
            await gate.reached.wait()
            nursery.start_soon(registry.remove_session, "s")
            while not transport.disconnects:
                await trio.lowlevel.checkpoint()
            assert store.calls["Delete"] == 0
            gate.open()
        assert (store.calls["Claim"], store.calls["Delete"]) == (1, 1)
        assert everywhere.backdoor.rows() == {}


async def test_a_worker_that_comes_back_late_does_not_take_over_again(everywhere: Shared) -> None:
    """Its row was never written, and meanwhile the client went to another worker."""
    store = FaultyStore(everywhere.make_store())
    old, new = FakeTransport(), FakeTransport()
    async with (
        everywhere.open(store=store, worker_id="a") as a,
        everywhere.open(worker_id="b") as b,
    ):
        store.fail()
        await a.add_session("s", old)
        await trio.sleep(1)  # a claim counts from when its statement begins: it may be late
        await b.add_session("s", new)
        store.heal()
        report = await a.cleanup()
        assert (report.missing, dict(report.refresh_failures)) == (("s",), {})
        assert report.restored == ()
        assert old.disconnects == 1
        assert everywhere.backdoor.rows() == {"s": "b"}
        assert (await b.cleanup()).refreshed == 1


async def test_a_write_that_was_queued_does_not_win_over_a_newer_one(everywhere: Shared) -> None:
    """It says when its session was added, however late it comes."""
    begun = trio.Event()

    class Queued(FaultyStore):
        async def commit(self, worker: Worker, batch: Batch) -> Committed:
            begun.set()
            return await super().commit(worker, batch)

        async def locate(self, worker: Worker, session_id: str) -> Holder | None:
            await trio.to_thread.run_sync(release.wait, limiter=worker.limiter)
            return None

    release = threading.Event()
    store, old, new = Queued(everywhere.make_store()), FakeTransport(), FakeTransport()
    async with (
        everywhere.open(store=store, worker_id="a", max_concurrent=1) as a,
        everywhere.open(worker_id="b") as b,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.locate_session, "elsewhere")  # takes the only token
            while not a.statistics().operations_running:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(a.add_session, "s", old)
            await begun.wait()
            await trio.sleep(0.02)  # the database's clock must move, SQLite's by a millisecond
            await b.add_session("s", new)
            release.set()
        if everywhere.name == "memory":
            return  # its writes need no token, so this one was not queued
        assert everywhere.backdoor.rows() == {"s": "b"}
        assert (await b.cleanup()).refreshed == 1
        assert (await a.cleanup()).missing == ("s",)
        assert (old.disconnects, new.disconnects) == (1, 0)


async def test_a_row_that_somebody_gives_to_another_worker_is_that_workers(
    everywhere: Shared,
) -> None:
    """Whoever did it, by SQL perhaps: the session is gone here and located there."""
    transport = FakeTransport()
    async with everywhere.open(worker_id="a") as registry:
        await registry.add_session("s", transport)
        everywhere.backdoor.give("s", "b")
        assert (await registry.cleanup()).missing == ("s",)
        assert transport.disconnects == 1
        assert await registry.session_exists("s") is True
        assert await registry.locate_session("s") == "b"
        assert everywhere.backdoor.rows() == {"s": "b"}


@pytest.mark.parametrize("answer", [None, "w", 7])
async def test_a_store_that_answers_nonsense_is_unknown(answer: Any) -> None:
    """Like one that raises: nobody is removed, and the registry goes on."""

    class Nonsense(FaultyStore):
        nonsense = False

        async def commit(self, worker: Worker, batch: Batch) -> Committed:
            return answer if self.nonsense else await super().commit(worker, batch)

        async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
            return answer if self.nonsense else await super().refresh(worker, session_ids)

        async def locate(self, worker: Worker, session_id: str) -> Holder | None:
            return "w" if self.nonsense else await super().locate(worker, session_id)  # type: ignore[return-value]

    store = Nonsense(MemoryStore())
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        store.nonsense = True
        await registry.add_session("t", FakeTransport())
        report = await registry.cleanup()
        assert set(report.refresh_failures) == {"s", "t"}
        assert "contract" in str(report.refresh_failures["s"])
        assert await registry.session_exists("elsewhere") is None
        store.nonsense = False
        report = await registry.cleanup()
        assert (report.refreshed, report.restored) == (1, ("t",))


# ---- the sweep ----


async def test_rows_of_dead_workers_are_swept(everywhere: Shared) -> None:
    """After the TTL, and with the count in the report."""
    async with everywhere.open(session_ttl=60.0, batch_size=2) as registry:
        await registry.add_session("alive", FakeTransport())
        for number in range(5):
            everywhere.backdoor.insert(f"dead{number}", "gone", age=61.0)
        everywhere.backdoor.insert("young", "gone", age=50.0)
        report = await registry.cleanup()
        assert report.expired == 5
        assert set(everywhere.backdoor.rows()) == {"alive", "young"}


async def test_the_sweep_comes_after_the_refresh(everywhere: Shared) -> None:
    """An older fault: after an outage longer than the TTL everybody was deleted."""
    transport = FakeTransport()
    async with everywhere.open(session_ttl=60.0) as registry:
        await registry.add_session("s", transport)
        everywhere.backdoor.age(1000.0)
        report = await registry.cleanup()
        assert (report.refreshed, report.expired, report.missing) == (1, 0, ())
        assert transport.disconnects == 0


async def test_an_outage_of_the_database_expires_nobody(everywhere: Shared) -> None:
    """After a gap in the vouching, rows of other workers get a whole TTL to be refreshed."""
    async with everywhere.open(session_ttl=60.0) as a, everywhere.open(session_ttl=60.0) as b:
        await b.add_session("s", FakeTransport())
        await b.cleanup()
        everywhere.backdoor.age(1000.0)  # both could not reach the database for so long
        everywhere.backdoor.age_fleet(1000.0)
        assert (await a.cleanup()).expired == 0
        assert (await a.cleanup()).expired == 0
        report = await b.cleanup()
        assert (report.refreshed, report.missing) == (1, ())


async def test_the_grace_outlives_a_restart_of_every_worker(everywhere: Shared) -> None:
    """It stands in the database, not in a worker."""
    async with everywhere.open(session_ttl=60.0):
        everywhere.backdoor.insert("s", "slow to come back", age=1000.0)
        everywhere.backdoor.age_fleet(1000.0)
    for _ in range(2):
        async with everywhere.open(session_ttl=60.0) as registry:
            assert (await registry.cleanup()).expired == 0
    assert set(everywhere.backdoor.rows()) == {"s"}


async def test_a_worker_that_alone_lost_the_database_expires(everywhere: Shared) -> None:
    """The TTL is a lease: the others could refresh all the time."""
    store = FaultyStore(everywhere.make_store())
    transport = FakeTransport()
    async with (
        everywhere.open(session_ttl=60.0) as a,
        everywhere.open(store=store, session_ttl=60.0) as b,
    ):
        await b.add_session("s", transport)
        store.fail()
        everywhere.backdoor.age(61.0)
        everywhere.backdoor.age_workers(61.0, b.worker_id)
        assert set((await b.cleanup()).refresh_failures) == {"s"}
        assert (await a.cleanup()).expired == 1
        store.heal()
        assert (await b.cleanup()).missing == ("s",)
        assert transport.disconnects == 1


async def test_a_pass_that_could_not_refresh_sweeps_nobody(everywhere: Shared) -> None:
    """The judge looks to its own health before it judges."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store, session_ttl=60.0) as registry:
        await registry.add_session("s", FakeTransport())
        everywhere.backdoor.insert("dead", "gone", age=61.0)
        store.fail(Fault.FAILS, "refresh")
        before = store.calls["sweep"]
        assert (await registry.cleanup()).expired == 0
        assert store.calls["sweep"] == before
        store.heal()
        assert (await registry.cleanup()).expired == 1


async def test_a_failing_sweep_is_logged_and_the_report_stands(
    everywhere: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """An older fault: a sweep that failed skipped the refresh."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail(Fault.FAILS, "sweep")
        report = await registry.cleanup()
        assert store.faults["sweep"] == 1
        assert (report.refreshed, report.expired) == (1, 0)
        store.heal()
    assert "sweep" in caplog.text


async def test_the_ttl_is_a_lower_bound_and_equality_is_not_expired() -> None:
    """At exactly the TTL the row stays, and a moment later it goes."""
    clock = trio.lowlevel.current_clock()
    assert not isinstance(clock, MockClock)

    async def main() -> tuple[int, int]:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        store = MemoryStore()
        async with open_registry(store, session_ttl=64.0, cleanup_interval=32.0) as registry:
            from backdoors import MemoryBackdoor

            MemoryBackdoor(store).insert("s", "gone", age=64.0)
            at_the_ttl = (await registry.cleanup()).expired
            clock.jump(2**-10)
            return at_the_ttl, (await registry.cleanup()).expired

    result = await trio.to_thread.run_sync(lambda: trio.run(main, clock=MockClock()))
    assert result == (0, 1)


# ---- all at once ----


async def test_a_hundred_that_hang_cost_one_timeout_together(
    autojump_clock: MockClock,
) -> None:
    """Checks and disconnects run all at once. An older fault: removals ran one by one."""
    async with open_registry(check_timeout=5.0, disconnect_timeout=7.0) as registry:
        for number in range(100):
            await registry.add_session(f"s{number}", FakeTransport("hangs"))
        start = trio.current_time()
        report = await registry.cleanup()
        assert len(report.check_failures) == 100
        assert trio.current_time() - start == pytest.approx(5.0, abs=0.1)
        for session_id in await registry.get_all_session_ids():
            transport = registry.get_session_sync(session_id)
            assert isinstance(transport, FakeTransport)
            transport.state, transport.on_disconnect = "closed", "hangs"
        start = trio.current_time()
        assert len((await registry.cleanup()).disconnected) == 100
        assert trio.current_time() - start == pytest.approx(7.0, abs=0.1)
        assert registry.statistics().disconnect_failures == 100


async def test_a_transport_that_hangs_delays_no_removal_and_no_refresh(
    autojump_clock: MockClock,
) -> None:
    """While one hangs in `disconnect`, the others are refreshed."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, disconnect_timeout=1000.0) as registry:
        await registry.add_session("slow", FakeTransport(on_disconnect="hangs"))
        await registry.add_session("fine", FakeTransport())
        registry.get_session_sync("slow").state = "closed"  # type: ignore[union-attr]
        start = trio.current_time()
        refreshed_at: list[float] = []
        refresh = store.refresh

        async def noting(*args: object) -> object:
            refreshed_at.append(trio.current_time() - start)
            return await refresh(*args)  # type: ignore[arg-type]

        store.refresh = noting  # type: ignore[method-assign, assignment]
        report = await registry.cleanup()
        assert report.refreshed == 1
        assert refreshed_at == [0.0]


async def test_two_calls_of_cleanup_share_one_pass(everywhere: Shared) -> None:
    """The second joins the first and gets the same report."""
    asked, go_on = trio.Event(), trio.Event()

    class Slow(FakeTransport):
        async def is_connected(self) -> bool:
            self.checks += 1
            asked.set()
            await go_on.wait()
            return True

    transport = Slow()
    reports = []
    async with everywhere.open() as registry:
        await registry.add_session("s", transport)

        async def clean() -> None:
            reports.append(await registry.cleanup())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean)
            await asked.wait()
            nursery.start_soon(clean)
            await everywhere.settle()
            go_on.set()
        assert reports[0] is reports[1]
        assert transport.checks == 1


async def test_a_caller_that_gives_up_does_not_end_the_pass_for_others(everywhere: Shared) -> None:
    """A cancelled `cleanup` goes on in the background."""
    dead = FakeTransport()
    async with everywhere.open() as registry:
        await registry.add_session("s", dead)
        dead.state = "closed"
        with trio.CancelScope() as scope:
            scope.cancel()
            await registry.cleanup()
        assert scope.cancelled_caught
        with trio.fail_after(40):
            while registry.statistics().passes < 2:
                await trio.lowlevel.checkpoint()
        assert registry.statistics().removed_disconnected == 1


async def test_logs_carry_fingerprints_and_no_ids(
    everywhere: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """A session id is a credential."""
    caplog.set_level(logging.DEBUG)
    store = FaultyStore(everywhere.make_store())
    secret, other = "secret-credential-1", "secret-credential-2"
    async with everywhere.open(
        store=store, check_timeout=0.05, disconnect_timeout=0.05
    ) as registry:
        store.fail()
        await registry.add_session(secret, FakeTransport("raises", on_disconnect="raises"))
        await registry.cleanup()
        await registry.session_exists("secret-credential-3")
        store.heal()
        await registry.add_session(other, FakeTransport("hangs", on_disconnect="hangs"))
        await registry.cleanup()
        everywhere.backdoor.delete(secret)
        await registry.cleanup()
    ours = [record for record in caplog.records if record.name.startswith("trio_sessions")]
    text = "\n".join(logging.Formatter().format(record) for record in ours)
    assert fingerprint(secret) in text
    assert fingerprint(other) in text
    assert "secret-credential" not in text


class SlowToPart(FakeTransport):
    """Takes its time to disconnect."""

    def __init__(self) -> None:
        super().__init__("closed")
        self.may_part = trio.Event()

    async def disconnect(self, reason: object = None) -> None:
        await self.may_part.wait()
        await super().disconnect()


async def test_a_row_goes_as_soon_as_its_own_transport_has_ended(everywhere: Shared) -> None:
    """Found dead by one pass, they leave together; a slow one delays nobody's row but its own."""
    slow = SlowToPart()
    quick = [FakeTransport("closed", on_disconnect=how) for how in ("closes", "raises")]
    async with (
        everywhere.open(disconnect_timeout=60.0) as registry,
        trio.open_nursery() as nursery,
    ):
        await registry.add_session("slow", slow)
        for number, transport in enumerate(quick):
            await registry.add_session(f"quick-{number}", transport)
        nursery.start_soon(registry.cleanup)
        with trio.fail_after(40):
            while set(everywhere.backdoor.rows()) != {"slow"}:
                await trio.sleep(0.005)
        assert slow.disconnects == 0
        slow.may_part.set()
    assert slow.disconnects == 1
