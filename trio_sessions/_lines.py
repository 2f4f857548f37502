"""What waits to be written, and which of it makes the next batch. Synchronous, no I/O.

The one owner of two facts: the order of the calls for one session, and which sessions have
something in the batch under way. What becomes of that batch is `trio_sessions._writer`'s.

Each session has a line of orders, in the order in which they were given. A batch takes from
each line what stands first: one order, or several of a kind that a store takes together
(messages). What follows waits for the next batch, so everything that is written of a session
is written in the order of the calls::

    s: [Claim] [SetOwner] [Send Send Send]      batch 1: Claim(s), Delete(t)
    t: [Delete]                                 batch 2: SetOwner(s)
                                                batch 3: Send(s), Send(s), Send(s)

A line is *ready* (it may give something to the next batch), *out* (it has given something to the
batch under way), or *paused* (its row was locked, or it is not finished: it goes again later).
See docs/decisions/0009-one-writer.md.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import outcome

from trio_sessions._orders import Order, Stage

__all__ = ["Lines"]


class Lines:
    """The orders that wait, and the batch that is out.

    Args:
        rows: orders in one batch, at most.
        size: bytes in one batch, at most; a single larger order makes a batch all the same.
    """

    def __init__(self, *, rows: int, size: int) -> None:
        self.waiting = 0
        """Orders that wait."""
        self.patient = 0
        """How many of them may wait for the batch of another one."""
        self.letters = 0
        """How many of them are letters."""
        self._rows = rows
        self._size = size
        self._lines: dict[str, deque[Order[Any]]] = {}
        self._ready: deque[str] = deque()
        self._out: dict[str, None] = {}
        self._paused: list[tuple[float, str]] = []
        self._at_rest: set[str] = set()
        """The sessions whose lines are paused."""

    def put(self, order: Order[Any], *, first: bool = False) -> None:
        """Put an order at the end of its session's line, or at the head."""
        line = self._lines.get(order.session_id)
        if line is None:
            line = self._lines[order.session_id] = deque()
            if order.session_id not in self._out:
                self._ready.append(order.session_id)
        if first:
            line.appendleft(order)
        else:
            line.append(order)
        self._count(order, 1)

    def withdraw(self, order: Order[Any]) -> bool:
        """Take an order back, unless it is out already; say whether it was taken back."""
        if order.stage is not Stage.WAITING:
            return False
        self._count(order, -1)
        order.settle(None)
        return True

    def hasten(self, order: Order[Any]) -> None:
        """Mark an order as one that may not wait any more: it makes a batch if need be."""
        if order.stage is Stage.WAITING and order.may_wait:
            self.patient -= 1
            order.hasten()

    def _count(self, order: Order[Any], change: int) -> None:
        self.waiting += change
        self.patient += change * order.may_wait
        self.letters += change * order.is_letter

    def next_batch(self, *, of_letters: bool = False) -> list[Order[Any]]:
        """Take out what makes the next batch; `done` must follow.

        Args:
            of_letters: of nothing else.
        """
        batch: list[Order[Any]] = []
        size = 0
        held_back: list[str] = []
        is_full = False
        while self._ready and len(batch) < self._rows and not is_full:
            session_id = self._ready.popleft()
            line = self._lines[session_id]
            if of_letters and not line[0].is_letter:
                held_back.append(session_id)
                continue
            first: Order[Any] | None = None
            while line and len(batch) < self._rows:
                order = line[0]
                if order.stage is Stage.SETTLED:  # withdrawn
                    line.popleft()
                    continue
                if first is not None and not order.goes_with(first):
                    break
                if batch and size + order.size > self._size:
                    if first is None:
                        held_back.append(session_id)
                        is_full = True
                    break
                line.popleft()
                self._count(order, -1)
                order.send()
                first = order
                size += order.size
                batch.append(order)
            if first is not None:
                self._out[session_id] = None
            if not line:
                del self._lines[session_id]
        self._ready.extendleft(reversed(held_back))
        return batch

    def done(self) -> None:
        """End the batch that is out: what follows in its lines may go."""
        for session_id in self._out:
            if session_id in self._lines and session_id not in self._at_rest:
                self._ready.append(session_id)
        self._out.clear()

    def ask_again(self, orders: Sequence[Order[Any]], due: float) -> None:
        """Put orders of the batch that is out back at the head of their lines; pause these."""
        again: dict[str, list[Order[Any]]] = {}
        for order in orders:
            again.setdefault(order.session_id, []).append(order)
        for session_id, ones in again.items():
            self._lines.setdefault(session_id, deque()).extendleft(reversed(ones))
            heapq.heappush(self._paused, (due, session_id))
            self._at_rest.add(session_id)
            for order in ones:
                order.go_again()
                self._count(order, 1)

    def next_due(self) -> float | None:
        """Return when the next paused line may go; None: none is paused."""
        return self._paused[0][0] if self._paused else None

    def wake(self, now: float) -> None:
        """Make paused lines ready whose moment has come."""
        while self._paused and self._paused[0][0] <= now:
            _, session_id = heapq.heappop(self._paused)
            self._at_rest.discard(session_id)
            if session_id in self._lines:
                self._ready.append(session_id)

    def waiting_since(self, moment: float) -> list[Order[Any]]:
        """Return the orders that were given before this moment and still wait."""
        return [one for one in self._orders() if one.given_at < moment]

    def give_up(self, orders: Iterable[Order[Any]], error: Exception) -> None:
        """Answer orders that wait with an error; their lines drop them later."""
        for order in list(orders):
            if order.stage is Stage.WAITING:
                self._count(order, -1)
                order.settle(outcome.Error(error))

    def everything(self) -> list[Order[Any]]:
        """Return all orders that wait."""
        return list(self._orders())

    def _orders(self) -> Iterable[Order[Any]]:
        return (
            order for line in self._lines.values() for order in line if order.stage is Stage.WAITING
        )
