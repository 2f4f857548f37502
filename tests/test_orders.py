"""What waits to be written: which orders make a batch, in which order."""

from itertools import pairwise
from typing import Any

import outcome
import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from orders import Many, One

from trio_sessions._lines import Lines
from trio_sessions._orders import Order, Stage
from trio_sessions._posting import PostOrder
from trio_sessions.errors import StoreUnavailable


class Others(Many):
    """One of another kind, of which a batch has several, too."""

    group = "others"


def test_two_kinds_that_are_grouped_do_not_go_together() -> None:
    """For one session; each kind waits for the other, in the order of the calls."""
    lines = Lines(rows=10, size=100)
    orders = [Many("s"), Many("s"), Others("s"), Many("t"), Others("s"), Many("s")]
    for order in orders:
        lines.put(order)
    batches = []
    while batch := lines.next_batch():
        batches.append(batch)
        lines.done()
    assert batches == [[orders[0], orders[1], orders[3]], [orders[2], orders[4]], [orders[5]]]


def test_one_kind_for_each_session_and_batch() -> None:
    """What follows waits for the next one, in the order of the calls."""
    lines = Lines(rows=10, size=100)
    orders = [One("s"), One("t"), Many("s"), Many("s"), One("s")]
    for order in orders:
        lines.put(order)
    batches = []
    while batch := lines.next_batch():
        batches.append(batch)
        lines.done()
    assert batches == [orders[:2], orders[2:4], orders[4:]]
    assert lines.waiting == 0


def test_what_comes_while_a_batch_is_out_is_not_in_the_next_line_too_soon() -> None:
    """A session has one batch out at a time."""
    lines = Lines(rows=10, size=100)
    lines.put(One("s"))
    [first] = lines.next_batch()
    second, other = One("s"), One("t")
    lines.put(second)
    lines.put(other)
    assert first.stage is Stage.OUT
    assert lines.next_batch() == [other]
    lines.done()
    assert lines.next_batch() == [second]


def test_batches_are_bounded_in_rows_and_bytes() -> None:
    """A single larger order makes a batch all the same."""
    lines = Lines(rows=3, size=10)
    for number in range(7):
        lines.put(Many("s", size=1, name=str(number)))
    lines.put(One("t", size=50))
    lines.put(One("u", size=6))
    lines.put(One("v", size=6))
    sizes = []
    while batch := lines.next_batch():
        sizes.append([order.size for order in batch])
        lines.done()
    assert all(len(one) <= 3 and (sum(one) <= 10 or len(one) == 1) for one in sizes)
    assert sum(map(len, sizes)) == 10
    assert [50] in sizes


def sizes_of_batches(lines: Lines, *sizes: int) -> list[list[int]]:
    """Put orders of as many sessions, and return those of each batch."""
    for number, size in enumerate(sizes):
        lines.put(One(f"s{number}", size=size))
    batches = []
    while batch := lines.next_batch():
        batches.append([order.size for order in batch])
        lines.done()
    return batches


def test_a_batch_is_filled_to_the_last_byte() -> None:
    """What does not fit goes first next time: nothing smaller overtakes it."""
    assert sizes_of_batches(Lines(rows=10, size=10), 4, 6, 1) == [[4, 6], [1]]
    assert sizes_of_batches(Lines(rows=10, size=10), 6, 7, 3) == [[6], [7, 3]]


def test_what_is_held_back_for_letters_keeps_its_order() -> None:
    """They have a batch of their own, and the next one has the others."""
    lines = Lines(rows=10, size=100)
    others = [One("s"), One("t")]
    letter = PostOrder("{}", to="w")
    for order in (*others, letter):
        lines.put(order)
    assert lines.next_batch(of_letters=True) == [letter]
    lines.done()
    assert lines.next_batch() == others


def test_only_what_may_wait_is_hastened() -> None:
    """Once; what waits for nobody's batch is counted as it was."""
    lines = Lines(rows=10, size=100)
    patient, other = One("s"), One("t")
    patient.give(0.0, may_wait=True)
    for order in (patient, other):
        lines.put(order)
    assert lines.patient == 1
    lines.hasten(other)
    assert lines.patient == 1
    for _ in range(2):
        lines.hasten(patient)
        assert (lines.patient, patient.may_wait) == (0, False)


def test_what_has_left_once_may_wait_no_longer() -> None:
    """Where its row was locked, it goes again for itself."""
    lines = Lines(rows=10, size=100)
    order = One("s")
    order.give(0.0, may_wait=True)
    lines.put(order)
    assert lines.next_batch() == [order]
    lines.ask_again([order], due=1.0)
    lines.done()
    assert (lines.waiting, lines.patient) == (1, 0)


