"""Histories of messages with a model beside them: none is lost, doubled or out of order."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from soak import SOAK, TIMES

from trio_sessions import SessionNotFound, SessionRegistry, StoreUnavailable, serve_registry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore

# Measuring would double the time of long searches; others reach the same code.
pytestmark = pytest.mark.no_cover

Step = tuple[Any, ...]

ids = st.sampled_from(["a", "b"])
workers = st.sampled_from([0, 1])
steps: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("add"), workers, ids),
    st.tuples(st.just("remove"), workers, ids),
    st.tuples(st.just("send"), workers, ids, st.booleans(), st.sampled_from([1, 1, 2, 60, 130])),
    st.tuples(st.just("send"), workers, ids, st.booleans(), st.sampled_from([1, 1, 2, 60, 130])),
    st.tuples(st.just("read"), workers, ids, st.sampled_from([1, 2, 70, 300]), st.booleans()),
    st.tuples(st.just("read"), workers, ids, st.sampled_from([1, 2, 70, 300]), st.booleans()),
    st.tuples(st.just("outage"), workers),
    st.tuples(st.just("heal"), workers),
    st.tuples(st.just("crash"), workers),
    st.tuples(st.just("pass"), workers),
)


@dataclass
class Life:
    """A session from its first holder to its removal."""

    holder: int | None = None
    must_come: dict[int, None] = field(default_factory=dict)
    """Messages that have to be delivered, in the order of their sending."""
    may_come: set[int] = field(default_factory=set)
    """Messages that were lost perhaps, or stored perhaps."""
    in_memory: set[int] = field(default_factory=set)
    """Of those that must come: they are only in the memory of the holder."""
    finished: list[int] = field(default_factory=list)
    disturbed: bool = False
    """A holder died, moved or lost the database: messages may come twice."""

    def disturb(self, *, loses_memory: bool) -> None:
        self.disturbed = True
        if loses_memory:
            for message in self.in_memory:
                if self.must_come.pop(message, message) is None:
                    self.may_come.add(message)
            self.in_memory.clear()


@dataclass
class ModelWorker:
    registry: SessionRegistry
    store: FaultyStore
    scope: trio.CancelScope
    ended: trio.Event
    away: bool = False


class Fleet:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.shared = MemoryStore()
        self.workers: list[ModelWorker] = []
        self.lives: dict[str, Life] = {}
        self.senders: dict[int, int] = {}
        self._nursery = nursery

    async def start_worker(self) -> ModelWorker:
        store = FaultyStore(self.shared)
        scope, ended = trio.CancelScope(), trio.Event()

        async def serve(*, task_status: trio.TaskStatus[SessionRegistry]) -> None:
            try:
                with scope:
                    await serve_registry(store, task_status=task_status)
            finally:
                ended.set()

        registry = await self._nursery.start(serve)
        return ModelWorker(registry=registry, store=store, scope=scope, ended=ended)

    def life(self, session_id: str) -> Life:
        return self.lives.setdefault(session_id, Life())

    async def do_add(self, index: int, session_id: str) -> None:
        worker, life = self.workers[index], self.life(session_id)
        if worker.away or any(w.away for w in self.workers):
            return  # who takes over whom is the business of another suite
        if life.holder is not None and life.holder != index:
            life.disturb(loses_memory=False)
            life.in_memory.clear()  # the older holder sends them on: rows from now on
        life.holder = index
        await worker.registry.add_session(session_id, FakeTransport())
        for other in self.workers:  # the older holder learns of it
            await other.registry.cleanup()

    async def do_remove(self, index: int, session_id: str) -> None:
        if self.workers[index].away:
            return
        await self.workers[index].registry.remove_session(session_id)
        if self.life(session_id).holder == index:
            self.lives[session_id] = Life()

    async def do_send(self, index: int, session_id: str, durable: bool, count: int) -> None:  # noqa: FBT001
        worker, life = self.workers[index], self.life(session_id)
        exists = session_id in self.shared._rows
        for _ in range(count):
            message = len(self.senders)
            self.senders[message] = index
            try:
                await worker.registry.broadcast(session_id, message, durable=durable)
            except SessionNotFound:
                assert not exists
            except StoreUnavailable:
                assert worker.away
                life.may_come.add(message)
            else:
                assert exists
                life.must_come[message] = None
                rows = self.shared._rows[session_id].messages.values()
                if str(message) not in {row.payload for row in rows}:
                    life.in_memory.add(message)
                assert not (durable and message in life.in_memory)

    async def do_read(self, index: int, session_id: str, count: int, finish: bool) -> None:  # noqa: FBT001
        worker, life = self.workers[index], self.life(session_id)
        if worker.registry.get_session_sync(session_id) is None:
            return
        last: int | None = None
        try:
            async with worker.registry.open_inbox(session_id) as inbox:
                for _ in range(count):
                    if last is not None:  # to ask for the next one acknowledges it
                        self.finish(life, last)
                        last = None
                    with trio.move_on_after(20) as patience:
                        message: Any = await anext(inbox)
                    if patience.cancelled_caught:
                        break
                    last = message
                    assert message in life.must_come or message in life.may_come or life.disturbed
                if not finish:
                    raise KeyError
        except KeyError:
            return
        if last is not None:
            self.finish(life, last)

    def finish(self, life: Life, message: int) -> None:
        assert life.disturbed or message not in life.finished, "delivered twice"
        sender = self.senders[message]
        earlier = [m for m in life.finished if self.senders[m] == sender]
        assert life.disturbed or all(m < message for m in earlier), "out of order"
        life.finished.append(message)
        life.must_come.pop(message, None)
        life.may_come.discard(message)
        life.in_memory.discard(message)

    async def do_outage(self, index: int) -> None:
        self.workers[index].store.fail()
        self.workers[index].away = True
        for life in self.lives.values():  # an acknowledgement may be late
            life.disturbed |= life.holder == index

    async def do_heal(self, index: int) -> None:
        self.workers[index].store.heal()
        self.workers[index].away = False

    async def do_crash(self, index: int) -> None:
        worker = self.workers[index]
        worker.store.fail()
        worker.scope.cancel()
        await worker.ended.wait()
        for life in self.lives.values():
            if life.holder == index:
                life.disturb(loses_memory=True)
                life.holder = None
        self.workers[index] = await self.start_worker()

    async def do_pass(self, index: int) -> None:
        await self.workers[index].registry.cleanup()


async def play(history: list[Step]) -> None:
    async with trio.open_nursery() as nursery:
        fleet = Fleet(nursery)
        fleet.workers = [await fleet.start_worker() for _ in range(2)]
        for kind, *arguments in history:
            await getattr(fleet, f"do_{kind}")(*arguments)
        for index in (0, 1):
            await fleet.do_heal(index)
        for session_id in list(fleet.lives):
            if session_id in fleet.shared._rows:
                life = fleet.life(session_id)
                await fleet.do_add(0 if life.holder is None else life.holder, session_id)
                assert life.holder is not None
                await fleet.do_read(life.holder, session_id, 10_000, True)
                assert not life.must_come, "lost"
        nursery.cancel_scope.cancel()


@pytest.mark.timeout(180 * TIMES)
@settings(max_examples=100 * TIMES if SOAK else 50)
@example(  # an earlier row is acknowledged while the last one is stored
    history=[
        ("add", 1, "a"),
        ("send", 0, "a", False, 1),
        ("send", 0, "a", False, 1),
        ("read", 1, "a", 2, False),
        ("send", 0, "a", True, 1),
    ]
)
@given(history=st.lists(steps, min_size=1, max_size=25))
def test_messages_in_every_history(history: list[Step]) -> None:
    """Adds, moves, removals, crashes, outages, full memories, and consumers that give up."""
    trio.run(play, history, clock=trio.testing.MockClock(autojump_threshold=0))
