"""The writer: what makes a batch, in which order, and who is told what."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from orders import Many, One
from trio.testing import MockClock

from trio_sessions import RowUnavailable, StoreUnavailable
from trio_sessions._counters import Counters
from trio_sessions._edge import Edge, Late
from trio_sessions._histories import Histories
from trio_sessions._life import Life, Phase
from trio_sessions._orders import Order, Stage
from trio_sessions._posting import PostOrder
from trio_sessions._settings import Settings
from trio_sessions._witness import WentBack, Witness
from trio_sessions._writer import Writer
from trio_sessions.abc import Worker
from trio_sessions.errors import RowLocked
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault, FaultyStore
from trio_sessions.writes import (
    Batch,
    Committed,
    Delete,
    Post,
    Send,
    Unfinished,
    Verdict,
    Write,
)


@pytest.mark.parametrize(
    "error", [WentBack(), Late("too late"), RowLocked("it is locked")], ids=repr
)
async def test_everybody_who_waits_is_told_the_same_error(error: Exception) -> None:
    """Found by the fleet: that the database had gone back came out as a TypeError."""
    order = One()
    order.settle(outcome.Error(error))
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            await order.wait()
        assert str(raised.value) == str(error)


# ---- the writer ----


class Recorder(FaultyStore):
    """Notes each batch, and may answer that rows are locked or refused."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.batches: list[list[str]] = []
        self.payloads: list[str] = []
        self.times: list[float] = []
        self.locked: set[str] = set()
        self.refused: set[str] = set()
        self.gate = trio.Event()
        self.gate.set()

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        await trio.lowlevel.checkpoint()
        self.batches.append([write.session_id for write in batch.writes])
        self.times.append(trio.current_time())
        self.payloads += [write.payload for _, write in batch.of(Send)]
        await self.gate.wait()
        ids = {write.session_id for write in batch.writes}
        if ids & self.refused:
            raise RowUnavailable("refused by a trigger")
        if self.operations is not None or self.fault is not Fault.NONE:
            await super().commit(worker, batch)
        answers = [
            1
            if isinstance(write, Post)
            else RowUnavailable("locked")
            if write.session_id in self.locked
            else None
            for write in batch.writes
        ]
        if batch.stamp is None:
            assert all(isinstance(write, Post) for write in batch.writes)
            return Committed(answers=answers)
        return Committed(answers=answers, stamp=replace(batch.stamp, beat=batch.stamp.beat + 1))


def make_writer(store: FaultyStore, **settings: Any) -> Writer:
    worker = Worker(worker_id="w", incarnation="i", limiter=trio.CapacityLimiter(5))
    witness, checked = Witness(), Settings(**settings)
    witness.begin("a history")
    life = Life()
    edge = Edge(store, worker, witness, checked, life)
    counters = Counters()
    histories = Histories(
        edge=edge, witness=witness, presence=checked.presence(), counters=counters
    )
    return Writer(edge, histories, counters, life, rows=100, timeout=checked.store_timeout)


