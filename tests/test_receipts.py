"""Acknowledging and forwarding, for themselves: what is given to the writer, and what fails."""

import logging
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from trio_sessions._counters import Counters
from trio_sessions._entry import Entry
from trio_sessions._messages import _receipts
from trio_sessions._messages._forwarding import Forwarding
from trio_sessions._messages._held import Stage
from trio_sessions._messages._inbox import Inbox, Message
from trio_sessions._messages._inboxes import Inboxes
from trio_sessions._messages._receipts import Receipts
from trio_sessions._orders import Order
from trio_sessions._witness import Witness
from trio_sessions.errors import StoreUnavailable
from trio_sessions.testing import FakeTransport
from trio_sessions.types import Holder, Sent, StoredMessage
from trio_sessions.writes import Acknowledge, Send

READER = "reader"
AWAY = outcome.Error(StoreUnavailable("away"))


class Given:
    """What the writer was given; it writes nothing by itself."""

    def __init__(self) -> None:
        self.orders: list[Order[Any]] = []

    def give(self, order: Order[Any], *, first: bool = False) -> Order[Any]:
        self.orders.append(order)
        return order

    def next(self) -> tuple[Order[Any], Any]:
        """Return the only order that was given since, and what it is to write."""
        [order] = self.orders
        self.orders.clear()
        return order, order.make()


def make_inbox(*rows: int, name: str = "s") -> Inbox:
    """Return an inbox that is read, and has fetched these rows."""
    inbox = Inbox(name, size=1_000_000, message_ttl=60.0, storing={})
    inbox.open(READER, 0.0)
    fetch(inbox, *rows)
    return inbox


def fetch(inbox: Inbox, *rows: int) -> None:
    asked = inbox.ask(1_000_000, 0.0)
    assert asked is not None
    inbox.answer(asked, [StoredMessage(id=row, payload="1", age=0.0) for row in rows], 0.0)


def handle(receipts: Receipts, inbox: Inbox, row: int) -> None:
    """Have the reader handle the next row."""
    message = inbox.take(READER, 0.0)
    assert message is not None
    assert message.row == row
    inbox.finish(READER)
    receipts.note(inbox)


def held(inbox: Inbox) -> frozenset[int]:
    return inbox.held.rows(*Stage)


def make_receipts() -> tuple[Receipts, Given]:
    given = Given()
    return Receipts(given), given  # type: ignore[arg-type]


# ---- receipts ----


def test_one_receipt_at_a_time_says_what_was_handled_when_it_leaves() -> None:
    """What is handled while it is out makes the next; what was acknowledged is held no more."""
    receipts, given = make_receipts()
    inbox = make_inbox(2, 1, 3, 4)
    handle(receipts, inbox, 2)
    handle(receipts, inbox, 1)
    order, write = given.next()
    assert write == Acknowledge(session_id="s", message_ids=(1, 2))
    assert order.size > 0
    handle(receipts, inbox, 3)
    assert given.orders == []
    order.settle(outcome.Value(True))
    assert held(inbox) == {3, 4}
    order, write = given.next()
    assert write.message_ids == (3,)
    order.settle(outcome.Value(True))
    assert given.orders == []
    handle(receipts, inbox, 4)
    assert given.next()[1].message_ids == (4,)


