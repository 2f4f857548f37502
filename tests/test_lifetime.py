"""Opening, serving, pacing and closing: bounded, and nothing left behind."""

import contextvars
import dataclasses
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from conftest import Shared
from soak import longer
from trio.testing import MockClock
from unmeasured import unmeasured

from trio_sessions import (
    RegistryClosed,
    SessionRegistry,
    StoreUnavailable,
    open_registry,
    serve_registry,
)
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import RemovalReason


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Every test here must end with the system tasks that it began with."""
    root = trio.lowlevel.current_root_task()
    assert root is not None

    def names() -> list[str]:
        return [
            t.name for n in root.child_nurseries for t in n.child_tasks if "trio_sess" in t.name
        ]

    yield
    await trio.testing.wait_all_tasks_blocked()
    assert names() == []


# ---- the block ----


async def test_leaving_disconnects_everything_and_deletes_every_row(shared: Shared) -> None:
    """In batches, and also rows of this worker that it does not know of."""
    transports = [FakeTransport() for _ in range(5)]
    async with shared.open(worker_id="other") as other:
        await other.add_session("elsewhere", FakeTransport())
        async with shared.open(batch_size=2) as registry:
            for number, transport in enumerate(transports):
                await registry.add_session(f"s{number}", transport)
            registry._house.table.discard(
                registry._house.table._entries["s3"], RemovalReason.MISSING
            )  # as if it had been lost
        assert shared.backdoor.rows() == {"elsewhere": "other"}
    assert [t.disconnects for t in transports] == [1, 1, 1, 0, 1]


async def test_a_block_that_ends_at_once_ends(autojump_clock: MockClock) -> None:
    """Also when the loops in the background have not begun."""
    with trio.fail_after(40):
        async with open_registry(session_ttl=60.0, cleanup_interval=30.0):
            pass


@pytest.mark.parametrize(
    "error", [KeyError("mine"), KeyboardInterrupt(), ExceptionGroup("mine", [ValueError()])]
)
async def test_what_the_block_raises_comes_out_bare(error: BaseException) -> None:
    """Not inside another exception group."""
    transport = FakeTransport()
    with pytest.raises(type(error)) as caught:
        async with open_registry() as registry:
            await registry.add_session("s", transport)
            raise error
    assert caught.value is error
    assert transport.disconnects == 1


@pytest.mark.parametrize("_", range(5))
async def test_a_cancelled_block_is_closed_and_the_cancellation_goes_on(
    shared: Shared, _: int
) -> None:
    """The transport is disconnected and the row deleted under the shield."""
    transport = FakeTransport()
    with trio.CancelScope() as scope:
        async with shared.open() as registry:
            await registry.add_session("s", transport)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert transport.disconnects == 1
    assert shared.backdoor.rows() == {}


async def test_an_error_in_a_cancelled_block_is_not_lost() -> None:
    """It comes out although the surrounding scope is cancelled."""
    with pytest.raises(KeyError), trio.CancelScope() as scope:
        async with open_registry():
            scope.cancel()
            raise KeyError


async def test_leaving_with_the_database_away_is_bounded_and_raises_nothing(
    shared: Shared, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows stay until they expire, and that is logged."""
    store = FaultyStore(shared.make_store())
    transport = FakeTransport()
    with trio.fail_after(40):
        async with shared.open(store=store) as registry:
            await registry.add_session("s", transport)
            store.fail()
    assert transport.disconnects == 1
    assert set(shared.backdoor.rows()) == {"s"}
    assert "stay" in caplog.text
    assert store.calls["close"] == 1