@asynccontextmanager
async def writing(writer: Writer, *, finish_within: float = 1.0) -> AsyncIterator[trio.Nursery]:
    """Let a writer run for the block, and finish."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        yield nursery
        await finish(writer, trio.current_time() + finish_within)


async def finish(writer: Writer, deadline: float) -> None:
    """End it as a registry does that is closed."""
    for phase in (Phase.CLOSING, Phase.FINISHING):
        writer._life.go(phase)
    await writer.finish(deadline)


async def settle_all(orders: Sequence[Order[Any]]) -> None:
    for order in orders:
        await order.settled()


async def test_what_arrives_while_a_batch_is_out_makes_the_next(autojump_clock: MockClock) -> None:
    """A lone call waits for nobody."""
    store = Recorder()
    writer = make_writer(store)
    async with writing(writer):
        store.gate = trio.Event()
        orders = [writer.give(One("first"))]
        await trio.testing.wait_all_tasks_blocked()
        orders += [writer.give(One(f"s{number}")) for number in range(50)]
        await trio.testing.wait_all_tasks_blocked()
        assert store.batches == [["first"]]
        store.gate.set()
        await settle_all(orders)
        assert store.batches == [["first"], [f"s{number}" for number in range(50)]]


@pytest.mark.parametrize("another", ["t", ""])
async def test_what_may_wait_goes_with_the_next_batch_or_soon(
    another: str, autojump_clock: MockClock
) -> None:
    """No batch is made for it at once, and it is not forgotten."""
    store = Recorder()
    writer = make_writer(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        for _ in range(2):
            store.batches.clear()
            began = trio.current_time()
            orders = [writer.give(Many(f"s{n}"), may_wait=True) for n in range(3)]
            await trio.testing.wait_all_tasks_blocked()
            assert store.batches == []
            names = ["s0", "s1", "s2"]
            if another:
                orders.append(writer.give(One(another)))
                names.append(another)
            await settle_all(orders)
            assert store.batches == [names]
            assert trio.current_time() == pytest.approx(began + (0 if another else 0.02))
        await finish(writer, trio.current_time() + 1)


async def test_letters_do_not_wait_for_what_may_wait(autojump_clock: MockClock) -> None:
    """They need no disk, which the others do; these keep their order, and are not forgotten."""
    store = Recorder()
    writer = make_writer(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        began = trio.current_time()
        patient = [writer.give(Many(name), may_wait=True) for name in ("s", "t")]
        for _ in range(2):
            letter = writer.give(PostOrder("{}", to="w"))
            await letter.settled()
            assert trio.current_time() == began
        await settle_all(patient)
        mail = [letter.session_id]
        assert store.batches == [mail, mail, ["s", "t"]]
        assert trio.current_time() == pytest.approx(began + 0.02)
        patient = [writer.give(Many("s"), may_wait=True)]
        both = [writer.give(PostOrder("{}", to="w")), writer.give(One("t"))]
        await settle_all([*patient, *both])
        assert store.batches[3:] == [["s", *mail, "t"]]
        await finish(writer, trio.current_time() + 1)


async def test_what_may_wait_is_hastened_and_written_at_the_end(autojump_clock: MockClock) -> None:
    """By whoever waits for it after all, and by closing."""
    store = Recorder()
    writer = make_writer(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        began = trio.current_time()
        first = writer.give(One("s"), may_wait=True)
        await trio.testing.wait_all_tasks_blocked()
        writer.hasten(first)
        await first.settled()
        second = writer.give(One("t"), may_wait=True)
        await finish(writer, trio.current_time() + 1)
        assert second.stage is Stage.SETTLED
        assert store.batches == [["s"], ["t"]]
        assert trio.current_time() == began


async def test_what_may_wait_and_is_more_than_a_batch_waits_for_another(
    autojump_clock: MockClock,
) -> None:
    """The rest gathers once more, as if it had just been given."""
    store = Recorder()
    writer = make_writer(store)
    async with writing(writer):
        began = trio.current_time()
        await settle_all([writer.give(One(f"s{n}"), may_wait=True) for n in range(150)])
        assert [len(batch) for batch in store.batches] == [100, 50]
        assert [when - began for when in store.times] == pytest.approx([0.02, 0.04])


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks."""

    def __init__(self) -> None:
        self.number = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.number += 1


@pytest.mark.parametrize("how", ["given up", "withdrawn"])
async def test_the_loop_rests_when_what_might_wait_is_none_of_its_business_any_more(
    mock_clock: MockClock, how: str
) -> None:
    """It does not go round for what nobody is going to write (invariant 16)."""
    writer = make_writer(Recorder())
    async with writing(writer):
        await trio.testing.wait_all_tasks_blocked()
        order = writer.give(One("s"), may_wait=True)
        await trio.testing.wait_all_tasks_blocked()
        if how == "given up":
            writer._lines.give_up([order], StoreUnavailable("away"))
        else:
            assert writer._lines.withdraw(order)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        mock_clock.jump(1.0)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(steps)
        assert steps.number < 110, "a hundred are ours"
        later = writer.give(One("t"), may_wait=True)
        await trio.testing.wait_all_tasks_blocked()
        assert later.stage is Stage.WAITING, "it gathers from now on"
        mock_clock.jump(0.02)
        with trio.fail_after(1.0):
            await later.settled()