def test_a_receipt_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has as many sessions as writes: the rest goes with the next."""
    monkeypatch.setattr(_receipts, "_ROWS", 3)
    receipts, given = make_receipts()
    inbox = make_inbox(8, 7, 6, 5, 4, 3, 2, 1)
    for row in (8, 7, 6, 5, 4, 3, 2, 1):
        handle(receipts, inbox, row)
    order, write = given.next()
    assert write.message_ids == (6, 7, 8), "what was handled first, in the order of the ids"
    order.settle(outcome.Value(True))
    full, write = given.next()
    assert write.message_ids == (3, 4, 5)
    full.settle(outcome.Value(True))
    rest, write = given.next()
    assert write.message_ids == (1, 2)
    assert full.size == 24, "three ids of eight bytes"
    assert rest.size == 16


def test_the_last_receipt_has_what_is_in_hand_too() -> None:
    """It is not repeated; and what was given before has nothing to say any more."""
    receipts, given = make_receipts()
    inbox = make_inbox(3, 1, 2)
    handle(receipts, inbox, 3)
    before, _ = given.next()
    assert inbox.take(READER, 0.0) is not None
    inbox.end()
    receipts.close(inbox, moved=False)
    last, write = given.next()
    assert write == Acknowledge(session_id="s", message_ids=(1, 3))
    assert last.size == 16, "a batch is bounded in bytes"
    assert before.make() is None
    before.settle(None)
    last.settle(AWAY)
    assert given.orders == []
    receipts.close(make_inbox(4, name="t"), moved=False)
    assert given.orders == [], "there was nothing to say"


def test_what_moves_in_hand_is_not_acknowledged() -> None:
    """The next holder delivers it; what a former reader still has was handed out for good."""
    receipts, given = make_receipts()
    inbox = make_inbox(1, 2, 3)
    assert inbox.take("former", 0.0) is not None
    inbox.add_again(detach=True, seal=False, until=1.0)
    inbox.open(READER, 1.0)
    assert inbox.take(READER, 1.0) is not None
    inbox.end()
    receipts.close(inbox, moved=True)
    assert given.next()[1].message_ids == (1,)


def test_what_a_rewind_has_made_of_ids_is_not_acknowledged() -> None:
    """They may be those of other messages; what is handled from then on is."""
    receipts, given = make_receipts()
    inbox = make_inbox(1)
    handle(receipts, inbox, 1)
    order, _ = given.next()
    inbox.forget_rows()
    receipts.forget(inbox)
    fetch(inbox, 2)
    assert order.make() is None
    order.settle(AWAY)
    handle(receipts, inbox, 2)
    assert given.next()[1].message_ids == (2,)


async def test_what_failed_is_repeated_after_a_pause_that_grows(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """From half of it to one and a half, and never longer than the longest; then anew."""
    receipts, given = make_receipts()
    inbox = make_inbox(1, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receipts.repeat)
        handle(receipts, inbox, 1)
        for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
            order, _ = given.next()
            failed_at = trio.current_time()
            order.settle(AWAY)
            while not given.orders:
                await trio.sleep(0.01)
            assert 0.5 * pause - 0.01 <= trio.current_time() - failed_at <= 1.5 * pause + 0.02
        given.next()[0].settle(outcome.Value(True))
        assert held(inbox) == {2}
        handle(receipts, inbox, 2)
        given.next()[0].settle(AWAY)
        failed_at = trio.current_time()
        while not given.orders:
            await trio.sleep(0.01)
        assert trio.current_time() - failed_at <= 0.17, "the first pause again"
        nursery.cancel_scope.cancel()
    assert [one.levelno for one in caplog.records if "is repeated" in one.message].count(
        logging.WARNING
    ) == 2, "the first of each row of failures"


async def test_those_that_fail_together_are_repeated_together(autojump_clock: MockClock) -> None:
    """They share a batch again; one that has ended meanwhile is left out."""
    receipts, given = make_receipts()
    inboxes = [make_inbox(1, name=name) for name in "stu"]
    for inbox in inboxes:
        handle(receipts, inbox, 1)
    for order in given.orders:
        order.settle(AWAY)
    given.orders.clear()
    receipts.forget(inboxes[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(receipts.repeat)
        while not given.orders:
            await trio.sleep(0.01)
        assert sorted(one.session_id for one in given.orders) == ["s", "u"]
        nursery.cancel_scope.cancel()


# ---- forwarding ----


def make_forwarding() -> tuple[Forwarding, Given, Counters]:
    given, counters = Given(), Counters()
    nothing: Any = None  # nothing is stamped here, and no inbox is made
    writer: Any = given
    forwarding = Forwarding(
        writer=writer,
        edge=nothing,
        witness=Witness(),
        inboxes=Inboxes(nothing, counters),
        counters=counters,
        message_ttl=60.0,
    )
    return forwarding, given, counters


async def test_a_message_follows_its_session_and_nobody_else(autojump_clock: MockClock) -> None:
    """It keeps its age; where the session has no birth yet, it has to be held elsewhere."""
    forwarding, given, counters = make_forwarding()
    entry = Entry("s", FakeTransport(), 7, 0.0)
    now = trio.current_time()
    forwarding.forward(entry, [Message('"é"', expires_at=now + 50.0)])
    await trio.sleep(5.0)
    order, write = given.next()
    assert order.size == len('"é"'.encode())
    assert write == Send(
        session_id="s", payload='"é"', age=15.0, ended=7, born=None, elsewhere=True
    )
    holder = Holder(worker_id="w", incarnation="i")
    order.settle(outcome.Value(Sent(id=1, holder=holder)))
    assert counters.messages_dropped == 0
    forwarding.forward(entry, [Message('"a"', expires_at=now + 50.0)])
    given.next()[0].settle(outcome.Value(None))
    assert counters.messages_dropped == 1, "there is no such session any more"
    forwarding.forward(entry, [Message('"a"', expires_at=now + 50.0)])
    await trio.sleep(45.0)
    order, write = given.next()
    assert isinstance(write, Send), "at the very moment it has not expired"
    order.settle(outcome.Value(Sent(id=2, holder=holder)))
    forwarding.forward(entry, [Message('"a"', expires_at=now + 50.0)])
    await trio.sleep(0.1)
    order, write = given.next()
    assert write is None, "it has expired"
    order.settle(None)
    assert counters.messages_dropped == 2


async def test_what_could_not_be_forwarded_is_kept_within_bounds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next pass tries again, all at once; what is left at the end is counted."""
    monkeypatch.setattr("trio_sessions._messages._forwarding._UNSENT", 2)
    forwarding, given, counters = make_forwarding()
    entry = Entry("s", FakeTransport(), 1, 0.0)
    messages = [Message(f"{number}", expires_at=float("inf")) for number in range(3)]
    forwarding.forward(entry, messages)
    for order in given.orders:
        order.settle(AWAY)
    assert counters.messages_dropped == 1
    assert sum("forwarded later" in one.message for one in caplog.records) == 1
    given.orders.clear()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forwarding.forward_what_is_left)
            await trio.testing.wait_all_tasks_blocked()
            assert len(given.orders) == 2
            given.orders[0].settle(AWAY)
            assert nursery.child_tasks, "it waits for all"
            given.orders[1].settle(AWAY)
    forwarding.drop_what_is_left()
    assert counters.messages_dropped == 3
    forwarding.drop_what_is_left()
    assert counters.messages_dropped == 3
