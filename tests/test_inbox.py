"""One inbox at its edges: where its bounds are, what goes before what, who is woken."""

import pytest
import trio
import trio.testing

from trio_sessions._messages import _inbox
from trio_sessions._messages._fetching import MOST, Asked
from trio_sessions._messages._held import Stage
from trio_sessions._messages._inbox import Inbox, State
from trio_sessions.types import StoredMessage

SIZE = 1000
READER = "reader"


def make_inbox(*, is_read: bool = True) -> Inbox:
    inbox = Inbox("s", size=SIZE, message_ttl=60.0, storing={})
    if is_read:
        inbox.open(READER, 0.0)
    return inbox


def row(number: int, age: float = 0.0, payload: str | None = None) -> StoredMessage:
    return StoredMessage(id=number, payload=payload or f"{number}", age=age)


def ask(inbox: Inbox, now: float = 0.0, most: int = SIZE) -> Asked:
    asked = inbox.ask(most, now)
    assert asked is not None
    return asked


def fill(inbox: Inbox, *rows: StoredMessage, now: float = 0.0) -> None:
    """Have rows fetched, and nothing else be there."""
    inbox.answer(ask(inbox, now), rows, now)


def in_hand(inbox: Inbox) -> int | None:
    """Return the row that the last reader has."""
    return None if inbox.held.in_hand is None else inbox.held.in_hand.row


def take_all(inbox: Inbox, now: float = 0.0) -> list[str]:
    taken = []
    while (message := inbox.take(READER, now)) is not None:
        assert inbox.finish(READER)
        taken.append(message.payload)
    return taken


# ---- what is taken ----


def test_what_is_full_takes_nothing_more() -> None:
    """To the last byte; what is sent then waits in the store."""
    inbox = make_inbox()
    fill(inbox)
    assert inbox.accept("x" * (SIZE - 10), 0.0)
    assert inbox.accept("y" * 10, 0.0)
    assert not inbox.accept("z", 0.0)
    assert [len(one) for one in take_all(inbox)] == [SIZE - 10, 10]


# ---- what is fetched ----