async def test_leaving_deletes_what_an_outage_has_left(shared: Shared) -> None:
    """The store is there again, and no pass has come since; nor is anything said of it."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        for session_id in ("removed", "held"):
            await registry.add_session(session_id, FakeTransport())
        store.fail(Fault.FAILS)
        await registry.remove_session("removed")
        assert registry.statistics().leftover_rows == 1
        store.heal()
    assert registry.statistics().leftover_rows == 0
    assert shared.backdoor.rows() == {}
    assert registry.worker_id not in shared.backdoor.workers()


async def test_leaving_with_a_store_that_hangs_is_bounded(autojump_clock: MockClock) -> None:
    """By one ``store_timeout`` for all of it, whatever hangs: a pass, an insert, the deletion."""
    store = FaultyStore(MemoryStore())
    async with trio.open_nursery() as nursery:
        async with open_registry(store, store_timeout=10.0) as registry:
            await registry.add_session("s", FakeTransport())
            store.fail(Fault.HANGS)
            for number in range(900):
                nursery.start_soon(registry.add_session, f"s{number}", FakeTransport())
            with trio.move_on_after(1):
                await registry.cleanup()
            start = trio.current_time()
        assert trio.current_time() - start <= 10.0
        assert store.faults["commit"] > 0
        assert store.faults["refresh"] > 0


@pytest.mark.parametrize("on_disconnect", ["hangs", "raises"])
async def test_leaving_with_transports_that_do_not_disconnect_is_bounded(
    autojump_clock: MockClock, on_disconnect: str
) -> None:
    """All of them together cost one timeout."""
    start = trio.current_time()
    async with open_registry(disconnect_timeout=5.0) as registry:
        for number in range(50):
            transport = FakeTransport(on_disconnect=on_disconnect)  # type: ignore[arg-type]
            await registry.add_session(f"s{number}", transport)
    assert trio.current_time() - start < 5.2
    assert registry.statistics().disconnect_failures == 50


async def test_a_transport_that_ignores_its_cancellation_holds_up_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the pass nor the closing; it is counted, not asked again, and named."""
    asked, release = 0, trio.Event()

    class Stubborn(FakeTransport):
        async def is_connected(self) -> bool:
            nonlocal asked
            asked += 1
            with trio.CancelScope(shield=True):
                await release.wait()
            return False

    stubborn = Stubborn()
    with trio.fail_after(40):
        async with open_registry(check_timeout=0.05) as registry:
            await registry.add_session("s", stubborn)
            for _ in range(2):
                report = await registry.cleanup()
                assert isinstance(report.check_failures["s"], TimeoutError)
                assert report.refreshed == 1
            assert asked == 1
            assert registry.statistics().stuck_calls == 1
            await registry.add_session("t", FakeTransport())
            assert (await registry.cleanup()).refreshed == 2
    assert stubborn.disconnects == 1
    assert "ignore their cancellation" in caplog.text
    release.set()


async def test_what_a_stuck_transport_says_too_late_is_no_answer() -> None:
    """After its deadline a False removes nobody; asked again, it counts."""

    class Late(FakeTransport):
        async def is_connected(self) -> bool:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                return False
            raise AssertionError

    async with open_registry(check_timeout=0.05) as registry:
        await registry.add_session("s", Late())
        report = await registry.cleanup()
        assert isinstance(report.check_failures["s"], TimeoutError)
        assert report.disconnected == ()