async def test_what_may_wait_keeps_its_place(autojump_clock: MockClock) -> None:
    """What is written of one session is written in the order of the calls."""
    store = Recorder()
    writer = make_writer(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        early = writer.give(Many("s", name="early"), may_wait=True)
        late = writer.give(One("s", name="late"))
        await settle_all([early, late])
        assert store.batches == [["s"], ["s"]]
        assert writer.waiting == 0
        await finish(writer, trio.current_time() + 1)


async def test_a_locked_row_is_asked_again_with_a_growing_pause(autojump_clock: MockClock) -> None:
    """Nobody waits for it, and it is not asked without end."""
    store = Recorder()
    store.locked = {"locked"}
    writer = make_writer(store)
    async with writing(writer):
        locked = writer.give(One("locked"))
        good = writer.give(One("good"))
        start = trio.current_time()
        await good.settled()
        assert trio.current_time() == start
        with pytest.raises(RowUnavailable):
            await locked.wait()
        assert trio.current_time() - start > 1
        assert 5 < len(store.batches) < 40
        pauses = [later - earlier for earlier, later in pairwise(store.times)]
        assert max(pauses) < 0.5, "whoever has the lock may let it go at any time"


async def test_rows_that_are_locked_for_long_are_in_nobodys_way(autojump_clock: MockClock) -> None:
    """More of them than a batch takes; and they are not asked without end (invariant 16)."""
    store = Recorder()
    store.locked = {f"locked{number}" for number in range(300)}
    writer = make_writer(store)
    async with writing(writer):
        locked = [writer.give(One(one)) for one in sorted(store.locked)]
        for number in range(40):
            start = trio.current_time()
            await writer.give(One(f"good{number}")).settled()
            assert trio.current_time() - start < 0.01
            await trio.sleep(0.1)
        assert all(isinstance(order.error, RowUnavailable) for order in locked)
        asked = sum(one in store.locked for batch in store.batches for one in batch)
        assert 300 * 5 < asked < 300 * 40


async def test_a_refused_batch_is_split(autojump_clock: MockClock) -> None:
    """Each caller gets the answer of its own row."""
    store = Recorder()
    store.refused = {"s7"}
    writer = make_writer(store)
    async with writing(writer):
        orders = [writer.give(One(f"s{number}")) for number in range(50)]
        await settle_all(orders)
        assert [order.session_id for order in orders if order.error is not None] == ["s7"]
        assert len(store.batches) < 20


class Deletion(One):
    def make(self) -> Write[Any] | None:
        return Delete(session_id=self.session_id, up_to=1)


class PieceByPiece(Recorder):
    """Does a second's worth of a deletion at a time; then its row is locked for a moment."""

    pieces = 5

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        await trio.sleep(1)
        committed = await super().commit(worker, batch)
        answer: Any = Unfinished(dropped=1) if len(self.batches) <= self.pieces else 0
        if len(self.batches) == self.pieces + 1:
            answer = RowUnavailable("locked")
        return replace(committed, answers=[answer])


async def test_what_goes_piece_by_piece_has_patience_for_the_next_piece(
    autojump_clock: MockClock,
) -> None:
    """A lock that it meets at last is waited for as if it had just been given."""
    store = PieceByPiece()
    writer = make_writer(store)
    async with writing(writer):
        order = writer.give(Deletion("s"))
        await order.settled()
        assert order.error is None
        assert len(store.batches) == store.pieces + 2


class AlwaysLate(Recorder):
    """Whatever comes has come too late."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        await trio.sleep(1)
        return Committed(answers=(), verdict=Verdict.LATE, clock=trio.current_time())


@pytest.mark.parametrize("closes", [False, True])
async def test_what_always_comes_late_is_told_in_the_end(
    autojump_clock: MockClock,
    closes: bool,  # noqa: FBT001 -- a parameter of the test
) -> None:
    """After one timeout, or when the registry closes."""
    writer = make_writer(AlwaysLate(), store_timeout=10.0)
    async with writing(writer, finish_within=5.0):
        order = writer.give(One("s"))
        if closes:
            await trio.sleep(0.5)
        else:
            with trio.fail_after(20):
                await order.settled()
    assert isinstance(order.error, StoreUnavailable)
    assert trio.current_time() <= (2 if closes else 11)


class LateAtOnce(Recorder):
    """The same, answered at once, but for the first few batches or for ever."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        await super().commit(worker, batch)
        return Committed(answers=(), verdict=Verdict.LATE, clock=trio.current_time())


async def test_what_comes_late_is_not_asked_for_without_a_pause(autojump_clock: MockClock) -> None:
    """Once more at once, then after pauses that grow (invariant 16): it went 5,213 times."""
    store = LateAtOnce()
    writer = make_writer(store, store_timeout=10.0)
    async with writing(writer):
        order = writer.give(One("s"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(store.batches) == 2
        await order.settled()
        assert isinstance(order.error, StoreUnavailable)
        assert 10 < len(store.batches) < 2 * 10.0 / 0.1
        pauses = [later - earlier for earlier, later in pairwise(store.times)]
        assert max(pauses) > 20 * min(one for one in pauses if one > 0)


class GetsNowhere(Recorder):
    """Says that a part is left, and deletes none; or lines of a log, which nobody counts."""

    pieces = 1_000_000

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        is_left = len(self.batches) <= self.pieces
        answer: Any = Unfinished(dropped=0) if is_left else 0
        return replace(committed, answers=[answer])


async def test_what_gets_nowhere_is_not_asked_for_without_a_pause_or_for_ever(
    autojump_clock: MockClock,
) -> None:
    """A store that never comes to an end: it was asked 20,100 times in 8 s, and on and on."""
    store = GetsNowhere()
    writer = make_writer(store, store_timeout=10.0)
    async with writing(writer):
        order = writer.give(Deletion("s"))
        await order.settled()
        assert isinstance(order.error, RowUnavailable)
        assert 10 <= trio.current_time() <= 11
        assert len(store.batches) < 100


async def test_a_long_log_goes_in_some_pieces_soon(
    autojump_clock: MockClock,
) -> None:
    """Nobody counts the lines of a log that go: a few pieces are no sign of a fault."""
    store = GetsNowhere()
    store.pieces = 4
    writer = make_writer(store)
    async with writing(writer):
        order = writer.give(Deletion("s"))
        await order.settled()
        assert order.error is None
        assert trio.current_time() < 0.2


async def test_a_long_log_goes_while_the_registry_finishes(autojump_clock: MockClock) -> None:
    store = GetsNowhere()
    store.pieces = 4
    writer = make_writer(store)
    async with writing(writer):
        order = writer.give(Deletion("s"))
    assert order.error is None
    assert len(store.batches) == 5


class SlowToRefuse(Recorder):
    """Takes a second for each refusal, as long as a lock is waited for."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        await trio.sleep(1)
        return await super().commit(worker, batch)


async def test_a_flood_of_refused_rows_is_not_split_without_end(autojump_clock: MockClock) -> None:
    """After fifteen seconds those that are left share one answer: others wait behind them."""
    store = SlowToRefuse()
    store.refused = {f"s{number}" for number in range(64)}
    writer = make_writer(store)
    async with writing(writer):
        orders = [writer.give(One(one)) for one in sorted(store.refused)]
        await settle_all(orders)
        assert 15 <= trio.current_time() <= 25
        assert all(isinstance(order.error, RowUnavailable) for order in orders)


class LockedOnce(Recorder):
    """Refuses a batch as a whole, and then says that the row of its first half is locked."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        if not self.batches:
            self.refused = {"s"}
        elif len(self.batches) == 1:
            self.refused, self.locked = set(), {"s"}
        else:
            self.locked = set()
        return await super().commit(worker, batch)


async def test_parts_of_a_split_batch_do_not_overtake_each_other(
    autojump_clock: MockClock,
) -> None:
    """Where the first half of a session's messages must go again, so must the other (15)."""
    store = LockedOnce()
    writer = make_writer(store)
    async with writing(writer):
        orders = [writer.give(Many("s", name=str(number))) for number in range(6)]
        await settle_all(orders)
        assert store.payloads == [*"012345", *"012", *"012345"]
        assert [order.error for order in orders] == [None] * 6


async def test_a_caller_that_leaves_withdraws_what_has_not_left(
    autojump_clock: MockClock,
) -> None:
    """What has left happens, or not."""
    store = Recorder()
    store.gate = trio.Event()
    writer = make_writer(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        writer.give(One("first"))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as scope:
            await writer.do(One("withdrawn"))
        assert scope.cancelled_caught
        store.gate.set()
        await finish(writer, trio.current_time() + 1)
    assert store.batches == [["first"]]


async def test_when_much_waits_callers_wait_in_order(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is dropped, and memory is bounded."""
    monkeypatch.setattr("trio_sessions._writer._ROOM", (10, 1000))
    store = Recorder()
    store.gate = trio.Event()
    writer = make_writer(store)
    sent: list[int] = []

    async def send(number: int) -> None:
        await writer.do(Many("s", name=str(number)))
        sent.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        async with trio.open_nursery() as senders:
            for number in range(100):
                senders.start_soon(send, number)
                await trio.testing.wait_all_tasks_blocked()
            assert writer.waiting <= 10
            store.gate.set()
        assert sorted(sent) == list(range(100))
        await finish(writer, trio.current_time() + 1)
    assert store.payloads == [str(number) for number in range(100)]


async def test_who_comes_when_room_is_made_waits_behind_those_who_have_waited(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the very step in which it is made, before any of them has been told."""
    monkeypatch.setattr("trio_sessions._writer._ROOM", (1, 1000))
    store = Recorder()
    store.gate = trio.Event()
    writer = make_writer(store)

    async def send_two() -> None:
        await writer.do(Many("s", name="first"))
        await writer.do(Many("s", name="third"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        async with trio.open_nursery() as senders:
            senders.start_soon(send_two)
            await trio.testing.wait_all_tasks_blocked()
            senders.start_soon(writer.do, Many("s", name="second"))
            await trio.testing.wait_all_tasks_blocked()
            store.gate.set()
        await finish(writer, trio.current_time() + 1)
    assert store.payloads == ["first", "second", "third"]


async def test_bytes_keep_callers_outside_as_their_number_does(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few large messages are as much to keep as many small ones."""
    monkeypatch.setattr("trio_sessions._writer._ROOM", (1000, 25))
    store = Recorder()
    store.gate = trio.Event()
    writer = make_writer(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        async with trio.open_nursery() as senders:
            for number in range(5):
                senders.start_soon(writer.do, Many("s", size=10, name=str(number)))
                await trio.testing.wait_all_tasks_blocked()
            assert writer.is_full
            assert writer.waiting == 2, "one is out, and two wait outside"
            store.gate.set()
        await finish(writer, trio.current_time() + 1)
    assert store.payloads == list("01234")


async def test_whoever_leaves_makes_room_for_those_outside(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing of it had left for the store: its row was locked."""
    monkeypatch.setattr("trio_sessions._writer._ROOM", (3, 1000))
    store = Recorder()
    store.locked = {"locked"}
    writer = make_writer(store)
    async with writing(writer) as nursery:
        with trio.CancelScope() as leaving:
            async with trio.open_nursery() as inside:
                for number in range(3):
                    inside.start_soon(writer.do, Many("locked", name=str(number)))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(writer.do, Many("free"))
                await trio.sleep(0.001)
                assert ["free"] not in store.batches
                leaving.cancel()
        start = trio.current_time()
        while ["free"] not in store.batches:
            await trio.sleep(0.001)
        assert trio.current_time() - start < 0.1


async def test_rows_that_sessions_claim_keep_nobody_outside(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number is bounded by that of the sessions; a message goes on behind them."""
    monkeypatch.setattr("trio_sessions._writer._ROOM", (3, 1000))
    store = Recorder()
    writer = make_writer(store)
    async with writing(writer):
        claims = [writer.give(One(f"s{number}")) for number in range(1000)]
        await writer.do(Many("message"))
        assert all(order.stage is Stage.SETTLED for order in claims)


async def test_in_an_outage_nobody_waits_longer_than_for_one_timeout_and_a_batch(
    autojump_clock: MockClock,
) -> None:
    """However much waits: it is told when a batch fails."""
    store = Recorder()
    store.fail(Fault.HANGS)
    writer = make_writer(store, store_timeout=10.0)
    async with writing(writer):
        orders = [writer.give(One(f"s{number}")) for number in range(1000)]
        start = trio.current_time()
        await settle_all(orders)
        assert trio.current_time() - start <= 21
        assert all(isinstance(order.error, StoreUnavailable) for order in orders)


async def test_closing_is_bounded(autojump_clock: MockClock) -> None:
    """By one deadline for all that waits."""
    store = Recorder()
    store.fail(Fault.HANGS)
    writer = make_writer(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        orders = [writer.give(One(f"s{number}")) for number in range(1000)]
        await trio.testing.wait_all_tasks_blocked()
        await finish(writer, trio.current_time() + 7)
        assert trio.current_time() == 7
        assert all(isinstance(order.error, StoreUnavailable) for order in orders)
        late = writer.give(One("late"))
        with pytest.raises(StoreUnavailable):
            await late.wait()


@pytest.mark.parametrize("answers", [[None], [None, 7], [None, True]])
async def test_a_wrong_answer_is_unknown(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, answers: list[Any]
) -> None:
    """One too few, or of another kind: the store has broken its contract, and nothing ends."""

    class Errs(Recorder):
        async def commit(self, worker: Worker, batch: Batch) -> Committed:
            await super().commit(worker, batch)
            return Committed(answers=answers)

    writer = make_writer(Errs())
    async with writing(writer):
        orders = [writer.give(One("s")), writer.give(One("t"))]
        await settle_all(orders)
        assert all("contract" in str(order.error) for order in orders)