def test_more_is_fetched_when_half_of_the_memory_is_free() -> None:
    """So that a reader need not wait, and no fetch is for one message."""
    inbox = make_inbox()
    fill(inbox, *(row(number) for number in range(1, MOST // 2 + 2)))
    assert inbox.state is State.CAUGHT_UP
    assert not inbox.should_fetch, "nothing is waiting"
    inbox.expect_more()
    assert not inbox.should_fetch, "one too many is here"
    message = inbox.take(READER, 0.0)
    assert message is not None
    assert inbox.should_fetch
    inbox.put_back(READER)
    assert not inbox.should_fetch


def test_what_is_early_takes_no_room_from_older_rows() -> None:
    """Nothing goes out before them: so they are fetched, however much is kept apart."""
    inbox = make_inbox()
    for number in range(MOST):
        assert inbox.accept(f"{number}", 0.0)
    assert not inbox.accept("one too many", 0.0)
    assert inbox.should_fetch
    assert ask(inbox).wanted.count == MOST


def test_nobody_reads_and_nothing_is_fetched() -> None:
    """Nor by two at once, nor of a session that has ended."""
    assert not make_inbox(is_read=False).should_fetch
    inbox = make_inbox()
    assert inbox.should_fetch
    asked = ask(inbox)
    assert not inbox.should_fetch
    assert inbox.ask(SIZE, 0.0) is None
    inbox.give_up_fetch(asked)
    assert inbox.should_fetch
    inbox.end()
    assert not inbox.should_fetch
    assert inbox.ask(SIZE, 0.0) is None


def test_a_fetch_asks_for_what_there_is_room_for() -> None:
    """In messages and in bytes; what is here already is named."""
    inbox = make_inbox()
    fill(inbox, row(1, payload="x" * 300), row(2, payload="y" * 100))
    inbox.expect_more()
    wanted = ask(inbox, most=SIZE).wanted
    assert wanted.session_id == "s"
    assert wanted.held == {1, 2}
    assert (wanted.count, wanted.size) == (MOST - 2, SIZE - 400)
    other = make_inbox()
    assert ask(other, most=10).wanted.size == 10


def test_where_there_is_no_room_it_is_asked_again_later() -> None:
    """A single message may be larger than the room; then nothing is fetched until it is gone."""
    inbox = make_inbox()
    fill(inbox, row(1, payload="x" * SIZE))
    assert inbox.ask(SIZE, 0.0) is None
    assert inbox.should_fetch, "what may be in the store is not forgotten"
    assert take_all(inbox) == ["x" * SIZE]
    assert ask(inbox).wanted.size == SIZE


def test_a_whole_answer_may_not_have_been_all() -> None:
    """As many messages, or as many bytes, as were asked for: there may be more."""
    full, fat, all_ = make_inbox(), make_inbox(), make_inbox()
    full.answer(ask(full), [row(number) for number in range(1, MOST + 1)], 0.0)
    fat.answer(ask(fat), [row(1, payload="x" * SIZE)], 0.0)
    all_.answer(ask(all_), [row(1, payload="x" * (SIZE - 1))], 0.0)
    assert [one.state for one in (full, fat, all_)] == [
        State.BEHIND,
        State.BEHIND,
        State.CAUGHT_UP,
    ]


def test_a_bell_during_a_fetch_is_for_what_came_later() -> None:
    """An answer that was all has not seen it."""
    inbox = make_inbox()
    asked = ask(inbox)
    inbox.expect_more()
    inbox.answer(asked, [], 0.0)
    assert inbox.should_fetch
    fill(inbox)
    assert not inbox.should_fetch


def test_an_answer_that_comes_too_late_is_not_taken() -> None:
    """Nor ends its failure the fetch that was begun since."""
    inbox = make_inbox()
    late = ask(inbox)
    inbox.add_again(detach=False, seal=False, until=0.0)
    asked = ask(inbox)
    inbox.give_up_fetch(late)
    inbox.answer(late, [row(1)], 0.0)
    assert len(inbox) == 0
    inbox.answer(asked, [row(2), row(2)], 0.0)
    assert take_all(inbox) == ["2"]


def test_what_is_not_acknowledged_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is fetched, until something is; and its reader is told."""
    monkeypatch.setattr(_inbox, "_UNACKNOWLEDGED", 3)
    inbox = make_inbox()
    fill(inbox, row(1), row(2))
    assert take_all(inbox) == ["1", "2"]
    inbox.expect_more()
    assert inbox.should_fetch
    fill(inbox, row(3))
    assert take_all(inbox) == ["3"]
    inbox.expect_more()
    assert not inbox.should_fetch
    arrival = inbox.arrival()
    inbox.acknowledged([3])
    assert arrival.is_set()
    assert inbox.should_fetch
    quiet = inbox.arrival()
    inbox.acknowledged([2])
    assert not quiet.is_set(), "its reader had no need to wait"
    assert inbox.held.rows(*Stage) == {1}


# ---- what goes out ----


@pytest.mark.parametrize(("age", "order"), [(0.95, ["1", "early"]), (0.85, ["early", "1"])])
def test_a_row_that_is_younger_for_sure_goes_later(age: float, order: list[str]) -> None:
    """A tenth of a second is not sure: clocks are rounded."""
    inbox = make_inbox()
    assert inbox.accept("early", 1.0)  # the row was stored 0.05 s later, or 0.15 s
    fill(inbox, row(1, age=age), now=2.0)
    assert take_all(inbox, 2.0) == order


def test_rows_of_this_worker_that_were_stored_later_go_later() -> None:
    """By their ids: the first that was stored since is the boundary."""
    inbox = make_inbox()
    assert inbox.accept("early", 0.0)
    inbox.note_row(5)
    inbox.note_row(7)
    fill(inbox, row(4, age=100.0), row(5, age=100.0), row(7, age=100.0))
    assert take_all(inbox) == ["4", "early", "5", "7"]


def test_what_was_put_back_goes_first() -> None:
    """Before rows that were fetched meanwhile, and before what is early."""
    inbox = make_inbox()
    fill(inbox, row(1), row(2))
    message = inbox.take(READER, 0.0)
    assert message is not None
    inbox.open(READER, 0.0)
    assert inbox.accept("early", 0.0)
    assert inbox.put_back(READER) == 0
    fill(inbox, row(3, age=50.0))
    assert take_all(inbox) == ["1", "2", "3", "early"]


def test_in_a_silent_store_what_is_here_waits_for_a_second() -> None:
    """From the opening, and from each answer; a failure ends the wait."""
    inbox = make_inbox()
    assert inbox.accept("early", 0.0)
    assert not inbox.can_take(0.99)
    assert inbox.may_change_at(0.5) == 1.0
    assert inbox.can_take(1.0)
    assert inbox.may_change_at(1.0) == float("inf")
    full = [row(number, age=50.0) for number in range(1, MOST + 1)]
    inbox.answer(ask(inbox, 0.9), full, 0.9)
    assert take_all(inbox, 1.8) == [f"{number}" for number in range(1, MOST + 1)]
    assert not inbox.can_take(1.8)
    inbox.give_up_fetch(ask(inbox, 1.8))
    assert inbox.can_take(1.8)
    assert inbox.take(READER, 1.8) is not None
    assert inbox.state is State.MORE


def test_the_next_reader_waits_for_what_the_former_has_in_hand() -> None:
    """Until that is back, or too late."""
    inbox = make_inbox()
    fill(inbox, row(1), row(2))
    former = inbox.take(READER, 0.0)
    assert former is not None
    assert in_hand(inbox) == 1
    assert inbox.held.stage(1) is Stage.IN_HAND
    inbox.add_again(detach=True, seal=False, until=5.0)
    inbox.open("next", 0.0)
    fill(inbox)
    assert not inbox.can_take(4.9)
    assert inbox.may_change_at(0.0) == 5.0
    assert inbox.can_take(5.0)
    younger = inbox.take("next", 5.0)
    assert younger is not None
    assert younger.payload == "2"
    assert inbox.held.stage(1) is Stage.OVERTAKEN
    assert inbox.put_back(READER) == 1, "it is too late"
    assert inbox.held.stage(1) is Stage.HANDLED
    assert in_hand(inbox) == 2, "the hand is the other one's"
    assert inbox.put_back("next") == 0
    assert in_hand(inbox) is None
    assert inbox.held.stage(2) is Stage.WAITING


def test_what_has_expired_is_taken_out() -> None:
    """Equality is not expired."""
    inbox = make_inbox()
    fill(inbox)
    assert inbox.accept("a", 1.0)
    assert inbox.accept("b", 2.0)
    assert inbox.held.expire(61.0) == 0
    assert inbox.held.expire(61.1) == 1
    assert (len(inbox), take_all(inbox, 61.1)) == (1, ["b"])


def test_after_the_end_nothing_is_taken() -> None:
    """Nor accepted, nor put back, nor waited for."""
    inbox = make_inbox()
    fill(inbox, row(1), row(2))
    message = inbox.take(READER, 0.0)
    assert message is not None
    assert in_hand(inbox) == 1
    arrival = inbox.arrival()
    inbox.end()
    assert arrival.is_set()
    assert (inbox.state, inbox.reader) == (State.ENDED, None)
    assert not inbox.accept("later", 0.0)
    assert not inbox.can_take(0.0)
    assert inbox.put_back(READER) == 0, "its row waits for the next holder"
    inbox.note_row(9)
    assert [one.payload for one in inbox.held.clear()] == ["2"]


def test_no_state_follows_the_end() -> None:
    """Who forgets that is told so."""
    inbox = make_inbox()
    inbox.end()
    inbox.end()
    with pytest.raises(RuntimeError, match="cannot go from ENDED to SEALED"):
        inbox._progress.go(State.SEALED)


@pytest.mark.parametrize("what", ["accept", "finish", "put back", "answer", "claimed"])
async def test_whoever_waits_is_woken(what: str) -> None:
    """By everything after which there may be something to take."""
    inbox = make_inbox()
    fill(inbox, row(1))
    message = inbox.take(READER, 0.0)
    assert message is not None
    asked = ask(inbox)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inbox.arrival().wait)
            await trio.testing.wait_all_tasks_blocked()
            match what:
                case "accept":
                    assert inbox.accept("new", 0.0)
                case "finish":
                    inbox.finish(READER)
                case "put back":
                    inbox.put_back(READER)
                case "answer":
                    inbox.answer(asked, [], 0.0)
                case "claimed":
                    inbox.claimed(is_other=False, has_moved=False, now=0.0)


# ---- how much room there is, exactly ----


@pytest.mark.parametrize(("here", "should_fetch"), [(MOST // 2, True), (MOST // 2 + 1, False)])
def test_rows_of_before_are_fetched_when_half_is_free(*, here: int, should_fetch: bool) -> None:
    """The same where it is opened anew, and older rows may wait."""
    inbox = make_inbox()
    fill(inbox, *(row(number) for number in range(1, here + 1)))
    inbox.open(object(), 0.0)
    assert inbox.state is State.BEHIND
    assert inbox.should_fetch is should_fetch


def test_the_last_place_and_the_last_byte_are_used() -> None:
    """And no more than that."""
    inbox = make_inbox()
    fill(inbox, *(row(number) for number in range(1, MOST)))
    inbox.expect_more()
    wanted = ask(inbox, most=10_000).wanted
    assert wanted.count == 1
    inbox.answer(Asked(wanted, 0.0, 0, 0), [], 0.0)  # another one's
    full = make_inbox()
    full.answer(ask(full), [row(number) for number in range(1, MOST + 1)], 0.0)
    assert full.ask(SIZE, 0.0) is None
    fat = make_inbox()
    fill(fat, row(1, payload="x" * (SIZE - 1)))
    fat.expect_more()
    assert ask(fat).wanted.size == 1


def let_silence_pass(inbox: Inbox) -> None:
    """Have something early go out, for the store says nothing."""
    take_all(inbox)
    assert inbox.accept("early", 0.0)
    assert take_all(inbox, 100.0) == ["early"]
    assert inbox.state is State.MORE


def test_what_may_wait_in_the_store_outlasts_its_silence() -> None:
    """After an answer that was not all, where there was no room, and after a claim."""
    full, fat, claimed = make_inbox(), make_inbox(), make_inbox()
    for inbox in (full, fat, claimed):
        fill(inbox, row(1, payload="x" * (SIZE - 1)))
        assert not inbox.should_fetch
        assert inbox.accept("xx", 0.0)
        inbox.add_again(detach=False, seal=False, until=0.0)
    assert fat.ask(SIZE, 0.0) is None
    take_all(fat)
    take_all(full)
    full.answer(ask(full), [row(number) for number in range(2, MOST + 2)], 0.0)
    claimed.claimed(is_other=False, has_moved=False, now=0.0)
    for inbox in (full, fat, claimed):
        let_silence_pass(inbox)
        assert inbox.should_fetch


# ---- rows of this worker ----


def test_a_row_of_this_worker_is_fetched_before_anything_is_accepted() -> None:
    """It goes out in its turn; the newest of them is enough, for they become visible in order."""
    inbox = make_inbox()
    fill(inbox)
    inbox.note_row(5)
    inbox.note_row(7)
    inbox.note_row(6)
    assert inbox.should_fetch
    others = [row(number) for number in range(100, 100 + MOST)]
    inbox.answer(ask(inbox), [row(5), *others[1:]], 0.0)
    take_all(inbox)
    assert not inbox.accept("later", 0.0)
    inbox.answer(ask(inbox), [row(7), *others[1:]], 0.0)
    assert inbox.accept("later", 0.0)


def test_a_row_that_was_fetched_before_its_id_was_known_waits_no_more() -> None:
    """The answer to the write came after that to the fetch."""
    inbox = make_inbox()
    fill(inbox, row(5))
    inbox.note_row(5)
    assert not inbox.should_fetch
    assert inbox.accept("later", 0.0)
    assert take_all(inbox) == ["5", "later"]


# ---- when the session is added again ----


def test_a_reader_is_detached_by_another_transport_only() -> None:
    """And leaves by itself only while it reads."""
    reader, inbox = object(), make_inbox(is_read=False)
    inbox.open(reader, 0.0)
    inbox.leave(object())
    assert inbox.reader is reader
    inbox.add_again(detach=False, seal=False, until=0.0)
    assert inbox.reader is reader
    arrival = inbox.arrival()
    inbox.add_again(detach=True, seal=False, until=0.0)
    assert inbox.reader is None
    assert arrival.is_set()
    inbox.open(reader, 0.0)
    inbox.leave(reader)
    assert inbox.reader is None


@pytest.mark.parametrize(
    ("seal", "filled", "state"),
    [
        (True, True, State.SEALED),
        (True, False, State.BEHIND),
        (False, True, State.BEHIND),
    ],
)
def test_what_is_in_memory_may_be_another_sessions(
    *, seal: bool, filled: bool, state: State
) -> None:
    """Then nothing goes out until the claim has been answered."""
    inbox = make_inbox()
    fill(inbox)
    if filled:
        assert inbox.accept("a", 0.0)
    inbox.add_again(detach=False, seal=seal, until=0.0)
    assert inbox.state is state
    assert inbox.should_fetch is (state is State.BEHIND)
    inbox.claimed(is_other=False, has_moved=False, now=5.0)
    assert inbox.state is State.BEHIND
    if not filled:
        assert inbox.accept("early", 5.0)
        assert not inbox.can_take(5.9), "the store has a second from the claim on"
        assert inbox.can_take(6.0)


@pytest.mark.parametrize("is_other", [True, False])
def test_what_came_after_the_session_was_added_again_is_its_own(*, is_other: bool) -> None:
    """What came before is dropped if that was another session; so is what is in hand."""
    inbox = make_inbox()
    fill(inbox, row(1), row(2))
    inbox.note_row(9)
    former = inbox.take(READER, 0.0)
    assert former is not None
    inbox.add_again(detach=False, seal=False, until=float("inf"))
    assert not inbox.accept("behind the row", 0.0)
    dropped = inbox.claimed(is_other=is_other, has_moved=False, now=0.0)
    assert [one.payload for one in dropped] == (["2"] if is_other else [])
    assert inbox.held.rows(*Stage) == (frozenset() if is_other else {1, 2})
    assert inbox.accept("new", 0.0) is is_other, "the row that waited was the former's"
    assert in_hand(inbox) == (None if is_other else 1)
    inbox.add_again(detach=False, seal=False, until=0.0)
    assert inbox.claimed(is_other=False, has_moved=False, now=0.0) == []
    assert inbox.put_back(READER) == 0, "the store has dropped the former's"
    assert inbox.held.stage(1) is (None if is_other else Stage.WAITING)


def test_what_the_new_session_has_in_hand_stays_there() -> None:
    """Only what was handed out before it was added is not its own."""
    inbox = make_inbox()
    inbox.add_again(detach=False, seal=False, until=0.0)
    fill(inbox, row(3))
    message = inbox.take(READER, 0.0)
    assert message is not None
    inbox.claimed(is_other=True, has_moved=False, now=0.0)
    assert in_hand(inbox) == 3
    assert inbox.put_back(READER) == 0
    assert inbox.held.stage(3) is Stage.WAITING


def test_rows_that_another_worker_may_have_handled_are_asked_for_again() -> None:
    """Nothing goes out before; those that are not there any more have been handled."""
    inbox = make_inbox()
    fill(inbox, *(row(number) for number in range(1, 61)))
    inbox.claimed(is_other=False, has_moved=True, now=0.0)
    assert not inbox.can_take(100.0)
    assert inbox.should_fetch
    asked = ask(inbox)
    assert asked.wanted.held == frozenset()
    inbox.answer(asked, [row(number) for number in range(1, 56)], 0.0)
    assert inbox.held.rows(*Stage) == set(range(1, 56))
    inbox.open(object(), 0.0)
    assert not inbox.should_fetch, "nothing is in doubt any more, and much is here"
    assert ask(inbox).wanted.held == set(range(1, 56))


def test_what_is_in_doubt_takes_no_room() -> None:
    """All of it can come back, and one more that tells that there is more."""
    inbox = make_inbox()
    fill(inbox, row(1), row(2))
    for text in "abc":
        assert inbox.accept(text, 0.0)
    inbox.claimed(is_other=False, has_moved=True, now=0.0)
    wanted = ask(inbox).wanted
    assert (wanted.count, wanted.size) == (MOST - 3, SIZE)
    full = make_inbox()
    full.answer(ask(full), [row(number) for number in range(1, MOST + 1)], 0.0)
    full.claimed(is_other=False, has_moved=True, now=0.0)
    wanted = ask(full, most=50).wanted
    assert (wanted.count, wanted.size) == (MOST + 1, 50)


def test_after_a_rewind_an_id_says_nothing_any_more() -> None:
    """What is here is in memory only; the same ids may be given to other messages."""
    inbox = make_inbox()
    fill(inbox, row(1), row(2))
    assert inbox.take(READER, 0.0) is not None
    inbox.note_row(9)
    late = ask(inbox)
    inbox.forget_rows()
    assert len(inbox.held) == 0
    assert inbox.finish(READER)
    assert not inbox.has_handled, "there is no row to acknowledge"
    inbox.answer(late, [row(1, payload="of before")], 0.0)
    assert inbox.accept("new", 0.0), "no row of this worker waits"
    inbox.expect_more()
    fill(inbox, row(1, payload="another"))
    assert take_all(inbox) == ["2", "new", "another"]


def test_a_single_row_in_doubt_is_asked_for_however_full_it_is() -> None:
    """Nothing goes out before."""
    inbox = make_inbox()
    fill(inbox, row(1))
    for number in range(MOST // 2 + 1):
        assert inbox.accept(f"{number}", 0.0)
    inbox.claimed(is_other=False, has_moved=True, now=0.0)
    assert inbox.held.count(Stage.IN_DOUBT) == 1
    assert inbox.should_fetch


# ---- the door to the store ----


def test_no_fetch_meets_a_message_on_its_way() -> None:
    """Its row might be found before its id is known, and be taken for an older one."""
    storing: dict[str, int] = {}
    inbox = Inbox("s", size=SIZE, message_ttl=60.0, storing=storing)
    inbox.open(READER, 0.0)
    assert inbox.accept("early", 0.0)
    storing["s"] = 1
    assert not inbox.should_fetch
    assert inbox.ask(SIZE, 0.0) is None
    del storing["s"]
    assert inbox.should_fetch


@pytest.mark.parametrize(
    ("early", "asked", "waits"), [(True, True, True), (True, False, False), (False, True, False)]
)
async def test_a_message_waits_for_a_fetch_that_might_find_it(
    *, early: bool, asked: bool, waits: bool
) -> None:
    """While something is early without a boundary; whoever comes later waits behind it."""
    inbox = make_inbox()
    if early:
        assert inbox.accept("early", 0.0)
    fetch = ask(inbox) if asked else None
    through: list[str] = []

    async def store(name: str) -> None:
        await inbox.wait_until_may_store()
        through.append(name)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store, "a")
            await trio.testing.wait_all_tasks_blocked()
            assert through == ([] if waits else ["a"])
            if fetch is not None:
                inbox.give_up_fetch(fetch)
            await store("b")
        assert through == ["a", "b"]


def test_what_is_taken_out_is_in_order() -> None:
    """What was put back, what is ready, what is early."""
    inbox = make_inbox()
    fill(inbox, row(1), row(2))
    assert inbox.take(READER, 0.0) is not None
    inbox.open(READER, 0.0)
    assert inbox.accept("early", 0.0)
    assert inbox.put_back(READER) == 0
    assert [one.payload for one in inbox.held.clear()] == ["1", "2", "early"]