class HangsInANursery(FakeTransport):
    """As real code does: cancelled, it raises a group of `Cancelled`."""

    def __init__(self, method: str, children: int) -> None:
        super().__init__()
        self.method, self.children = method, children

    async def _hang(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(self.children):
                nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()

    async def is_connected(self) -> bool:
        if self.method == "is_connected":
            await self._hang()
        return await super().is_connected()

    async def disconnect(self, reason: object = None) -> None:
        if self.method == "disconnect":
            await self._hang()
        await super().disconnect()


@pytest.mark.parametrize("children", [0, 1, 3])
async def test_a_check_that_hangs_in_a_nursery_is_unknown_and_the_pass_goes_on(
    shared: Shared, children: int
) -> None:
    """Its cancelled tasks are no news to the pass: everybody else is refreshed."""
    async with shared.open(check_timeout=0.05) as registry:
        await registry.add_session("hangs", HangsInANursery("is_connected", children))
        for number in range(5):
            await registry.add_session(f"s{number}", FakeTransport())
        report = await registry.cleanup()
        assert (report.checked, report.refreshed) == (6, 6)
        assert isinstance(report.check_failures["hangs"], TimeoutError)
        assert registry.statistics().stuck_calls == 0


@pytest.mark.parametrize("children", [0, 1, 3])
async def test_a_disconnect_that_hangs_in_a_nursery_ends_nothing_but_itself(
    children: int,
) -> None:
    """No `Cancelled` of it comes out of the registry's block."""
    async with open_registry(disconnect_timeout=0.05) as registry:
        await registry.add_session("hangs", HangsInANursery("disconnect", children))
        await registry.add_session("s", FakeTransport())
        await registry.remove_session("hangs")
        assert registry.statistics().disconnect_failures == 1
        assert (await registry.cleanup()).refreshed == 1


async def test_an_error_among_cancelled_tasks_is_the_answer(shared: Shared) -> None:
    """What failed while it was being cancelled is reported, if it did so in time."""

    class FailsInANursery(FakeTransport):
        async def is_connected(self) -> bool:
            async def fail() -> None:
                raise OSError("broken")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(fail)
            raise AssertionError("not reached")

    async with shared.open() as registry:
        await registry.add_session("s", FailsInANursery())
        report = await registry.cleanup()
        assert pytest.RaisesGroup(OSError).matches(report.check_failures["s"])
        assert report.refreshed == 1


class Fatal(BaseException):
    """What no `except Exception` may swallow."""


async def test_what_is_no_exception_travels() -> None:
    """A `BaseException` of a transport ends the block, bare, and all is closed."""

    class Broken(FakeTransport):
        async def is_connected(self) -> bool:
            raise Fatal

    transport = Broken()
    with pytest.raises(Fatal):
        async with open_registry(cleanup_interval=0.05, session_ttl=1.0) as registry:
            await registry.add_session("s", transport)
            await trio.sleep_forever()
    assert transport.disconnects == 1


async def test_the_callers_context_is_seen_by_the_transport() -> None:
    """`contextvars` reach `disconnect`."""
    variable = contextvars.ContextVar("variable", default="nobody")
    seen = []

    class Seeing(FakeTransport):
        async def disconnect(self, reason: object = None) -> None:
            seen.append(variable.get())

    async with open_registry() as registry:
        await registry.add_session("s", Seeing())
        variable.set("caller")
        await registry.remove_session("s")
    assert seen == ["caller"]


class Request:
    """What only the variables of a request refer to."""


def open_in_a_context(
    variable: "contextvars.ContextVar[Request]",
) -> tuple[contextvars.Context, weakref.ref[Request]]:
    """Make a context in which ``variable`` has a value, and tell when that is gone."""
    context, request = contextvars.copy_context(), Request()
    context.run(variable.set, request)
    return context, weakref.ref(request)


async def test_the_reading_loops_do_not_keep_the_context_of_whoever_was_first(
    shared: Shared,
) -> None:
    """They go on for as long as the registry, and a request's variables end with it."""
    variable: contextvars.ContextVar[Request] = contextvars.ContextVar("variable")

    async def serve(registry: SessionRegistry) -> None:
        await registry.add_session("s", FakeTransport())
        await registry.broadcast("s", "message", durable=True)
        async with registry.open_inbox("s") as inbox:
            assert await anext(aiter(inbox)) == "message"
        await registry.cleanup()
        await registry.locate_session("elsewhere")

    async with shared.open() as registry:
        context, request = open_in_a_context(variable)
        async with trio.open_nursery() as nursery:
            context.run(nursery.start_soon, serve, registry)
        del context
        await trio.testing.wait_all_tasks_blocked(0.01)
        gc.collect()
        assert request() is None
        assert registry.statistics().sessions == 1


# ---- opening ----


async def test_a_store_that_cannot_be_opened_leaves_nothing_half_open() -> None:
    """The error comes out bare, and the store has been told to close."""
    store = FaultyStore(MemoryStore())
    store.fail(Fault.FAILS, "open")
    with pytest.raises(StoreUnavailable) as caught:
        async with open_registry(store):
            raise AssertionError("not reached")
    assert caught.value is store.error
    assert store.calls["close"] == 1


async def test_opening_survives_a_first_pass_that_cannot_sweep() -> None:
    """The database came away just then: passes go on."""
    store = FaultyStore(MemoryStore())
    store.fail(Fault.FAILS, "sweep")
    async with open_registry(store) as registry:
        assert registry.statistics().passes == 1
        store.heal()


async def test_a_worker_id_is_fresh_at_each_opening() -> None:
    """Never the same for two, also in one process."""
    seen = set()
    for _ in range(3):
        async with open_registry() as one, open_registry() as two:
            seen |= {one.worker_id, two.worker_id}
    assert len(seen) == 6


async def test_serve_registry_reports_itself_and_ends_by_cancellation(shared: Shared) -> None:
    """`nursery.start` gives the registry; cancelling closes it."""
    transport = FakeTransport()
    async with trio.open_nursery() as nursery:
        registry = await nursery.start(
            partial(serve_registry, shared.make_store(), worker_id="served")
        )
        assert registry.worker_id == "served"
        await registry.add_session("s", transport)
        nursery.cancel_scope.cancel()
    assert transport.disconnects == 1
    assert shared.backdoor.rows() == {}
    with pytest.raises(RegistryClosed):
        await registry.add_session("s", transport)


async def test_serve_registry_raises_what_it_cannot_open() -> None:
    """Out of `nursery.start`."""
    store = FaultyStore(MemoryStore())
    store.fail()
    with pytest.RaisesGroup(StoreUnavailable):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_registry, store)