def test_who_has_waited_since_a_moment_came_before_it() -> None:
    """Whoever came at that very moment has not waited for longer."""
    lines = Lines(rows=10, size=100)
    order = One("s")
    order.give(1.0)
    lines.put(order)
    assert lines.waiting_since(1.0) == []
    assert lines.waiting_since(1.5) == [order]


def test_what_is_withdrawn_does_not_leave() -> None:
    """What is out already cannot be withdrawn."""
    lines = Lines(rows=10, size=100)
    first, second = One("s", size=3), One("s")
    lines.put(first)
    lines.put(second)
    assert lines.withdraw(first)
    assert first.concluded == [None]
    assert lines.waiting == 1
    assert lines.next_batch() == [second]
    assert not lines.withdraw(second)
    assert not lines.withdraw(first)


def test_a_locked_row_goes_again_later_before_what_follows() -> None:
    """Other sessions do not wait for it."""
    lines = Lines(rows=10, size=100)
    locked = [Many("s"), Many("s")]
    after, other = Many("s"), One("t")
    for order in locked:
        lines.put(order)
    batch = lines.next_batch()
    lines.put(after)
    lines.put(other)
    lines.ask_again(batch, due=5.0)
    lines.done()
    assert lines.next_batch() == [other]
    lines.done()
    assert lines.next_due() == 5.0
    lines.wake(4.9)
    assert lines.next_batch() == []
    lines.wake(5.0)
    assert lines.next_batch() == [*locked, after]


@given(
    plan=st.lists(st.tuples(st.sampled_from("stu"), st.booleans(), st.integers(0, 4)), max_size=40),
    rows=st.integers(1, 5),
    size=st.integers(1, 8),
    chances=st.lists(st.sampled_from(["done", "again", "withdraw"]), max_size=60),
)
def test_every_order_leaves_once_and_in_its_line(
    plan: list[tuple[str, bool, int]], rows: int, size: int, chances: list[str]
) -> None:
    """Whatever is locked, withdrawn, or larger than a batch."""
    lines = Lines(rows=rows, size=size)
    orders: list[Order[Any]] = [
        (Many if many else One)(session_id, weight) for session_id, many, weight in plan
    ]
    given_: dict[Order[Any], int] = {order: place for place, order in enumerate(orders)}
    for order in orders:
        lines.put(order)
    left: list[Order[Any]] = []
    chance, now = iter(chances), 0.0
    for _ in range(500):
        lines.wake(now)
        batch = lines.next_batch()
        assert len(batch) <= rows
        assert len(batch) <= 1 or sum(order.size for order in batch) <= size
        for one, two in pairwise(batch):
            if one.session_id == two.session_id:
                assert one.is_grouped
                assert two.is_grouped
        what = next(chance, "done")
        if what == "again" and batch:
            locked = {order.session_id for order in batch[:1]}
            lines.ask_again([o for o in batch if o.session_id in locked], now + 1)
            batch = [o for o in batch if o.session_id not in locked]
        if what == "withdraw":
            waiting = [order for order in orders if order.stage is Stage.WAITING]
            assert all(lines.withdraw(order) for order in waiting[:1])
        left += batch
        for order in batch:
            order.settle(None)
        lines.done()
        now += 0.5
    assert all(order.stage is Stage.SETTLED for order in orders)
    assert len(left) == len(set(left))
    for session_id in "stu":
        places = [given_[order] for order in left if order.session_id == session_id]
        assert places == sorted(places)
    assert (lines.waiting, lines.everything()) == (0, [])


def test_an_order_goes_from_stage_to_stage_as_the_table_says() -> None:
    """What is settled stays so: nobody answers it twice, or sends it."""
    order = One("s")
    order.give(0.0)
    order.send()
    with pytest.raises(RuntimeError, match="cannot go from OUT to OUT"):
        order.send()
    order.go_again()
    order.send()
    order.settle(outcome.Value(1))
    for step in (order.send, order.go_again, lambda: order.give(0.0), lambda: order.settle(None)):
        with pytest.raises(RuntimeError, match="cannot go from SETTLED to"):
            step()
    assert (order.stage, order.value) == (Stage.SETTLED, 1)
    assert order.concluded == [outcome.Value(1)]


async def test_to_wait_for_a_settled_order_is_a_checkpoint() -> None:
    """Who asks for one answer after the other, all of them there, gives the loop its turn."""
    order = One("s")
    order.settle(outcome.Value(1))
    with trio.testing.assert_checkpoints():
        assert await order.wait() == 1


async def test_what_a_settled_order_was_answered_with_is_raised_behind_a_checkpoint() -> None:
    order = One("s")
    order.settle(outcome.Error(StoreUnavailable("away")))
    with trio.testing.assert_checkpoints(), pytest.raises(StoreUnavailable, match="away"):
        await order.wait()
