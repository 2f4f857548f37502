"""A pass cut at any of its awaits leaves a consistent registry, and the next one converges."""

import contextlib
from collections.abc import Sequence

import pytest
import trio
from conftest import Shared
from readers import finish_writing

from trio_sessions import RegistryClosed, SessionRegistry
from trio_sessions._cleanup import Pass
from trio_sessions.abc import Worker
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import RowAnswers
from trio_sessions.writes import Batch, Committed

pytestmark = pytest.mark.usefixtures("nothing_in_between")


def new_pass(registry: SessionRegistry) -> Pass:
    """A pass of our own, so that it can be cancelled from here."""
    return registry._house.passes.new_pass()


class Scene:
    """One session of each kind that a pass deals with."""

    def __init__(self, shared: Shared, registry: SessionRegistry, store: FaultyStore) -> None:
        self.shared = shared
        self.registry = registry
        self.store = store
        self.alive = FakeTransport()
        self.dead = FakeTransport()
        self.lost = FakeTransport()
        self.unwritten = FakeTransport()
        self.waiting = WaitsATick()

    async def set(self) -> None:
        for name in ("alive", "dead", "lost", "waiting"):
            await self.registry.add_session(name, getattr(self, name))
        self.store.fail(Fault.FAILS, "Claim")
        await self.registry.add_session("unwritten", self.unwritten)
        self.store.heal()
        self.dead.state = "closed"
        self.shared.backdoor.delete("lost")
        self.shared.backdoor.insert("expired", "gone", age=100_000.0)

    def check_consistent(self) -> None:
        """Whoever may be gone was confirmed so, and then its transport is seen off."""
        held = set(self.registry._house.table.ids())
        assert {"alive", "waiting", "unwritten"} <= held
        for name in ("alive", "waiting", "unwritten"):
            assert getattr(self, name).disconnects == 0
        for name in ("dead", "lost"):
            assert getattr(self, name).disconnects == (0 if name in held else 1)

    def check_converged(self) -> None:
        me = self.registry.worker_id
        assert set(self.registry._house.table.ids()) == {"alive", "waiting", "unwritten"}
        assert (self.dead.disconnects, self.lost.disconnects) == (1, 1)
        assert self.shared.backdoor.rows() == {"alive": me, "waiting": me, "unwritten": me}
        statistics = self.registry.statistics()
        assert (statistics.unconfirmed, statistics.leftover_rows) == (0, 0)
        assert (statistics.operations_running, statistics.operations_waiting) == (0, 0)
        assert statistics.stuck_calls == 0


class WaitsATick(FakeTransport):
    async def is_connected(self) -> bool:
        await trio.lowlevel.checkpoint()
        return await super().is_connected()


async def test_a_pass_cut_at_any_tick_is_harmless(shared: Shared) -> None:
    """Cut after one tick of the scheduler, after two, and so on, until it runs to its end."""
    if shared.name != "memory":
        limit, step = 12, 30  # threads take what time they take: cut here and there
    else:
        limit, step = 200, 1
    cuts = 0
    for ticks in range(0, limit * step, step):
        store = FaultyStore(shared.make_store())
        async with shared.open(store=store, batch_size=2) as registry:
            scene = Scene(shared, registry, store)
            await scene.set()
            ended = False
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(new_pass(registry).run)
                    for _ in range(ticks):
                        await trio.lowlevel.checkpoint()
                        if not nursery.child_tasks:
                            ended = True
                            break
                    else:
                        scope.cancel()
            cuts += scope.cancelled_caught
            await finish_writing(registry)
            scene.check_consistent()
            await registry.cleanup()
            scene.check_converged()
        if ended:
            break
    assert cuts >= (15 if shared.name == "memory" else 1)


class CutsAt(FaultyStore):
    """Cancels a scope when an operation begins, or when it has just been committed."""

    operation = ""
    when = ""
    scope: trio.CancelScope | None = None

    def _cut(self, operation: str, when: str) -> None:
        if self.scope is not None and (operation, when) == (self.operation, self.when):
            self.scope.cancel()
            self.scope = None

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        self._cut("refresh", "before")
        answers = await super().refresh(worker, session_ids)
        self._cut("refresh", "after")
        return answers

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        kinds = {type(write).__name__ for write in batch.writes}
        for kind in kinds:
            self._cut(kind, "before")
        committed = await super().commit(worker, batch)
        for kind in kinds:
            self._cut(kind, "after")
        return committed


@pytest.mark.parametrize("operation", ["refresh", "Claim", "Delete"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_pass_cut_around_an_operation_of_the_store_is_harmless(
    shared: Shared, operation: str, when: str
) -> None:
    """Before it began, and when it is committed but not yet heard."""
    store = CutsAt(shared.make_store())
    async with shared.open(store=store) as registry:
        scene = Scene(shared, registry, store)
        await scene.set()
        store.operation, store.when = operation, when
        with trio.CancelScope() as scope:
            store.scope = scope
            await new_pass(registry).run()
        assert store.scope is None, "the operation was never asked for"
        await finish_writing(registry)
        scene.check_consistent()
        await registry.cleanup()
        scene.check_converged()


async def test_closing_during_a_pass_leaves_no_row(shared: Shared) -> None:
    """Also a row that the pass is writing just then."""
    store = FaultyStore(shared.make_store())
    async with trio.open_nursery() as nursery, shared.open(store=store) as registry:
        store.fail(Fault.FAILS, "Claim")
        for number in range(20):
            await registry.add_session(f"s{number}", FakeTransport())
        store.heal()
        before = store.calls["Claim"]
        nursery.start_soon(ignoring_the_end, registry)
        while store.calls["Claim"] == before:
            await trio.lowlevel.checkpoint()
    assert shared.backdoor.rows() == {}


async def ignoring_the_end(registry: SessionRegistry) -> None:
    with contextlib.suppress(RegistryClosed):
        await registry.cleanup()