# ---- pacing ----


async def test_passes_run_at_once_and_then_every_interval(autojump_clock: MockClock) -> None:
    """The first when the registry opens; never later than the interval, a tenth sooner at most."""
    async with open_registry(session_ttl=1000.0, cleanup_interval=100.0) as registry:
        assert registry.statistics().passes == 1
        await trio.sleep(89)
        assert registry.statistics().passes == 1
        await trio.sleep(12)
        assert registry.statistics().passes == 2
        await trio.sleep(899)
        assert 11 <= registry.statistics().passes <= 13


async def test_a_pass_that_overruns_delays_the_next(autojump_clock: MockClock) -> None:
    """Two never overlap, and the loop does not catch up in a burst."""
    async with open_registry(
        session_ttl=100.0, cleanup_interval=10.0, check_timeout=25.0
    ) as registry:
        transport = FakeTransport("hangs")
        await registry.add_session("s", transport)
        await trio.sleep(100)
        assert 3 <= transport.checks <= 4


async def test_a_failing_pass_is_logged_and_the_loop_goes_on(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its traceback, and counted."""
    async with open_registry(session_ttl=100.0, cleanup_interval=10.0) as registry:
        with monkeypatch.context() as broken:
            broken.setattr(registry._house.table, "snapshot", lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                await registry.cleanup()
            await trio.sleep(30)
            failed = registry.statistics().failed_passes
            assert failed >= 3
        await trio.sleep(30)
        assert registry.statistics().failed_passes == failed
        assert registry.statistics().passes >= 4
    assert "ZeroDivisionError" in caplog.text


async def test_after_an_outage_the_next_pass_comes_sooner(autojump_clock: MockClock) -> None:
    """A lease that was not renewed does not have to wait for a whole interval."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, session_ttl=1000.0, cleanup_interval=100.0) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail(Fault.FAILS, "refresh")
        await trio.sleep(150)
        assert store.faults["refresh"] >= 4
        store.heal()
        await trio.sleep(10.1)
        report = registry.statistics().last_report
        assert report is not None
        assert report.refreshed == 1


async def test_workers_are_stamped_between_passes_that_are_far_apart(
    autojump_clock: MockClock,
) -> None:
    """Or else a healthy worker's silence would look like an outage, or like its death."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store, session_ttl=100.0, cleanup_interval=50.0):
        assert (store.calls["begin"], store.calls["sweep"]) == (1, 1)
        await trio.sleep(41)
        assert store.calls["stamp"] == 8
        store.fail(Fault.FAILS, "stamp")
        await trio.sleep(5)
        assert store.faults["stamp"] >= 1
        store.heal()
    for ttl, cleanup_interval, interval in ((60.0, 2.0, 2.0), (10.0, 5.0, 1.0)):
        async with open_registry(store, session_ttl=ttl, cleanup_interval=cleanup_interval):
            store.calls.clear()
            await trio.sleep(10.5)
            assert store.calls["stamp"] == 10 // interval, "what is shorter than 5 s counts"


async def test_a_worker_that_cannot_refresh_keeps_its_sessions(autojump_clock: MockClock) -> None:
    """UPDATE of the sessions fails, on a full disk say: its stamps say that it is alive."""
    shared = MemoryStore()
    store, transport = FaultyStore(shared), FakeTransport()
    settings: dict[str, Any] = {"session_ttl": 100.0, "cleanup_interval": 50.0}
    async with open_registry(shared, **settings) as b, open_registry(store, **settings) as a:
        await a.add_session("s", transport)
        store.fail(Fault.FAILS, "refresh")
        await trio.sleep(1000)
        assert store.faults["refresh"] >= 10
        assert b.statistics().expired == 0
        store.heal()
        await trio.sleep(100)
        assert (a.statistics().removed_missing, transport.disconnects) == (0, 0)


@pytest.mark.parametrize(
    ("outage", "phase"),
    [
        pytest.param(outage, phase, marks=[] if outage == 99 or phase == 24 else longer)
        for phase in (0, 7, 24, 42, 49)
        for outage in (30, 45, 55, 70, 99, 101, 250, 1000)
    ],
)
@unmeasured
async def test_no_outage_however_long_expires_a_live_session(
    autojump_clock: MockClock, outage: int, phase: int
) -> None:
    """Even with the longest interval that is allowed, whenever it strikes."""
    shared = MemoryStore()
    one, two = FaultyStore(shared), FaultyStore(shared)
    settings = {"session_ttl": 100.0, "cleanup_interval": 50.0}
    transport = FakeTransport()
    async with open_registry(one, **settings) as a:  # type: ignore[arg-type]
        await trio.sleep(phase)
        async with open_registry(two, **settings) as b:  # type: ignore[arg-type]
            await b.add_session("s", transport)
            await trio.sleep(130 + phase / 3)
            one.fail()
            two.fail()
            await trio.sleep(outage)
            one.heal()
            two.heal()
            await trio.sleep(400)
            assert a.statistics().expired == 0
            assert transport.disconnects == 0
            assert b.get_session_sync("s") is transport


async def test_a_dead_workers_rows_go_soon_after_the_ttl(autojump_clock: MockClock) -> None:
    """Within a TTL and an interval: no grace without an outage."""
    shared = MemoryStore()
    dying = FaultyStore(shared)
    async with open_registry(shared, session_ttl=100.0, cleanup_interval=50.0) as registry:
        async with crashing(dying) as crashed:
            await crashed.add_session("s", FakeTransport())
            await trio.sleep(170)
        assert await registry.session_exists("s") is True
        expiry = shared._rows["s"].last_accessed + 100
        await trio.sleep_until(expiry - 0.1)
        assert registry.statistics().expired == 0
        await trio.sleep_until(expiry + 50.1)
        assert registry.statistics().expired == 1
        assert await registry.session_exists("s") is False


@asynccontextmanager
async def crashing(store: FaultyStore) -> AsyncIterator[SessionRegistry]:
    """A worker that dies at the end of the block, without another word to the database."""
    async with open_registry(store, session_ttl=100.0, cleanup_interval=50.0) as registry:
        yield registry
        store.fail()


# ---- statistics ----


@pytest.mark.usefixtures("nothing_in_between")
async def test_statistics_say_how_it_goes(shared: Shared) -> None:
    """Frozen, and from the opening on."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store, worker_id="w") as registry:
        await registry.add_session("a", FakeTransport())
        await registry.add_session("b", FakeTransport())
        store.fail(Fault.FAILS, "Claim")
        await registry.add_session("c", FakeTransport())
        store.heal()
        registry.get_session_sync("a").state = "closed"  # type: ignore[union-attr]
        shared.backdoor.delete("b")
        report = await registry.cleanup()
        statistics = registry.statistics()
        assert statistics.last_report is report
        assert (statistics.worker_id, statistics.closed) == ("w", False)
        assert (statistics.sessions, statistics.unconfirmed) == (1, 0)
        assert (statistics.removed_disconnected, statistics.removed_missing) == (1, 1)
        assert (statistics.restored, statistics.passes) == (1, 2)
        assert (statistics.operations_running, statistics.operations_waiting) == (0, 0)
        assert dataclasses.asdict(statistics)["last_report"]["refreshed"] == report.refreshed
        with pytest.raises(AttributeError):
            statistics.sessions = 0  # type: ignore[misc]  # it is frozen


async def test_async_methods_are_checkpoints_and_sync_ones_are_not() -> None:
    """On every path, so that a loop over them lets others run."""
    async with open_registry() as registry:
        transport = FakeTransport()
        await registry.add_session("s", transport)
        for call in (
            partial(registry.add_session, "s", transport),
            partial(registry.get_session, "s"),
            partial(registry.get_session, "unknown"),
            partial(registry.session_exists, "s"),
            partial(registry.session_exists, "unknown"),
            partial(registry.locate_session, "s"),
            partial(registry.locate_session, "unknown"),
            partial(registry.remove_session, "unknown"),
            registry.get_all_session_ids,
            registry.cleanup,
            partial(registry.remove_session, "s"),
        ):
            with trio.testing.assert_checkpoints():
                await call()
        with trio.testing.assert_no_checkpoints():
            registry.get_session_sync("s")
            registry.statistics()
