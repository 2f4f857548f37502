"""The writer: the only one that hands writes to the store, in batches, one at a time.

What arrives while a batch is under way makes the next, so a lone call waits for nobody, and a
storm shares its statements, its transactions and its syncs to disk::

    callers ──give──> lines ──next batch──> store.commit ──answers──> each order is settled
                        ^                        │
                        └── a locked row: later ─┤
                            a refused batch ─────┴──> split, each half a batch

- A row that is locked is asked again, with a growing pause (invariant 16); what follows for its
  session waits behind it. After `_PATIENCE` its caller is told.
- A batch that is refused as a whole, for a row that nobody can name, or was ended for it took too
  long, is split. A deadlock of two transactions is the fault of neither: whoever was refused goes
  again.
- What is not finished, for a session has left too much, goes again with the next batch, at once.
- A batch that came too late has done nothing, and goes again at once. So has one that contradicts
  the witness (`trio_sessions._witness`): the worker begins a new history first.
- A lost answer is everybody's error. Claims and deletions are repeated by the next pass, messages
  and entries of logs by nobody.
- A caller that leaves withdraws what has not left (`do`); claims and deletions go on (`give`).
- What nobody waits for goes with the next batch that is more than letters, or after `_GATHER`: so
  it seldom makes one.

See docs/decisions/0009-one-writer.md. Just over 400 lines: the loop, and each way in which a
batch may fail, read together.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import outcome
import trio

from trio_sessions._counters import Counters
from trio_sessions._edge import Edge, Late
from trio_sessions._histories import Histories
from trio_sessions._life import Life
from trio_sessions._lines import Lines
from trio_sessions._logging import get_logger
from trio_sessions._orders import Order, Stage
from trio_sessions._persisting import jittered
from trio_sessions._witness import WentBack
from trio_sessions.errors import (
    OperationTooLong,
    RowDoubtful,
    RowLocked,
    RowUnavailable,
    SessionsError,
    StoreUnavailable,
)
from trio_sessions.writes import Answer, Unfinished, Write

__all__ = ["Writer"]

logger = get_logger("trio_sessions.rows")

T = TypeVar("T")

_SIZE = 8 * 1024 * 1024  # bytes in one batch
_GATHER = 0.02  # seconds for which what nobody waits for may wait for the batch of another
_ROOM = (10_000, 64 * 1024 * 1024)  # callers inside, and their bytes; others wait outside
_PAUSES = (0.005, 0.25)  # seconds until a locked row is asked again, the first and the longest
_SHORT = 0.03  # seconds, the longest where the lock is one that nobody has for long
_PATIENCE = 2.0  # seconds for which a locked row is asked again
_SPLITTING = 15.0  # seconds for which a refused batch is split; each refusal may take lock_timeout


class Writer:
    """The writer of one registry.

    Args:
        edge: the way to the store.
        histories: where another one must be begun before anything is written.
        counters: count batches, and what failed.
        life: of the registry: once it is finishing, nothing is asked again, and what waits is all.
        rows: writes in one batch, at most.
        timeout: seconds for which an order waits behind batches that fail.
    """

    def __init__(
        self,
        edge: Edge,
        histories: Histories,
        counters: Counters,
        life: Life,
        *,
        rows: int,
        timeout: float,
    ) -> None:
        self._edge = edge
        self._life = life
        self._histories = histories
        self._counters = counters
        self._timeout = timeout
        self._lines = Lines(rows=rows, size=_SIZE)
        self._work = trio.Event()
        self._patient_until: float | None = None
        """When a batch is made for what may wait."""
        self._room = trio.Event()
        self._entrance = trio.StrictFIFOLock()
        self._inside = 0
        self._inside_size = 0
        self._gives_up = False
        self._under_way: trio.CancelScope | None = None
        self._has_rested = False
        """The loop has had its turn since the last batch: this one may be committed at once."""
        self._ended = trio.Event()

    @property
    def waiting(self) -> int:
        """How many orders wait."""
        return self._lines.waiting

    # ---- what callers do ----

    def give(self, order: Order[T], *, first: bool = False, may_wait: bool = False) -> Order[T]:
        """Take an order, which goes on without its caller. Synchronous: the order of the calls.

        Args:
            order: the order.
            first: before all others of its session.
            may_wait: no batch is made for it alone before `_GATHER` has passed.
        """
        order.give(trio.current_time(), may_wait=may_wait)
        if self._ended.is_set():
            order.settle(outcome.Error(_closed()))
            return order
        self._lines.put(order, first=first)
        if not may_wait:
            self._work.set()
        elif self._patient_until is None:
            self._patient_until = order.given_at + _GATHER
            self._work.set()  # the loop sleeps until then; it may sleep for longer now
        return order

    def hasten(self, order: Order[Any]) -> None:
        """Write an order that may wait without delay: somebody waits for it now."""
        self._lines.hasten(order)
        self._work.set()

    async def do(self, order: Order[T]) -> T | None:
        """Give an order to the writer, and return its answer.

        Cancellation: it is withdrawn, unless it has left already.
        """
        await self.admit()
        return await self.answer(self.give(order))

    async def answer(self, order: Order[T]) -> T | None:
        """Return the answer to an order that was given; cancellation as in `do`."""
        self._inside += 1
        self._inside_size += order.size
        try:
            return await order.wait()
        except trio.Cancelled:
            self._lines.withdraw(order)
            raise
        finally:
            self._inside -= 1
            self._inside_size -= order.size
            self._tell_of_room()

    @property
    def is_full(self) -> bool:
        """Whether as many callers wait for answers as may; others wait outside.

        Claims and deletions are not counted: their number is bounded by that of the sessions.
        """
        return self._inside >= _ROOM[0] or self._inside_size >= _ROOM[1]

    async def admit(self) -> None:
        """Wait until there is room for one more, in the order of the calls.

        No checkpoint if there is room, and nobody waits for it.

        Raises:
            StoreUnavailable: there was none for too long.
        """
        if not self.is_full and not self._entrance.locked():
            return
        with trio.move_on_after(self._timeout):
            async with self._entrance:
                while self.is_full:
                    self._room = trio.Event()
                    await self._room.wait()
                return
        raise StoreUnavailable("too much waits to be written, and for too long")

    # ---- the loop ----

    async def run(self) -> None:
        """Write until `finish`; to be run shielded, for what is under way must not be cut."""
        try:
            while not (self._life.is_finishing and not self._lines.waiting):
                if self._lines.next_due() is not None:
                    self._lines.wake(trio.current_time())
                batch = self._next_batch() if self._lines.waiting else ()
                if batch:
                    await self._carry_out(batch)
                    self._lines.done()
                else:
                    await self._wait_for_work()
        finally:
            self._ended.set()
            self._lines.give_up(self._lines.everything(), _closed())
            self._tell_of_room()

    def _next_batch(self) -> Sequence[Order[Any]]:
        """Take out the next batch; none, as long as what waits may wait.

        What may wait goes with no letters: they wait for no disk, and it would have them wait.
        """
        lines, until, now = self._lines, self._patient_until, trio.current_time()
        if until is not None and now < until and not self._life.is_finishing:
            if lines.waiting == lines.patient:
                return ()
            if lines.waiting == lines.patient + lines.letters:
                return lines.next_batch(of_letters=True)
        batch = lines.next_batch()
        self._patient_until = now + _GATHER if lines.patient else None
        return batch

    async def _wait_for_work(self) -> None:
        self._work = trio.Event()
        self._has_rested = True
        if not self._lines.patient:  # what might wait was given up
            self._patient_until = None
        due, patient_until = self._lines.next_due(), self._patient_until
        if due is None and patient_until is None:
            await self._work.wait()
            return
        dues = [one for one in (due, patient_until) if one is not None]
        with trio.move_on_at(min(dues)):
            await self._work.wait()

    def _tell_of_room(self) -> None:
        if not self.is_full or self._ended.is_set():
            self._room.set()

    async def _carry_out(self, batch: Sequence[Order[Any]]) -> None:
        """Commit a batch, in parts if it is refused; settle its orders, or have them go again."""
        split_until: float | None = None
        came_late = False
        parts: list[Sequence[Order[Any]]] = [batch]
        again: list[Order[Any]] = []
        while parts:
            part, behind = _apart(parts.pop(), again)
            again += behind
            try:
                again += await self._commit(part)
            except (RowUnavailable, OperationTooLong, Late, WentBack) as exc:
                if split_until is None:
                    split_until = trio.current_time() + _SPLITTING
                left = [order for order in part if order.stage is Stage.OUT]
                for order in left:
                    order.note_undone()
                # Too late once more is a load, or a clock, that only a pause can help.
                came_late, is_first = isinstance(exc, Late), not came_late
                at_once, later = self._judge_refusal(left, exc, split_until, is_first=is_first)
                parts += at_once
                again += later
            except SessionsError as exc:
                self._fail(part, exc)
                self._give_up_waiting(exc)
        if again:
            self._ask_again(again)

    def _judge_refusal(
        self,
        orders: Sequence[Order[Any]],
        error: SessionsError,
        split_until: float,
        *,
        is_first: bool,
    ) -> tuple[list[Sequence[Order[Any]]], Sequence[Order[Any]]]:
        """Return which orders of a refused batch go again; fail the others.

        Returns:
            Parts that go at once, and what goes after a pause.
        """
        is_row_s_own = isinstance(error, RowUnavailable | OperationTooLong)
        if not orders:
            return [], ()
        if not is_row_s_own and self._may_wait(orders[0]):
            return ([orders], ()) if isinstance(error, Late) and is_first else ([], orders)
        if is_row_s_own and len(orders) > 1 and trio.current_time() < split_until:
            middle = len(orders) // 2
            return [orders[middle:], orders[:middle]], ()
        if isinstance(error, RowLocked) and self._may_ask_again(orders[0]):
            return [], orders
        self._fail(orders, error)
        return [], ()

    def _fail(self, orders: Sequence[Order[Any]], error: SessionsError) -> None:
        for order in orders:
            if order.stage is Stage.OUT:
                order.settle(outcome.Error(error))
                self._counters.count_write_failures(1)

    async def _commit(self, orders: Sequence[Order[Any]]) -> list[Order[Any]]:
        """Commit orders; return those that are to go again after a pause, as for a locked row."""
        try:
            if self._histories.must_begin:
                with self._new_scope() as scope:
                    await self._histories.ensure()
                if scope.cancelled_caught:
                    raise _closed()
            # Only now, for a claim says how long ago its session was added.
            sent, writes = _make(orders)
            if not writes:
                await trio.lowlevel.checkpoint()
                return []
            at_once, self._has_rested = self._has_rested, False
            answers = await self._edge.commit(writes, self._new_scope, at_once=at_once)
            self._counters.count_batch(len(writes))
        except StoreUnavailable as exc:
            if self._gives_up:
                raise _closed() from exc
            raise
        answered = zip(sent, answers, strict=True)
        return [order for order, answer in answered if self._goes_again(order, answer)]

    def _goes_again(self, order: Order[Any], answer: Answer) -> bool:
        """Take the answer to one write; say whether that is to go again after a pause."""
        if isinstance(answer, Unfinished):
            if answer.dropped:
                order.advance(answer)
                order.give(trio.current_time())
                self._lines.ask_again([order], order.given_at)
                return False
            if self._has_time(order):  # lines of a log have gone, or nothing
                return True
            answer = RowUnavailable("what the session has left comes to no end: it goes later")
        elif isinstance(answer, RowUnavailable):
            order.note_undone()
            if not isinstance(answer, RowDoubtful) and self._may_ask_again(order):
                return True
        else:
            order.settle(outcome.Value(answer))
            return False
        order.settle(outcome.Error(answer))
        self._counters.count_write_failures(1)
        return False

    def _new_scope(self) -> trio.CancelScope:
        """Return a scope for the batch that is under way; `finish` may cancel it."""
        self._under_way = trio.CancelScope()
        if self._gives_up:
            self._under_way.cancel()
        return self._under_way

    def _may_ask_again(self, order: Order[Any]) -> bool:
        patience = min(_PATIENCE, self._timeout)
        return not self._life.is_finishing and trio.current_time() < order.given_at + patience

    def _may_wait(self, order: Order[Any]) -> bool:
        return not self._life.is_finishing and self._has_time(order)

    def _has_time(self, order: Order[Any]) -> bool:
        return trio.current_time() < order.given_at + self._timeout

    def _ask_again(self, locked: Sequence[Order[Any]]) -> None:
        """Ask for locked rows again, each after a pause of its own."""
        now = trio.current_time()
        first, longest = _PAUSES
        lines: dict[str, list[Order[Any]]] = {}
        for order in locked:
            lines.setdefault(order.session_id, []).append(order)
        for orders in lines.values():
            most = _SHORT if orders[0].is_in_a_queue else longest
            pause = min(most, first * 2 ** orders[0].attempts)
            for order in orders:
                order.note_locked()
            due = now + jittered(pause)
            self._lines.ask_again(orders, due)

    def _give_up_waiting(self, error: SessionsError) -> None:
        """Tell those who have waited for too long behind batches that fail."""
        late = self._lines.waiting_since(trio.current_time() - self._timeout)
        if late:
            logger.warning("%d writes have waited for a store that is away", len(late))
        self._lines.give_up(late, error)

    # ---- closing ----

    async def finish(self, deadline: float) -> None:
        """Write what waits, until the deadline on Trio's clock; then give up, and end."""
        self._work.set()
        with trio.move_on_at(deadline):
            await self._ended.wait()
            return
        self._gives_up = True
        self._lines.give_up(self._lines.everything(), _closed())
        if self._under_way is not None:
            self._under_way.cancel()
        await self._ended.wait()


def _make(orders: Sequence[Order[Any]]) -> tuple[list[Order[Any]], list[Write[object]]]:
    """Let orders make their writes; settle those that cannot, or need not any more."""
    sent: list[Order[Any]] = []
    writes: list[Write[object]] = []
    for order in orders:
        try:
            write = order.make()
        except SessionsError as exc:
            order.settle(outcome.Error(exc))
            continue
        if write is None:
            order.settle(None)
        else:
            sent.append(order)
            writes.append(write)
    return sent, writes


def _apart(
    orders: Sequence[Order[Any]], again: Sequence[Order[Any]]
) -> tuple[Sequence[Order[Any]], Sequence[Order[Any]]]:
    """Return the orders that may leave, and those that are behind one that has to go again."""
    if not again:
        return orders, ()
    waiting = {order.session_id for order in again}
    behind = [order for order in orders if order.session_id in waiting]
    return [order for order in orders if order.session_id not in waiting], behind


def _closed() -> StoreUnavailable:
    return StoreUnavailable("the registry is closing, and the store did not answer in time")
