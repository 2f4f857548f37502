"""Histories of a small fleet, played on a real registry with a model beside it.

The model knows what the test did: which transports are dead, which rows somebody deleted,
who could reach the database when. After every step each disappearance must be justified
by it, and after every pass whatever had to go must be gone.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio
from backdoors import Backdoor
from hypothesis import strategies as st

from trio_sessions import CleanupReport, SessionRegistry, serve_registry
from trio_sessions.abc import SessionStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

TTL = 1000.0
IDS = ("a", "b", "c")
WORKERS = (0, 1)
Step = tuple[Any, ...]

ids = st.sampled_from(IDS)
workers = st.sampled_from(WORKERS)
states = st.sampled_from(["connected", "closed", "hangs", "raises"])


def steps(*, with_time: bool) -> st.SearchStrategy[Step]:
    """One step; on a database time cannot be made to pass, nor an operation to hang."""
    faults = [Fault.FAILS, Fault.COMMITS_THEN_FAILS]
    kinds: list[st.SearchStrategy[Any]] = [
        st.tuples(st.just("add"), workers, ids),
        st.tuples(st.just("add"), workers, ids),
        st.tuples(st.just("add the same"), workers, ids),
        st.tuples(st.just("remove"), workers, ids),
        st.tuples(st.just("become"), workers, ids, states),
        st.tuples(st.just("delete row"), ids),
        st.tuples(st.just("pass"), workers),
        st.tuples(st.just("pass"), workers),
        st.tuples(st.just("lose database"), workers, st.sampled_from(faults)),
        st.tuples(st.just("outage"), st.sampled_from(faults)),
        st.tuples(st.just("heal"), workers),
        st.tuples(st.just("heal all")),
        st.tuples(st.just("crash"), workers),
    ]
    if with_time:
        kinds += [
            st.tuples(st.just("sleep"), st.sampled_from([0.03, 0.2, 0.45, 0.7, 1.3])),
            st.tuples(st.just("sleep"), st.sampled_from([0.03, 0.2, 0.45, 0.7, 1.3])),
            st.tuples(st.just("lose database"), workers, st.just(Fault.HANGS)),
        ]
    return st.one_of(kinds)


def histories(*, with_time: bool) -> st.SearchStrategy[list[Step]]:
    return st.lists(steps(with_time=with_time), min_size=1, max_size=25)


IDLE = 30.0  # seconds; an operation takes as long only where it is stuck


@dataclass
class Held:
    """A session as the model knows it."""

    transport: FakeTransport
    number: int
    """Grows with every add of the fleet: the larger, the newer."""
    confirmed: bool
    perhaps_confirmed: bool = False
    """A pass of the worker's own may have written the row."""
    state: str = "connected"
    """What the transport would say; its own attribute changes when it is disconnected."""


@dataclass
class ModelWorker:
    registry: SessionRegistry
    store: FaultyStore
    scope: trio.CancelScope
    ended: trio.Event
    held: dict[str, Held] = field(default_factory=dict)
    failing_since: float | None = None
    passes: int = 0
    """How many had ended after the last step."""
    alone: float = 0.0
    """Seconds for which it could not reach a database that another worker could."""

    @property
    def healthy(self) -> bool:
        return self.store.fault is Fault.NONE

    @property
    def can_commit(self) -> bool:
        """What it asks happens, its sweeps too, although it may not hear of it."""
        return self.store.fault in (Fault.NONE, Fault.COMMITS_THEN_FAILS)


