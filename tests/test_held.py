"""In which stage each message of a session is, and what may follow."""

import pytest

from trio_sessions._messages._held import Held, Stage
from trio_sessions._messages._line import Line, Message, Waiting


def make_held(*rows: int) -> Held:
    """Return some rows that wait."""
    held = Held(Line(Waiting()))
    for row in rows:
        add(held, row)
    return held


def add(held: Held, row: int, expires_at: float = 10.0) -> None:
    message = Message(f"{row}", expires_at, row, held.life)
    held.add_row(row, message, after=float("-inf"))


def stages(held: Held) -> dict[int, Stage]:
    return {row: stage for stage in Stage for row in held.rows(stage)}


def test_a_row_goes_from_the_store_to_its_acknowledgement() -> None:
    """It is not fetched meanwhile."""
    held = make_held(1, 2)
    assert stages(held) == {1: Stage.WAITING, 2: Stage.WAITING}
    held.take("reader")
    assert stages(held) == {1: Stage.IN_HAND, 2: Stage.WAITING}
    assert held.not_to_be_fetched == {1, 2}
    assert held.finish("reader")
    assert not held.finish("reader"), "it has nothing more"
    assert stages(held) == {1: Stage.HANDLED, 2: Stage.WAITING}
    assert held.not_to_be_fetched == {1, 2}
    held.acknowledged([1, 2])
    assert stages(held) == {2: Stage.WAITING}, "the other one was not handled"
    assert (held.count(Stage.WAITING), held.count(Stage.HANDLED), len(held)) == (1, 0, 1)


def test_no_stage_is_left_out() -> None:
    """Who forgets one is told so."""
    held = make_held(1)
    with pytest.raises(RuntimeError, match=r"from Stage\.WAITING to Stage\.WAITING"):
        add(held, 1)


def test_what_was_overtaken_is_handled_out_of_its_order_or_dropped() -> None:
    """The next reader had no time to wait for it. It goes into no other's hand."""
    held = make_held(1, 2, 3)
    held.take("former")
    held.wait_until(5.0)
    assert held.until == 5.0
    held.take("next")
    assert held.until == float("inf")
    assert stages(held) == {1: Stage.OVERTAKEN, 2: Stage.IN_HAND, 3: Stage.WAITING}
    assert held.put_back("former", has_ended=False) == 1
    assert stages(held) == {1: Stage.HANDLED, 2: Stage.IN_HAND, 3: Stage.WAITING}
    assert held.put_back("next", has_ended=False) == 0
    assert held.until == float("-inf")
    assert held.take("next").row == 2


def test_what_is_in_doubt_is_there_or_was_handled() -> None:
    """It is asked for once more; what is in hand is not."""
    held = make_held(1, 2, 3)
    held.take("reader")
    held.doubt()
    held.doubt()
    assert held.not_to_be_fetched == {1}
    held.confirm(1)
    held.confirm(2)
    assert stages(held) == {1: Stage.IN_HAND, 2: Stage.WAITING, 3: Stage.IN_DOUBT}
    held.drop_doubtful()
    assert stages(held) == {1: Stage.IN_HAND, 2: Stage.WAITING}
    assert [one.row for one in held.clear()] == [2]


def test_what_has_expired_is_left_for_the_sweep() -> None:
    """It counts what has a row; in doubt or not."""
    line = Line(Waiting())
    held = Held(line)
    assert held.expire(100.0) == 0
    add(held, 1)
    held.doubt()
    add(held, 2, expires_at=20.0)
    line.append(Message("memory", 10.0))
    assert held.expire(10.0) == 0, "equality is not expired"
    assert held.expire(10.1) == 1
    assert stages(held) == {1: Stage.EXPIRED, 2: Stage.WAITING}
    held.take("reader")
    assert held.expire_in_hand("reader") == 0
    line.append(Message("memory", 10.0))
    held.take("reader")
    assert held.expire_in_hand("reader") == 1
    assert stages(held) == {1: Stage.EXPIRED, 2: Stage.EXPIRED}
    assert held.depart(moved=False) == set()
    held.swept()
    assert len(held) == 0


@pytest.mark.parametrize("is_finished", [True, False])
def test_another_sessions_message_is_not_acknowledged(*, is_finished: bool) -> None:
    """A row of this session may have its id."""
    held = make_held(1, 2)
    held.take("former")
    held.begin_life()
    add(held, 3)
    assert [one.row for one in held.drop_earlier_lives()] == [2]
    assert stages(held) == {3: Stage.WAITING}
    add(held, 1)
    if is_finished:
        assert held.finish("former")
    else:
        assert held.put_back("former", has_ended=False) == 0
    assert stages(held) == {3: Stage.WAITING, 1: Stage.WAITING}


@pytest.mark.parametrize("is_finished", [True, False])
def test_after_a_rewind_no_reader_has_a_row(*, is_finished: bool) -> None:
    """Neither the last one nor a former one: the database may give their ids to others."""
    held = make_held(1, 2)
    held.take("former")
    held.take("next")
    held.forget_rows()
    add(held, 1)
    add(held, 2)
    for reader, dropped in (("former", 1), ("next", 0)):
        if is_finished:
            assert held.finish(reader)
        else:
            assert held.put_back(reader, has_ended=False) == dropped
    assert stages(held) == {1: Stage.WAITING, 2: Stage.WAITING}


@pytest.mark.parametrize(("moved", "rows", "dropped"), [(True, {1, 4}, 0), (False, {1, 2, 4}, 1)])
def test_what_was_acknowledged_at_the_end_is_dropped_if_it_comes_back(
    *, moved: bool, rows: set[int], dropped: int
) -> None:
    """Nobody delivers it once more; what was in hand of a session that has moved, somebody does."""
    held = make_held(4, 1, 2, 3)
    held.take("former")
    held.finish("former")
    held.take("former")
    held.take("next")
    assert [one.row for one in held.clear()] == [3]
    assert held.depart(moved=moved) == rows
    assert held.put_back("former", has_ended=True) == 1
    assert held.put_back("next", has_ended=True) == dropped


@pytest.mark.parametrize("moved", [True, False])
def test_what_is_finished_after_the_end_was_handled(*, moved: bool) -> None:
    """Whether it was acknowledged before or not."""
    held = make_held(1, 2)
    held.take("former")
    held.take("next")
    held.depart(moved=moved)
    assert held.finish("former")
    assert held.finish("next")
    assert stages(held) == {1: Stage.HANDLED, 2: Stage.HANDLED}


def test_a_reader_may_finish_what_it_took_in_the_life_that_goes_on() -> None:
    """The row was deleted and written anew while the session was held; all keep their stages."""
    held = make_held(9, 1, 2, 3)
    held.take("former")
    held.finish("former")
    held.take("former")
    held.take("next")
    held.doubt()
    assert held.drop_earlier_lives() == []
    assert stages(held) == {1: Stage.OVERTAKEN, 2: Stage.IN_HAND, 3: Stage.IN_DOUBT}
    assert held.finish("former")
    assert held.finish("next")
    assert stages(held) == {1: Stage.HANDLED, 2: Stage.HANDLED, 3: Stage.IN_DOUBT}