class Fleet:
    """The real workers, and what they should have done."""

    def __init__(
        self,
        nursery: trio.Nursery,
        make_store: Callable[[], SessionStore],
        backdoor: Backdoor,
        settings: dict[str, Any],
        tick: float,
    ) -> None:
        self.workers: list[ModelWorker] = []
        self.removals = 0
        self.newest: dict[str, int] = {}
        self.row_numbers: dict[str, set[int]] = defaultdict(set)
        """The number of the add that has written the row, if it is known; else all it may be."""
        self._nursery = nursery
        self._make_store = make_store
        self._backdoor = backdoor
        self._settings = settings
        self._tick = tick
        self._adds = 0

    # ---- workers ----

    async def start_worker(self) -> ModelWorker:
        store = FaultyStore(self._make_store())
        scope, ended = trio.CancelScope(), trio.Event()

        async def serve(*, task_status: trio.TaskStatus[SessionRegistry]) -> None:
            try:
                with scope:
                    await serve_registry(store, task_status=task_status, **self._settings)
            finally:
                ended.set()

        registry = await self._nursery.start(serve)
        return ModelWorker(registry=registry, store=store, scope=scope, ended=ended)

    async def crash(self, index: int) -> None:
        """Its rows stay, its transports go with it; another worker takes its place."""
        worker = self.workers[index]
        worker.store.fail()
        worker.scope.cancel()
        await worker.ended.wait()
        self.workers[index] = await self.start_worker()

    # ---- steps ----

    async def play(self, step: Step) -> None:
        await trio.sleep(self._tick)  # the database's clock must move between two steps
        rows = self._backdoor.rows()
        then = trio.current_time()
        if step[0] == "crash":
            await self.crash(step[1])
        else:
            await getattr(self, "do_" + step[0].replace(" ", "_"))(*step[1:])
        self._account(trio.current_time() - then)
        for worker in self.workers:
            if worker.healthy:
                await until_idle(worker.registry)
        self._check(rows, step)

    async def do_add(
        self, index: int, session_id: str, transport: FakeTransport | None = None
    ) -> None:
        worker = self.workers[index]
        before = worker.held.get(session_id)
        transport = transport or FakeTransport()
        await worker.registry.add_session(session_id, transport)
        self._adds += 1
        self.newest[session_id] = self._adds
        if worker.healthy:
            self.row_numbers[session_id] = {self._adds}
        elif worker.can_commit:  # unless an older row was to be deleted first
            self.row_numbers[session_id].add(self._adds)
        worker.held[session_id] = Held(
            transport, self._adds, confirmed=worker.healthy, state=transport.state
        )
        if before is not None and before.transport is not transport:
            assert before.transport.disconnects == 1

    async def do_add_the_same(self, index: int, session_id: str) -> None:
        held = self.workers[index].held.get(session_id)
        if held is not None:
            await self.do_add(index, session_id, held.transport)
            assert held.transport.disconnects == 0

    async def do_remove(self, index: int, session_id: str) -> None:
        worker = self.workers[index]
        await worker.registry.remove_session(session_id)
        held = worker.held.pop(session_id, None)
        if held is not None:
            assert held.transport.disconnects == 1
            if worker.healthy:
                assert self._backdoor.rows().get(session_id) != worker.registry.worker_id

    async def do_become(self, index: int, session_id: str, state: Any) -> None:
        held = self.workers[index].held.get(session_id)
        if held is not None:
            held.transport.state = held.state = state

    async def do_delete_row(self, session_id: str) -> None:
        self._backdoor.delete(session_id)

    async def do_lose_database(self, index: int, fault: Fault) -> None:
        self.workers[index].store.fail(fault)

    async def do_outage(self, fault: Fault) -> None:
        for worker in self.workers:
            worker.store.fail(fault)

    async def do_heal(self, index: int) -> None:
        self.workers[index].store.heal()

    async def do_heal_all(self) -> None:
        for worker in self.workers:
            worker.store.heal()

    async def do_sleep(self, part_of_ttl: float) -> None:
        await trio.sleep(TTL * part_of_ttl)

    async def do_pass(self, index: int) -> None:
        worker = self.workers[index]
        while (running := worker.registry._house.passes.running) is not None:
            await running.wait()  # it began before this step, and would be joined
        rows = self._backdoor.rows()
        held_now = set(worker.registry._house.table.ids())
        before = {s: held for s, held in worker.held.items() if s in held_now}
        report = await worker.registry.cleanup()
        me = worker.registry.worker_id
        after = set(await worker.registry.get_all_session_ids())
        removed = set(before) - after
        assert set(report.disconnected) | set(report.missing) == removed
        assert report.checked == len(before)
        for session_id, held in before.items():
            self._check_verdict(worker, session_id, held, report, rows.get(session_id))
        if worker.healthy:
            assert report.refreshed + len(report.restored) == len(after)
            assert {s: w for s, w in self._backdoor.rows().items() if w == me} == dict.fromkeys(
                after, me
            ), "after a pass that could, this worker's rows are those of its sessions"
            worker.failing_since, worker.alone = None, 0.0
            for session_id in after:
                before[session_id].confirmed = True
            for session_id in report.restored:
                self.row_numbers[session_id] = {before[session_id].number}
        else:
            assert report.refreshed == 0
            assert report.expired == 0

    def _check_verdict(
        self,
        worker: ModelWorker,
        session_id: str,
        held: Held,
        report: CleanupReport,
        row: str | None,
    ) -> None:
        """The pass decided on this session as the model does."""
        mine = row == worker.registry.worker_id
        if held.state == "closed":
            assert session_id in report.disconnected
        elif not worker.healthy:
            assert session_id in report.refresh_failures
        elif mine:
            assert session_id not in report.missing
        elif held.confirmed:
            assert session_id in report.missing
        elif row is None or held.number == self.newest[session_id]:
            assert session_id in report.restored or (
                held.perhaps_confirmed and session_id in report.missing
            )
        elif session_id in report.restored:  # whoever holds it now has not written its row yet
            assert min(self.row_numbers[session_id]) < held.number, "a newer holder has it"
        else:
            assert session_id in report.missing
            assert held.perhaps_confirmed or max(self.row_numbers[session_id]) > held.number
        if held.state in ("hangs", "raises"):
            assert session_id in report.check_failures

    def _note_passes(self, worker: ModelWorker) -> None:
        """In a pass of its own it has perhaps written rows that were still to be written."""
        passes = worker.registry.statistics().passes
        if passes > worker.passes or worker.registry._house.passes.running is not None:
            for session_id, held in worker.held.items():
                if worker.can_commit and not held.confirmed:
                    self.row_numbers[session_id].add(held.number)
                held.perhaps_confirmed |= worker.healthy
        worker.passes = passes

    # ---- what must hold after every step ----

    def _account(self, seconds: float) -> None:
        """Note who could not reach a database that somebody else could."""
        for worker in self.workers:
            if worker.healthy:
                continue
            if worker.failing_since is None:
                worker.failing_since = trio.current_time() - seconds
            if any(other.can_commit for other in self.workers if other is not worker):
                worker.alone += seconds

    def _lease_may_be_lost(self, worker: ModelWorker) -> bool:
        """It alone lost the database, for long enough to miss its refreshes."""
        return (
            worker.failing_since is not None
            and worker.alone > 0
            and trio.current_time() - worker.failing_since > 0.4 * TTL
        )

    def _check(self, rows_before: dict[str, str], step: Step) -> None:
        rows = self._backdoor.rows()
        for worker in self.workers:
            me = worker.registry.worker_id
            now_held = set(worker.registry._house.table.ids())
            assert now_held <= set(worker.held), "nobody is invented"
            for session_id in set(worker.held) - now_held:
                held = worker.held.pop(session_id)
                self.removals += 1
                assert held.transport.disconnects == 1, "whoever is removed is disconnected"
                row_is_gone = (
                    rows_before.get(session_id) != me
                    and worker.healthy
                    and (
                        held.confirmed
                        or held.perhaps_confirmed
                        or rows_before.get(session_id) is not None
                    )
                )
                # In a long step the newer holder's pass may come first, and take the row.
                taken_over = worker.healthy and held.number < self.newest[session_id]
                assert held.state == "closed" or row_is_gone or taken_over, (
                    f"removed without a reason in {step}: {session_id}"
                )
            for session_id, held in worker.held.items():
                assert worker.registry.get_session_sync(session_id) is held.transport
                assert held.transport.disconnects == 0, "whoever is kept is left alone"
                vanished = rows_before.get(session_id) == me and session_id not in rows
                if vanished and step != ("delete row", session_id):
                    assert self._lease_may_be_lost(worker), f"expired in {step}: {session_id}"
            self._note_passes(worker)
            if step[0] == "sleep" and step[1] > 0.5 and worker.healthy:  # a pass has run meanwhile
                for held in worker.held.values():
                    held.confirmed = True
                worker.failing_since, worker.alone = None, 0.0
            statistics = worker.registry.statistics()
            assert statistics.failed_passes == 0
            assert statistics.stuck_calls == 0


async def until_idle(registry: SessionRegistry) -> None:
    """Wait until no operation of the store is under way: a stamp comes when its time has come."""
    with trio.fail_after(IDLE):
        while registry.statistics().operations_running:
            await trio.sleep(0.001)  # nobody is told of its end


async def play(
    history: list[Step],
    make_store: Callable[[], SessionStore],
    backdoor: Backdoor,
    settings: dict[str, Any],
    *,
    tick: float,
) -> int:
    """Play a history from an empty store; return how many sessions were removed."""
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery, make_store, backdoor, settings, tick)
        for _ in WORKERS:
            fleet.workers.append(await fleet.start_worker())
        for step in history:
            await fleet.play(step)
        await fleet.do_heal_all()
        for index in WORKERS:  # what is left converges in one pass
            await fleet.do_pass(index)
        for worker in fleet.workers:
            worker.scope.cancel()
            await worker.ended.wait()
        survivors = {worker.registry.worker_id for worker in fleet.workers}
        assert not survivors & set(backdoor.rows().values()), "a clean leave deletes its rows"
        return fleet.removals
